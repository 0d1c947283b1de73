/* What the programs of the benchmarks share. Define _GNU_SOURCE first. */

#ifndef BENCH_H
#define BENCH_H

#include "workload.h"

#include <sched.h>
#include <sys/prctl.h>

static inline void must(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
}

static inline void pin_to(int cpu)
{
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    must(sched_setaffinity(0, sizeof cpus, &cpus), "sched_setaffinity");
}

#endif
