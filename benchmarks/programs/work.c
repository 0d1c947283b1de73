/* work: a fixed amount of work at call depth 20, in the program itself or in system calls.
 *
 * It runs on one CPU, before everything else that would. It prints the CPU time of its thread and
 * the wall time that the work took, in nanoseconds.
 *
 * Usage: work cpu|syscalls UNITS CPU
 */

#define _GNU_SOURCE
#include "bench.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEPTH 20
#define CALLS 20 /* of each kind, in a unit */

static char block[4096];
static int file;

VISIBLE void compute(void);
VISIBLE void ask_kernel(void);
VISIBLE void descend(int depth, void (*leaf)(void));

VISIBLE void compute(void)
{
    SPIN(QUANTUM);
}

VISIBLE void ask_kernel(void)
{
    for (int i = 0; i < CALLS; i++) {
        syscall(SYS_getppid);
        must((int)pread(file, block, sizeof block, 0), "work: pread");
    }
}

VISIBLE void descend(int depth, void (*leaf)(void))
{
    if (depth > 1)
        descend(depth - 1, leaf);
    else
        leaf();
    NOT_A_TAIL_CALL();
}

/* Above everything of the same CPU. Niceness counts within a group of the scheduler only, which by
 * default is a session: we need a session of our own, and its group's niceness. */
static void go_first(void)
{
    int group;

    must(setsid(), "setsid");
    must(setpriority(PRIO_PROCESS, 0, -20), "setpriority");
    group = open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC);
    if (group >= 0) { /* not every kernel has them */
        must((int)write(group, "-20", 3), "/proc/self/autogroup");
        close(group);
    }
}

int main(int argc, char **argv)
{
    void (*leaf)(void);
    long units;
    double cpu, wall;

    if (argc != 4 || (strcmp(argv[1], "cpu") != 0 && strcmp(argv[1], "syscalls") != 0)) {
        fprintf(stderr, "usage: work cpu|syscalls UNITS CPU\n");
        return 2;
    }
    leaf = strcmp(argv[1], "cpu") == 0 ? compute : ask_kernel;
    units = atol(argv[2]);
    must(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
    must(prctl(PR_SET_NAME, leaf == compute ? "work-cpu" : "work-syscalls"), "prctl");
    file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    must(file, "/proc/self/exe");
    go_first();
    pin_to(atoi(argv[3]));

    cpu = thread_cpu_seconds();
    wall = wall_seconds();
    for (long i = 0; i < units; i++)
        descend(DEPTH, leaf);
    cpu = thread_cpu_seconds() - cpu;
    wall = wall_seconds() - wall;
    printf("%.0f %.0f\n", cpu * 1e9, wall * 1e9);
    return 0;
}
