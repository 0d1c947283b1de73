"""Golden files: what the output was when someone last looked at it and found it good.

``BPFLAME_BLESS=1 pytest tests/golden`` writes what the code gives now; read the diff before you
commit it.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

GOLDEN = Path(__file__).parent


def check_golden(name: str, actual: str) -> None:
    """Compare with the golden file ``name`` (below this folder), or write it when blessing."""
    path = GOLDEN / name
    if os.environ.get("BPFLAME_BLESS") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(actual, encoding="utf-8", newline="")
        return
    assert path.exists(), f"no {path}: write it with BPFLAME_BLESS=1"
    expected = path.read_text(encoding="utf-8")
    if actual == expected:
        return
    diff = difflib.unified_diff(
        expected.splitlines(), actual.splitlines(), str(path), "now", lineterm="", n=1
    )
    raise AssertionError(
        "\n".join([f"{path} differs; if it should, re-bless with BPFLAME_BLESS=1", *diff])
    )
