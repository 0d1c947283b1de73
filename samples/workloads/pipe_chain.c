/* pipe_chain: four processes in a row, each waiting for the one before it, the first for a timer.
 *
 * truth: d_waits=100
 * chain: d_waits c_sends c_waits b_sends b_waits a_sends a_waits [timer]
 * tolerance: 1
 *
 * The truth is about the time that the process chain-D is blocked. The chain says who ended that
 * wait, what that one had waited for, who ended this, and so on: chain-C wakes chain-D in c_sends
 * after it was woken itself out of c_waits, and so on to chain-A, which a timer wakes from a sleep
 * of 2 ms. The stacks are, with X for each of a to d:
 *     main -> run_X -> X_waits -> (the kernel's read of a pipe, or clock_nanosleep)
 *     main -> run_X -> X_sends -> (the kernel's write to a pipe)
 * In between each works some 50 microseconds, in X_works, so that the next is blocked when its
 * token comes. The first process (pipe_chain) waits for the others to end.
 *
 * Usage: pipe_chain [SECONDS]    SECONDS defaults to 5
 * Each process prints a line at its end: X_waits ns=N waits=N. For chain-D the waits are the
 * tokens that went through; the last one tells all to end, so that every wait ends in X_sends.
 */

#define _GNU_SOURCE
#include "waiting.h"

#include <sys/prctl.h>
#include <sys/wait.h>

#define TOKEN 't'
#define LAST 'l'

static long end;

/* Takes from one pipe and puts into the next; `waits` and `sends` say how. */
#define PROCESS(x, take, put)                                                \
    VISIBLE char x##_waits(struct waits *waits, int from);                   \
    VISIBLE void x##_works(void);                                            \
    VISIBLE void x##_sends(int to, char token);                              \
    VISIBLE void run_##x(int from, int to);                                  \
                                                                             \
    VISIBLE char x##_waits(struct waits *waits, int from)                    \
    {                                                                        \
        return take(waits, from);                                            \
    }                                                                        \
                                                                             \
    VISIBLE void x##_works(void)                                             \
    {                                                                        \
        SPIN(8 * QUANTUM);                                                   \
    }                                                                        \
                                                                             \
    VISIBLE void x##_sends(int to, char token)                               \
    {                                                                        \
        put(to, token);                                                      \
    }                                                                        \
                                                                             \
    VISIBLE void run_##x(int from, int to)                                   \
    {                                                                        \
        struct waits waits = {0, 0};                                         \
        char token;                                                          \
                                                                             \
        do {                                                                 \
            token = x##_waits(&waits, from);                                 \
            x##_works();                                                     \
            x##_sends(to, token);                                            \
        } while (token == TOKEN);                                            \
        report_waits(#x "_waits", &waits);                                   \
    }

INLINED char wait_for_timer(struct waits *waits, int from)
{
    (void)from;
    sleep_for(waits, 2 * MILLISECOND);
    return wall_nanoseconds() < end ? TOKEN : LAST;
}

INLINED void send_nowhere(int to, char token)
{
    (void)to, (void)token;
}

PROCESS(a, wait_for_timer, send_token)
PROCESS(b, receive, send_token)
PROCESS(c, receive, send_token)
PROCESS(d, receive, send_nowhere)

#define PROCESSES 4

/* Of pipe i, process i has the end to write to, and process i + 1 the end to read from. */
static int pipes[PROCESSES - 1][2];

static void run_process(int i)
{
    static void (*const run[])(int from, int to) = {run_a, run_b, run_c, run_d};
    char name[] = {'c', 'h', 'a', 'i', 'n', '-', (char)('A' + i), '\0'};

    prctl(PR_SET_NAME, name);
    for (int j = 0; j < PROCESSES - 1; j++) {
        if (j != i - 1)
            close(pipes[j][0]);
        if (j != i)
            close(pipes[j][1]);
    }
    run[i](i > 0 ? pipes[i - 1][0] : -1, i < PROCESSES - 1 ? pipes[i][1] : -1);
}

int main(int argc, char **argv)
{
    int status, failed = 0;

    end = end_of_run(argc, argv);
    for (int i = 0; i < PROCESSES - 1; i++) {
        if (pipe(pipes[i]) != 0) {
            perror("pipe_chain: pipe");
            return 1;
        }
    }
    for (int i = 0; i < PROCESSES; i++) {
        pid_t pid = fork();

        if (pid < 0) {
            perror("pipe_chain: fork");
            return 1;
        }
        if (pid == 0) {
            run_process(i);
            return 0;
        }
    }
    /* Whoever is left when one fails must see its pipe closed. */
    for (int i = 0; i < PROCESSES - 1; i++) {
        close(pipes[i][0]);
        close(pipes[i][1]);
    }
    while (wait(&status) > 0)
        failed |= status != 0;
    return failed;
}
