/* syscalls: most of the time in the kernel, in two kinds of system call, 70 to 30 % of CPU time.
 *
 * truth: read_file=70 ask_parent=30
 * tolerance: 2
 *
 * A right profile shows two stacks, user frames at the root and kernel frames above them:
 *     main -> read_file -> read_block -> pread -> entry_SYSCALL_64_after_hwframe -> do_syscall_64
 *          -> __x64_sys_pread64 -> vfs_read -> (the file system) -> a copy to user memory
 *     main -> ask_parent -> ask_once -> syscall -> entry_SYSCALL_64_after_hwframe -> do_syscall_64
 *          -> __x64_sys_getppid
 * Kernels inline some of these names into others. More than 60 % of the samples have kernel
 * frames; of those under read_file, more than 80 %. Unwinding by frame pointers skips read_block
 * and ask_once, whose callees in the C library keep none, and about 3 points of ask_parent: those
 * samples are in the first instructions of ask_once, before it has its frame.
 *
 * Usage: syscalls [SECONDS [--verify]]    SECONDS defaults to 5
 * With --verify it prints the measured shares, and fails when one is off by more than a point.
 */

#define _GNU_SOURCE
#include "workload.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

static char block[4096];

VISIBLE void read_block(int file);
VISIBLE void read_file(int file, int calls);
VISIBLE void ask_once(void);
VISIBLE void ask_parent(int calls);

VISIBLE void read_block(int file)
{
    if (pread(file, block, sizeof block, 0) != (ssize_t)sizeof block) {
        perror("syscalls: pread");
        exit(1);
    }
}

VISIBLE void read_file(int file, int calls)
{
    for (int i = 0; i < calls; i++)
        read_block(file);
}

VISIBLE void ask_once(void)
{
    syscall(SYS_getppid);
    NOT_A_TAIL_CALL();
}

VISIBLE void ask_parent(int calls)
{
    for (int i = 0; i < calls; i++)
        ask_once();
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"read_file", "ask_parent"};
    static const double shares[] = {70, 30};
    double cpu[2] = {0, 0};
    double end = wall_seconds() + seconds_to_run(argc, argv);
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

    if (file < 0) {
        perror("syscalls: /proc/self/exe");
        return 1;
    }
    /* A call costs what the kernel makes it cost: the kind that is behind its share is next. */
    while (wall_seconds() < end) {
        double start = thread_cpu_seconds();
        int path = cpu[0] * shares[1] > cpu[1] * shares[0];
        int calls = 1 + (int)draw(500);

        if (path == 0)
            read_file(file, calls);
        else
            ask_parent(calls);
        cpu[path] += thread_cpu_seconds() - start;
    }
    close(file);
    return wants_verify(argc, argv) ? report_shares(2, names, shares, cpu) : 0;
}
