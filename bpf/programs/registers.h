/* The user registers of the current task, where the kernel gives them.
 *
 * ENTRY_REGS is defined where it does: bpf_task_pt_regs(), on x86-64.
 */
#ifndef BPFLAME_REGISTERS_H
#define BPFLAME_REGISTERS_H

/* struct pt_regs of x86-64, from rbp to rsp. */
struct entry_regs {
	u64 bp;
	u64 bx;
	u64 r11;
	u64 r10;
	u64 others[3]; /* r9, r8, rax */
	u64 cx;
	u64 dx;
	u64 si;
	u64 di;
	u64 orig_ax; /* the system call, or -1 */
	u64 ip;
	u64 cs;
	u64 flags;
	u64 sp;
};
#define ENTRY_REGS_OFFSET 32
#define NO_SYSCALL (~0ULL)
#define SYS_EXECVE 59 /* of x86-64 */
#define SYS_EXECVEAT 322
enum { /* the same by their numbers */
	REGS_BP = 4,
	REGS_R10 = 7,
	REGS_DI = 14,
	REGS_IP = 16,
	REGS_CS = 17,
	REGS_SP = 19,
};
#define USER_CS 0x33 /* of 64-bit code */
#define PAGE 4096
#define PAGE_SIZE PAGE /* as the macros of bcc call it */

/* A part of the user stack, read at once. */
#define WINDOW_WORDS 256 /* a power of two */

struct window {
	u64 word[WINDOW_WORDS];
};

static __always_inline bool is_in_exec(const struct entry_regs *regs)
{
	return regs->orig_ax == SYS_EXECVE || regs->orig_ax == SYS_EXECVEAT;
}

/* Whether the instruction pointer is where the task goes on, after an interrupt, or at the begin of a
 * program or of a signal handler. After a system call it is behind that instruction, as a return
 * address is, and rcx has it too. */
static __always_inline bool is_exact(const struct entry_regs *regs)
{
	return regs->orig_ax == NO_SYSCALL || regs->cx != regs->ip;
}

/* What the current task entered the kernel with; all zero if it has no user registers. */
static __always_inline void entry_regs_read(struct entry_regs *regs)
{
#ifdef ENTRY_REGS
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	u64 all = bpf_task_pt_regs(task);

	bpf_probe_read_kernel(regs, sizeof(*regs), (void *)(all + ENTRY_REGS_OFFSET));
#endif
}

#endif
