/* Sums by {task, stacks}, in two maps by turns.
 *
 * Programs write to the active one. User space turns `active` over, waits until no program can
 * still hold a value of the other (an RCU grace period), drains it and empties it. So no sum is
 * read while it grows, and the room is never used up by a long recording.
 *
 * The program defines COUNT_SUMS, how many sums a key has, and struct count_key.
 */
#ifndef BPFLAME_COUNT_H
#define BPFLAME_COUNT_H

#include "counters.h"

struct sums {
	u64 value[COUNT_SUMS];
};

BPF_ARRAY(active, u32, 1);
BPF_HASH(counts_even, struct count_key, struct sums, COUNT_ENTRIES);
BPF_HASH(counts_odd, struct count_key, struct sums, COUNT_ENTRIES);

static __always_inline struct sums *count_lookup(bool odd, struct count_key *key)
{
	return odd ? counts_odd.lookup(key) : counts_even.lookup(key);
}

/* The sums of a key, to be added to atomically; NULL when there is no room. */
static __always_inline struct sums *count_sums(struct count_key *key)
{
	u32 zero = 0;
	u32 *turn = active.lookup(&zero);
	bool odd = turn && *turn;
	struct sums none = {};
	struct sums *found = count_lookup(odd, key);

	if (found)
		return found;

	long error = odd ? counts_odd.insert(key, &none) : counts_even.insert(key, &none);

	if (!error)
		count_event(COUNTER_NEW_COUNTS, 1);
	/* Else another CPU made the entry in between, or there is no room. */
	return count_lookup(odd, key);
}

#endif
