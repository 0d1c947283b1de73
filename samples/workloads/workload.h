/* What the workloads share: their arguments, their clocks, and work of a known size. */

#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A function that a profile must show: never inlined, cloned or merged with another, and at the
 * start of a cache line so that copies of one loop run at one speed. */
#if defined(__has_attribute) && __has_attribute(noipa)
#define VISIBLE __attribute__((noipa, noinline, aligned(64)))
#else
#define VISIBLE __attribute__((noinline, aligned(64)))
#endif

/* Iterations that take a few microseconds. */
#define QUANTUM 4000L

/* A chain of dependent multiplications: its speed is their latency, wherever the copy lies. A macro,
 * so that no profile shows an inlined function here. The variable in memory is for the frame
 * pointer: GCC leaves it out of a function that does not touch its stack, whatever it is told. */
#define SPIN(iterations)                                               \
    do {                                                               \
        long rest = (iterations);                                      \
        unsigned long value = (unsigned long)rest;                     \
        long in_memory;                                                \
                                                                       \
        __asm__ volatile("" : "=m"(in_memory));                        \
        for (; rest > 0; rest--) {                                     \
            value = value * 6364136223846793005UL + 1;                 \
            __asm__ volatile("" : "+r"(value));                        \
        }                                                              \
    } while (0)

/* Stands after a call that would otherwise be the function's last act and could become a jump. */
#define NOT_A_TAIL_CALL() __asm__ volatile("" : : : "memory")

static inline double seconds_on(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static inline double wall_seconds(void)
{
    return seconds_on(CLOCK_MONOTONIC);
}

static inline double thread_cpu_seconds(void)
{
    return seconds_on(CLOCK_THREAD_CPUTIME_ID);
}

static inline double number_or_exit(const char *text, const char *what)
{
    char *end;
    double number = strtod(text, &end);

    if (end == text || *end != '\0' || !(number > 0 && number <= 86400)) {
        fprintf(stderr, "%s: not a number above 0 and up to 86400: %s\n", what, text);
        exit(2);
    }
    return number;
}

/* The first argument, or 5. */
static inline double seconds_to_run(int argc, char **argv)
{
    return argc > 1 ? number_or_exit(argv[1], "seconds") : 5.0;
}

static inline int wants_verify(int argc, char **argv)
{
    return argc > 2 && strcmp(argv[2], "--verify") == 0;
}

/* A number from 0 to below `limit`, the same sequence in every run and every thread. Work whose order
 * or size is drawn cannot fall into step with a sampling timer, which would falsify the shares. */
static inline unsigned draw(unsigned limit)
{
    static __thread unsigned long state = 88172645463325252UL;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 33) % limit;
}

/* A ticket from 0 to 9: each comes once in any ten, in an order that is drawn anew. */
static inline unsigned draw_ticket(void)
{
    static unsigned char deck[10] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    static unsigned left = 0;
    unsigned picked;
    unsigned char ticket;

    if (left == 0)
        left = 10;
    picked = draw(left--);
    ticket = deck[picked];
    deck[picked] = deck[left];
    deck[left] = ticket;
    return ticket;
}

/* Print the measured shares of CPU time; the exit status says if all are within a point. */
static inline int report_shares(int count, const char *const *names, const double *expected,
                                const double *cpu_seconds)
{
    double total = 0;
    int status = 0;

    for (int i = 0; i < count; i++)
        total += cpu_seconds[i];
    for (int i = 0; i < count; i++) {
        double percent = 100 * cpu_seconds[i] / total;

        printf("%s=%.2f\n", names[i], percent);
        if (!(percent >= expected[i] - 1 && percent <= expected[i] + 1))
            status = 1;
    }
    return status;
}

#endif
