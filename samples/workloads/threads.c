/* threads: four named threads, which take 40, 30, 20 and 10 % of the process's CPU time.
 *
 * truth: work_forty=40 work_thirty=30 work_twenty=20 work_ten=10
 * tolerance: 1
 *
 * The threads are worker-0 (work_forty) to worker-3 (work_ten). A right profile shows one stack
 * for each, start_thread -> run_worker -> work_X, under the thread's name where threads are told
 * apart. The main thread (threads) only waits. The shares are budgets of CPU time, handed out
 * in rounds: they hold on a busy machine and with fewer CPUs than threads. About 1 % of each
 * share is the kernel, reading the thread's clock and waiting for the others.
 *
 * Usage: threads [SECONDS [--verify]]    SECONDS defaults to 5
 * With --verify it prints the share of CPU time of each thread, and fails when one is off by more
 * than a point.
 */

#define _GNU_SOURCE
#include "workload.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

/* The longest round, in CPU seconds of all threads. */
#define LONGEST_ROUND 0.04

struct worker {
    void (*work)(double until);
    double share;
    double cpu_seconds;
    pthread_t thread;
};

static pthread_barrier_t round_over;
static atomic_long last_round = LONG_MAX;
static double end;

#define WORK(share)                               \
    VISIBLE void work_##share(double until);      \
                                                  \
    VISIBLE void work_##share(double until)       \
    {                                             \
        while (thread_cpu_seconds() < until)      \
            SPIN(10 * QUANTUM);                   \
    }

WORK(forty)
WORK(thirty)
WORK(twenty)
WORK(ten)

static struct worker workers[] = {
    {work_forty, 40, 0, 0},
    {work_thirty, 30, 0, 0},
    {work_twenty, 20, 0, 0},
    {work_ten, 10, 0, 0},
};

#define WORKERS (int)(sizeof workers / sizeof *workers)

VISIBLE void *run_worker(void *argument);

/* The goal counts from the thread's first moment, so that what one round overshoots the next one
 * makes up for. Every thread draws the same length for a round. */
VISIBLE void *run_worker(void *argument)
{
    struct worker *self = argument;
    double goal = 0;

    for (long round = 1; round <= atomic_load(&last_round); round++) {
        goal += (1 + draw(1000)) / 1000.0 * LONGEST_ROUND * self->share / 100;
        self->work(goal);
        if (self == workers && wall_seconds() >= end)
            atomic_store(&last_round, round);
        pthread_barrier_wait(&round_over);
    }
    self->cpu_seconds = thread_cpu_seconds();
    return NULL;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"work_forty", "work_thirty", "work_twenty", "work_ten"};
    double shares[WORKERS];
    double cpu[WORKERS];

    end = wall_seconds() + seconds_to_run(argc, argv);
    pthread_barrier_init(&round_over, NULL, WORKERS);
    for (int i = 0; i < WORKERS; i++) {
        char name[16];

        snprintf(name, sizeof name, "worker-%d", i);
        if (pthread_create(&workers[i].thread, NULL, run_worker, &workers[i]) != 0) {
            fputs("threads: cannot start a thread\n", stderr);
            return 1;
        }
        pthread_setname_np(workers[i].thread, name);
    }
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(workers[i].thread, NULL);
        shares[i] = workers[i].share;
        cpu[i] = workers[i].cpu_seconds;
    }
    return wants_verify(argc, argv) ? report_shares(WORKERS, names, shares, cpu) : 0;
}
