/* throwing: C++ exceptions through several frames, in the first thread and in another one.
 *
 * stack: main -> climb(int) -> throw_from_here() -> burn_before_throw()
 * stack: main -> climb(int) -> Guard::~Guard() -> burn_while_unwinding()
 * stack: main -> catch_it(int) -> burn_after_catch()
 * stack: run_thread(int) -> climb(int) -> throw_from_here() -> burn_before_throw()
 * stack: run_thread(int) -> climb(int) -> Guard::~Guard() -> burn_while_unwinding()
 * stack: run_thread(int) -> catch_it(int) -> burn_after_catch()
 *
 * catch_it is between main, or run_thread, and climb too. climb calls itself 5 times; each call has
 * a Guard, which is destroyed as the exception goes through. The rest of the time is the C++
 * library's: it looks for the handler, with frames of its own above throw_from_here.
 *
 * Usage: throwing [SECONDS]    SECONDS defaults to 5
 */

#include "workload.h"

#include <stdexcept>
#include <thread>

VISIBLE void burn_before_throw()
{
    SPIN(QUANTUM);
}

VISIBLE void burn_while_unwinding()
{
    SPIN(QUANTUM);
}

VISIBLE void burn_after_catch()
{
    SPIN(QUANTUM);
}

struct Guard {
    VISIBLE ~Guard();
};

VISIBLE Guard::~Guard()
{
    burn_while_unwinding();
    NOT_A_TAIL_CALL();
}

VISIBLE void throw_from_here()
{
    burn_before_throw();
    throw std::runtime_error("as promised");
}

VISIBLE void climb(int calls)
{
    Guard guard;

    if (calls > 1)
        climb(calls - 1);
    else
        throw_from_here();
    NOT_A_TAIL_CALL();
}

VISIBLE int catch_it(int calls)
{
    try {
        climb(calls);
    } catch (const std::runtime_error &) {
        burn_after_catch();
        return 1;
    }
    return 0;
}

static double end;

VISIBLE void run_thread(int calls)
{
    while (wall_seconds() < end)
        catch_it(calls);
}

int main(int argc, char **argv)
{
    end = wall_seconds() + seconds_to_run(argc, argv);
    std::thread other(run_thread, 5);

    while (wall_seconds() < end)
        catch_it(5);
    other.join();
    return 0;
}
