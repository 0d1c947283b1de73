/* Tells of each thread that is not on a CPU: who it is, its kernel stack, and where it left user
 * space. A BPF task iterator: reading its file descriptor runs the program for one task at a time.
 *
 * Compile-time choices, given as -D:
 *   TASK_PID TASK_TGID TASK_COMM TASK_STATE TASK_FLAGS  offsets from BTF
 *   TASK_ON_CPU TASK_EXIT_STATE TASK_NVCSW TASK_NIVCSW
 *   USER_STACKS               take the registers of user space ...
 *   REGS_IP                   ... at this offset in struct pt_regs, and on x86-64 also
 *   REGS_BP REGS_CS REGS_SP REGS_ORIG_AX REGS_CX
 *   KERNEL_STACKS             take kernel stacks
 *   ORC_IPS ORC_ROWS          the kernel's unwind table, if the scheduler's frames can be had,
 *   ORC_COUNT ORC_STEP           its rows, and the greatest power of two below them,
 *   SCHED_START SCHED_END        where its functions are,
 *   TASK_SP FRAME_BP FRAME_IP    and offsets from BTF
 */
#define MAX_DEPTH 127 /* as in stack.h */
#define LEAF_DEPTH 9

#define DEAD 0xb0 /* EXIT_DEAD | EXIT_ZOMBIE | TASK_DEAD, include/linux/sched.h */

/* struct bpf_iter_meta and bpf_iter__task, without the kernel's headers. */
struct iterator_meta {
	void *seq;
	u64 session_id;
	u64 seq_num;
};

struct bpf_iter__task {
	struct iterator_meta *meta;
	void *task;
};

/* The order is that of bpflame.bpf.task_iterator. */
struct thread {
	u32 tid;
	u32 pid;
	u32 state;
	u32 flags;
	u64 switches; /* how often it left a CPU */
	u64 ip;       /* of user space */
	u64 bp;
	u64 sp;
	u64 called; /* it left user space by a system call */
	u32 cs;
	s32 depth; /* of kernel; an error if negative */
	char comm[16];
	u64 leaf[LEAF_DEPTH]; /* the scheduler's frames, and the one after them; zero beyond */
	u64 kernel[MAX_DEPTH];
};

BPF_PERCPU_ARRAY(scratch, struct thread, 1);

#define READ(to, from) bpf_probe_read_kernel(&(to), sizeof(to), (void *)(from))

static __always_inline u64 switches(void *task)
{
	u64 voluntary = 0, involuntary = 0;

	READ(voluntary, task + TASK_NVCSW);
	READ(involuntary, task + TASK_NIVCSW);
	return voluntary + involuntary;
}

static __always_inline bool is_asleep(void *task)
{
	u32 on_cpu = 0, state = 0, exit_state = 0;

	READ(on_cpu, task + TASK_ON_CPU);
	READ(state, task + TASK_STATE);
	READ(exit_state, task + TASK_EXIT_STATE);
	return !on_cpu && !((state | exit_state) & DEAD);
}

#ifdef ORC_COUNT
/* struct orc_entry, arch/x86/include/asm/orc_types.h. */
struct orc {
	s16 sp_offset;
	s16 bp_offset;
	u8 registers; /* that the offsets are from: of sp in the low half, of bp in the high one */
	u8 kind;
};

enum orc_register {
	ORC_PREVIOUS_SP = 1,
	ORC_BP = 4,
	ORC_SP = 5,
};

/* The row for an address: the last that begins at or below it, as orc_find() in the kernel.
 *
 * Without a branch, or the verifier follows each way through the table: what it and the compiler
 * cannot know is whether a step is too far.
 */
static __always_inline void orc_find(u64 ip, struct orc *orc)
{
	u64 row = 0;

	for (u64 step = ORC_STEP; step; step /= 2) {
		u64 next = row + step;
		u64 place = ORC_IPS + next * sizeof(s32);
		s32 distance = 0;

		READ(distance, place);

		u64 too_far = ((ORC_COUNT - 1 - next) | (ip - (place + distance))) >> 63;

		asm volatile("" : "+r"(too_far));
		row += step & (too_far - 1);
	}
	READ(*orc, ORC_ROWS + row * sizeof(*orc));
}

/* The kernel leaves the scheduler's functions out of a sleeping task's stack, mutex_lock() and
 * do_nanosleep() among them, though not out of the stack at sched_switch. Here they are unwound,
 * as unwind_next_frame() does, from where __switch_to_asm() left the stack. What may go wrong shows
 * in the frame after them: it must be the first that the kernel gives.
 */
static __always_inline void take_leaf(void *task, struct thread *thread)
{
	u64 sp = 0, bp = 0, ip = 0;

	READ(sp, task + TASK_SP);
	READ(bp, sp + FRAME_BP);
	READ(ip, sp + FRAME_IP);
	sp += FRAME_IP + sizeof(ip);
	for (u32 i = 0; i < LEAF_DEPTH; i++) {
		struct orc orc = {};

		thread->leaf[i] = ip;
		if (ip < SCHED_START || ip >= SCHED_END)
			break;
		orc_find(ip - 1, &orc);
		if ((orc.registers & 15) == ORC_BP)
			sp = bp;
		else if ((orc.registers & 15) != ORC_SP)
			break;
		sp += orc.sp_offset;
		if (orc.registers >> 4 == ORC_PREVIOUS_SP)
			READ(bp, sp + orc.bp_offset);
		READ(ip, sp - sizeof(ip));
	}
}
#endif

#ifdef USER_STACKS
static __always_inline void take_registers(void *task, struct thread *thread)
{
	void *registers = (void *)bpf_task_pt_regs(task);

	READ(thread->ip, registers + REGS_IP);
#ifdef REGS_BP
	READ(thread->bp, registers + REGS_BP);
	READ(thread->cs, registers + REGS_CS);
	READ(thread->sp, registers + REGS_SP);
	u64 call = 0, after = 0;

	READ(call, registers + REGS_ORIG_AX);
	READ(after, registers + REGS_CX);
	thread->called = call != ~0ULL && after == thread->ip; /* as is_exact() in registers.h */
#endif
}
#endif

int bpf_iter__task(struct bpf_iter__task *ctx)
{
	void *seq = ctx->meta->seq;
	void *task = ctx->task; /* of the type that helpers ask for, so never cast */
	u32 zero = 0;
	struct thread *thread = scratch.lookup(&zero);
	u64 bytes = 0;

	if (!task || !thread || !is_asleep(task))
		return 0; /* no task: the end */

	__builtin_memset(thread, 0, __builtin_offsetof(struct thread, kernel));
	thread->switches = switches(task);
	READ(thread->tid, task + TASK_PID);
	READ(thread->pid, task + TASK_TGID);
	READ(thread->state, task + TASK_STATE);
	READ(thread->flags, task + TASK_FLAGS);
	READ(thread->comm, task + TASK_COMM);
#ifdef USER_STACKS
	take_registers(task, thread);
#endif
#ifdef KERNEL_STACKS
	long taken = bpf_get_task_stack(task, thread->kernel, sizeof(thread->kernel), 0);

	if (taken > 0 && taken <= sizeof(thread->kernel))
		bytes = taken;
	thread->depth = taken < 0 ? taken : bytes / sizeof(u64);
#ifdef ORC_COUNT
	take_leaf(task, thread);
#endif
#endif
	if (!is_asleep(task) || switches(task) != thread->switches)
		return 0; /* it ran meanwhile: what was taken may be of two moments */

	/* One write, so a record is there as a whole: what finds no room, the kernel asks for again. */
	bpf_seq_write(seq, thread, __builtin_offsetof(struct thread, kernel) + bytes);
	return 0;
}
