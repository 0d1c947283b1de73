/* The user stack of the current task, unwound by tables made of the .eh_frame of what it runs.
 *
 * A walk goes on through several programs, each of which takes WALK_FRAMES frames and calls itself
 * as its tail: its state is in per-CPU memory, so the verifier knows nothing of it and is done
 * soon. (One program for all takes up to 900,000 of its million instructions, and is slower.)
 *
 * A process that is not known yet, or an address that lies in no mapping known of it, cannot be
 * unwound here. Then registers and stack are copied to user space (copies.h), which unwinds them
 * there by the same tables, and puts these in place for the next time. So processes that live for
 * some milliseconds have whole stacks too.
 *
 * The program that includes this defines a function for its end of the walk, and
 *   WALK_FRAMES               frames that one program takes
 *   TASK_MM                   offset from BTF
 *   CHUNK_ENTRIES SPACE_ENTRIES COPY_RING_PAGES              room
 *   WALK_TIMES                keep count of what walks take, for benchmarks
 */
#ifndef BPFLAME_UNWIND_H
#define BPFLAME_UNWIND_H

#include "copies.h"
#include "counters.h"
#include "registers.h"
#include "stack.h"
#include "tables.h"

/* A rule is, from its low end: enum cfa_kind (u8), enum bp_kind (u8), an offset (s16) for the
 * latter and one (s32) for the former. The orders are those of bpflame.bpf.unwind.rules. */
enum cfa_kind {
	CFA_GAP,
	CFA_SP,
	CFA_BP,
	CFA_PLT,
	CFA_AT_SP,
	CFA_AT_BP,
	CFA_R10,
	CFA_SIGNAL,
	CFA_END,
	CFA_UNSUPPORTED,
	CFA_FRAME,
	CFA_RDI,
};

enum bp_kind {
	BP_SAME,
	BP_AT_CFA,
	BP_AT_BP,
	BP_LOST,
};

/* struct rt_sigframe, arch/x86/include/asm/sigframe.h, seen from the handler's return address. */
#define SIGNAL_BP 120
#define SIGNAL_SP 160
#define SIGNAL_IP 168

#define VSYSCALL 0xffffffffff600000 /* emulated: each of its functions is as good as a return */
#define RULE_FRAME ((u64)CFA_FRAME)
#define RULE_CALLED (CFA_SP | 8ULL << 32)

#define MANY_ARGUMENTS 65536 /* no code is below: vm.mmap_min_addr */
#define BEFORE 64 /* bytes that a window begins before what is asked for: saved registers */

struct walk {
	struct place now;
	struct place leaf;
	u64 start; /* the last mapping */
	u64 size;
	u64 delta;
	u32 pages;
	u32 count;
	u64 window_at;
	u64 window_size;
	u64 hash;
	u64 born;
	u32 pid;
	u32 block; /* the mappings */
	u32 mappings;
	u32 busy;
	u32 over; /* before it began */
#ifdef WALK_TIMES
	u64 began;
#endif
	struct window window;
	struct stack stack;
};

BPF_PERCPU_ARRAY(walks, struct walk, 1);

#ifdef WALK_TIMES
#define WALK_TIMES_MOST 1024
BPF_ARRAY(frame_times, u64, WALK_TIMES_MOST); /* walks, by ns for each frame */
BPF_ARRAY(walk_times, u64, WALK_TIMES_MOST);  /* walks, by units of 32 ns for all */

static __always_inline void count_time(u32 ns, u32 frames)
{
	u32 each = frames ? ns / frames : 0, all = ns / 32;
	u64 *count;

	each = each < WALK_TIMES_MOST ? each : WALK_TIMES_MOST - 1;
	all = all < WALK_TIMES_MOST ? all : WALK_TIMES_MOST - 1;
	count = frame_times.lookup(&each);
	if (count)
		__sync_fetch_and_add(count, 1);
	count = walk_times.lookup(&all);
	if (count)
		__sync_fetch_and_add(count, 1);
}
#endif

/* A word of the stack. What lies around it is read along, as far as the end of its page: that far
 * all is there if any is. */
static __always_inline bool word_at(struct walk *walk, u64 at, u64 *word)
{
	u64 offset = at - walk->window_at;

	if (at & 7)
		return !bpf_probe_read_user(word, sizeof(*word), (void *)at);
	if (offset >= walk->window_size) {
		u64 page = at & ~(PAGE - 1ULL);
		u64 base = at - page < BEFORE ? page : at - BEFORE;
		u64 size = bounded(page + PAGE - base, sizeof(walk->window));

		walk->window_size = 0;
		if (bpf_probe_read_user(&walk->window, size, (void *)base))
			return false;
		walk->window_at = base;
		walk->window_size = size;
		offset = at - base;
	}
	*word = walk->window.word[offset / sizeof(u64) & (WINDOW_WORDS - 1)];
	return true;
}

/* The rule for the present frame; an end of the stack where there is none. */
static __always_inline enum stack_end rule_find(struct walk *walk, u64 *rule)
{
	u64 pc = walk->now.ip - !walk->now.exact;

	if (pc - walk->start >= walk->size) {
		if (pc >= VSYSCALL && pc < VSYSCALL + PAGE) {
			*rule = RULE_CALLED;
			return END_UNTOLD;
		}
		if ((s64)pc < 0)
			return END_NO_MAPPING;

		struct mapping *mapping = mapping_find(walk->block, walk->mappings, pc);

		if (!mapping || pc - mapping->start >= mapping->end - mapping->start)
			return END_NO_MAPPING;
		walk->start = mapping->start;
		walk->size = mapping->end - mapping->start;
		walk->delta = mapping->delta;
		walk->pages = mapping->pages;
		walk->count = mapping->count;
	}
	if (!walk->pages) {
		*rule = RULE_FRAME;
		return walk->count == WHY_FRAMES  ? END_UNTOLD
		       : walk->count == WHY_LATER ? END_NOT_READY
						  : END_NO_TABLE;
	}

	u64 offset = pc + walk->delta;

	if (offset / PAGE >= walk->count)
		return END_NO_TABLE;

	u32 number = row_find(walk->pages, offset);
	u64 *found = rules.lookup(&number);

	if (!found)
		return END_NO_TABLE;
	*rule = *found;
	return END_UNTOLD;
}

/* From the handler's frame to what the signal interrupted. */
static __always_inline enum stack_end signal_step(struct walk *walk)
{
	u64 sp = walk->now.sp, ip = 0;

	if (!word_at(walk, sp + SIGNAL_BP, &walk->now.bp) ||
	    !word_at(walk, sp + SIGNAL_SP, &walk->now.sp) || !word_at(walk, sp + SIGNAL_IP, &ip))
		return END_UNREADABLE;
	walk->now.ip = ip;
	walk->now.exact = true;
	return ip ? END_UNTOLD : END_COMPLETE;
}

/* Whether code that no table tells of is where a program or thread begins: code written by hand
 * that clears rbp. A program finds there, by the ABI, its number of arguments on the stack. */
static __always_inline bool is_outermost(struct walk *walk)
{
	u64 word = 0;

	if (walk->now.bp)
		return false;
	return walk->now.depth > 1 || (word_at(walk, walk->now.sp, &word) && word < MANY_ARGUMENTS);
}

/* The caller's frame, by a rule; END_UNTOLD if there is one. */
static __always_inline enum stack_end rule_apply(struct walk *walk, u64 rule)
{
	struct place *now = &walk->now;
	u8 kind = rule, bp_kind = rule >> 8;
	s64 bp_offset = (s16)(rule >> 16), offset = (s32)(rule >> 32);
	u64 cfa, ip = 0, bp = now->bp;

	if (kind == CFA_SP) {
		cfa = now->sp + offset;
	} else if (kind == CFA_BP) {
		cfa = now->bp + offset;
	} else if (kind == CFA_FRAME) {
		if (!now->bp)
			return END_COMPLETE;
		walk->stack.guessed = true;
		cfa = now->bp + 16;
		bp_kind = BP_AT_CFA;
		bp_offset = -16;
	} else if (kind == CFA_PLT) {
		cfa = now->sp + 8 + ((now->ip & 15) >= offset ? 8 : 0);
	} else if (kind == CFA_AT_SP || kind == CFA_AT_BP) {
		u64 base = kind == CFA_AT_SP ? now->sp : now->bp;

		if (!word_at(walk, base + (offset >> 8), &cfa))
			return END_UNREADABLE;
		cfa += offset & 255;
	} else if (kind == CFA_R10 && now->depth == 1) {
		cfa = now->r10 + offset;
	} else if (kind == CFA_RDI && now->depth == 1) {
		now->sp += offset;
		now->ip = now->di;
		now->exact = false;
		return END_UNTOLD;
	} else if (kind == CFA_SIGNAL) {
		return signal_step(walk);
	} else if (kind == CFA_END) {
		return END_COMPLETE;
	} else if (kind == CFA_GAP) {
		return is_outermost(walk) ? END_COMPLETE : END_NO_TABLE;
	} else {
		return END_UNSUPPORTED;
	}
	/* By frame pointer it may go from one stack to another: Go runs system code on its own. */
	if (cfa <= now->sp && kind != CFA_FRAME)
		return END_NOT_GROWING;
	if (bp_kind == BP_LOST) {
		bp = 0;
	} else if (bp_kind != BP_SAME) {
		if (!word_at(walk, (bp_kind == BP_AT_CFA ? cfa : bp) + bp_offset, &bp))
			return END_UNREADABLE;
	}
	if (!word_at(walk, cfa - sizeof(ip), &ip))
		return END_UNREADABLE;
	now->ip = ip;
	now->sp = cfa;
	now->bp = bp;
	now->exact = false;
	return ip ? END_UNTOLD : END_COMPLETE;
}

/* One frame; whether there is another. */
static __always_inline bool walk_step(struct walk *walk)
{
	u64 rule = 0, ip = walk->now.ip;
	u64 depth = walk->now.depth;
	enum stack_end end = rule_find(walk, &rule);

	/* An address in no mapping is chance, if it is not where the task really is. */
	if (end == END_NO_MAPPING && depth) {
		walk->stack.end = end;
		return false;
	}
	asm volatile("" : "+r"(depth));
	if (depth >= USER_DEPTH) {
		walk->stack.end = END_TOO_DEEP;
		return false;
	}
	/* An interrupted instruction beyond the leaf is given as if it were a call. */
	ip += depth && walk->now.exact;
	walk->stack.ip[depth] = ip;
	HASH_ROUND(walk->hash, ip);
	walk->now.depth = depth + 1;
	if (end == END_UNTOLD)
		end = rule_apply(walk, rule);
	walk->stack.end = end;
	return end == END_UNTOLD;
}

/* WALK_FRAMES frames; whether there are more. */
static __always_inline bool walk_on(struct walk *walk)
{
	if (walk->over)
		return false;
	for (u32 i = 0; i < WALK_FRAMES; i++)
		if (!walk_step(walk))
			return false;
	return true;
}

/* Whether user space may find out more than is known here. */
static __always_inline bool is_worth_a_copy(struct walk *walk)
{
	if (walk->stack.end == END_NOT_READY)
		return true;
	if (walk->stack.end != END_NO_MAPPING)
		return false;

	struct address_space *space = address_spaces.lookup(&walk->pid);

	if (!space || space->born != walk->born)
		return true;
	if (space->patience <= 0)
		return false;
	__sync_fetch_and_add(&space->patience, -1);
	return true;
}

/* Keeps what was walked; its id. */
static __always_inline u64 walk_end(struct walk *walk)
{
	u64 id = STACK_LOST;

#ifdef WALK_TIMES
	count_time(bpf_ktime_get_ns() - walk->began, walk->now.depth);
#endif
	if (is_worth_a_copy(walk)) {
		id = copy_stack(&walk->leaf, walk->pid, walk->born, walk->stack.end);
		count_event(id == STACK_LOST ? COUNTER_LOST_COPIES : COUNTER_COPIES, 1);
	}
	if (id == STACK_LOST) {
		walk->stack.depth = walk->now.depth;
		id = stack_keep(&walk->stack, walk->hash);
	}
	walk->busy = false;
	return id;
}

/* Gives a walk up, where a tail call did not come about: what kernels allow is enough. */
static __always_inline u64 walk_give_up(struct walk *walk)
{
	walk->busy = false;
	return STACK_LOST;
}

/* Prepares a walk for the current task; whether there is something to walk. If not, *id is that of
 * the stack, if there is one.
 *
 * `regs` are its user registers; `exact`: they are of where it was interrupted. */
static __always_inline bool walk_begin(void *ctx, struct walk *walk, const struct entry_regs *regs,
				       bool exact, u32 pid, u64 born, u64 *id)
{
	u64 mm = 0, top, task = bpf_get_current_task();

	*id = STACK_NONE;
	bpf_probe_read_kernel(&mm, sizeof(mm), (void *)(task + TASK_MM));
	if (!mm || !regs->cs || !regs->sp) /* a kernel thread, one of io_uring, or one that exits */
		return false;
	/* In the midst of execve() the memory is the new program's already. */
	if (is_in_exec(regs) && bpf_probe_read_user(&top, sizeof(top), (void *)regs->sp))
		return false;
	if (walk->busy) { /* an interrupt in the middle of another walk */
		*id = STACK_LOST;
		return false;
	}
	walk->stack.guessed = false;
	if (regs->cs != USER_CS) {
		walk->stack.end = END_NARROW;
		*id = stack_take(ctx, BPF_F_USER_STACK, &walk->stack, NULL);
		return false;
	}
	walk->busy = true;
#ifdef WALK_TIMES
	walk->began = bpf_ktime_get_ns();
#endif
	walk->now.ip = regs->ip;
	walk->now.sp = regs->sp;
	walk->now.bp = regs->bp;
	walk->now.r10 = regs->r10;
	walk->now.di = regs->di;
	walk->now.exact = exact;
	walk->now.depth = 0;
	walk->leaf = walk->now;
	walk->over = false;
	walk->size = 0;
	walk->window_size = 0;
	walk->hash = 0;
	walk->pid = pid;
	walk->born = born;

	struct address_space *space = address_spaces.lookup(&pid);

	if (space) {
		walk->block = space->block;
		walk->mappings = space->count;
		asm volatile("" ::: "memory");
		/* After it was read: an entry that is evicted may become that of another process. */
		if (space->born == born && space->pid == pid)
			return true;
	}
	walk->stack.ip[0] = regs->ip;
	HASH_ROUND(walk->hash, regs->ip);
	walk->stack.end = END_NOT_READY;
	walk->now.depth = 1;
	walk->over = true;
	return true;
}

#endif
