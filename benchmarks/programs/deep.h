/* What works at a call depth of 20, or what -DDEPTH says, and before everything else. Define
 * _GNU_SOURCE first. */

#ifndef DEEP_H
#define DEEP_H

#include "bench.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#ifndef DEPTH
#define DEPTH 20
#endif

VISIBLE void descend(int depth, void (*leaf)(void));

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
static inline void go_first(void)
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

#endif
