/* Which program image a process was running, and which processes are targets.
 *
 * A pid names several address spaces over time: fork, exec, and reuse after an exit. `born` is when
 * the present one began, 0 for those older than the recording; user space has the same moments from
 * the perf events that tell of mappings, and so picks the right mappings for each sample.
 *
 * TASK_PID, TASK_TGID, TASK_SIGNAL and SIGNAL_LIVE are offsets from BTF.
 */
#ifndef BPFLAME_PROCESS_H
#define BPFLAME_PROCESS_H

#include "counters.h"

struct raw_tracepoint_args {
	u64 arg[2];
};

BPF_TABLE("lru_hash", u32, u64, born, BORN_ENTRIES);

enum target {
	TARGET_FROM_EXEC = 1, /* a command that waits behind its gate: not before it runs */
	TARGET_NOW = 2,
};

BPF_HASH(targets, u32, u8, TARGET_ENTRIES); /* pids, or tids with FILTER_TID */

static __always_inline bool is_target(u32 number)
{
	u8 *state = targets.lookup(&number);

	return state && *state == TARGET_NOW;
}

static __always_inline u32 current_pid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

static __always_inline u32 task_u32(u64 task, u32 offset)
{
	u32 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)(task + offset));
	return value;
}

static __always_inline u64 current_born(u32 pid)
{
	u64 *when = born.lookup(&pid);

	return when ? *when : 0;
}

/* sched_process_fork(parent, child): current is the parent. */
int bpflame_fork(struct raw_tracepoint_args *args)
{
	u64 child = args->arg[1];
	u32 pid = task_u32(child, TASK_TGID);
	u64 now = bpf_ktime_get_ns();

	if (task_u32(child, TASK_PID) != pid)
		return 0; /* a thread: same address space */
	born.update(&pid, &now);
#ifdef FOLLOW_CHILDREN
	u8 now_on = TARGET_NOW;

	if (is_target(current_pid()) && targets.update(&pid, &now_on))
		count_event(COUNTER_LOST_CHILDREN, 1);
#endif
	return 0;
}

/* sched_process_exec(task, old_pid, bprm): current runs the new image already. */
int bpflame_exec(struct raw_tracepoint_args *args)
{
	u32 pid = current_pid();
	u64 now = bpf_ktime_get_ns();

	born.update(&pid, &now);

	u8 *state = targets.lookup(&pid);

	if (state)
		*state = TARGET_NOW;
	return 0;
}

#ifdef FOLLOW_CHILDREN
/* sched_process_exit(task): a pid that can be used again must not stay a target. */
int bpflame_exit(struct raw_tracepoint_args *args)
{
	u64 signal = 0;
	u32 pid = current_pid();

	bpf_probe_read_kernel(&signal, sizeof(signal), (void *)(args->arg[0] + TASK_SIGNAL));
	if (task_u32(signal, SIGNAL_LIVE) == 0) /* the last thread of its process */
		targets.delete(&pid);
	return 0;
}
#endif

#endif
