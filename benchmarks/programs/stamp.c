/* stamp: a thread whose name is the time, so that a profile tells when its samples were taken.
 *
 * It burns the CPU it is told to, and every millisecond takes the name t and nine digits: the
 * milliseconds of CLOCK_MONOTONIC, modulo 10^9. It ends when its parent does.
 *
 * Usage: stamp CPU
 */

#define _GNU_SOURCE
#include "bench.h"

#include <signal.h>

int main(int argc, char **argv)
{
    unsigned long last = 0;

    if (argc != 2) {
        fprintf(stderr, "usage: stamp CPU\n");
        return 2;
    }
    must(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
    pin_to(atoi(argv[1]));
    for (;;) {
        struct timespec now;
        unsigned long milliseconds;
        char name[16];

        clock_gettime(CLOCK_MONOTONIC, &now);
        milliseconds = (unsigned long)now.tv_sec * 1000 + (unsigned long)now.tv_nsec / 1000000;
        if (milliseconds == last)
            continue;
        last = milliseconds;
        snprintf(name, sizeof name, "t%09lu", milliseconds % 1000000000);
        prctl(PR_SET_NAME, name);
    }
}
