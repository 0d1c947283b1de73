/* Sums by {task, stacks}, in two maps by turns.
 *
 * Programs write to the active one. User space turns `active` over, waits until no program can
 * still hold a value of the other (an RCU grace period), drains it and empties it. So no sum is
 * read while it grows, and the room is never used up by a long recording.
 */
#ifndef BPFLAME_COUNT_H
#define BPFLAME_COUNT_H

#include "counters.h"

struct count_key {
	u64 user;   /* stack ids */
	u64 kernel;
	u64 born;   /* when this program image began, see process.h */
	u64 cgroup; /* id of the version 2 cgroup, if KEY_CGROUP */
	u32 pid;    /* the kernel's tgid */
	u32 tid;    /* the kernel's pid, if KEY_TID */
	char comm[16];
};

BPF_ARRAY(active, u32, 1);
BPF_HASH(counts_even, struct count_key, u64, COUNT_ENTRIES);
BPF_HASH(counts_odd, struct count_key, u64, COUNT_ENTRIES);

static __always_inline u64 *count_lookup(bool odd, struct count_key *key)
{
	return odd ? counts_odd.lookup(key) : counts_even.lookup(key);
}

static __always_inline void count_add(struct count_key *key, u64 value)
{
	u32 zero = 0;
	u32 *turn = active.lookup(&zero);
	bool odd = turn && *turn;
	u64 *sum = count_lookup(odd, key);

	if (!sum) {
		long error = odd ? counts_odd.insert(key, &value) : counts_even.insert(key, &value);

		if (!error) {
			count_event(COUNTER_NEW_COUNTS, 1);
			return;
		}
		/* Another CPU made the entry in between, or there is no room. */
		sum = error == -EEXIST ? count_lookup(odd, key) : NULL;
		if (!sum) {
			count_event(COUNTER_LOST_SAMPLES, 1);
			count_event(COUNTER_LOST_VALUE, value);
			return;
		}
	}
	__sync_fetch_and_add(sum, value);
}

#endif
