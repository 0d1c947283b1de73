/* three_paths: one thread on three call paths, which take 60, 30 and 10 % of its CPU time.
 *
 * truth: path_sixty=60 path_thirty=30 path_ten=10
 * leaf: spin_sixty=60 spin_thirty=30 spin_ten=10
 * tolerance: 1
 *
 * A right profile shows main -> take_a_path -> path_X -> mid_X -> spin_X for each share, and next
 * to nothing else.
 * The leaf names hold even where a profiler cannot unwind the stack. Sampling adds its own
 * error to the tolerance: 2.2 points of standard deviation on the largest share in 500 samples.
 *
 * Usage: three_paths [SECONDS [--verify]]    SECONDS defaults to 5
 * With --verify it measures the CPU time of each path, prints the shares, and fails when one is
 * off by more than a point.
 */

#include "workload.h"

/* Each path has its own copy of one loop; the shares come from how often each is called. */
#define PATH(share)                         \
    VISIBLE void spin_##share(long n);      \
    VISIBLE void mid_##share(long n);       \
    VISIBLE void path_##share(long n);      \
                                            \
    VISIBLE void spin_##share(long n)       \
    {                                       \
        SPIN(n);                            \
    }                                       \
                                            \
    VISIBLE void mid_##share(long n)        \
    {                                       \
        spin_##share(n);                    \
        NOT_A_TAIL_CALL();                  \
    }                                       \
                                            \
    VISIBLE void path_##share(long n)       \
    {                                       \
        mid_##share(n);                     \
        NOT_A_TAIL_CALL();                  \
    }

PATH(sixty)
PATH(thirty)
PATH(ten)

VISIBLE int take_a_path(void);

VISIBLE int take_a_path(void)
{
    unsigned ticket = draw_ticket();

    if (ticket < 6) {
        path_sixty(QUANTUM);
        return 0;
    }
    if (ticket < 9) {
        path_thirty(QUANTUM);
        return 1;
    }
    path_ten(QUANTUM);
    return 2;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"path_sixty", "path_thirty", "path_ten"};
    static const double shares[] = {60, 30, 10};
    double cpu[3] = {0, 0, 0};
    int verify = wants_verify(argc, argv);
    double end = wall_seconds() + seconds_to_run(argc, argv);

    while (wall_seconds() < end) {
        for (int i = 0; i < 100; i++) {
            double start = verify ? thread_cpu_seconds() : 0;
            int path = take_a_path();

            if (verify)
                cpu[path] += thread_cpu_seconds() - start;
        }
    }
    return verify ? report_shares(3, names, shares, cpu) : 0;
}
