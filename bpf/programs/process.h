/* Which program image a process was running, and which tasks are targets.
 *
 * A pid names several address spaces over time: fork, exec, and reuse after an exit. `born` is when
 * the present one began, 0 for those older than the recording; user space has the same moments from
 * the perf events that tell of mappings, and so picks the right mappings for each stack.
 *
 * TASK_PID, TASK_TGID, TASK_SIGNAL and SIGNAL_LIVE are offsets from BTF.
 */
#ifndef BPFLAME_PROCESS_H
#define BPFLAME_PROCESS_H

#include "counters.h"
#ifdef UNWIND
#include "tables.h"
#endif

struct raw_tracepoint_args {
	u64 arg[4];
};

struct ids {
	u32 pid; /* the kernel's tgid */
	u32 tid; /* the kernel's pid */
};

/* Whose stacks they are. */
struct who {
	u64 born;   /* when this program image began */
	u64 cgroup; /* id of the version 2 cgroup, if KEY_CGROUP */
	u32 pid;
	u32 tid; /* if KEY_TID */
	char comm[16];
};

BPF_TABLE("lru_hash", u32, u64, born, BORN_ENTRIES);

enum target {
	TARGET_FROM_EXEC = 1, /* a command that waits behind its gate: not before it runs */
	TARGET_NOW = 2,
};

BPF_HASH(targets, u32, u8, TARGET_ENTRIES); /* pids, or tids with FILTER_TID */

#ifdef FILTER_CGROUP
BPF_CGROUP_ARRAY(cgroup_target, 1);
#endif

static __always_inline struct ids current_ids(void)
{
	u64 both = bpf_get_current_pid_tgid();
	struct ids ids = {.pid = both >> 32, .tid = both};

	return ids;
}

static __always_inline u32 task_u32(u64 task, u32 offset)
{
	u32 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)(task + offset));
	return value;
}

static __always_inline struct ids task_ids(u64 task)
{
	struct ids ids = {};

#if TASK_TGID == TASK_PID + 4
	u32 both[2] = {};

	bpf_probe_read_kernel(both, sizeof(both), (void *)(task + TASK_PID));
	ids.tid = both[0];
	ids.pid = both[1];
#else
	ids.tid = task_u32(task, TASK_PID);
	ids.pid = task_u32(task, TASK_TGID);
#endif
	return ids;
}

static __always_inline bool is_target(u32 number)
{
	u8 *state = targets.lookup(&number);

	return state && *state == TARGET_NOW;
}

/* Whether a task, running or not, is one that was asked for, as far as its ids tell. */
static __always_inline bool is_wanted(struct ids ids)
{
#if defined(ONLY_PID)
	if (ids.pid != ONLY_PID)
		return false;
#elif defined(FILTER_PID)
	if (!is_target(ids.pid))
		return false;
#endif
#ifdef FILTER_TID
	if (!is_target(ids.tid))
		return false;
#endif
	return true;
}

/* Whether the current task belongs to the cgroup that was asked for. */
static __always_inline bool is_wanted_cgroup(void)
{
#ifdef FILTER_CGROUP
	return cgroup_target.check_current_task(0) > 0;
#else
	return true;
#endif
}

static __always_inline bool is_wanted_current(struct ids current)
{
	return is_wanted(current) && is_wanted_cgroup();
}

static __always_inline u64 born_of(u32 pid)
{
	u64 *when = born.lookup(&pid);

	return when ? *when : 0;
}

static __always_inline struct who who_is_current(struct ids current)
{
	struct who who = {.pid = current.pid, .born = born_of(current.pid)};

	bpf_get_current_comm(&who.comm, sizeof(who.comm));
#ifdef KEY_TID
	who.tid = current.tid;
#endif
#ifdef KEY_CGROUP
	who.cgroup = bpf_get_current_cgroup_id();
#endif
	return who;
}

/* A new process has the mappings of its parent, and so its tables. */
static __always_inline void inherit_tables(u32 parent, u32 child, u64 now)
{
#ifdef UNWIND
	struct address_space *space = address_spaces.lookup(&parent);

	if (space && space->born == born_of(parent)) {
		struct address_space same = *space;

		same.born = now;
		same.pid = child;
		address_spaces.update(&child, &same);
	}
#endif
}

/* sched_process_fork(parent, child): current is the parent. */
int bpflame_fork(struct raw_tracepoint_args *args)
{
	struct ids child = task_ids(args->arg[1]);
	u64 now = bpf_ktime_get_ns();

	if (child.tid != child.pid)
		return 0; /* a thread: same address space */
	born.update(&child.pid, &now);
	inherit_tables(current_ids().pid, child.pid, now);
#ifdef FOLLOW_CHILDREN
	u8 now_on = TARGET_NOW;

	if (is_target(current_ids().pid) && targets.update(&child.pid, &now_on))
		count_event(COUNTER_LOST_CHILDREN, 1);
#endif
	return 0;
}

/* sched_process_exec(task, old_pid, bprm): current runs the new image already. */
int bpflame_exec(struct raw_tracepoint_args *args)
{
	u32 pid = current_ids().pid;
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
	u32 pid = current_ids().pid;

	bpf_probe_read_kernel(&signal, sizeof(signal), (void *)(args->arg[0] + TASK_SIGNAL));
	if (task_u32(signal, SIGNAL_LIVE) == 0) /* the last thread of its process */
		targets.delete(&pid);
	return 0;
}
#endif

#endif
