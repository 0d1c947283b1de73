/* CPU samples: counts the stacks that a perf event interrupts.
 *
 * Compile-time choices, given as -D:
 *   STACK_ENTRIES COUNT_ENTRIES BORN_ENTRIES TARGET_ENTRIES  room in the maps
 *   TASK_PID TASK_TGID TASK_SIGNAL SIGNAL_LIVE               offsets from BTF (process.h)
 *   OWN_PID                   bpflame itself, counted apart
 *   REGS_WORDS                size of the context's registers, in u64
 *   MAX_DEPTH USER_DEPTH      greatest depth of stacks
 *   UNWIND                    user stacks by tables (unwind.h), else by frame pointers
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
#ifdef UNWIND
#include "unwind.h"
#endif

/* struct bpf_perf_event_data, without the kernel's headers. */
struct perf_event_context {
	u64 regs[REGS_WORDS];
	u64 sample_period;
	u64 addr;
};

static __always_inline void count_sample(struct count_key *key, u64 value)
{
	struct sums *sums = count_sums(key);

	if (sums) {
		__sync_fetch_and_add(&sums->value[0], value);
	} else {
		count_event(COUNTER_LOST_SAMPLES, 1);
		count_event(COUNTER_LOST_VALUE, value);
	}
}

#ifdef UNWIND
/* A sample whose user stack is being unwound. */
struct sample {
	struct count_key key;
	u64 value;
};

BPF_PERCPU_ARRAY(sample_scratch, struct sample, 1);
BPF_PROG_ARRAY(walkers, 1);

int bpflame_cpu_walk(struct perf_event_context *ctx)
{
	u32 zero = 0;
	struct walk *walk = walks.lookup(&zero);
	struct sample *sample = sample_scratch.lookup(&zero);

	if (!walk || !sample)
		return 0;
	if (walk_on(walk)) {
		walkers.call(ctx, 0);
		walk->stack.end = END_TOO_DEEP;
	}
	sample->key.user = walk_end(walk);
	count_sample(&sample->key, sample->value);
	return 0;
}

/* Unwinds the user stack, and counts the sample then; false if there is nothing to unwind. */
static __always_inline bool walk_and_count(struct perf_event_context *ctx, struct count_key *key,
					   u64 value)
{
	u32 zero = 0;
	struct walk *walk = walks.lookup(&zero);
	struct sample *sample = sample_scratch.lookup(&zero);
	struct entry_regs regs = {};
	bool in_user = (ctx->regs[REGS_CS] & 3) == 3;

	if (!walk || !sample)
		return false;
	if (in_user) {
		regs.bp = ctx->regs[REGS_BP];
		regs.r10 = ctx->regs[REGS_R10];
		regs.di = ctx->regs[REGS_DI];
		regs.ip = ctx->regs[REGS_IP];
		regs.cs = ctx->regs[REGS_CS];
		regs.sp = ctx->regs[REGS_SP];
	} else {
		entry_regs_read(&regs);
	}
	if (!walk_begin(ctx, walk, &regs, in_user || is_exact(&regs), key->who.pid,
			key->who.born, &key->user))
		return false;
	sample->key = *key;
	sample->value = value;
	walkers.call(ctx, 0);
	key->user = walk_give_up(walk);
	return false;
}
#endif

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
#ifdef KERNEL_STACKS
	key.kernel = stack_id(ctx, 0);
#endif
#ifdef WEIGHT_PERIOD
	value = ctx->sample_period;
#endif
#if defined(USER_STACKS) && defined(UNWIND)
	if (walk_and_count(ctx, &key, value))
		return 0;
#elif defined(USER_STACKS)
	key.user = stack_id(ctx, BPF_F_USER_STACK);
#endif
	count_sample(&key, value);
	return 0;
}
