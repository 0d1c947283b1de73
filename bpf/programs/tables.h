/* Unwind tables, and how the rule for an instruction is found in them.
 *
 * All tables lie in one space of 32-bit words, made of chunks that user space adds as it needs them
 * (bpflame.bpf.unwind.arena). A chunk is the one value of an array map, so to search it takes no
 * helper calls. There are three kinds of content:
 *
 *   the executable mappings of an address space   struct mapping, by address
 *   the pages of a file's code                    struct page, one for each 4 KB
 *   the rows of such a page                       low 12 bits of the address << 16 | rule
 *
 * Searches have no branches that depend on data: the verifier would follow each way by itself.
 */
#ifndef BPFLAME_TABLES_H
#define BPFLAME_TABLES_H

#include "stack.h"

#define BPF_F_MMAPABLE 1024

#define CHUNK_WORDS (1 << 18)
#define RULE_ENTRIES (1 << 16)
#define MAPPING_STEPS 15 /* a chunk has room for 2^15 mappings */
#define ROW_STEPS 12     /* a page has less than 2^12 rows */

struct chunk {
	char bytes[CHUNK_WORDS * sizeof(u32)]; /* or bcc takes seconds to describe each word */
};

struct mapping {
	u64 start;
	u64 end;
	u64 delta; /* what makes an address one that is relative to the first page */
	u32 pages; /* where they lie; 0: there are none ... */
	u32 count; /* how many; or an enum why */
};

#define MAPPING_WORDS 8

enum why {
	WHY_NO_TABLE,
	WHY_FRAMES, /* code of no file: by frame pointers */
	WHY_LATER,  /* the table is still to come */
};

struct page {
	u32 start;
	u16 count;
	u16 carry; /* the rule before the first row */
};

struct address_space {
	u64 born; /* the program image it is of: process.h */
	u32 block;
	u32 count;
	s32 patience; /* how often more an unknown address may be told to user space */
	u32 pid;
};

BPF_F_TABLE("array", u32, struct chunk, first_chunk, 1, BPF_F_MMAPABLE);
BPF_ARRAY_OF_MAPS(chunks, "first_chunk", CHUNK_ENTRIES);
BPF_ARRAY(rules, u64, RULE_ENTRIES);
BPF_TABLE("lru_hash", u32, struct address_space, address_spaces, SPACE_ENTRIES);

/* The chunk that a word is in. */
static __always_inline struct chunk *chunk_of(u32 at)
{
	u32 number = at / CHUNK_WORDS, zero = 0;
	void *map = chunks.lookup((int *)&number);

	return map ? bpf_map_lookup_elem(map, &zero) : NULL;
}

/* A word of it, or what begins there; `align` is its size in words. */
static __always_inline void *word_in(struct chunk *chunk, u32 at, u32 align)
{
	return &chunk->bytes[(at & (CHUNK_WORDS - align)) * sizeof(u32)];
}

/* Half of n, if `from` is not beyond `to`; else 0. Both are less than 2^63. */
static __always_inline u32 half_if(u32 n, u64 from, u64 to)
{
	s64 beyond = (s64)(to - from) >> 63;

	asm volatile("" : "+r"(beyond)); /* or the compiler makes it a branch again */
	return n / 2 & ~(u32)beyond;
}

/* The last mapping that starts at or below an address. */
static __always_inline struct mapping *mapping_find(u32 block, u32 count, u64 address)
{
	struct chunk *chunk = chunk_of(block);

	if (!chunk || !count)
		return NULL;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < MAPPING_STEPS; i++) {
		struct mapping *middle =
			word_in(chunk, block + count / 2 * MAPPING_WORDS, MAPPING_WORDS);

		block += half_if(count, middle->start, address) * MAPPING_WORDS;
		count -= count / 2;
	}
	return word_in(chunk, block, MAPPING_WORDS);
}

/* The number of the rule that holds at an offset from the first page. */
static __always_inline s32 row_find(u32 pages, u64 offset)
{
	u32 at = pages + 2 * (u32)(offset / 4096), low = offset & 4095;
	struct chunk *chunk = chunk_of(at);

	if (!chunk)
		return -1;

	u64 both = *(u64 *)word_in(chunk, at, 2);
	u32 row = both, count = both >> 32 & 0xffff, rule = both >> 48;

	if (!count)
		return rule;
	chunk = chunk_of(row);
	if (!chunk)
		return -1;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < ROW_STEPS; i++) {
		u32 middle = *(u32 *)word_in(chunk, row + count / 2, 1);

		row += half_if(count, middle >> 16, low);
		count -= count / 2;
	}

	u32 found = *(u32 *)word_in(chunk, row, 1);

	return found >> 16 <= low ? found & 0xffff : rule;
}

#endif
