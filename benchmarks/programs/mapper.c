/* mapper: map the code of files, run none of it, and wait a moment again and again.
 *
 * To a profiler it is a process of many libraries. Libraries that are really loaded run their own
 * code first, and ask for others.
 *
 * Usage: mapper FILE...
 */

#define _GNU_SOURCE
#include "bench.h"

#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOST 64 /* program headers */

static void map_code(const char *path)
{
    Elf64_Ehdr header;
    Elf64_Phdr segments[MOST];
    int file = open(path, O_RDONLY | O_CLOEXEC);
    long page = sysconf(_SC_PAGESIZE);
    ssize_t bytes;

    must(file, path);
    must(pread(file, &header, sizeof header, 0) == sizeof header ? 0 : -1, path);
    must(header.e_phnum <= MOST ? 0 : -1, path);
    bytes = (ssize_t)(header.e_phnum * sizeof *segments);
    must(pread(file, segments, (size_t)bytes, (off_t)header.e_phoff) == bytes ? 0 : -1, path);
    for (int i = 0; i < header.e_phnum; i++) {
        const Elf64_Phdr *segment = &segments[i];
        unsigned long begin = segment->p_offset / (unsigned long)page * (unsigned long)page;

        if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_X) || !segment->p_filesz)
            continue;
        must(mmap(NULL, segment->p_offset + segment->p_filesz - begin, PROT_READ | PROT_EXEC,
                  MAP_PRIVATE, file, (off_t)begin) == MAP_FAILED
                 ? -1
                 : 0,
             path);
    }
    close(file);
}

int main(int argc, char **argv)
{
    must(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
    for (int i = 1; i < argc; i++)
        map_code(argv[i]);
    for (;;)
        usleep(20000);
}
