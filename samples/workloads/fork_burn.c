/* fork_burn: children that burn at once, from where they were forked, and end.
 *
 * stack: main -> make_child -> work_in_child -> burn_in_child
 * stack: main -> wait_between -> burn_between
 *
 * Each child lives 50 ms and executes nothing: its stack goes on below fork with what its parent
 * did before. The parent burns 10 ms before each.
 *
 * Usage: fork_burn [SECONDS]    SECONDS defaults to 5
 */

#define _GNU_SOURCE
#include "workload.h"

#include <sys/wait.h>
#include <unistd.h>

VISIBLE void burn_in_child(double until);
VISIBLE void work_in_child(void);
VISIBLE void make_child(void);
VISIBLE void burn_between(double until);
VISIBLE void wait_between(void);

VISIBLE void burn_in_child(double until)
{
    while (wall_seconds() < until)
        SPIN(QUANTUM);
}

VISIBLE void work_in_child(void)
{
    burn_in_child(wall_seconds() + 0.05);
    NOT_A_TAIL_CALL();
}

VISIBLE void make_child(void)
{
    pid_t pid = fork();

    if (pid == 0) {
        work_in_child();
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, NULL, 0) < 0) {
        perror("fork_burn: fork");
        exit(1);
    }
}

VISIBLE void burn_between(double until)
{
    while (wall_seconds() < until)
        SPIN(QUANTUM);
}

VISIBLE void wait_between(void)
{
    burn_between(wall_seconds() + 0.01);
    NOT_A_TAIL_CALL();
}

int main(int argc, char **argv)
{
    double end = wall_seconds() + seconds_to_run(argc, argv);

    while (wall_seconds() < end) {
        wait_between();
        make_child();
    }
    return 0;
}
