/* The user stack of the current task, from the registers it entered the kernel with.
 *
 * The same walk along frame pointers as the kernel's perf_callchain_user(), which bpf_get_stack()
 * uses: it reads each frame by itself, this one most frames at once. Only for programs at events in
 * the task's own context: what an interrupt interrupted has other registers. Reading user memory
 * there is safe also on kernels that `bpflame doctor` warns of.
 *
 * Where the registers' layout is not known here, or for 32-bit programs, it is bpf_get_stack().
 */
#ifndef BPFLAME_USER_STACK_H
#define BPFLAME_USER_STACK_H

#include "registers.h"
#include "stack.h"

BPF_PERCPU_ARRAY(user_window, struct window, 1);

static __always_inline u64 user_stack_id(void *ctx, const struct entry_regs *regs)
{
	u32 zero = 0;
	struct stack *stack = stack_scratch.lookup(&zero);
	struct window *window = user_window.lookup(&zero);

	if (!stack || !window)
		return STACK_LOST;
	if (regs->cs != USER_CS || !regs->sp) /* or threads of io_uring, which have no user code */
		return stack_take(ctx, BPF_F_USER_STACK, stack, NULL);

	u64 hash = 0, base = regs->sp & ~7ULL, fp = regs->bp, size = sizeof(*window);

	/* The top of the stack may be near. */
	if (bpf_probe_read_user(window, sizeof(*window), (void *)base)) {
		size = sizeof(*window) / 8;
		if (bpf_probe_read_user(window, sizeof(*window) / 8, (void *)base))
			size = 0;
	}
	stack->ip[0] = regs->ip;
	HASH_ROUND(hash, regs->ip);

	u32 depth = 1;

	for (u32 i = 1; i < USER_DEPTH; i++) {
		u64 frame[2], offset = fp - base;

		if (offset + sizeof(frame) <= size && offset < size && !(offset & 7)) {
			u32 at = offset / sizeof(u64);

			frame[0] = window->word[at & (WINDOW_WORDS - 1)];
			frame[1] = window->word[(at + 1) & (WINDOW_WORDS - 1)];
		} else if (fp < PAGE || bpf_probe_read_user(frame, sizeof(frame), (void *)fp)) {
			break; /* the first page is never mapped, and a fault costs a microsecond */
		}
		stack->ip[i] = frame[1];
		HASH_ROUND(hash, frame[1]);
		depth = i + 1;
		fp = frame[0];
	}
	stack->depth = depth;
	return stack_keep(stack, hash);
}

#endif
