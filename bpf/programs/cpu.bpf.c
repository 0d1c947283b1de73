/* CPU samples: counts the stacks that a perf event interrupts.
 *
 * Compile-time choices, given as -D:
 *   STACK_ENTRIES COUNT_ENTRIES BORN_ENTRIES TARGET_ENTRIES  room in the maps
 *   TASK_PID TASK_TGID TASK_SIGNAL SIGNAL_LIVE               offsets from BTF (process.h)
 *   OWN_PID                   bpflame itself, counted apart
 *   REGS_WORDS                size of the context's registers, in u64
 *   USER_STACKS KERNEL_STACKS which stacks to take
 *   FILTER_PID FILTER_TID FILTER_CGROUP FOLLOW_CHILDREN      whom to sample
 *   INCLUDE_IDLE              sample idle CPUs
 *   KEY_TID KEY_CGROUP        tell threads, cgroups apart
 *   WEIGHT_PERIOD             a sample weighs its period (hardware events), else 1
 */
#include "counters.h"
#include "stack.h"
#include "count.h"
#include "process.h"

/* struct bpf_perf_event_data, without the kernel's headers. */
struct perf_event_context {
	u64 regs[REGS_WORDS];
	u64 sample_period;
	u64 addr;
};

#ifdef FILTER_CGROUP
BPF_CGROUP_ARRAY(cgroup_target, 1);
#endif

static __always_inline bool wanted(u32 pid, u32 tid)
{
#ifdef FILTER_PID
	if (!is_target(pid))
		return false;
#endif
#ifdef FILTER_TID
	if (!is_target(tid))
		return false;
#endif
#ifdef FILTER_CGROUP
	if (cgroup_target.check_current_task(0) <= 0)
		return false;
#endif
	return true;
}

int bpflame_cpu(struct perf_event_context *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 pid = id >> 32;
	u32 tid = id;
	u64 value = 1;
	struct count_key key = {};

	count_event(COUNTER_TICKS, 1);
#ifndef INCLUDE_IDLE
	if (tid == 0) {
		count_event(COUNTER_IDLE, 1);
		return 0;
	}
#endif
	if (pid == OWN_PID) {
		count_event(COUNTER_OWN, 1);
		return 0;
	}
	if (!wanted(pid, tid)) {
		count_event(COUNTER_OTHER, 1);
		return 0;
	}
	count_event(COUNTER_SAMPLES, 1);

	key.pid = pid;
	key.born = current_born(pid);
	bpf_get_current_comm(&key.comm, sizeof(key.comm));
#ifdef KEY_TID
	key.tid = tid;
#endif
#ifdef KEY_CGROUP
	key.cgroup = bpf_get_current_cgroup_id();
#endif
#ifdef USER_STACKS
	key.user = stack_id(ctx, BPF_F_USER_STACK);
#endif
#ifdef KERNEL_STACKS
	key.kernel = stack_id(ctx, 0);
#endif
#ifdef WEIGHT_PERIOD
	value = ctx->sample_period;
#endif
	count_add(&key, value);
	return 0;
}
