/* self_timer: one thread that timers of its own wake, in three ways, 50 to 30 to 20 % of its time.
 *
 * truth: wait_timerfd=50 wait_nanosleep=30 wait_signal=20
 * waker: [timer]=100
 * tolerance: 1
 *
 * The truth is about time off the CPU: main -> take_a_way -> wait_X. Each wait is 10 ms long, and
 * ended by the interrupt of a timer:
 *     wait_timerfd     in read, of a timerfd
 *     wait_nanosleep   in clock_nanosleep
 *     wait_signal      in rt_sigtimedwait, for the signal of a timer of timer_create
 * 5, 3 and 2 of them, in an order that is drawn, are a round of 100 ms. The task that such an
 * interrupt interrupts, the idle one mostly, has woken nobody.
 *
 * Usage: self_timer [SECONDS]    SECONDS defaults to 5; the last round is finished
 * For each of wait_X it prints a line: wait_X ns=N waits=N
 */

#define _GNU_SOURCE
#include "waiting.h"

#include <signal.h>
#include <sys/timerfd.h>

#define LENGTH (10 * MILLISECOND)

static int timer_file;
static timer_t signal_timer;
static sigset_t alarm_only;
static struct waits timerfd_waits, nanosleep_waits, signal_waits;

VISIBLE void wait_timerfd(void);
VISIBLE void wait_nanosleep(void);
VISIBLE void wait_signal(void);
VISIBLE void take_a_way(void);

VISIBLE void wait_timerfd(void)
{
    unsigned long expirations;

    exit_if_failed(timed_call(&timerfd_waits, SYS_read, timer_file, (long)&expirations,
                              sizeof expirations, 0),
                   "self_timer: read");
}

VISIBLE void wait_nanosleep(void)
{
    sleep_for(&nanosleep_waits, LENGTH);
}

/* The kernel's set of signals has a bit for each, and is shorter than the C library's. */
VISIBLE void wait_signal(void)
{
    exit_if_failed(timed_call(&signal_waits, SYS_rt_sigtimedwait, (long)&alarm_only, 0, 0,
                              (_NSIG - 1) / 8),
                   "self_timer: rt_sigtimedwait");
}

VISIBLE void take_a_way(void)
{
    const struct itimerspec once = {{0, 0}, to_timespec(LENGTH)};
    unsigned ticket = draw_ticket();

    if (ticket < 5) {
        timerfd_settime(timer_file, 0, &once, NULL);
        wait_timerfd();
    } else if (ticket < 8) {
        wait_nanosleep();
    } else {
        timer_settime(signal_timer, 0, &once, NULL);
        wait_signal();
    }
    NOT_A_TAIL_CALL();
}

int main(int argc, char **argv)
{
    long end = end_of_run(argc, argv);

    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    timer_file = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    if (timer_file < 0 || sigprocmask(SIG_BLOCK, &alarm_only, NULL) != 0
        || timer_create(CLOCK_MONOTONIC, NULL, &signal_timer) != 0) {
        perror("self_timer: cannot make a timer");
        return 1;
    }
    while (wall_nanoseconds() < end) {
        for (int i = 0; i < 10; i++)
            take_a_way();
    }
    report_waits("wait_timerfd", &timerfd_waits);
    report_waits("wait_nanosleep", &nanosleep_waits);
    report_waits("wait_signal", &signal_waits);
    return 0;
}
