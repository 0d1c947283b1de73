/* sleeper: one thread that sleeps on three call paths, which take 50, 40 and 10 % of its time.
 *
 * truth: sleep_long=50 sleep_middle=40 sleep_short=10
 * waker: [timer]=100
 * tolerance: 1
 *
 * The truth is about time off the CPU: main -> take_a_path -> path_X -> sleep_X, and the kernel's
 * clock_nanosleep above it. The sleeps are 100, 40 and 10 ms long; 2, 4 and 4 of them, in an order
 * that is drawn, are a round of 400 ms. Each is a little longer than asked for, by the timer's
 * slack and the way back to the CPU, and by more where other programs want that.
 *
 * Usage: sleeper [SECONDS]    SECONDS defaults to 5; the last round is finished
 * For each of sleep_X it prints a line: sleep_X ns=N waits=N
 * The nanoseconds are from right before the system calls to right after them. What they have beside
 * the time off the CPU is some 5 to 30 microseconds a sleep: below 0.5 % of each sum.
 */

#include "waiting.h"

#define PATH(name, ms)                                      \
    VISIBLE void sleep_##name(struct waits *waits);         \
    VISIBLE void path_##name(struct waits *waits);          \
                                                            \
    VISIBLE void sleep_##name(struct waits *waits)          \
    {                                                       \
        sleep_for(waits, (ms) * MILLISECOND);               \
    }                                                       \
                                                            \
    VISIBLE void path_##name(struct waits *waits)           \
    {                                                       \
        sleep_##name(waits);                                \
        NOT_A_TAIL_CALL();                                  \
    }

PATH(long, 100)
PATH(middle, 40)
PATH(short, 10)

static struct waits waits[3];

VISIBLE void take_a_path(void);

VISIBLE void take_a_path(void)
{
    unsigned ticket = draw_ticket();

    if (ticket < 2)
        path_long(&waits[0]);
    else if (ticket < 6)
        path_middle(&waits[1]);
    else
        path_short(&waits[2]);
}

int main(int argc, char **argv)
{
    long end = end_of_run(argc, argv);

    while (wall_nanoseconds() < end) {
        for (int i = 0; i < 10; i++)
            take_a_path();
    }
    report_waits("sleep_long", &waits[0]);
    report_waits("sleep_middle", &waits[1]);
    report_waits("sleep_short", &waits[2]);
    return 0;
}
