/* What hands stacks to user space, as a library: used by test_unwind_copies.py. */
#include "bpf_shims.h"

#include "copies.h"

void set_ring(void *pages, u64 size)
{
	ring = pages;
	ring_size = size;
}

void set_budget(s64 budget)
{
	copy_budget_content[0] = budget;
}

u64 run_copy(const u64 *registers, u32 exact, const struct memory *stack, u32 parts, u32 pid,
	     u64 born, u32 why)
{
	struct place leaf = {registers[0], registers[1], registers[2],
			     registers[3], registers[4], exact, 0};

	memory = stack;
	memories = parts;
	return copy_stack(&leaf, pid, born, why);
}

/* A record that no program is done with yet. */
void *begin_record(u64 size)
{
	return ring_reserve(size);
}

void discard_record(void *record)
{
	ring_discard(record, 0);
}
