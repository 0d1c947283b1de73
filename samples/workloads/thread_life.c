/* thread_life: threads and processes that end while they wait, and others that get their ids.
 *
 * truth: no wait is longer than SECONDS + 1, and none of a process longer than it lived
 * tolerance: 1
 *
 * Again and again it starts, and waits for the end of
 *     life-child      eight processes that sleep 1 to 3 ms in main -> storm -> short_sleep; with
 *                     root, under the ids of processes and threads that died some time ago
 *     life-killed     a process that ends while two of its threads are in run_blocked ->
 *                     blocked_forever, which nobody but the kernel ever wakes
 *     life-executes   a process whose first thread and another are in blocked_forever when a third
 *                     executes this program again: that has the first one's id then, is called
 *     life-executed   and sleeps in main -> short_sleep
 *     life-thread     a thread of thread_life itself, in run_short -> short_sleep
 * A wrong profile has waits there that began in another thread of the same id, long ago, or waits
 * of threads that are no more.
 *
 * Usage: thread_life [SECONDS]    SECONDS defaults to 5
 * For life-child, life-killed, life-executes (with life-executed) and life-thread it prints a line:
 * NAME lives=N ns=N, how many there were and the sum of how long they lived, by the clock before
 * each was started and after it was seen to end. The waits are within: those of all life-child and
 * life-thread sum to less, those of life-killed or life-executes, of three threads each, to less
 * than three times as much. Two lines more: reused ids=N, and failed lives=N, which is 0.
 */

#define _GNU_SOURCE
#include "waiting.h"

#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define AT_ONCE 8
#define IDS 64
#define THREADS 2

struct lives {
    long count;
    long ns;
};

/* What a process tells its parent: the ids of its threads, each once it is about to block. */
static struct {
    int count;
    pid_t ids[THREADS];
} *shared;

static struct lives children, killed, executed, threads;
static long reused, failed;
static pid_t dead[IDS];
static int dead_first, dead_count;

VISIBLE void short_sleep(void);
VISIBLE void blocked_forever(void);
VISIBLE void *run_blocked(void *unused);
VISIBLE void *run_exec(void *unused);
VISIBLE void *run_short(void *unused);
VISIBLE void storm(void);

VISIBLE void short_sleep(void)
{
    struct waits unused = {0, 0};

    sleep_for(&unused, MILLISECOND + draw(2001) * 1000L);
}

VISIBLE void blocked_forever(void)
{
    static int never;

    for (;;)
        system_call(SYS_futex, (long)&never, FUTEX_WAIT_PRIVATE, 0, 0);
}

static void tell_id(void)
{
    shared->ids[__atomic_fetch_add(&shared->count, 1, __ATOMIC_SEQ_CST)] = gettid();
}

VISIBLE void *run_blocked(void *unused)
{
    tell_id();
    blocked_forever();
    return unused;
}

VISIBLE void *run_exec(void *unused)
{
    tell_id();
    while (__atomic_load_n(&shared->count, __ATOMIC_SEQ_CST) < THREADS)
        short_sleep();
    short_sleep();
    execl("/proc/self/exe", "thread_life", "--executed", (char *)NULL);
    _exit(127);
    return unused;
}

VISIBLE void *run_short(void *unused)
{
    prctl(PR_SET_NAME, "life-thread");
    short_sleep();
    return unused;
}

static void remember(pid_t id)
{
    if (dead_count < IDS)
        dead[(dead_first + dead_count++) % IDS] = id;
}

/* As fork, and the child has the id of who died first of those remembered, if the kernel allows it.
 * Half of them are kept, so that some time has passed. */
static pid_t fork_as_one_dead(void)
{
    struct clone_args how = {.exit_signal = SIGCHLD, .set_tid_size = 1};
    long pid;

    if (dead_count <= IDS / 2)
        return fork();
    how.set_tid = (unsigned long)&dead[dead_first];
    dead_first = (dead_first + 1) % IDS;
    dead_count--;
    pid = system_call(SYS_clone3, (long)&how, sizeof how, 0, 0);
    if (pid < 0)
        return fork();
    reused += pid > 0;
    return (pid_t)pid;
}

static void fork_failed(void)
{
    perror("thread_life: fork");
    exit(1);
}

static void see_end(struct lives *lives, pid_t pid, long start)
{
    int status = 0;

    if (waitpid(pid, &status, 0) != pid || status != 0)
        failed++;
    lives->ns += wall_nanoseconds() - start;
    lives->count++;
    remember(pid);
}

VISIBLE void storm(void)
{
    pid_t pids[AT_ONCE];
    long starts[AT_ONCE];

    for (int i = 0; i < AT_ONCE; i++) {
        draw(1);
        starts[i] = wall_nanoseconds();
        pids[i] = fork_as_one_dead();
        if (pids[i] < 0)
            fork_failed();
        if (pids[i] == 0) {
            prctl(PR_SET_NAME, "life-child");
            short_sleep();
            _exit(0);
        }
    }
    for (int i = 0; i < AT_ONCE; i++)
        see_end(&children, pids[i], starts[i]);
}

/* In the new process: two threads, then the end of all, by the first thread or by an exec. */
static void live_with_threads(const char *name, void *(*second)(void *))
{
    pthread_t thread;

    prctl(PR_SET_NAME, name);
    if (pthread_create(&thread, NULL, run_blocked, NULL) != 0
        || pthread_create(&thread, NULL, second, NULL) != 0)
        _exit(1);
    if (second == run_exec)
        blocked_forever();
    while (__atomic_load_n(&shared->count, __ATOMIC_SEQ_CST) < THREADS)
        short_sleep();
    short_sleep();
    _exit(0);
}

static void one_with_threads(struct lives *lives, const char *name, void *(*second)(void *))
{
    long start = wall_nanoseconds();
    pid_t pid;

    shared->count = 0;
    pid = fork();
    if (pid < 0)
        fork_failed();
    if (pid == 0)
        live_with_threads(name, second);
    see_end(lives, pid, start);
    for (int i = 0; i < shared->count; i++)
        remember(shared->ids[i]);
}

static void one_thread(void)
{
    long start = wall_nanoseconds();
    pthread_t thread;

    if (pthread_create(&thread, NULL, run_short, NULL) != 0 || pthread_join(thread, NULL) != 0)
        failed++;
    threads.ns += wall_nanoseconds() - start;
    threads.count++;
}

static void report_lives(const char *name, const struct lives *lives)
{
    printf("%s lives=%ld ns=%ld\n", name, lives->count, lives->ns);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--executed") == 0) {
        prctl(PR_SET_NAME, "life-executed");
        short_sleep();
        return 0;
    }

    long end = end_of_run(argc, argv);

    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        perror("thread_life: mmap");
        return 1;
    }
    while (wall_nanoseconds() < end) {
        storm();
        one_with_threads(&killed, "life-killed", run_blocked);
        one_with_threads(&executed, "life-executes", run_exec);
        one_thread();
    }
    report_lives("life-child", &children);
    report_lives("life-killed", &killed);
    report_lives("life-executes", &executed);
    report_lives("life-thread", &threads);
    printf("reused ids=%ld\nfailed lives=%ld\n", reused, failed);
    return failed != 0;
}
