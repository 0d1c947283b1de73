/* Stacks that cannot be unwound here, handed to user space with their registers.
 *
 * Records for the pages of a stack, and one that ends them: so a copy is as long as its stack, and
 * one for which there is no room is known by what it lacks. User space sets the budget anew each time
 * that it has read the ring: however many processes are unknown, it keeps up.
 */
#ifndef BPFLAME_COPIES_H
#define BPFLAME_COPIES_H

#include "registers.h"
#include "stack.h"

#define COPY_PAGES 24
#define COPY_MISSING 8 /* pages in a row */

/* The registers of a frame. */
struct place {
	u64 ip;
	u64 sp;
	u64 bp;
	u64 r10; /* of the leaf */
	u64 di;
	u32 exact; /* ip is no return address */
	u32 depth;
};

enum copy_kind {
	COPY_PAGE,
	COPY_END,
};

struct copy_head {
	u64 id;
	u32 kind;
	u32 size; /* of what follows */
};

struct copy_page {
	struct copy_head head;
	u64 at;
	u8 bytes[PAGE];
};

struct copy_end {
	struct copy_head head;
	struct place leaf;
	u64 born;
	u32 pid;
	u32 why; /* enum stack_end */
};

BPF_RINGBUF_OUTPUT(copies, COPY_RING_PAGES);
BPF_ARRAY(copy_budget, s64, 1);
BPF_PERCPU_ARRAY(copy_missing, u32, 1); /* here, the verifier does not follow each number */

static __always_inline u64 bounded(u64 size, u64 most)
{
	asm volatile("" : "+r"(size));
	return size > most ? most : size;
}

static __always_inline bool copy_is_affordable(void)
{
	u32 zero = 0;
	s64 *budget = copy_budget.lookup(&zero);

	if (!budget || *budget <= 0)
		return false;
	__sync_fetch_and_add(budget, -1);
	return true;
}

/* Copies registers and stack; the id of the stack that will come of it. */
static __always_inline u64 copy_stack(const struct place *leaf, u32 pid, u64 born, u32 why)
{
	u32 zero = 0, *missing = copy_missing.lookup(&zero);
	u64 at = leaf->sp, id = hash_end(bpf_ktime_get_ns() << 13 | bpf_get_smp_processor_id(), 0);

	if (!missing || !copy_is_affordable())
		return STACK_LOST;
	*missing = 0;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < COPY_PAGES; i++) {
		u64 size = bounded(PAGE - (at & (PAGE - 1)), PAGE);
		u8 first;

		/* Not there: a page that was never written to, or the end of the stack. */
		if (bpf_probe_read_user(&first, sizeof(first), (void *)at)) {
			if (++*missing > COPY_MISSING)
				break;
			at += size;
			continue;
		}

		struct copy_page *page = copies.ringbuf_reserve(sizeof(*page));

		if (!page)
			return STACK_LOST;
		if (bpf_probe_read_user(page->bytes, size, (void *)at)) {
			copies.ringbuf_discard(page, BPF_RB_NO_WAKEUP);
			break;
		}
		*missing = 0;
		page->head.id = id;
		page->head.kind = COPY_PAGE;
		page->head.size = size;
		page->at = at;
		copies.ringbuf_submit(page, BPF_RB_NO_WAKEUP);
		at += size;
	}

	struct copy_end *end = copies.ringbuf_reserve(sizeof(*end));

	if (!end)
		return STACK_LOST;
	end->head.id = id;
	end->head.kind = COPY_END;
	end->head.size = 0;
	end->leaf = *leaf;
	end->born = born;
	end->pid = pid;
	end->why = why;
	copies.ringbuf_submit(end, BPF_RB_FORCE_WAKEUP);
	return id;
}

#endif
