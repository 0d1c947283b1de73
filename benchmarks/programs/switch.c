/* switch: tasks of one CPU that wait for each other at the call depth of deep.h, a fixed number of
 * times.
 *
 * pingpong: two processes send a byte there and back through two pipes; a unit is a round trip.
 * locks: four threads take a lock in turns; a unit is a turn of each. The lock goes to whoever has
 * waited for it longest, so that each turn is a switch. A lock that may be overtaken hardly makes
 * any: whoever has the CPU takes it again and again.
 *
 * They run before everything else that would. It prints the wall time in nanoseconds, and how often
 * its tasks were switched away from. What blocks and what wakes is a system call made right in the
 * functions here: in those of libc there may be no frame pointers.
 *
 * Usage: switch pingpong|locks UNITS CPU
 */

#define _GNU_SOURCE
#include "deep.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define THREADS 4
#define HELD 50 /* iterations while the lock is held: a fraction of a microsecond */

static long units;
static int to_child[2], to_parent[2];
static unsigned next_ticket;      /* how many have been drawn */
static __thread unsigned ticket;  /* the last that this thread has drawn */
static unsigned called[THREADS];  /* by the remainder: the last whose turn has come */

VISIBLE void ping(void);
VISIBLE void pong(void);
VISIBLE void lock(unsigned mine);
VISIBLE void unlock(unsigned mine);
VISIBLE void take_turn(void);

static inline __attribute__((always_inline)) long ask(long number, long a, long b, long c)
{
#ifdef __x86_64__
    register long fourth __asm__("r10") = 0;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
                     : "rcx", "r11", "memory");
    return result;
#else
    return syscall(number, a, b, c, 0L);
#endif
}

static void check(long moved)
{
    if (moved != 1) {
        fprintf(stderr, "switch: the other side has gone\n");
        exit(1);
    }
}

VISIBLE void ping(void)
{
    char byte = 0;

    check(ask(SYS_write, to_child[1], (long)&byte, 1));
    check(ask(SYS_read, to_parent[0], (long)&byte, 1));
}

VISIBLE void pong(void)
{
    char byte = 0;

    check(ask(SYS_read, to_child[0], (long)&byte, 1));
    check(ask(SYS_write, to_parent[1], (long)&byte, 1));
}

VISIBLE void lock(unsigned mine)
{
    unsigned *place = &called[mine % THREADS];
    volatile unsigned seen; /* in memory, for the frame pointer: see SPIN */

    while ((seen = __atomic_load_n(place, __ATOMIC_ACQUIRE)) != mine)
        ask(SYS_futex, (long)place, FUTEX_WAIT_PRIVATE, seen);
}

VISIBLE void unlock(unsigned mine)
{
    volatile unsigned following = mine + 1;
    unsigned *place = &called[following % THREADS];

    __atomic_store_n(place, following, __ATOMIC_RELEASE);
    ask(SYS_futex, (long)place, FUTEX_WAKE_PRIVATE, 1);
}

static unsigned draw_one(void)
{
    return __atomic_fetch_add(&next_ticket, 1, __ATOMIC_RELAXED);
}

/* In line for the next turn before the lock is handed over: the line is never empty. */
VISIBLE void take_turn(void)
{
    unsigned held = ticket;

    lock(held);
    SPIN(HELD);
    ticket = draw_one();
    unlock(held);
}

static void repeat(void (*leaf)(void))
{
    for (long i = 0; i < units; i++)
        descend(DEPTH, leaf);
}

static void *thread(void *unused)
{
    (void)unused;
    ticket = draw_one();
    repeat(take_turn);
    return NULL;
}

static double pingpong(void)
{
    double start;
    int status;
    pid_t child;

    must(pipe(to_child), "pipe");
    must(pipe(to_parent), "pipe");
    child = fork();
    must(child, "fork");
    if (child == 0) {
        must(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
        repeat(pong);
        _exit(0);
    }
    start = wall_seconds();
    repeat(ping);
    start = wall_seconds() - start;
    must(waitpid(child, &status, 0), "waitpid");
    return start;
}

/* The lock is ours until all wait for it: from then on there is always someone who does. */
static double locks(void)
{
    pthread_t threads[THREADS];
    double start;

    ticket = draw_one();
    for (int i = 0; i < THREADS; i++)
        must(-pthread_create(&threads[i], NULL, thread, NULL), "pthread_create");
    while (__atomic_load_n(&next_ticket, __ATOMIC_RELAXED) <= THREADS)
        usleep(100);
    start = wall_seconds();
    unlock(ticket);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return wall_seconds() - start;
}

static long switches_of(int who)
{
    struct rusage usage;

    must(getrusage(who, &usage), "getrusage");
    return usage.ru_nvcsw + usage.ru_nivcsw;
}

int main(int argc, char **argv)
{
    double (*work)(void);
    long before;
    double wall;

    if (argc != 4 || (strcmp(argv[1], "pingpong") != 0 && strcmp(argv[1], "locks") != 0)) {
        fprintf(stderr, "usage: switch pingpong|locks UNITS CPU\n");
        return 2;
    }
    work = strcmp(argv[1], "pingpong") == 0 ? pingpong : locks;
    units = atol(argv[2]);
    must(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
    must(prctl(PR_SET_NAME, argv[1]), "prctl");
    go_first();
    pin_to(atoi(argv[3]));

    before = switches_of(RUSAGE_SELF);
    wall = work();
    printf("%.0f %ld\n", wall * 1e9,
           switches_of(RUSAGE_SELF) + switches_of(RUSAGE_CHILDREN) - before);
    return 0;
}
