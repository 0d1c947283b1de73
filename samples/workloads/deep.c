/* deep: threads that burn, or wait in a call of the C library, at the bottom of a deep recursion.
 *
 * stack: main -> descend -> spin_here
 * stack: main -> descend -> nanosleep_here
 * stack: main -> descend -> futex_here
 * stack: main -> descend -> read_here
 * stack: main -> descend -> poll_here
 *
 * By what it does there, one of these; in threads besides the first, run_thread for main, below
 * which the C library starts it. There are as many calls of descend as DEPTH says: a stack with
 * more or fewer of them is false. The first thread has DEPTH of them, the next DEPTH + 1 and so on.
 * Between the function and the system call are frames of the C library.
 *
 * Usage: deep [SECONDS [DEPTH [WHAT [BYTES [THREADS [stay]]]]]]    defaults: 5 10 spin 16 1
 *     WHAT     spin, nanosleep, futex, read, poll; or mixed, by turns in the threads, without spin
 *     BYTES    of each frame of descend, on top of what it needs
 *     stay     when the time is over the waits go on, of the same calls and without an end
 * Each wait lasts 20 milliseconds.
 */

#define _GNU_SOURCE
#include "workload.h"

#include <alloca.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define MOST_THREADS 1000
#define WAIT_NS 20000000L

static double end;
static int stays;
static long depth, bytes;

/* How long the next wait is, ns; 0 at the end. */
static long next_wait(void)
{
    const long for_good = 1000000 * 1000000000L;

    return wall_seconds() < end ? WAIT_NS : stays ? for_good : 0;
}

static struct timespec to_timespec(long ns)
{
    return (struct timespec){ns / 1000000000L, ns % 1000000000L};
}

VISIBLE void spin_here(void);
VISIBLE void nanosleep_here(void);
VISIBLE void futex_here(void);
VISIBLE void read_here(void);
VISIBLE void poll_here(void);
VISIBLE void descend(long calls, void (*what)(void));
VISIBLE void *run_thread(void *number);

VISIBLE void spin_here(void)
{
    while (wall_seconds() < end)
        SPIN(QUANTUM);
}

VISIBLE void nanosleep_here(void)
{
    for (long ns; (ns = next_wait()) > 0;) {
        struct timespec length = to_timespec(ns);

        nanosleep(&length, NULL);
    }
}

VISIBLE void futex_here(void)
{
    sem_t nobody_posts;

    sem_init(&nobody_posts, 0, 0);
    for (long ns; (ns = next_wait()) > 0;) {
        struct timespec until;

        clock_gettime(CLOCK_REALTIME, &until);
        until = to_timespec(until.tv_sec * 1000000000L + until.tv_nsec + ns);
        sem_timedwait(&nobody_posts, &until);
    }
}

VISIBLE void read_here(void)
{
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    uint64_t expired;

    for (long ns; (ns = next_wait()) > 0;) {
        struct itimerspec once = {.it_value = to_timespec(ns)};

        timerfd_settime(timer, 0, &once, NULL);
        if (read(timer, &expired, sizeof expired) < 0)
            break;
    }
    close(timer);
}

VISIBLE void poll_here(void)
{
    for (long ns; (ns = next_wait()) > 0;)
        poll(NULL, 0, ns > WAIT_NS ? -1 : (int)(ns / 1000000));
}

static const struct {
    const char *name;
    void (*act)(void);
} choices[] = {
    {"nanosleep", nanosleep_here}, {"futex", futex_here}, {"read", read_here},
    {"poll", poll_here},           {"spin", spin_here},
};

VISIBLE void descend(long calls, void (*what)(void))
{
    volatile char *room = alloca((size_t)bytes);

    room[0] = 1;
    if (calls > 1)
        descend(calls - 1, what);
    else
        what();
    NOT_A_TAIL_CALL();
}

static void (*chosen[MOST_THREADS])(void);

VISIBLE void *run_thread(void *number)
{
    long nth = (long)number;

    descend(depth + nth, chosen[nth]);
    NOT_A_TAIL_CALL();
    return NULL;
}

static void choose(const char *what, long threads)
{
    for (long nth = 0; nth < threads; nth++) {
        if (strcmp(what, "mixed") == 0)
            chosen[nth] = choices[nth % 4].act;
        for (unsigned i = 0; i < sizeof choices / sizeof *choices; i++) {
            if (strcmp(what, choices[i].name) == 0)
                chosen[nth] = choices[i].act;
        }
        if (!chosen[nth]) {
            fprintf(stderr, "deep: not a thing to do: %s\n", what);
            exit(2);
        }
    }
}

int main(int argc, char **argv)
{
    double seconds = seconds_to_run(argc, argv);
    long threads = argc > 5 ? (long)number_or_exit(argv[5], "threads") : 1;
    pthread_t others[MOST_THREADS];

    depth = argc > 2 ? (long)number_or_exit(argv[2], "depth") : 10;
    bytes = argc > 4 ? (long)number_or_exit(argv[4], "bytes") : 16;
    stays = argc > 6 && strcmp(argv[6], "stay") == 0;
    if (threads > MOST_THREADS) {
        fprintf(stderr, "deep: at most %d threads\n", MOST_THREADS);
        return 2;
    }
    choose(argc > 3 ? argv[3] : "spin", threads);
    end = wall_seconds() + seconds;
    for (long nth = 1; nth < threads; nth++) {
        if (pthread_create(&others[nth], NULL, run_thread, (void *)nth) != 0) {
            fputs("deep: no more threads\n", stderr);
            return 1;
        }
    }
    descend(depth, chosen[0]);
    for (long nth = 1; nth < threads; nth++)
        pthread_join(others[nth], NULL);
    return 0;
}
