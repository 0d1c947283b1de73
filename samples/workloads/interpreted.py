#!/usr/bin/env python3
"""interpreted: a Python program, as the system sees it and as its author does.

truth: python3=100
python: walk_collatz=50 multiply_matrices=30 count_words=20
tolerance: 3

A right profile shows one process, python3 (or what the interpreter is called that runs this
file), with the interpreter's own functions in python3 or libpython3 at the leaf, most often
_PyEval_EvalFrameDefault. The second line is for profiles that name Python functions: each share is
kept by CPU time, and all three are called from take_turns, which <module> calls.

Usage: python3 interpreted.py [SECONDS]    SECONDS defaults to 5
"""

import random
import sys
import time


def walk_collatz() -> int:
    longest = 0
    for start in range(1, 120):
        number, steps = start, 0
        while number != 1:
            number = number // 2 if number % 2 == 0 else 3 * number + 1
            steps += 1
        longest = max(longest, steps)
    return longest


def multiply_matrices() -> int:
    size = 16
    left = [[row + column for column in range(size)] for row in range(size)]
    total = 0
    for row in range(size):
        for column in range(size):
            for k in range(size):
                total += left[row][k] * left[k][column]
    return total


def count_words() -> int:
    counts: dict[int, int] = {}
    word = 1
    for _ in range(5000):
        word = word * 1103515245 + 12345 & 0x7FFFFFFF
        counts[word >> 24] = counts.get(word >> 24, 0) + 1
    return max(counts.values())


def take_turns(seconds: float) -> None:
    """Call at random one of the functions that are behind their share of the CPU time."""
    shares = {walk_collatz: 50, multiply_matrices: 30, count_words: 20}
    spent = dict.fromkeys(shares, 0.0)
    dice = random.Random(1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        total = sum(spent.values())
        work = dice.choice([f for f in shares if spent[f] <= total * shares[f] / 100])
        start = time.thread_time()
        work()
        spent[work] += time.thread_time() - start


if __name__ == "__main__":
    take_turns(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
