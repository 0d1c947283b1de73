/* convoy: three threads that queue for one mutex, and each time wake the next.
 *
 * truth: acquire=100
 * waker: release=100
 * tolerance: 3
 *
 * The truth is about the time that the threads convoy-0 to convoy-2 are blocked, on the stack
 *     run_convoy -> lock_and_work -> acquire -> (the kernel's futex wait)
 * and about who wakes them, always another of the three, on the stack
 *     run_convoy -> lock_and_work -> release -> (the kernel's futex wake)
 * Who has the mutex keeps it for 1 to 2 ms of work in hold_lock, so that the others queue; after
 * release it works a quarter as long in work_outside, so that one of them gets it. With fewer than
 * two CPUs to run on they also wait for a CPU, in hold_lock and work_outside too. The main thread
 * (convoy) only waits for them to end.
 *
 * Usage: convoy [SECONDS]    SECONDS defaults to 5
 * For each thread it prints a line: convoy-N ns=N waits=N, the nanoseconds that it was in the
 * futex wait, and the number of these. One who is woken but too late for the mutex waits again.
 */

#define _GNU_SOURCE
#include "waiting.h"

#include <pthread.h>

#define THREADS 3

static int mutex;
static long end;
static struct waits waits[THREADS];
static char names[THREADS][16];

VISIBLE void acquire(struct waits *mine);
VISIBLE void release(void);
VISIBLE void hold_lock(long n);
VISIBLE void work_outside(long n);
VISIBLE void lock_and_work(struct waits *mine);
VISIBLE void *run_convoy(void *argument);

VISIBLE void acquire(struct waits *mine)
{
    lock_mutex(mine, &mutex);
}

VISIBLE void release(void)
{
    unlock_mutex(&mutex);
}

VISIBLE void hold_lock(long n)
{
    SPIN(n);
}

VISIBLE void work_outside(long n)
{
    SPIN(n);
}

VISIBLE void lock_and_work(struct waits *mine)
{
    long n = (160 + draw(161)) * QUANTUM;

    acquire(mine);
    hold_lock(n);
    release();
    work_outside(n / 4);
    NOT_A_TAIL_CALL();
}

VISIBLE void *run_convoy(void *argument)
{
    struct waits *mine = argument;

    pthread_setname_np(pthread_self(), names[mine - waits]);
    while (wall_nanoseconds() < end)
        lock_and_work(mine);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];

    end = end_of_run(argc, argv);
    for (int i = 0; i < THREADS; i++) {
        snprintf(names[i], sizeof names[i], "convoy-%d", i);
        if (pthread_create(&threads[i], NULL, run_convoy, &waits[i]) != 0) {
            fputs("convoy: cannot start a thread\n", stderr);
            return 1;
        }
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        report_waits(names[i], &waits[i]);
    }
    return 0;
}
