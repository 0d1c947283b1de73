/* Kernel stacks, recognised instead of unwound again.
 *
 * Unwinding a kernel stack by its ORC tables takes 1.5 to 2.5 us, the largest part of what a
 * scheduler event costs, and a thread mostly waits where it waited before. So when a stack was
 * unwound, user space finds out where on it the return addresses lie (bpflame.profilers.recall) and
 * notes these places. When a stack of the same size is met again, in the same system call, the words
 * there are compared; if all are the same, so is the stack.
 *
 * That is not a guess. The frame of a function is found from its own code address and stack pointer
 * alone: an ORC entry gives a fixed distance to the next return address. The first address and its
 * place are fixed, our caller in the kernel; from there on equal words in equal places are equal
 * frames, by induction. Two kinds of frames have no fixed distance: registers saved by an exception
 * in kernel code (such stacks are not noted), and frames of variable size (alloca, as of
 * CONFIG_RANDOMIZE_KSTACK_OFFSET): these shift all that lies below, also the first address, by whose
 * place stacks are told apart.
 *
 * With -DRECALL_CHECK every stack is unwound all the same, and it is counted how often the two agree.
 */
#ifndef BPFLAME_RECALL_H
#define BPFLAME_RECALL_H

#include "counters.h"
#include "stack.h"

#define RECALL_FRAMES 32
#define RECALL_WORDS 256   /* a power of two */
#define STACK_BYTES 0x4000 /* stacks are aligned to this, or to more: the kernel's THREAD_SIZE */

/* Where the return addresses of a stack lie, in words above the context. */
struct recall {
	u64 id; /* the stack's; 0: it cannot be recognised */
	u32 frames;
	u32 words; /* how far up they lie */
	u64 ip[RECALL_FRAMES];
	u16 at[RECALL_FRAMES];
};

/* A stack for user space to look at. */
struct lesson {
	u64 id;
	u64 count;
	u64 word[RECALL_WORDS];
};

/* Parts of the salt: at one place in one system call a task wakes another, blocks, or is preempted. */
enum recall_salt {
	RECALL_BLOCKED,
	RECALL_RUNNABLE,
	RECALL_WAKING,
};

struct recall_scratch {
	volatile u64 here;
	struct lesson lesson;
};

BPF_TABLE("lru_hash", u64, struct recall, recalls, RECALL_ENTRIES);
BPF_HASH(lessons, u64, struct lesson, LESSON_ENTRIES);
BPF_PERCPU_ARRAY(recall_scratch, struct recall_scratch, 1);

/* `here` is the address of a raw tracepoint's context: it lies on the stack, in the frame of our
 * caller in the kernel. `salt` tells apart what may well differ at the same place. */
static __always_inline u64 recall_key(u64 here, u64 salt)
{
	u64 hash = (here & (STACK_BYTES - 1)) ^ salt << 16;

	hash *= 0xff51afd7ed558ccdULL;
	return hash ^ hash >> 32;
}

/* A number of words, in a way that the verifier can follow. */
static __always_inline u64 recall_bounded(u64 count)
{
	__asm__ volatile("" : "+r"(count));
	return count > RECALL_WORDS ? RECALL_WORDS : count;
}

/* The id of the stack, if it is the one that was noted; else STACK_NONE. */
static __always_inline u64 recall_find(u64 here, const struct recall *noted, u64 *word)
{
	u64 count = recall_bounded(noted->words);

	if (!noted->id || bpf_probe_read_kernel(word, count * sizeof(u64), (void *)here))
		return STACK_NONE;
	for (u32 i = 0; i < RECALL_FRAMES; i++) {
		if (i >= noted->frames)
			break;
		if (word[noted->at[i] & (RECALL_WORDS - 1)] != noted->ip[i])
			return STACK_NONE;
	}
	return noted->id;
}

static __always_inline void recall_teach(u64 here, u64 key, u64 id, struct lesson *lesson)
{
	u64 count = recall_bounded((STACK_BYTES - (here & (STACK_BYTES - 1))) / sizeof(u64));

	lesson->id = id;
	lesson->count = count;
	/* Stacks of interrupts end where they please: then there is nothing to learn. */
	if (bpf_probe_read_kernel(lesson->word, count * sizeof(u64), (void *)here))
		lesson->count = 0;
	lessons.insert(&key, lesson); /* no room: another time */
}

/* The id of the current kernel stack. If `interrupt` is not NULL, the stack is cut where an
 * interrupt began, and that is told. */
static __always_inline u64 kernel_stack_id(void *ctx, u64 salt, bool *interrupt)
{
	u32 zero = 0;
	struct stack *scratch = stack_scratch.lookup(&zero);
	struct recall_scratch *recall = recall_scratch.lookup(&zero);

	if (!scratch || !recall)
		return STACK_LOST;
	/* Through memory: the verifier allows no arithmetic on a context. */
	recall->here = (u64)ctx;

	u64 here = recall->here, key = recall_key(here, salt), recalled = STACK_NONE;
	struct recall *noted = recalls.lookup(&key);

	if (noted) {
		recalled = recall_find(here, noted, recall->lesson.word);
#ifndef RECALL_CHECK
		if (recalled != STACK_NONE)
			return recalled;
#endif
	}

	bool cut = false;
	u64 id = stack_take(ctx, 0, scratch, interrupt ? &cut : NULL);

	if (interrupt)
		*interrupt = cut;
#ifdef RECALL_CHECK
	if (recalled != STACK_NONE)
		count_event(recalled == id ? COUNTER_RECALLED : COUNTER_MISTAKEN, 1);
#endif
	/* One that cannot be recognised is not looked at again; and two that take turns at one place
	 * are looked at now and then. */
	if (id >= STACK_FIRST_ID && !cut &&
	    (!noted || (noted->id && (bpf_get_prandom_u32() & 15) == 0)))
		recall_teach(here, key, id, &recall->lesson);
	return id;
}

#endif
