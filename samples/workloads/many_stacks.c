/* many_stacks: a new stack at nearly every sample.
 *
 * truth: turn_left=100
 * tolerance: 1
 *
 * A right profile shows main -> descend and below it a tree of turn_left and turn_right that gets
 * bushier without end, and not one sample lost: profilers that count in a map of fixed size, and
 * do not drain it, lose most of them. turn_left is on every stack, since every path begins with it.
 *
 * Usage: many_stacks [SECONDS]    SECONDS defaults to 5
 */

#include "workload.h"

#define DEPTH 40

VISIBLE void turn_left(unsigned long path, int depth);
VISIBLE void turn_right(unsigned long path, int depth);

static inline void descend(unsigned long path, int depth)
{
    if (depth == 0)
        SPIN(20000);
    else if (path & 1)
        turn_right(path >> 1, depth - 1);
    else
        turn_left(path >> 1, depth - 1);
}

VISIBLE void turn_left(unsigned long path, int depth)
{
    descend(path, depth);
    NOT_A_TAIL_CALL();
}

VISIBLE void turn_right(unsigned long path, int depth)
{
    descend(path, depth);
    NOT_A_TAIL_CALL();
}

int main(int argc, char **argv)
{
    double end = wall_seconds() + seconds_to_run(argc, argv);

    while (wall_seconds() < end) {
        unsigned long path = (unsigned long)draw(1u << 20) << 20 | draw(1u << 20);

        for (int i = 0; i < 10; i++)
            turn_left(path, DEPTH);
    }
    return 0;
}
