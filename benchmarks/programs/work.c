/* work: a fixed amount of work at the call depth of deep.h, in the program itself or in system calls.
 *
 * It runs on one CPU, before everything else that would. It prints the CPU time of its thread and
 * the wall time that the work took, in nanoseconds.
 *
 * Usage: work cpu|syscalls UNITS CPU
 */

#define _GNU_SOURCE
#include "deep.h"

#include <signal.h>
#include <sys/syscall.h>

#define CALLS 20 /* of each kind, in a unit */

static char block[4096];
static int file;

VISIBLE void compute(void);
VISIBLE void ask_kernel(void);

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
