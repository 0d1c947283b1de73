/* CPU samples: counts the stacks that a perf event interrupts.
 *
 * Compile-time choices, given as -D:
 *   STACK_ENTRIES COUNT_ENTRIES BORN_ENTRIES TARGET_ENTRIES  room in the maps
 *   TASK_PID TASK_TGID TASK_SIGNAL SIGNAL_LIVE               offsets from BTF (process.h)
 *   OWN_PID                   bpflame itself, counted apart
 *   REGS_WORDS                size of the context's registers, in u64
 *   USER_STACKS KERNEL_STACKS which stacks to take
 *   FILTER_PID FILTER_TID FILTER_CGROUP FOLLOW_CHILDREN      whom to sample
 *   ONLY_PID                  the one pid, where FILTER_PID is for one
 *   INCLUDE_IDLE              sample idle CPUs
 *   KEY_TID KEY_CGROUP        tell threads, cgroups apart
 *   WEIGHT_PERIOD             a sample weighs its period (hardware events), else 1
 */
#include "counters.h"
#include "stack.h"
#include "process.h"

struct count_key {
	u64 user; /* stack ids */
	u64 kernel;
	struct who who;
};
#define COUNT_SUMS 1
#include "count.h"

/* struct bpf_perf_event_data, without the kernel's headers. */
struct perf_event_context {
	u64 regs[REGS_WORDS];
	u64 sample_period;
	u64 addr;
};

int bpflame_cpu(struct perf_event_context *ctx)
{
	struct ids current = current_ids();
	u64 value = 1;
	struct count_key key = {};

	count_event(COUNTER_TICKS, 1);
#ifndef INCLUDE_IDLE
	if (current.tid == 0) {
		count_event(COUNTER_IDLE, 1);
		return 0;
	}
#endif
	if (current.pid == OWN_PID) {
		count_event(COUNTER_OWN, 1);
		return 0;
	}
	if (!is_wanted_current(current)) {
		count_event(COUNTER_OTHER, 1);
		return 0;
	}
	count_event(COUNTER_SAMPLES, 1);

	key.who = who_is_current(current);
#ifdef USER_STACKS
	key.user = stack_id(ctx, BPF_F_USER_STACK);
#endif
#ifdef KERNEL_STACKS
	key.kernel = stack_id(ctx, 0);
#endif
#ifdef WEIGHT_PERIOD
	value = ctx->sample_period;
#endif

	struct sums *sums = count_sums(&key);

	if (sums) {
		__sync_fetch_and_add(&sums->value[0], value);
	} else {
		count_event(COUNTER_LOST_SAMPLES, 1);
		count_event(COUNTER_LOST_VALUE, value);
	}
	return 0;
}
