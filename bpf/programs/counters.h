/* What happened, counted on each CPU. The order is that of bpflame.bpf.counters. */
#ifndef BPFLAME_COUNTERS_H
#define BPFLAME_COUNTERS_H

#define EEXIST 17

enum counter {
	COUNTER_TICKS,        /* the event fired, whatever was running */
	COUNTER_IDLE,         /* ... on an idle CPU */
	COUNTER_OWN,          /* ... in bpflame itself */
	COUNTER_OTHER,        /* ... in a task that was not asked for */
	COUNTER_SAMPLES,      /* ... and was meant to be counted */
	COUNTER_LOST_SAMPLES, /* of those, refused by the map of counts */
	COUNTER_LOST_VALUE,   /* their weight */
	COUNTER_LOST_STACKS,  /* stacks refused by the map of stacks; the sample is kept */
	COUNTER_NEW_STACKS,   /* entries made in the map of stacks */
	COUNTER_NEW_COUNTS,   /* entries made in the map of counts */
	COUNTER_LOST_CHILDREN, /* new processes that the target map had no room for */
	COUNTER_LOST_THREADS, /* threads that the map of threads had no room for */
	COUNTER_LOST_WAKERS,  /* wakers or chains of them refused by their maps; the wait is kept */
	COUNTER_NEW_LINKS,    /* entries made in the map of wakers */
	COUNTER_NEW_CHAINS,   /* entries made in the map of chains */
	COUNTER_FILTERED,     /* waits of another length than was asked for */
	COUNTER_NEGATIVE,     /* waits that ended before they began: dropped */
	COUNTER_MISSED,       /* waits whose end was not seen, but that the thread began another one */
	COUNTER_RECALLED,     /* with RECALL_CHECK: kernel stacks recognised, rightly */
	COUNTER_MISTAKEN,     /* ... and wrongly */
	COUNTER_COPIES,       /* stacks handed to user space to unwind */
	COUNTER_LOST_COPIES,  /* ... that there was no room for */
	COUNTER_COUNT,
};

BPF_PERCPU_ARRAY(counters, u64, COUNTER_COUNT);

static __always_inline void count_event(u32 which, u64 n)
{
	u64 *counter = counters.lookup(&which);

	if (counter)
		*counter += n;
}

#endif
