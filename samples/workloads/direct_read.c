/* direct_read: one thread that reads from a disk, past the page cache, and waits for interrupts.
 *
 * truth: read_block=100
 * tolerance: 1
 *
 * The truth is about the time that the thread is blocked, on the stack
 *     main -> read_at_random -> read_block -> (the kernel's pread64, the file system, io_schedule)
 * and ended by an interrupt of the disk, or by the kernel thread of a file system or a driver that
 * does such work there: never by a timer. A read is short, and handing the request to the disk is
 * no small part of it, or all of it when the disk has answered by then: what is printed is an upper
 * bound of the time off the CPU, and of the number of waits.
 *
 * Usage: direct_read [SECONDS] FILE    SECONDS defaults to 5
 * It reads 4 KiB at places that are drawn. FILE, or a block device, has at least that much, and its
 * data is on a disk: of a hole nothing is read. Where O_DIRECT is refused the exit status is 3.
 * Some file systems without a disk, as tmpfs from Linux 6.6 on, allow it and never wait.
 * It prints a line: read_block ns=N waits=N, one wait for each read.
 */

#define _GNU_SOURCE
#include "waiting.h"

#include <fcntl.h>

#define BLOCK 4096

static char block[BLOCK] __attribute__((aligned(BLOCK)));

VISIBLE long read_block(struct waits *waits, int file, long offset);
VISIBLE long read_at_random(struct waits *waits, int file, long blocks, long end);

VISIBLE long read_block(struct waits *waits, int file, long offset)
{
    return timed_call(waits, SYS_pread64, file, (long)block, BLOCK, offset);
}

VISIBLE long read_at_random(struct waits *waits, int file, long blocks, long end)
{
    long result;

    do {
        result = read_block(waits, file, (long)draw((unsigned)blocks) * BLOCK);
    } while (result == BLOCK && wall_nanoseconds() < end);
    return result;
}

static int failed(const char *path, long error)
{
    if (error == EINVAL) {
        fprintf(stderr, "direct_read: %s: O_DIRECT is refused here\n", path);
        return 3;
    }
    fprintf(stderr, "direct_read: %s: %s\n", path, strerror((int)error));
    return 2;
}

int main(int argc, char **argv)
{
    struct waits waits = {0, 0};
    const char *path = argv[argc - 1];
    long blocks, result;
    int file;

    if (argc != 2 && argc != 3) {
        fputs("usage: direct_read [SECONDS] FILE\n", stderr);
        return 2;
    }
    double seconds = seconds_to_run(argc - 1, argv);

    file = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (file < 0)
        return failed(path, errno);
    blocks = lseek(file, 0, SEEK_END) / BLOCK;
    if (blocks < 1) {
        fprintf(stderr, "direct_read: %s: smaller than %d bytes\n", path, BLOCK);
        return 2;
    }
    /* As many as can be drawn from: 8 TiB. */
    blocks = blocks < 1L << 31 ? blocks : 1L << 31;
    result = read_at_random(&waits, file, blocks, wall_nanoseconds() + (long)(seconds * SECOND));
    if (result != BLOCK)
        return failed(path, result < 0 ? -result : EIO);
    report_waits("read_block", &waits);
    return 0;
}
