/* virtual_calls: C++ names. Virtual calls, a class template, overloads, an unnamed namespace.
 *
 * truth: shapes::Circle<int>::area(long)=50 shapes::Circle<double>::area(long)=30 shapes::Square::area(long)=20
 * leaf: shapes::trace(int)=50 shapes::trace(double)=30 shapes::trace(shapes::Side)=20
 * tolerance: 1
 *
 * A right profile shows these stacks, demangled, each for its share of the CPU time:
 *     main -> void shapes::visit<3ul>(std::array<shapes::Shape*, 3ul> const&, long)
 *          -> shapes::(anonymous namespace)::enter(shapes::Shape&, long)
 *          -> shapes::Circle<int>::area(long) -> shapes::trace(int)
 * The leaf names differ only in their argument: without it the three are one function.
 * Sampling adds its own error: 2.2 points of standard deviation on the largest share in 500 samples.
 *
 * Usage: virtual_calls [SECONDS [--verify]]    SECONDS defaults to 5
 * With --verify it measures the CPU time of each shape, prints the shares, and fails when one is
 * off by more than a point.
 */

#include "workload.h"

#include <array>
#include <cstddef>

namespace shapes {

enum class Side : int {};

VISIBLE void trace(int)
{
    SPIN(QUANTUM);
}

VISIBLE void trace(double)
{
    SPIN(QUANTUM);
}

VISIBLE void trace(Side)
{
    SPIN(QUANTUM);
}

class Shape {
public:
    virtual void area(long turns) = 0;

protected:
    ~Shape() = default;
};

template <typename Number> class Circle final : public Shape {
public:
    VISIBLE void area(long turns) override
    {
        trace(static_cast<Number>(turns));
        NOT_A_TAIL_CALL();
    }
};

class Square final : public Shape {
public:
    VISIBLE void area(long turns) override
    {
        trace(static_cast<Side>(turns));
        NOT_A_TAIL_CALL();
    }
};

namespace {

VISIBLE void enter(Shape &shape, long turns)
{
    shape.area(turns);
    NOT_A_TAIL_CALL();
}

} // namespace

static int chosen;

template <std::size_t count> VISIBLE void visit(const std::array<Shape *, count> &all, long turns)
{
    unsigned ticket = draw_ticket();

    chosen = ticket < 5 ? 0 : ticket < 8 ? 1 : 2;
    enter(*all[static_cast<std::size_t>(chosen)], turns);
    NOT_A_TAIL_CALL();
}

} // namespace shapes

int main(int argc, char **argv)
{
    static const char *const names[] = {"shapes::Circle<int>::area(long)",
                                        "shapes::Circle<double>::area(long)",
                                        "shapes::Square::area(long)"};
    static const double expected[] = {50, 30, 20};
    double cpu[3] = {0, 0, 0};
    shapes::Circle<int> coarse;
    shapes::Circle<double> fine;
    shapes::Square square;
    const std::array<shapes::Shape *, 3> all = {&coarse, &fine, &square};
    bool verify = wants_verify(argc, argv);
    double end = wall_seconds() + seconds_to_run(argc, argv);

    while (wall_seconds() < end) {
        for (int i = 0; i < 100; i++) {
            double start = verify ? thread_cpu_seconds() : 0;

            shapes::visit(all, 1);
            if (verify)
                cpu[shapes::chosen] += thread_cpu_seconds() - start;
        }
    }
    return verify ? report_shares(3, names, expected, cpu) : 0;
}
