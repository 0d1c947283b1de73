/* hostile: a process and functions whose names attack whoever prints them.
 *
 * truth: <script>alert(1)</script>=70 semi;colon"'&]]>\=30
 * tolerance: 1
 *
 * The thread's name is the 13 bytes "a;b <", escape, "[31m", newline, "&]". A right profile
 * shows main -> `caller 99` -> the two functions above, each with its name intact: no script runs
 * in the SVG, no colour changes in the terminal, and folded text that is read back has the same
 * frames and values.
 *
 * Usage: hostile [SECONDS [--verify]]    SECONDS defaults to 5
 * With --verify it measures the CPU time of both functions, prints the shares, and fails when one
 * is off by more than a point.
 */

#include "workload.h"

#include <sys/prctl.h>

/* The Makefile gives these three their hostile names: assemblers differ in what they take. */
VISIBLE void markup(long n);
VISIBLE void delimiters(long n);
VISIBLE int caller(long n);

VISIBLE void markup(long n)
{
    SPIN(n);
}

VISIBLE void delimiters(long n)
{
    SPIN(n);
}

VISIBLE int caller(long n)
{
    if (draw_ticket() < 7) {
        markup(n);
        return 0;
    }
    delimiters(n);
    return 1;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"markup", "delimiters"};
    static const double shares[] = {70, 30};
    double cpu[2] = {0, 0};
    int verify = wants_verify(argc, argv);
    double end = wall_seconds() + seconds_to_run(argc, argv);

    prctl(PR_SET_NAME, "a;b <\x1b[31m\n&]", 0, 0, 0);
    while (wall_seconds() < end) {
        for (int i = 0; i < 100; i++) {
            double start = verify ? thread_cpu_seconds() : 0;
            int path = caller(QUANTUM);

            if (verify)
                cpu[path] += thread_cpu_seconds() - start;
        }
    }
    return verify ? report_shares(2, names, shares, cpu) : 0;
}
