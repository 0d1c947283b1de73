/* late_library: code that comes into the process while it runs, and goes again.
 *
 * stack: main -> call_first -> enter_first -> call_back -> burn_called_back
 * stack: main -> call_second -> enter_second -> call_back -> burn_called_back
 * stack: main -> call_made_code -> call_back -> burn_called_back
 *
 * enter_first and enter_second are in two shared libraries, built from this file; each is loaded
 * for its turn only, as a rule at the address that the other one had. Their frames differ in size
 * by 4096 bytes: with the unwind table of the other a walk goes astray. Between call_made_code and
 * call_back is a function in memory that is no file, written by this program instruction by
 * instruction; it has a frame pointer. Each has a turn of 100 ms, then the next.
 *
 * Usage: late_library [SECONDS]    SECONDS defaults to 5
 */

#define _GNU_SOURCE
#include "workload.h"

#ifdef LATE_LIBRARY_FIRST
#define ENTER enter_first
#define BYTES 64
#elif defined(LATE_LIBRARY_SECOND)
#define ENTER enter_second
#define BYTES 4160
#endif

#ifdef ENTER

VISIBLE void ENTER(void (*callback)(void));

VISIBLE void ENTER(void (*callback)(void))
{
    volatile char room[BYTES];

    room[0] = 0;
    callback();
    room[BYTES - 1] = room[0];
}

#else

#include <dlfcn.h>
#include <limits.h>
#include <sys/mman.h>
#include <unistd.h>

#define TURN 0.1

static double turn_ends;

VISIBLE void burn_called_back(void);
VISIBLE void call_back(void);
VISIBLE void call_first(void (*enter)(void (*)(void)));
VISIBLE void call_second(void (*enter)(void (*)(void)));
VISIBLE void call_made_code(void (*enter)(void (*)(void)));

VISIBLE void burn_called_back(void)
{
    while (wall_seconds() < turn_ends)
        SPIN(QUANTUM);
}

VISIBLE void call_back(void)
{
    burn_called_back();
    NOT_A_TAIL_CALL();
}

#define CALL(name)                                      \
    VISIBLE void name(void (*enter)(void (*)(void)))    \
    {                                                   \
        enter(call_back);                               \
        NOT_A_TAIL_CALL();                              \
    }

CALL(call_first)
CALL(call_second)
CALL(call_made_code)

static void end_if(int failed, const char *what)
{
    if (failed) {
        fprintf(stderr, "late_library: %s\n", what);
        exit(1);
    }
}

/* Loads a library that lies beside the program, and has one turn in it. */
static void use_library(const char *name, const char *function,
                        void (*call)(void (*)(void (*)(void))))
{
    char path[PATH_MAX + 64];
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX);
    void (*enter)(void (*)(void));
    void *library;

    end_if(length < 0, "no /proc/self/exe");
    path[length] = '\0';
    strcpy(strrchr(path, '/') + 1, name);
    library = dlopen(path, RTLD_NOW);
    end_if(!library, dlerror());
    *(void **)&enter = dlsym(library, function);
    end_if(!enter, function);
    turn_ends = wall_seconds() + TURN;
    call(enter);
    dlclose(library);
}

/* push %rbp; mov %rsp,%rbp; call *%rdi; pop %rbp; ret */
static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3};

static void use_made_code(void)
{
    long page = sysconf(_SC_PAGESIZE);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    void *memory = mmap(NULL, (size_t)page, PROT_READ | PROT_WRITE, flags, -1, 0);
    void (*enter)(void (*)(void));

    end_if(memory == MAP_FAILED, "mmap");
    memcpy(memory, code, sizeof code);
    end_if(mprotect(memory, (size_t)page, PROT_READ | PROT_EXEC) != 0, "mprotect");
    *(void **)&enter = memory;
    turn_ends = wall_seconds() + TURN;
    call_made_code(enter);
    munmap(memory, (size_t)page);
}

int main(int argc, char **argv)
{
    double end = wall_seconds() + seconds_to_run(argc, argv);

    while (wall_seconds() < end) {
        use_library("liblate_first.so", "enter_first", call_first);
        use_library("liblate_second.so", "enter_second", call_second);
        use_made_code();
    }
    return 0;
}

#endif
