/* Waits: sums the time that threads are off the CPU, by their stacks and by who ended the wait.
 *
 * At sched_switch the task that goes is `current`: its stacks are taken then, and the time when it
 * comes again. At sched_waking, always run by the waker, its stacks are taken for the thread it
 * names. That can be before the thread has left the CPU, so a wakeup is kept across its departure;
 * it counts if it is newer than the thread's last arrival.
 *
 * A wait is blocked time until its wakeup, and time in the run queue from there on.
 *
 * Compile-time choices, given as -D, besides those of stack.h, process.h and wake.h:
 *   STACK_ENTRIES COUNT_ENTRIES BORN_ENTRIES TARGET_ENTRIES THREAD_ENTRIES LINK_ENTRIES
 *   CHAIN_ENTRIES             room in the maps
 *   TASK_STATE                offset of the task's state, where sched_switch does not tell it
 *   TASK_COMM TASK_FLAGS TASK_START_TIME                     offsets from BTF
 *   OWN_PID                   bpflame itself, left out
 *   CHAIN_DEPTH               how many wakers in a row; 0 for none
 *   WAITER_STACKS             take the stacks of who waits
 *   USER_STACKS KERNEL_STACKS which of them, and of the waker's
 *   FILTER_PID FILTER_TID FILTER_CGROUP FOLLOW_CHILDREN      whose waits
 *   ONLY_PID                  the one pid, where FILTER_PID is for one
 *   ENTRY_REGS                the kernel has bpf_task_pt_regs(), x86-64 (registers.h)
 *   MAX_DEPTH USER_DEPTH      greatest depth of stacks
 *   UNWIND                    user stacks by tables (unwind.h), else by frame pointers
 *   RECALL_ENTRIES LESSON_ENTRIES RECALL_CHECK               (recall.h)
 *   USER_THREADS KERNEL_THREADS                              only those of such threads
 *   KEY_TID KEY_CGROUP        tell threads, cgroups apart
 *   STATES                    bits of enum state: how a wait must begin
 *   MIN_NS MAX_NS             how long it must be
 *   WHOLE_ONLY                without those that began before the recording
 *   SAMPLE_ONE_IN             follow one wait in so many
 */
#include "counters.h"
#include "stack.h"
#include "process.h"
#include "recall.h"
#include "user_stack.h"
#ifdef UNWIND
#include "unwind.h"
#endif
#if CHAIN_DEPTH > 0
#include "wake.h"
#endif

/* How a wait begins. The order is that of bpflame.profilers.waits.STATES. */
enum state {
	STATE_PREEMPTED,
	STATE_RUNNABLE, /* gave up the CPU, or is new */
	STATE_INTERRUPTIBLE,
	STATE_UNINTERRUPTIBLE,
	STATE_STOPPED,
	STATE_TRACED,
	STATE_PARKED,
	STATE_IDLE, /* uninterruptible, and no load */
};
#define ALL_STATES 0xff

/* include/linux/sched.h */
#define TASK_INTERRUPTIBLE 0x1
#define TASK_UNINTERRUPTIBLE 0x2
#define TASK_STOPPED 0x4
#define TASK_TRACED 0x8
#define TASK_PARKED 0x40
#define TASK_DEAD 0x80
#define TASK_WAKING 0x200
#define TASK_NOLOAD 0x400
#define PF_KTHREAD 0x200000

#define SYS_SCHED_YIELD 24 /* of x86-64: the registers are known there only */

enum sum {
	SUM_BLOCKED,
	SUM_RUN_QUEUE,
	SUM_PREEMPTED,
	SUM_COUNT,
};

struct count_key {
	u64 user; /* stack ids */
	u64 kernel;
	struct who who;
	u64 chain;
	u32 partial; /* the wait began before the recording */
	u32 zero;
};
#define COUNT_SUMS SUM_COUNT
#include "count.h"

struct thread {
	u64 in;    /* when it last came on a CPU; 0: not since the recording began */
	u64 out;   /* when it left it; 0: it is there, or the wait is not followed */
	u64 woken; /* when sched_waking last named it */
	u64 user;  /* its stacks when it left */
	u64 kernel;
	struct who who;
	u32 state;
	u8 kept;    /* the wait is to be counted */
	u8 partial; /* it began before the recording */
	u8 away;    /* off the CPU, followed or not; with SAMPLE_ONE_IN */
	u8 zero;
#if CHAIN_DEPTH > 0
	struct wakers wakers; /* of the wakeup at `woken` */
#endif
#if CHAIN_DEPTH > 1
	u64 caused; /* when it was last woken from a wait, and by whom */
	struct wakers cause;
#endif
};

#ifdef UNWIND
enum walker {
#ifdef WAITER_STACKS
	WALKER_SWITCH,
#endif
#if CHAIN_DEPTH > 0
	WALKER_WAKING,
#endif
	WALKER_COUNT,
};
BPF_PROG_ARRAY(walkers, WALKER_COUNT);
#endif

BPF_HASH(threads, u32, struct thread, THREAD_ENTRIES); /* by tid */
BPF_ARRAY(blank, struct thread, 1);                    /* zeros: too large for the stack */
BPF_ARRAY(began, u64, 1);                              /* when all of this was attached; 0: not yet */

static __always_inline struct thread *thread_of(u32 tid)
{
	u32 zero = 0;
	struct thread *thread = threads.lookup(&tid);

	if (thread)
		return thread;

	struct thread *none = blank.lookup(&zero);

	if (!none)
		return NULL;

	long error = threads.insert(&tid, none);

	if (error && error != -EEXIST) {
		count_event(COUNTER_LOST_THREADS, 1);
		return NULL;
	}
	return threads.lookup(&tid);
}

static __always_inline bool is_followed(void)
{
#ifdef SAMPLE_ONE_IN
	return bpf_get_prandom_u32() % SAMPLE_ONE_IN == 0;
#else
	return true;
#endif
}

/* When the recording began, ns; 0: not yet. What is seen before helps to know whom it meets. */
static __always_inline u64 recording_since(void)
{
	u32 zero = 0;
	u64 *start = began.lookup(&zero);

	return start ? *start : 0;
}

/* Whether the waits of a task may count, as far as its ids tell. */
static __always_inline bool may_count(struct ids ids)
{
	return ids.pid != OWN_PID && is_wanted(ids);
}

/* Whether anything is to be known of a task. The idle task is none. */
static __always_inline bool matters(struct ids ids)
{
#if CHAIN_DEPTH > 1
	/* Anyone may turn out to be a waker, and it is to be known what woke it. */
	return ids.tid != 0;
#else
	return ids.tid != 0 && may_count(ids);
#endif
}

static __always_inline bool is_wanted_kind(u64 task)
{
#if defined(USER_THREADS)
	return !(task_u32(task, TASK_FLAGS) & PF_KTHREAD);
#elif defined(KERNEL_THREADS)
	return task_u32(task, TASK_FLAGS) & PF_KTHREAD;
#else
	return true;
#endif
}

/* How a wait begins. `preempted` is true for a task that the kernel took the CPU from while it ran
 * kernel code; one that is runnable all the same lost it on its way back to user code. */
static __always_inline enum state state_of(bool preempted, u32 bits)
{
	if (preempted || !bits)
		return STATE_PREEMPTED;
	if (bits & TASK_INTERRUPTIBLE)
		return STATE_INTERRUPTIBLE;
	if (bits & TASK_UNINTERRUPTIBLE)
		return bits & TASK_NOLOAD ? STATE_IDLE : STATE_UNINTERRUPTIBLE;
	if (bits & TASK_STOPPED)
		return STATE_STOPPED;
	if (bits & TASK_TRACED)
		return STATE_TRACED;
	if (bits & TASK_PARKED)
		return STATE_PARKED;
	if (bits == TASK_WAKING) /* woken since, so that what it was is gone; before Linux 5.18 */
		return STATE_INTERRUPTIBLE;
	/* Those that no program waits in for long, such as that of a lock on PREEMPT_RT. */
	return STATE_UNINTERRUPTIBLE;
}

static __always_inline bool is_blocking(enum state state)
{
	return state > STATE_RUNNABLE;
}

/* Adds up a wait that is over. */
static __always_inline void count_wait(struct thread *thread, u64 now)
{
	u64 start = recording_since();

	if (!start || now <= start)
		return;
	if (thread->out < start) {
#ifdef WHOLE_ONLY
		return;
#endif
		thread->out = start;
		thread->partial = true;
	}

	struct count_key key = {
		.user = thread->user,
		.kernel = thread->kernel,
		.who = thread->who,
		.partial = thread->partial,
	};
	u64 all = now - thread->out, blocked = 0;
	bool blocking = is_blocking(thread->state);

	if ((s64)all < 0) {
		count_event(COUNTER_NEGATIVE, 1);
		return;
	}
	if (all < MIN_NS || all > MAX_NS) {
		count_event(COUNTER_FILTERED, 1);
		return;
	}
	if (blocking) {
		bool woken = thread->woken >= thread->in && thread->woken;

		blocked = !woken ? all : thread->woken > thread->out ? thread->woken - thread->out : 0;
		if (blocked > all) /* clocks of two CPUs */
			blocked = all;
#if CHAIN_DEPTH > 0
		key.chain = woken ? chain_keep(&thread->wakers.chain) : CHAIN_UNKNOWN;
#endif
	}
	count_event(COUNTER_SAMPLES, 1);

	struct sums *sums = count_sums(&key);

	if (!sums) {
		count_event(COUNTER_LOST_SAMPLES, 1);
		count_event(COUNTER_LOST_VALUE, all);
		return;
	}
	if (blocked)
		__sync_fetch_and_add(&sums->value[SUM_BLOCKED], blocked);
	__sync_fetch_and_add(&sums->value[thread->state == STATE_PREEMPTED ? SUM_PREEMPTED
									   : SUM_RUN_QUEUE],
			     all - blocked);
}

/* A wait whose end was not seen: there are kernels on which a switch now and then tells nobody. How
 * long it was blocked is known all the same, if it was woken. */
static __always_inline void count_unseen(struct thread *thread)
{
	count_event(COUNTER_MISSED, 1);
	if (is_blocking(thread->state) && thread->woken > thread->out)
		count_wait(thread, thread->woken);
}

#if defined(WAITER_STACKS) && defined(USER_STACKS) && defined(UNWIND)
int bpflame_switch_walk(struct raw_tracepoint_args *args)
{
	u32 zero = 0, tid = current_ids().tid;
	struct walk *walk = walks.lookup(&zero);
	struct thread *thread = threads.lookup(&tid);

	if (!walk)
		return 0;
	if (walk_on(walk)) {
		walkers.call(args, WALKER_SWITCH);
		walk->stack.end = END_TOO_DEEP;
	}

	u64 id = walk_end(walk);

	if (thread)
		thread->user = id;
	return 0;
}

static __always_inline void leave_walk(struct raw_tracepoint_args *args, struct thread *thread)
{
	u32 zero = 0;
	struct walk *walk = walks.lookup(&zero);
	struct entry_regs regs = {};

	if (!walk)
		return;
	entry_regs_read(&regs);
	if (walk_begin(args, walk, &regs, is_exact(&regs), thread->who.pid,
		       thread->who.born, &thread->user)) {
		walkers.call(args, WALKER_SWITCH);
		thread->user = walk_give_up(walk);
	}
}
#endif

/* `prev`, which is current, leaves the CPU. */
static __always_inline void leave(struct raw_tracepoint_args *args, struct ids ids, u32 bits,
				  u64 now)
{
	u64 task = args->arg[1];
	enum state state = state_of((bool)args->arg[0], bits);
	bool kept = may_count(ids) && (STATES >> state & 1) && is_wanted_cgroup() &&
		    is_wanted_kind(task);

#if CHAIN_DEPTH < 2
	if (!kept)
		return;
#endif

	struct thread *thread = thread_of(ids.tid);

	if (!thread)
		return;
	if (thread->out && thread->kept)
		count_unseen(thread);
	thread->away = true;
	thread->out = 0;
	if (!is_followed())
		return;
	thread->state = state;
	if (kept) {
		struct entry_regs regs = {};

		entry_regs_read(&regs);
		if (state == STATE_PREEMPTED && regs.orig_ax == SYS_SCHED_YIELD)
			thread->state = STATE_RUNNABLE;
		thread->who = who_is_current(ids);
#ifdef WAITER_STACKS
#if defined(USER_STACKS) && !defined(UNWIND)
		thread->user = user_stack_id(args, &regs);
#endif
#ifdef KERNEL_STACKS
		/* Read anew: the verifier would follow each state through the rest by itself. */
		bool blocking = is_blocking(*(volatile u32 *)&thread->state);

		thread->kernel = kernel_stack_id(
			args, regs.orig_ax << 2 | (blocking ? RECALL_BLOCKED : RECALL_RUNNABLE), NULL);
#endif
#endif
	}
	thread->kept = kept;
	thread->partial = false;
	thread->out = now;
#if defined(WAITER_STACKS) && defined(USER_STACKS) && defined(UNWIND)
	if (kept)
		leave_walk(args, thread); /* the last thing: it may not return */
#endif
}

/* A thread that was off the CPU when the recording began, and that user space did not see then. */
static __always_inline bool was_away(struct thread *thread, struct ids ids, u64 task)
{
	u64 start = recording_since(), born = 0;

	if (!start || thread->in || thread->out)
		return false;
#ifdef SAMPLE_ONE_IN
	return false; /* neither followed nor not: it weighs too little to be worth a guess */
#endif
	/* Not all threads come by a fork that is told, io_uring's do not. */
	bpf_probe_read_kernel(&born, sizeof(born), (void *)(task + TASK_START_TIME));
	if (born >= start)
		return false;
	thread->out = start;
	thread->state = thread->woken ? STATE_UNINTERRUPTIBLE : STATE_RUNNABLE;
	thread->partial = true;
#if defined(WHOLE_ONLY) || defined(FILTER_CGROUP) || STATES != ALL_STATES
	thread->kept = false; /* its state is not known, nor the cgroup of a task that is not current */
#else
	thread->kept = may_count(ids) && is_wanted_kind(task);
#endif
	thread->who.pid = ids.pid;
	thread->who.born = born_of(ids.pid);
#ifdef KEY_TID
	thread->who.tid = ids.tid;
#endif
	bpf_probe_read_kernel(&thread->who.comm, sizeof(thread->who.comm),
			      (void *)(task + TASK_COMM));
	return true;
}

/* `next` comes on the CPU. */
static __always_inline void arrive(u64 task, struct ids ids, u64 now)
{
	struct thread *thread = threads.lookup(&ids.tid);

	if (!thread) {
#if defined(SAMPLE_ONE_IN) || (defined(FILTER_CGROUP) && CHAIN_DEPTH < 2)
		return; /* what is not known by now will not count */
#endif
		thread = thread_of(ids.tid);
		if (!thread)
			return;
	}
	if (thread->out || was_away(thread, ids, task)) {
		if (thread->kept)
			count_wait(thread, now);
#if CHAIN_DEPTH > 1
		if (is_blocking(thread->state)) {
			if (thread->woken && thread->woken >= thread->in) {
				thread->cause = thread->wakers;
				thread->caused = thread->woken;
			} else {
				thread->cause.chain.depth = 0;
				thread->cause.chain.end = END_UNKNOWN;
				thread->caused = now;
			}
		}
#endif
	}
	thread->away = false;
	thread->out = 0;
	thread->in = now;
}

/* sched_switch(preempt, prev, next, prev_state) */
int bpflame_switch(struct raw_tracepoint_args *args)
{
	struct ids prev = current_ids(), next = task_ids(args->arg[2]);
	bool leaves = matters(prev), arrives = matters(next);
#ifdef TASK_STATE
	u32 bits = task_u32(args->arg[1], TASK_STATE);
#else
	u32 bits = args->arg[3];
#endif

	/* For good; its process may not be a target any more. */
	if (bits & TASK_DEAD) {
		threads.delete(&prev.tid);
		leaves = false;
	}
	if (!leaves && !arrives)
		return 0;

	u64 now = bpf_ktime_get_ns();

	if (arrives)
		arrive(args->arg[2], next, now);
	if (leaves)
		leave(args, prev, bits, now);
	return 0;
}

#if CHAIN_DEPTH > 0
/* Notes who woke a thread. */
static __always_inline void note_wakeup(struct wakeup *wakeup)
{
	struct thread *thread = threads.lookup(&wakeup->woken);
	u64 link = link_keep(&wakeup->link);
	struct wakers *before = NULL;

	if (!thread)
		return;
#if CHAIN_DEPTH > 1
	struct thread *waker = wakeup->waker ? threads.lookup(&wakeup->waker) : NULL;

	/* What the waker had waited for has a part in this wait only if it waited meanwhile. */
	if (waker && thread->out && waker->caused > thread->out)
		before = &waker->cause;
#endif
	wakers_put(&thread->wakers, link, wakeup->waker, wakeup->woken, before);
	thread->woken = wakeup->when;
}

#if defined(USER_STACKS) && defined(UNWIND)
BPF_PERCPU_ARRAY(wakeup_scratch, struct wakeup, 1);

int bpflame_waking_walk(struct raw_tracepoint_args *args)
{
	u32 zero = 0;
	struct walk *walk = walks.lookup(&zero);
	struct wakeup *wakeup = wakeup_scratch.lookup(&zero);

	if (!walk || !wakeup)
		return 0;
	if (walk_on(walk)) {
		walkers.call(args, WALKER_WAKING);
		walk->stack.end = END_TOO_DEEP;
	}
	wakeup->link.user = walk_end(walk);
	note_wakeup(wakeup);
	return 0;
}
#endif

/* Adds the waker's user stack, and notes the wakeup. */
static __always_inline void wakeup_walk(struct raw_tracepoint_args *args, struct wakeup *wakeup)
{
#if defined(USER_STACKS) && defined(UNWIND)
	u32 zero = 0;
	struct walk *walk = walks.lookup(&zero);
	struct wakeup *scratch = wakeup_scratch.lookup(&zero);
	struct entry_regs regs = {};

	if (wakeup->waker && walk && scratch) {
		entry_regs_read(&regs);
		if (walk_begin(args, walk, &regs, is_exact(&regs), wakeup->link.who.pid,
			       wakeup->link.who.born, &wakeup->link.user)) {
			*scratch = *wakeup;
			walkers.call(args, WALKER_WAKING);
			wakeup->link.user = walk_give_up(walk);
		}
	}
#endif
	note_wakeup(wakeup);
}
#endif

/* sched_waking(task): current is the waker. */
int bpflame_waking(struct raw_tracepoint_args *args)
{
	struct ids ids = task_ids(args->arg[0]);

	if (!matters(ids))
		return 0;

	u64 now = bpf_ktime_get_ns();
#if defined(SAMPLE_ONE_IN)
	struct thread *thread = threads.lookup(&ids.tid);

	if (!thread || (thread->away && !thread->out))
		return 0;
#elif defined(FILTER_CGROUP) && CHAIN_DEPTH < 2
	struct thread *thread = threads.lookup(&ids.tid); /* only those wanted have been kept */

	if (!thread)
		return 0;
#else
	struct thread *thread = thread_of(ids.tid);

	if (!thread)
		return 0;
#endif
#if CHAIN_DEPTH > 0
	struct wakeup wakeup = {.when = now, .woken = ids.tid};

	link_current(args, &wakeup);
	wakeup_walk(args, &wakeup);
#else
	thread->woken = now;
#endif
	return 0;
}

/* sched_process_fork(parent, child): current is the parent. The child's first wait is for a CPU. */
int bpflame_child(struct raw_tracepoint_args *args)
{
	struct ids ids = task_ids(args->arg[1]);
	u64 now = bpf_ktime_get_ns();
	u32 zero = 0;
	struct thread *none = blank.lookup(&zero);
	bool kept = may_count(ids) && (STATES >> STATE_RUNNABLE & 1) && is_wanted_cgroup() &&
		    is_wanted_kind(args->arg[1]);

#if CHAIN_DEPTH < 2
	if (!kept)
		return 0;
#endif
	if (!none)
		return 0;
	if (threads.update(&ids.tid, none)) {
		count_event(COUNTER_LOST_THREADS, 1);
		return 0;
	}

	struct thread *thread = threads.lookup(&ids.tid);

	if (!thread)
		return 0;
	thread->in = now; /* nothing of before concerns it */
	thread->away = true;
	if (!is_followed())
		return 0;
	thread->who = who_is_current(current_ids());
	thread->who.pid = ids.pid;
	thread->who.born = born_of(ids.pid);
#ifdef KEY_TID
	thread->who.tid = ids.tid;
#endif
	thread->state = STATE_RUNNABLE;
	thread->kept = kept;
	thread->out = now;
	return 0;
}
