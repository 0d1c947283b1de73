/* fork_storm: many processes that each work 4 to 10 ms, and are gone before anyone can ask who
 * they were.
 *
 * truth: short_lived_work=98
 * tolerance: 3
 *
 * The truth is about the children's samples: at least 95 % of them have short_lived_work. The rest
 * is the birth and the end of a process: page faults, execve, the dynamic linker, exit. Every
 * eighth child executes this program again through /proc/self/exe before it works, at other
 * addresses; on most kernels it is then called "exe", the others "fork_storm". The parent, on under
 * a tenth of a CPU, shows fork and waitpid.
 *
 * Usage: fork_storm [SECONDS [PER_SECOND [AT_A_TIME]]]    defaults: 5 200 2
 * Starts PER_SECOND children in a second on average, at irregular times; never has more than
 * AT_A_TIME; reaps all of them, and prints how many it started and reaped. A machine that is too
 * busy gets fewer.
 */

#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#define LONGEST_LIFE 1.0

static long started, reaped, failed;

VISIBLE void short_lived_work(double cpu_seconds);

VISIBLE void short_lived_work(double cpu_seconds)
{
    double until = thread_cpu_seconds() + cpu_seconds;
    double latest = wall_seconds() + LONGEST_LIFE;

    while (thread_cpu_seconds() < until && wall_seconds() < latest)
        SPIN(20 * QUANTUM);
}

static void start_child(int executes)
{
    double cpu_seconds = (4000 + draw(6001)) * 1e-6;
    char text[32];
    pid_t pid = fork();

    if (pid < 0) {
        perror("fork_storm: fork");
        exit(1);
    }
    if (pid > 0) {
        started++;
        return;
    }
    if (executes) {
        snprintf(text, sizeof text, "%.6f", cpu_seconds);
        execl("/proc/self/exe", "fork_storm", "--child", text, (char *)NULL);
        _exit(127);
    }
    short_lived_work(cpu_seconds);
    _exit(0);
}

static void reap_child(void)
{
    int status;

    while (waitpid(-1, &status, 0) < 0) {
        if (errno != EINTR) {
            perror("fork_storm: waitpid");
            exit(1);
        }
    }
    reaped++;
    if (status != 0)
        failed++;
}

static void sleep_until(double when)
{
    struct timespec at = {(time_t)when, (long)((when - (double)(time_t)when) * 1e9)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        continue;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--child") == 0) {
        short_lived_work(number_or_exit(argv[2], "CPU seconds"));
        return 0;
    }

    double next = wall_seconds();
    double end = next + seconds_to_run(argc, argv);
    double interval = 1 / (argc > 2 ? number_or_exit(argv[2], "children a second") : 200);
    long at_a_time = argc > 3 ? (long)number_or_exit(argv[3], "children at a time") : 2;

    while (wall_seconds() < end) {
        if (started - reaped >= at_a_time)
            reap_child();
        sleep_until(next);
        start_child(started % 8 == 7);
        next += interval * draw(2001) / 1000;
        if (next < wall_seconds())
            next = wall_seconds();
    }
    while (reaped < started)
        reap_child();
    printf("started=%ld reaped=%ld failed=%ld\n", started, reaped, failed);
    return failed != 0;
}
