/* conserve: four threads that do a little of everything, and know how long each was on the CPU.
 *
 * truth: time on the CPU and off it, both under conserve_body, add up to each thread's wall time
 * tolerance: 1
 *
 * The threads are conserve-0 to conserve-3. For times that are drawn each of them spins (work),
 * sleeps (doze), has or waits for a mutex that all share (contend -> acquire, hold_lock, release),
 * or sends a byte to a partner, echo-0 to echo-3, and waits for the answer (ping). All of it is on
 * stacks run_worker -> conserve_body -> (one of these), and conserve_body is from the first of its
 * clocks to the last. What the threads wait for before, at the barrier, and all that the main
 * thread (conserve) and the partners (run_echo -> echo) wait for, has it on no stack. The recording
 * must begin before the program and end after it.
 *
 * Usage: conserve [SECONDS]    SECONDS defaults to 5
 * For each thread it prints a line: conserve-N wall_ns=N cpu_ns=N
 * Both are of the same stretch of time. Time that a hypervisor stole from a running thread is in
 * neither sum, nor are interrupts with CONFIG_IRQ_TIME_ACCOUNTING. One line more, stolen ns=N, says
 * what a hypervisor stole from all CPUs meanwhile.
 */

#define _GNU_SOURCE
#include "waiting.h"

#include <pthread.h>

#define THREADS 4

struct worker {
    char name[16];
    char partner[16];
    int to_partner[2];
    int from_partner[2];
    struct moment start;
    struct moment end;
};

static int mutex;
static long end;
static pthread_barrier_t all_here;
static struct worker workers[THREADS];

VISIBLE void work(long n);
VISIBLE void doze(long ns);
VISIBLE void acquire(void);
VISIBLE void hold_lock(long n);
VISIBLE void release(void);
VISIBLE void contend(long n);
VISIBLE void ping(const struct worker *self);
VISIBLE int echo(const struct worker *other);
VISIBLE void conserve_body(struct worker *self);
VISIBLE void *run_worker(void *argument);
VISIBLE void *run_echo(void *argument);

static __thread struct waits unused;

VISIBLE void work(long n)
{
    SPIN(n);
}

VISIBLE void doze(long ns)
{
    sleep_for(&unused, ns);
}

VISIBLE void acquire(void)
{
    lock_mutex(&unused, &mutex);
}

VISIBLE void hold_lock(long n)
{
    SPIN(n);
}

VISIBLE void release(void)
{
    unlock_mutex(&mutex);
}

VISIBLE void contend(long n)
{
    acquire();
    hold_lock(n);
    release();
    NOT_A_TAIL_CALL();
}

VISIBLE void ping(const struct worker *self)
{
    send_token(self->to_partner[1], 'p');
    receive(&unused, self->from_partner[0]);
}

VISIBLE int echo(const struct worker *other)
{
    char token = receive(&unused, other->to_partner[0]);

    SPIN((1 + draw(30)) * QUANTUM);
    send_token(other->from_partner[1], token);
    return token != 0;
}

/* Calls no function of the C library: one that is preempted in there would hide its caller. */
VISIBLE void conserve_body(struct worker *self)
{
    struct moment now = read_moment();

    self->start = now;
    while (now.wall < end) {
        unsigned action = draw(4);
        long amount = 1 + draw(100);

        if (action == 0)
            work(amount * QUANTUM);
        else if (action == 1)
            doze(amount * MILLISECOND / 50);
        else if (action == 2)
            contend(amount * QUANTUM);
        else
            ping(self);
        now = read_moment();
    }
    self->end = now;
}

/* Each begins at another place in the numbers that all draw, or all would do the same. */
VISIBLE void *run_worker(void *argument)
{
    struct worker *self = argument;

    pthread_setname_np(pthread_self(), self->name);
    for (long i = 0; i < 100 * (self - workers); i++)
        draw(1);
    pthread_barrier_wait(&all_here);
    conserve_body(self);
    close(self->to_partner[1]);
    return NULL;
}

VISIBLE void *run_echo(void *argument)
{
    struct worker *other = argument;

    pthread_setname_np(pthread_self(), other->partner);
    while (echo(other))
        continue;
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[2 * THREADS];
    long stolen;

    end = end_of_run(argc, argv);
    stolen = stolen_nanoseconds();
    pthread_barrier_init(&all_here, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        struct worker *worker = &workers[i];

        snprintf(worker->name, sizeof worker->name, "conserve-%d", i);
        snprintf(worker->partner, sizeof worker->partner, "echo-%d", i);
        if (pipe(worker->to_partner) != 0 || pipe(worker->from_partner) != 0
            || pthread_create(&threads[i], NULL, run_worker, worker) != 0
            || pthread_create(&threads[THREADS + i], NULL, run_echo, worker) != 0) {
            fputs("conserve: cannot start a thread\n", stderr);
            return 1;
        }
    }
    for (int i = 0; i < 2 * THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++)
        report_times(workers[i].name, workers[i].start, workers[i].end);
    printf("stolen ns=%ld\n", stolen_nanoseconds() - stolen);
    return 0;
}
