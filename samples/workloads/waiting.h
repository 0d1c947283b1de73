/* What the workloads that wait share: system calls without the C library, and what they measure.
 *
 * The C library keeps no frame pointers: a stack that is walked by them from one of its wrappers
 * misses the wrapper's caller, the very function that waits. So these workloads enter the kernel
 * from their own functions. All of it is inlined there and shows in no profile. */

#ifndef WAITING_H
#define WAITING_H

#include "workload.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#define INLINED static inline __attribute__((always_inline))

#define MILLISECOND 1000000L
#define SECOND 1000000000L

/* The result or, as the kernel gives it, a negative errno. The variable in memory is for the frame
 * pointer, as in SPIN. */
INLINED long system_call(long number, long a, long b, long c, long d)
{
    long result;
    long in_memory;

    __asm__ volatile("" : "=m"(in_memory));
#if defined(__x86_64__)
    register long fourth __asm__("r10") = d;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
                     : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long which __asm__("x8") = number;
    register long first __asm__("x0") = a;
    register long second __asm__("x1") = b;
    register long third __asm__("x2") = c;
    register long fourth __asm__("x3") = d;

    __asm__ volatile("svc 0"
                     : "+r"(first)
                     : "r"(which), "r"(second), "r"(third), "r"(fourth)
                     : "memory");
    result = first;
#else
    result = syscall(number, a, b, c, d);
    if (result == -1)
        result = -errno;
#endif
    return result;
}

INLINED long nanoseconds_on(clockid_t clock)
{
    struct timespec now;

    system_call(SYS_clock_gettime, clock, (long)&now, 0, 0);
    return now.tv_sec * SECOND + now.tv_nsec;
}

INLINED long wall_nanoseconds(void)
{
    return nanoseconds_on(CLOCK_MONOTONIC);
}

static inline struct timespec to_timespec(long ns)
{
    return (struct timespec){ns / SECOND, ns % SECOND};
}

/* When to end, by the first argument. */
static inline long end_of_run(int argc, char **argv)
{
    return wall_nanoseconds() + (long)(seconds_to_run(argc, argv) * SECOND);
}

/* End all of a program whose system call failed with a negative errno. */
static inline void exit_if_failed(long result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror((int)-result));
        exit(1);
    }
}

/* How long a function was in its system call that blocks, by the clock right before and after. */
struct waits {
    long ns;
    long count;
};

INLINED long timed_call(struct waits *waits, long number, long a, long b, long c, long d)
{
    long start = wall_nanoseconds();
    long result = system_call(number, a, b, c, d);

    waits->ns += wall_nanoseconds() - start;
    waits->count++;
    return result;
}

static inline void report_waits(const char *name, const struct waits *waits)
{
    printf("%s ns=%ld waits=%ld\n", name, waits->ns, waits->count);
}

INLINED void sleep_for(struct waits *waits, long ns)
{
    struct timespec length = to_timespec(ns);
    long result = timed_call(waits, SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, (long)&length, 0);

    exit_if_failed(result, "clock_nanosleep");
}

/* One byte through a pipe. At its end it reads 0. */
INLINED char receive(struct waits *waits, int from)
{
    char token = 0;

    exit_if_failed(timed_call(waits, SYS_read, from, (long)&token, 1, 0), "read");
    return token;
}

INLINED void send_token(int to, char token)
{
    exit_if_failed(system_call(SYS_write, to, (long)&token, 1, 0), "write");
}

/* A mutex: 0 is free, 1 is held, 2 is held and somebody may wait. Who unlocks wakes one, who still
 * has to get it before others do (Drepper, Futexes Are Tricky, section 5). EAGAIN says that it was
 * unlocked in between: that was no wait. */
INLINED void lock_mutex(struct waits *waits, int *mutex)
{
    int seen = 0;

    if (__atomic_compare_exchange_n(mutex, &seen, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return;
    while (__atomic_exchange_n(mutex, 2, __ATOMIC_ACQUIRE) != 0) {
        struct waits after = *waits;
        long result = timed_call(&after, SYS_futex, (long)mutex, FUTEX_WAIT_PRIVATE, 2, 0);

        if (result != -EAGAIN) {
            exit_if_failed(result, "futex");
            *waits = after;
        }
    }
}

INLINED void unlock_mutex(int *mutex)
{
    if (__atomic_exchange_n(mutex, 0, __ATOMIC_RELEASE) == 2)
        exit_if_failed(system_call(SYS_futex, (long)mutex, FUTEX_WAKE_PRIVATE, 1, 0), "futex");
}

/* Wall and CPU time of a thread, of one moment: where something came between the two, again. */
struct moment {
    long wall;
    long cpu;
};

INLINED struct moment read_moment(void)
{
    const long close_enough = 20000;

    for (;;) {
        long wall = wall_nanoseconds();
        long cpu = nanoseconds_on(CLOCK_THREAD_CPUTIME_ID);

        if (wall_nanoseconds() - wall < close_enough)
            return (struct moment){wall, cpu};
    }
}

/* What a hypervisor took from all CPUs since they started, in steps of 10 ms: proc_stat(5). */
static inline long stolen_nanoseconds(void)
{
    long ticks = 0;
    FILE *file = fopen("/proc/stat", "re");

    if (file) {
        if (fscanf(file, "cpu %*s %*s %*s %*s %*s %*s %*s %ld", &ticks) != 1)
            ticks = 0;
        fclose(file);
    }
    return ticks * (SECOND / sysconf(_SC_CLK_TCK));
}

static inline void report_times(const char *name, struct moment start, struct moment end)
{
    printf("%s wall_ns=%ld cpu_ns=%ld\n", name, end.wall - start.wall, end.cpu - start.cpu);
}

#endif
