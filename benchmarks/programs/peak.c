/* peak: run a command and report its peak memory and its CPU time.
 *
 * The file REPORT gets the command's process id when it starts, and when it ends its peak resident
 * size in KiB and its CPU time in microseconds, a line each. The kernel counts what a process was
 * before its exec into its peak: started from a Python program, small commands seem as large as
 * that. Hence this small one. It ends as the command does, also by a signal.
 *
 * Usage: peak REPORT COMMAND [ARGUMENTS...]
 */

#define _GNU_SOURCE
#include "bench.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static long microseconds(struct timeval time)
{
    return time.tv_sec * 1000000 + time.tv_usec;
}

int main(int argc, char **argv)
{
    struct rusage usage;
    FILE *report;
    int status;
    pid_t child;

    if (argc < 3) {
        fprintf(stderr, "usage: peak REPORT COMMAND [ARGUMENTS...]\n");
        return 2;
    }
    report = fopen(argv[1], "we");
    must(report == NULL ? -1 : 0, argv[1]);
    must(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
    child = fork();
    must(child, "fork");
    if (child == 0) {
        must(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
        execvp(argv[2], argv + 2);
        perror(argv[2]);
        _exit(127);
    }
    fprintf(report, "%d\n", child);
    fflush(report);
    must(wait4(child, &status, 0, &usage), "wait4");
    fprintf(report, "%ld\n%ld\n", usage.ru_maxrss,
            microseconds(usage.ru_utime) + microseconds(usage.ru_stime));
    fclose(report);
    if (WIFSIGNALED(status)) {
        raise(WTERMSIG(status));
        return 128 + WTERMSIG(status);
    }
    return WEXITSTATUS(status);
}
