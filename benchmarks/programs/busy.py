"""Work of an interpreter with short waits in it; its argument is the number of seconds."""

import json
import sys
import time


def fold(tree: dict[str, list[int]], depth: int) -> int:
    """Call itself, and write JSON at the bottom."""
    if depth:
        return sum(sorted(fold(tree, depth - 1) for _ in range(2)))
    return len(json.dumps(tree))


end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    fold({"a": list(range(20))}, 7)
    time.sleep(0.002)
