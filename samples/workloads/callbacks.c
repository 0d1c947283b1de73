/* callbacks: functions that somebody else calls: a comparison for qsort, and signal handlers, on
 * the stack that they interrupt and on others.
 *
 * stack: main -> sort_numbers -> compare_numbers -> burn_comparing
 * stack: main -> be_interrupted -> on_alarm -> burn_in_handler
 * stack: main -> raise_here -> on_raised -> burn_raised
 * stack: main -> raise_nested -> on_nesting -> on_raised -> burn_raised
 * stack: main -> raise_below -> on_other_stack -> burn_on_other_stack
 * stack: run_thread -> raise_above -> on_other_stack -> burn_on_other_stack
 *
 * Each of six functions runs by turns, 10 ms at a time. Between raise_X and its handler are
 * frames of the C library, which sends the signal, and the frame of the signal. The alarm comes at
 * any instruction of interrupted_twice, which be_interrupted calls; seldom before or after it.
 * The alternate stack is below the interrupted one in raise_below, and above it in raise_above.
 *
 * Usage: callbacks [SECONDS]    SECONDS defaults to 5
 */

#define _GNU_SOURCE
#include "workload.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>

#define TURN 0.01
#define STACK_BYTES (1 << 18)

static char stack_below[STACK_BYTES], stack_of_thread[STACK_BYTES];
static double turn_ends;
static volatile int alarms;

static int turn_lasts(void)
{
    return wall_seconds() < turn_ends;
}

/* Burns for one turn. */
#define BURN(name)                          \
    VISIBLE void name(void);                \
    VISIBLE void name(void)                 \
    {                                       \
        while (turn_lasts())                \
            SPIN(QUANTUM);                  \
    }

BURN(burn_raised)
BURN(burn_on_other_stack)

VISIBLE void burn_comparing(void);
VISIBLE int compare_numbers(const void *a, const void *b);
VISIBLE void sort_numbers(void);
VISIBLE void burn_in_handler(void);
VISIBLE void on_alarm(int number);
VISIBLE long interrupted_twice(long rounds);
VISIBLE void be_interrupted(void);
VISIBLE void on_raised(int number);
VISIBLE void on_nesting(int number);
VISIBLE void on_other_stack(int number);
VISIBLE void raise_here(void);
VISIBLE void raise_nested(void);
VISIBLE void raise_below(void);
VISIBLE void raise_above(void);
VISIBLE void *run_thread(void *unused);

VISIBLE void burn_comparing(void)
{
    SPIN(QUANTUM);
}

VISIBLE int compare_numbers(const void *a, const void *b)
{
    burn_comparing();
    return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b);
}

VISIBLE void sort_numbers(void)
{
    int numbers[100];

    while (turn_lasts()) {
        for (int i = 0; i < 100; i++)
            numbers[i] = (int)draw(1000);
        qsort(numbers, 100, sizeof *numbers, compare_numbers);
    }
}

VISIBLE void burn_in_handler(void)
{
    SPIN(300 * QUANTUM);
}

VISIBLE void on_alarm(int number)
{
    (void)number;
    burn_in_handler();
    alarms++;
}

/* Calls itself, so that it is also interrupted where its frames come and go. */
VISIBLE long interrupted_twice(long rounds)
{
    volatile long sum = rounds;

    SPIN(QUANTUM / 8);
    return rounds > 0 ? interrupted_twice(rounds - 1) + sum : sum;
}

VISIBLE void be_interrupted(void)
{
    struct itimerval once = {.it_value.tv_usec = 500};

    while (turn_lasts()) {
        int before = alarms;

        setitimer(ITIMER_REAL, &once, NULL);
        while (alarms == before)
            interrupted_twice(1);
    }
}

VISIBLE void on_raised(int number)
{
    (void)number;
    burn_raised();
    NOT_A_TAIL_CALL();
}

VISIBLE void on_nesting(int number)
{
    (void)number;
    raise(SIGUSR1);
    NOT_A_TAIL_CALL();
}

VISIBLE void on_other_stack(int number)
{
    (void)number;
    burn_on_other_stack();
    NOT_A_TAIL_CALL();
}

#define RAISE(name, signal_number)          \
    VISIBLE void name(void)                 \
    {                                       \
        raise(signal_number);               \
        NOT_A_TAIL_CALL();                  \
    }

RAISE(raise_here, SIGUSR1)
RAISE(raise_nested, SIGHUP)
RAISE(raise_below, SIGUSR2)
RAISE(raise_above, SIGUSR2)

static void use_stack(void *memory)
{
    stack_t stack = {.ss_sp = memory, .ss_size = STACK_BYTES};

    if (memory == MAP_FAILED || sigaltstack(&stack, NULL) != 0) {
        perror("callbacks: sigaltstack");
        exit(1);
    }
}

VISIBLE void *run_thread(void *unused)
{
    use_stack(mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    raise_above();
    NOT_A_TAIL_CALL();
    return unused;
}

static void handle(int number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};

    sigaction(number, &action, NULL);
}

static void raise_in_thread(void)
{
    pthread_attr_t low;
    pthread_t thread;

    pthread_attr_init(&low);
    pthread_attr_setstack(&low, stack_of_thread, STACK_BYTES);
    if (pthread_create(&thread, &low, run_thread, NULL) == 0)
        pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
    void (*const turns[])(void) = {sort_numbers, be_interrupted, raise_here,
                                   raise_nested, raise_below,    raise_in_thread};
    double end = wall_seconds() + seconds_to_run(argc, argv);

    handle(SIGALRM, on_alarm, 0);
    handle(SIGUSR1, on_raised, 0);
    handle(SIGHUP, on_nesting, 0);
    handle(SIGUSR2, on_other_stack, SA_ONSTACK);
    use_stack(stack_below);
    for (unsigned nth = 0; wall_seconds() < end; nth++) {
        turn_ends = wall_seconds() + TURN;
        turns[nth % 6]();
    }
    return 0;
}
