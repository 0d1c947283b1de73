/* Who woke a thread, who had woken that one, and so on: chains of wakers.
 *
 * A link is one waker with its stacks at the wakeup, kept once under a hash of its content. Each
 * thread carries the chain that made it run, as an array of ids of links, nearest first. When it
 * wakes another thread, that one's chain is the new link before its own: a wakeup costs the same at
 * any depth, the chain always holds the nearest CHAIN_DEPTH wakers, and nothing grows.
 *
 * (Linking each waker to its waker's own link instead would need no arrays, but such chains grow
 * without end between threads that wake each other, and cannot be cut at their far end.)
 *
 * CHAIN_DEPTH is 1 or more.
 */
#ifndef BPFLAME_WAKE_H
#define BPFLAME_WAKE_H

#include "counters.h"
#include "stack.h"
#include "process.h"
#include "recall.h"
#include "user_stack.h"

#define CHAIN_NONE 0    /* no wakeup ended it */
#define CHAIN_LOST 1    /* there was no room for it */
#define CHAIN_UNKNOWN 2 /* nobody was seen to end it */
#define CHAIN_FIRST_ID 3

enum context {
	CONTEXT_TASK,
	CONTEXT_INTERRUPT, /* also what the idle task does for one; only the kernel stack is there */
};

struct link {
	u64 user; /* stack ids */
	u64 kernel;
	struct who who;
	u32 context;
	u32 zero;
};

/* Who wakes whom. */
struct wakeup {
	u64 when;
	u32 waker; /* its tid; 0 for interrupts */
	u32 woken;
	struct link link;
};

enum chain_end {
	END_ORIGIN,  /* the last waker was not waiting itself meanwhile, or it is an interrupt */
	END_UNKNOWN, /* nobody was seen to wake the last waker */
	END_CYCLE,   /* the next is a thread that is in the chain already */
	END_DEEPER,  /* there are more than CHAIN_DEPTH */
};

struct chain {
	u64 link[CHAIN_DEPTH]; /* nearest first; zero beyond depth */
	u32 depth;
	u32 end;
};

struct wakers {
	struct chain chain;
	u32 tid[CHAIN_DEPTH]; /* whose links they are; 0 for interrupts */
};

BPF_HASH(links, u64, struct link, LINK_ENTRIES);
#if CHAIN_DEPTH > 1
BPF_HASH(chains, u64, struct chain, CHAIN_ENTRIES);
#endif

static __always_inline u64 hash_words(const u64 *words, u32 count)
{
	u64 hash = 0;

#pragma unroll
	for (u32 i = 0; i < count; i++)
		HASH_ROUND(hash, words[i]);
	hash = hash_end(hash, count);
	return hash < CHAIN_FIRST_ID ? hash + CHAIN_FIRST_ID : hash;
}

static __always_inline u64 link_keep(struct link *link)
{
	u64 id = hash_words((u64 *)link, sizeof(*link) / sizeof(u64));

	if (links.lookup(&id))
		return id;

	long error = links.insert(&id, link);

	if (!error) {
		count_event(COUNTER_NEW_LINKS, 1);
	} else if (error != -EEXIST) {
		count_event(COUNTER_LOST_WAKERS, 1);
		return CHAIN_LOST;
	}
	return id;
}

/* Makes the link of the current task, or of the interrupt that it was stopped by. */
static __always_inline void link_current(void *ctx, struct wakeup *wakeup)
{
	struct ids current = current_ids();
	struct link *link = &wakeup->link;
	struct entry_regs regs = {};
	bool interrupt = false;

	entry_regs_read(&regs);
	/* Taken whatever stacks are asked for: it tells of the interrupt. */
	link->kernel = kernel_stack_id(ctx, regs.orig_ax << 2 | RECALL_WAKING, &interrupt);
	if (current.tid == 0 || interrupt) {
		link->context = CONTEXT_INTERRUPT;
		return;
	}
	wakeup->waker = current.tid;
#ifndef KERNEL_STACKS
	link->kernel = STACK_NONE;
#endif
#if defined(USER_STACKS) && !defined(UNWIND)
	link->user = user_stack_id(ctx, &regs);
#endif
	link->who = who_is_current(current);
}

/* The id of a chain: kept under a hash of its content, or that of its only link. */
static __always_inline u64 chain_keep(struct chain *chain)
{
	if (chain->depth == 0)
		return CHAIN_UNKNOWN;
#if CHAIN_DEPTH == 1
	return chain->link[0];
#else
	u64 id = hash_words((u64 *)chain, sizeof(*chain) / sizeof(u64));

	if (chains.lookup(&id))
		return id;

	long error = chains.insert(&id, chain);

	if (!error) {
		count_event(COUNTER_NEW_CHAINS, 1);
	} else if (error != -EEXIST) {
		count_event(COUNTER_LOST_WAKERS, 1);
		return CHAIN_LOST;
	}
	return id;
#endif
}

/* Puts a waker before the chain that made it run; NULL if that has no part in the wait. */
static __always_inline void wakers_put(struct wakers *wakers, u64 link, u32 tid, u32 woken,
				       const struct wakers *before)
{
	u32 depth = 1, end = END_ORIGIN;

	wakers->chain.link[0] = link;
	wakers->tid[0] = tid;
#pragma unroll
	for (u32 i = 1; i < CHAIN_DEPTH; i++) {
		u64 next = 0;
		u32 next_tid = 0;

		if (before && end != END_CYCLE && i <= before->chain.depth) {
			next = before->chain.link[i - 1];
			next_tid = before->tid[i - 1];
			if (next_tid && (next_tid == woken || next_tid == tid)) {
				end = END_CYCLE;
				next = 0;
				next_tid = 0;
			} else {
				depth = i + 1;
			}
		}
		wakers->chain.link[i] = next;
		wakers->tid[i] = next_tid;
	}
	if (before && end != END_CYCLE)
		end = before->chain.depth >= CHAIN_DEPTH ? END_DEEPER : before->chain.end;
	wakers->chain.depth = depth;
	wakers->chain.end = end;
}

#endif
