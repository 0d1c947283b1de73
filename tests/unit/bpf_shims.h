/* What bcc and the kernel give to BPF programs, so far as to compile their headers with gcc:
 * arrays hold zeros until somebody writes to them, hashes have no room, and there is one ring. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

#undef __always_inline
#define __always_inline inline

#define CHUNK_ENTRIES 4
#define COPY_RING_PAGES 16
#define SPACE_ENTRIES 16
#define STACK_ENTRIES 16
#define TASK_MM 0
#define WALK_FRAMES 8

static u32 user_depth;
#define USER_DEPTH user_depth

#define BPF_F_USER_STACK (1 << 8)
#define BPF_RB_NO_WAKEUP 1
#define BPF_RB_FORCE_WAKEUP 2

#define METHODS(key, value, name)                         \
	static const struct {                             \
		value *(*lookup)(key *);                  \
		long (*insert)(key *, value *);           \
		long (*update)(key *, value *);           \
	} name = {name##_lookup, name##_set, name##_set}; \
	static long name##_set(key *at, value *new)

#define BPF_ARRAY(name, value, count)                    \
	static value name##_content[count];              \
	static value *name##_lookup(u32 *at)             \
	{                                                \
		return *at < (count) ? &name##_content[*at] : NULL; \
	}                                                \
	static long name##_set(u32 *at, value *new);     \
	METHODS(u32, value, name)                        \
	{                                                \
		name##_content[*at] = *new;              \
		return 0;                                \
	}
#define BPF_PERCPU_ARRAY BPF_ARRAY

#define BPF_HASH(name, key, value, count)                \
	static value *name##_lookup(key *at)             \
	{                                                \
		return NULL;                             \
	}                                                \
	static long name##_set(key *at, value *new);     \
	METHODS(key, value, name)                        \
	{                                                \
		return -7; /* E2BIG */                   \
	}
#define BPF_TABLE(kind, key, value, name, count) BPF_HASH(name, key, value, count)

/* Maps of maps: the inner map is its one value. */
#define BPF_F_TABLE(kind, key, value, name, count, flags)
#define BPF_ARRAY_OF_MAPS(name, inner, count)            \
	static void *name##_content[count];              \
	static void *name##_lookup(int *at)              \
	{                                                \
		return (u32)*at < (count) ? name##_content[*at] : NULL; \
	}                                                \
	static const struct {                            \
		void *(*lookup)(int *);                  \
	} name = {name##_lookup}
#define bpf_map_lookup_elem(map, key) (map)

/* The ring: a page with the consumer's position, one with the producer's, then the data, twice.
 * What is submitted is written to both. */
static char *ring;
static u64 ring_size;

#define RING_BUSY (1U << 31)
#define RING_DISCARDED (1U << 30)
#define RING_HEADER 8

static void *ring_reserve(u64 size)
{
	u64 length = (size + RING_HEADER + 7) & ~7ULL;
	u64 *consumer = (u64 *)ring, *producer = (u64 *)(ring + 4096);

	if (!ring || *producer + length - *consumer > ring_size - 1)
		return NULL;

	u32 *header = (u32 *)(ring + 8192 + *producer % ring_size);

	header[0] = size | RING_BUSY;
	*producer += length;
	return header + 2;
}

static void ring_end(void *record, u32 flags)
{
	u32 *header = (u32 *)record - 2;
	u32 size = header[0] & ~RING_BUSY;
	u64 from = (char *)header - (ring + 8192);

	header[0] = size | flags;
	for (u64 at = from; at < from + RING_HEADER + size; at++)
		ring[8192 + at % ring_size] = ring[8192 + at % ring_size + ring_size] =
			ring[8192 + at];
}

static void ring_submit(void *record, u64 flags)
{
	ring_end(record, 0);
}

static void ring_discard(void *record, u64 flags)
{
	ring_end(record, RING_DISCARDED);
}

#define BPF_RINGBUF_OUTPUT(name, pages)               \
	static const struct {                         \
		void *(*ringbuf_reserve)(u64);        \
		void (*ringbuf_submit)(void *, u64);  \
		void (*ringbuf_discard)(void *, u64); \
	} name = {ring_reserve, ring_submit, ring_discard}

/* The memory of the task. */
struct memory {
	u64 at;
	u64 size;
	const char *bytes;
};

static const struct memory *memory;
static u32 memories;

static bool byte_at(u64 at, char *byte)
{
	for (u32 i = 0; i < memories; i++)
		if (at - memory[i].at < memory[i].size) {
			*byte = memory[i].bytes[at - memory[i].at];
			return true;
		}
	return false;
}

static long bpf_probe_read_user(void *to, u32 size, const void *from)
{
	for (u32 i = 0; i < size; i++)
		if (!byte_at((u64)from + i, (char *)to + i)) {
			memset(to, 0, size);
			return -14; /* EFAULT */
		}
	return 0;
}

static long bpf_probe_read_kernel(void *to, u32 size, const void *from)
{
	return -14;
}

static u64 bpf_ktime_get_ns(void)
{
	static u64 now = 1000;

	return now++;
}

static u32 bpf_get_smp_processor_id(void)
{
	return 0;
}

static u64 bpf_get_current_task(void)
{
	return 0;
}

static long bpf_get_stack(void *ctx, void *to, u32 size, u64 flags)
{
	return -14;
}
