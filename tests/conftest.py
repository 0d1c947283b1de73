"""Shared by all tests: where BPF cannot run, tests are skipped; in CI that is a failure."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bpflame.bpf.privileges import capabilities, may_record

ROOT = Path(__file__).resolve().parent.parent
IN_CI = bool(os.environ.get("CI"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("bpf") and not may_record(capabilities()):
        reason = "needs root to load BPF programs"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def workloads() -> Path:
    """The folder of the built sample workloads: ``fp/`` and ``nofp/``."""
    subprocess.run(
        ["make", "-s", "-C", str(ROOT / "samples" / "workloads")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return ROOT / "samples" / "build"
