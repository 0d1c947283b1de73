/* busy_pair: two processes that both want all of one CPU.
 *
 * truth: busy_loop=100
 * tolerance: 2
 *
 * Each of the processes busy-A and busy-B runs half the time. The other half it is off the CPU
 * though it could run: preempted by the other one, in main -> run_busy -> busy_loop, and not
 * blocked at all. The truth is about that half, and about the time on the CPU likewise. Where other
 * programs run on the same CPU, both get less than half of it.
 *
 * Usage: busy_pair [SECONDS [CPU]]    SECONDS defaults to 5, CPU to the first that it may use
 * For each process it prints a line: busy-X wall_ns=N cpu_ns=N, both of the same stretch of time.
 * The first process (busy_pair) waits for them to end.
 */

#define _GNU_SOURCE
#include "waiting.h"

#include <limits.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>

VISIBLE void busy_loop(long end);
VISIBLE void run_busy(const char *name, long end);

VISIBLE void busy_loop(long end)
{
    while (wall_nanoseconds() < end)
        SPIN(20 * QUANTUM);
}

VISIBLE void run_busy(const char *name, long end)
{
    struct moment start = read_moment();

    busy_loop(end);
    report_times(name, start, read_moment());
}

/* The CPU that `text` names, or the first one when there is none. */
static int allowed_cpu(const char *text)
{
    char *rest = NULL;
    long wanted = text ? strtol(text, &rest, 10) : 0;
    cpu_set_t allowed;

    sched_getaffinity(0, sizeof allowed, &allowed);
    if (text && (rest == text || *rest != '\0' || wanted < 0 || wanted >= CPU_SETSIZE
                 || !CPU_ISSET((size_t)wanted, &allowed))) {
        fprintf(stderr, "busy_pair: not a CPU that this may run on: %s\n", text);
        exit(2);
    }
    while (!text && !CPU_ISSET((size_t)wanted, &allowed))
        wanted++;
    return (int)wanted;
}

/* As fork; the child has a name, and only that CPU. */
static pid_t fork_pinned(const char *name, int cpu)
{
    cpu_set_t one;
    pid_t pid = fork();

    CPU_ZERO(&one);
    CPU_SET((size_t)cpu, &one);
    if (pid < 0
        || (pid == 0
            && (prctl(PR_SET_NAME, name) != 0 || sched_setaffinity(0, sizeof one, &one) != 0))) {
        perror("busy_pair: cannot start a process there");
        exit(1);
    }
    return pid;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"busy-A", "busy-B"};
    long end = end_of_run(argc, argv);
    int cpu = allowed_cpu(argc > 2 ? argv[2] : NULL);
    int status, failed = 0;

    for (int i = 0; i < 2; i++) {
        if (fork_pinned(names[i], cpu) == 0) {
            run_busy(names[i], end);
            return 0;
        }
    }
    while (wait(&status) > 0)
        failed |= status != 0;
    return failed;
}
