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

#ifndef MAX_DEPTH
#define MAX_DEPTH 127 /* kernel.perf_event_max_stack, the kernel's default */
#endif
#ifndef USER_DEPTH
#define USER_DEPTH MAX_DEPTH /* of user stacks that are walked here */
#endif

#define STACK_NONE 0 /* there was none to take */
#define STACK_LOST 1 /* there was one, and no room for it */
#define STACK_FIRST_ID 2

/* Why a user stack ends where it does. The order is that of bpflame.raw.StackEnd. */
enum stack_end {
	END_UNTOLD, /* by frame pointers, or of the kernel */
	END_COMPLETE,
	END_NO_MAPPING,
	END_NO_TABLE,
	END_UNREADABLE,
	END_NOT_GROWING,
	END_TOO_DEEP,
	END_UNSUPPORTED,
	END_NOT_READY,
	END_NARROW,
};

struct stack {
	u32 depth;
	u16 end;
	u16 guessed;       /* some frames are by frame pointer, though not all */
	u64 ip[MAX_DEPTH]; /* leaf first; beyond depth, anything */
};

/* Where return addresses in the kernel's entries for interrupts lie: RANGE(from, to) one after the
 * other. Left out when nobody asks, or when the kernel hides its addresses. */
#ifndef INTERRUPT_RANGES
#define INTERRUPT_RANGES
#endif
#ifndef USER_EXIT_RANGES /* of the way back to user code, where a task does work of its own */
#define USER_EXIT_RANGES
#endif
#define RANGE(from, to) (ip >= (from) && ip < (to)) ||

static __always_inline bool is_interrupt_entry(u64 ip)
{
	return INTERRUPT_RANGES false;
}

static __always_inline bool is_user_exit(u64 ip)
{
	return USER_EXIT_RANGES false;
}

BPF_PERCPU_ARRAY(stack_scratch, struct stack, 1);
BPF_HASH(stacks, u64, struct stack, STACK_ENTRIES);

#define HASH_ROUND(hash, word)                                                  \
	do {                                                                    \
		hash = (hash ^ (word)) * 0xff51afd7ed558ccdULL;                 \
		hash ^= hash >> 32;                                             \
	} while (0) /* of the multiply-xorshift in MurmurHash3's finalizer */

static __always_inline u64 hash_end(u64 hash, u64 length)
{
	hash = (hash ^ length) * 0xc4ceb9fe1a85ec53ULL;
	return hash ^ hash >> 33;
}

/* Keeps a stack under its hash; returns its id. */
static __always_inline u64 stack_keep(struct stack *stack, u64 hash)
{
	u64 id = hash_end(hash, *(u64 *)stack);

	if (id < STACK_FIRST_ID)
		id += STACK_FIRST_ID;
	/* Look up first: an insert takes the bucket's lock, a lookup does not. */
	if (stacks.lookup(&id))
		return id;

	long error = stacks.insert(&id, stack);

	if (!error) {
		count_event(COUNTER_NEW_STACKS, 1);
	} else if (error != -EEXIST) {
		count_event(COUNTER_LOST_STACKS, 1);
		return STACK_LOST;
	}
	return id;
}

/* Unwinds the current stack into `stack` and keeps it; returns its id.
 *
 * flags: BPF_F_USER_STACK or 0. If `interrupt` is not NULL, the stack is cut where an interrupt
 * began, since what it interrupted has nothing to do with it, and that is told. */
static __always_inline u64 stack_take(void *ctx, u64 flags, struct stack *stack, bool *interrupt)
{
	u64 hash = 0;
	bool own = false;
	long bytes = bpf_get_stack(ctx, stack->ip, sizeof(stack->ip), flags);

	if (bytes <= 0)
		return STACK_NONE;
	stack->depth = (u64)bytes / sizeof(u64);
	for (u32 i = 0; i < MAX_DEPTH; i++) {
		if (i >= stack->depth)
			break;
		HASH_ROUND(hash, stack->ip[i]);
		if (!interrupt)
			continue;
		if (is_user_exit(stack->ip[i]))
			own = true; /* the interrupt is over */
		if (!own && is_interrupt_entry(stack->ip[i])) {
			stack->depth = i + 1;
			*interrupt = true;
			break;
		}
	}
	return stack_keep(stack, hash);
}

/* The id of the current stack, kept. flags: BPF_F_USER_STACK or 0. */
static __always_inline u64 stack_id(void *ctx, u64 flags)
{
	u32 zero = 0;
	struct stack *scratch = stack_scratch.lookup(&zero);

	return scratch ? stack_take(ctx, flags, scratch, NULL) : STACK_LOST;
}

#endif
