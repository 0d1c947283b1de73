/* odd_frames: frames whose place on the stack is not a number of bytes from the stack pointer, and
 * code that no compiler made.
 *
 * stack: main -> with_aligned_locals -> burn_aligned
 * stack: main -> with_variable_locals -> burn_variable
 * stack: main -> with_both -> burn_both
 * stack: main -> call_library
 * stack: main -> read_clock
 * stack: main -> with_vfork_child -> burn_in_child
 * wait: main -> with_vfork_child
 *
 * with_aligned_locals has them at multiples of 64 bytes, with_variable_locals as many as an
 * argument says, with_both the two and arguments on the stack: GCC then finds the frame through a
 * copy of the stack pointer that it keeps below rbp. call_library does nothing but call, through
 * the procedure linkage table, a function of libodd_frames.so that does nothing. read_clock reads
 * it in the vDSO. The child of vfork burns on its parent's stack, and in half of the turns executes
 * this program again after that; the parent waits meanwhile, in vfork. Each runs by turns, 10 ms at
 * a time.
 *
 * Usage: odd_frames [SECONDS]    SECONDS defaults to 5
 */

#define _GNU_SOURCE
#include "workload.h"

#ifdef ODD_FRAMES_LIBRARY

__attribute__((noinline)) void do_nothing(void);

__attribute__((noinline)) void do_nothing(void)
{
}

#else

#include <alloca.h>
#include <sys/wait.h>
#include <unistd.h>

#define TURN 0.01

void do_nothing(void);

static double turn_ends;
static char **arguments;

static int turn_lasts(void)
{
    return wall_seconds() < turn_ends;
}

#define BURN(name)                          \
    VISIBLE void name(volatile char *);     \
    VISIBLE void name(volatile char *room)  \
    {                                       \
        room[0] = 1;                        \
        while (turn_lasts())                \
            SPIN(QUANTUM);                  \
    }

BURN(burn_aligned)
BURN(burn_variable)
BURN(burn_both)
BURN(burn_in_child)

VISIBLE void with_aligned_locals(void);
VISIBLE void with_variable_locals(size_t bytes);
VISIBLE long with_both(size_t bytes, long b, long c, long d, long e, long f, long g, long h);
VISIBLE void call_with_both(void);
VISIBLE void call_library(void);
VISIBLE void read_clock(void);
VISIBLE void with_vfork_child(int executes);

VISIBLE void with_aligned_locals(void)
{
    _Alignas(64) volatile char room[256];

    burn_aligned(room);
    NOT_A_TAIL_CALL();
}

VISIBLE void with_variable_locals(size_t bytes)
{
    burn_variable(alloca(bytes));
    NOT_A_TAIL_CALL();
}

VISIBLE long with_both(size_t bytes, long b, long c, long d, long e, long f, long g, long h)
{
    _Alignas(64) volatile char room[128];

    burn_both(room);
    burn_both(alloca(bytes));
    return b + c + d + e + f + g + h + room[0];
}

static void run_with_both(void)
{
    with_both(100 + draw(1000), 2, 3, 4, 5, 6, 7, 8);
}

static void run_with_variable_locals(void)
{
    with_variable_locals(100 + draw(100000));
}

VISIBLE void call_library(void)
{
    while (turn_lasts()) {
        for (int i = 0; i < 10000; i++)
            do_nothing();
    }
}

VISIBLE void read_clock(void)
{
    while (turn_lasts())
        continue;
}

VISIBLE void with_vfork_child(int executes)
{
    volatile char room[16];
    pid_t pid = vfork();

    if (pid == 0) {
        burn_in_child(room);
        if (executes)
            execl("/proc/self/exe", arguments[0], "0.001", "again", (char *)NULL);
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, NULL, 0) < 0)
        perror("odd_frames: vfork");
}

static void run_with_vfork_child(void)
{
    with_vfork_child((int)draw(2));
}

int main(int argc, char **argv)
{
    void (*const turns[])(void) = {
        with_aligned_locals, run_with_variable_locals, run_with_both,
        call_library,        read_clock,               run_with_vfork_child,
    };
    double end = wall_seconds() + seconds_to_run(argc, argv);

    arguments = argv;
    if (argc > 2)
        return 0;
    for (unsigned nth = 0; wall_seconds() < end; nth++) {
        turn_ends = wall_seconds() + TURN;
        turns[nth % 6]();
    }
    return 0;
}

#endif
