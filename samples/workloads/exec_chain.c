/* exec_chain: one process, two programs. It runs before_exec, executes, and runs after_exec for as
 * much CPU time again.
 *
 * truth: before_exec=50 after_exec=50
 * tolerance: 1
 *
 * A right profile shows main -> before_exec and main -> after_exec, half each, under one pid and
 * never one under the other's name. The build makes two kinds:
 *     exec_chain      executes itself; the kernel loads it at other addresses the second time
 *     exec_chain_a    executes exec_chain_b; both are loaded at fixed addresses, before_exec of the
 *                     one exactly where after_exec of the other is: only the time of the sample
 *                     tells them apart. The process is called exec_chain_a, then exec_chain_b
 *
 * Usage: exec_chain [SECONDS]    SECONDS defaults to 5, for both halves together
 * On a machine that is busier in the second half it takes longer, at most 3 times SECONDS.
 */

#define _GNU_SOURCE
#include "workload.h"

#include <limits.h>
#include <unistd.h>

/* The fixed address of this section is given to the linker for exec_chain_a and exec_chain_b. */
#define BURN VISIBLE __attribute__((section(".burn")))

#ifndef EXEC_CHAIN_B
BURN void before_exec(double until);

BURN void before_exec(double until)
{
    while (wall_seconds() < until)
        SPIN(10 * QUANTUM);
}

static int execute_next(char **argv, double seconds)
{
    char path[PATH_MAX + 32];
    char text[32];
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX);

    if (length < 0 || length == PATH_MAX) {
        perror("exec_chain: /proc/self/exe");
        return 1;
    }
    path[length] = '\0';
#ifdef EXEC_CHAIN_A
    strcpy(strrchr(path, '/') + 1, "exec_chain_b");
#endif
    snprintf(text, sizeof text, "%f", seconds);
    execl(path, argv[0], text, "after", (char *)NULL);
    perror("exec_chain: exec");
    return 1;
}
#endif

#ifndef EXEC_CHAIN_A
BURN void after_exec(double cpu_until, double latest);

BURN void after_exec(double cpu_until, double latest)
{
    while (seconds_on(CLOCK_PROCESS_CPUTIME_ID) < cpu_until && wall_seconds() < latest)
        SPIN(10 * QUANTUM);
}
#endif

int main(int argc, char **argv)
{
    double seconds = seconds_to_run(argc, argv);

#ifndef EXEC_CHAIN_A
    /* The process keeps its CPU time when it executes: what it has now is the first half. */
    if (argc > 2) {
        after_exec(2 * seconds_on(CLOCK_PROCESS_CPUTIME_ID), wall_seconds() + 2.5 * seconds);
        return 0;
    }
#endif
#ifndef EXEC_CHAIN_B
    before_exec(wall_seconds() + seconds / 2);
    return execute_next(argv, seconds);
#else
    fputs("exec_chain_b: started by exec_chain_a only\n", stderr);
    return 2;
#endif
}
