/* The walk of the BPF programs as a library: used by walk_harness.py. */
#include "bpf_shims.h"

#include "unwind.h"

struct asked {
	u64 ip, sp, bp, r10, di;
	u32 exact;
	u32 block;    /* the mappings */
	u32 mappings; /* how many they are */
	u32 most;     /* frames */
};

struct told {
	u32 depth;
	u32 end;
	u32 guessed;
	u64 ip[MAX_DEPTH];
};

void set_chunk(u32 number, void *words)
{
	chunks_content[number] = words;
}

void set_rules(const u64 *content, u32 count)
{
	memset(rules_content, 0, sizeof(rules_content));
	memcpy(rules_content, content, count * sizeof(u64));
}

void run_walk(const struct asked *asked, const struct memory *stack, u32 parts, struct told *told)
{
	static struct walk walk;

	memset(&walk, 0, sizeof(walk));
	memory = stack;
	memories = parts;
	user_depth = asked->most;
	walk.now.ip = asked->ip;
	walk.now.sp = asked->sp;
	walk.now.bp = asked->bp;
	walk.now.r10 = asked->r10;
	walk.now.di = asked->di;
	walk.now.exact = asked->exact;
	walk.leaf = walk.now;
	walk.block = asked->block;
	walk.mappings = asked->mappings;
	while (walk_on(&walk))
		;
	told->depth = walk.now.depth;
	told->end = walk.stack.end;
	told->guessed = walk.stack.guessed;
	memcpy(told->ip, walk.stack.ip, sizeof(told->ip));
}

s32 find_row(u32 pages, u64 offset)
{
	return row_find(pages, offset);
}

/* Where the mapping starts that was found; ~0 for none. */
u64 find_mapping(u32 block, u32 count, u64 address)
{
	struct mapping *found = mapping_find(block, count, address);

	return found ? found->start : ~0ULL;
}
