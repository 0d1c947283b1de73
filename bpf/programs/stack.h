/* Stacks, kept by content.
 *
 * BPF_MAP_TYPE_STACK_TRACE has one slot for each hash bucket: a stack that collides is lost for
 * good, and a hot stack loses all of its samples. Here a stack is unwound into per-CPU scratch and
 * kept in a hash map under a 64-bit hash of its content. User space drains the map while the
 * recording goes on. Two different stacks share a hash with probability n^2 / 2^65: 3e-8 for a
 * million stacks.
 */
#ifndef BPFLAME_STACK_H
#define BPFLAME_STACK_H

#include "counters.h"

#define MAX_DEPTH 127 /* kernel.perf_event_max_stack, the kernel's default */

#define STACK_NONE 0 /* there was none to take */
#define STACK_LOST 1 /* there was one, and no room for it */
#define STACK_FIRST_ID 2

struct stack {
	u64 depth;
	u64 ip[MAX_DEPTH]; /* leaf first; zero beyond depth */
};

BPF_PERCPU_ARRAY(stack_scratch, struct stack, 1);
BPF_HASH(stacks, u64, struct stack, STACK_ENTRIES);

static __always_inline u64 stack_hash(const struct stack *stack)
{
	u64 hash = stack->depth;

	for (u32 i = 0; i < MAX_DEPTH; i++) {
		if (i >= stack->depth)
			break;
		/* One round of the multiply-xorshift in MurmurHash3's finalizer for each word. */
		hash = (hash ^ stack->ip[i]) * 0xff51afd7ed558ccdULL;
		hash ^= hash >> 32;
	}
	hash *= 0xc4ceb9fe1a85ec53ULL;
	hash ^= hash >> 33;
	return hash < STACK_FIRST_ID ? hash + STACK_FIRST_ID : hash;
}

/* Unwinds the current stack, keeps it, and returns its id. flags: BPF_F_USER_STACK or 0. */
static __always_inline u64 stack_id(void *ctx, u64 flags)
{
	u32 zero = 0;
	struct stack *scratch = stack_scratch.lookup(&zero);

	if (!scratch)
		return STACK_LOST;

	/* The helper zeroes what it does not fill, so equal stacks are equal bytes. */
	long bytes = bpf_get_stack(ctx, scratch->ip, sizeof(scratch->ip), flags);

	if (bytes <= 0)
		return STACK_NONE;
	scratch->depth = (u64)bytes / sizeof(u64);

	u64 id = stack_hash(scratch);

	/* Look up first: an insert takes the bucket's lock, a lookup does not. */
	if (stacks.lookup(&id))
		return id;

	long error = stacks.insert(&id, scratch);

	if (!error) {
		count_event(COUNTER_NEW_STACKS, 1);
	} else if (error != -EEXIST) {
		count_event(COUNTER_LOST_STACKS, 1);
		return STACK_LOST;
	}
	return id;
}

#endif
