"""Whose stacks are unwound: the sample workloads, and programs as a distribution has them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import peers
from benchmarks.errors import BenchmarkError
from benchmarks.programs import SAMPLES, SOURCES

SECONDS = 3
"""How long each runs, about."""

_Service = Callable[[Path], contextlib.AbstractContextManager[list[int]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """What to record.

    Attributes:
        name: For the tables.
        line: A command that ends by itself; empty for a service.
        service: Starts a server and its clients in a folder, gives the processes to record, and
            ends them.
        needs: Programs without which it cannot be.
        cpu: It is worth sampling.
        waits: Its waits are worth recording.
        depth: Frames that its stacks may have.
        stock: It comes from the distribution, as it is.
    """

    name: str
    line: tuple[str, ...] = ()
    service: _Service | None = None
    needs: tuple[str, ...] = ()
    cpu: bool = True
    waits: bool = False
    depth: int = 127
    stock: bool = False

    def missing(self) -> str:
        """What is not installed; empty if all is."""
        return ", ".join(name for name in self.needs if not shutil.which(name))


def workload(name: str, *arguments: object, seconds: int = SECONDS) -> tuple[str, ...]:
    """The command of a sample workload without frame pointers."""
    program = SAMPLES / "build" / "nofp" / name
    return (str(program), str(seconds), *map(str, arguments))


def busy(program: str, script: str, seconds: int = SECONDS) -> tuple[str, ...]:
    """The command of an interpreter that works."""
    return (program, str(SOURCES / script), str(seconds))


@contextlib.contextmanager
def _nginx(folder: Path) -> Iterator[list[int]]:
    """Two workers under load; they give out a small file."""
    site = Path(tempfile.mkdtemp(prefix="bpflame-bench-nginx-"))
    site.chmod(0o755)
    (site / "index.html").write_text("x" * 4000)
    config = site / "nginx.conf"
    config.write_text(
        f"user www-data; worker_processes 2; daemon off; pid {site}/pid; error_log stderr;\n"
        "events {}\n"
        f"http {{ access_log off; server {{ listen unix:{site}/socket; listen 127.0.0.1:18080;"
        f" root {site}; gzip on; gzip_types *; gzip_min_length 0; }} }}\n"
    )
    server = ["nginx", "-p", str(site), "-c", str(config), "-e", "stderr"]
    client = ["wrk", "-t1", "-c4", "-d3600", "http://127.0.0.1:18080/index.html"]
    try:
        with peers.started(server, folder / "nginx"):
            _until(lambda: (site / "socket").exists(), "nginx")
            with peers.started([*client, "-H", "Accept-Encoding: gzip"], folder / "wrk"):
                time.sleep(0.5)
                yield descendants(int((site / "pid").read_text()))
    finally:
        shutil.rmtree(site)


_POSTGRES = "/usr/lib/postgresql/*/bin"


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[list[int]]:
    """A server with the clients of pgbench."""
    found = sorted(Path("/").glob(_POSTGRES.lstrip("/") + "/postgres"))
    if not found:
        raise BenchmarkError(f"no postgres in {_POSTGRES}")
    home = Path(tempfile.mkdtemp(prefix="bpflame-bench-postgres-"))
    shutil.chown(home, "postgres", "postgres")
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    data, tools = home / "data", found[-1].parent
    where = ["-h", str(home), "-p", "15432", "-U", "postgres"]
    try:
        init = [*as_user, str(tools / "initdb"), "-D", str(data), "-A", "trust", "-N"]
        peers.run(init, folder / "initdb")
        options = ["-c", "listen_addresses=", "-c", "fsync=off"]
        server = [str(found[-1]), "-D", str(data), "-k", str(home), "-p", "15432", *options]
        with peers.started([*as_user, *server], folder / "postgres"):
            _until(lambda: (home / ".s.PGSQL.15432").exists(), "postgres")
            time.sleep(0.5)
            peers.run(["pgbench", *where, "-i", "-q", "postgres"], folder / "pgbench-init")
            client = ["pgbench", *where, "-c", "4", "-T", "3600", "postgres"]
            with peers.started(client, folder / "pgbench"):
                time.sleep(0.5)
                yield descendants(int((data / "postmaster.pid").read_text().split()[0]))
    finally:
        shutil.rmtree(home)


def _until(ready: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not ready():
        if time.monotonic() > end:
            raise BenchmarkError(f"{what} does not start")
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """A process and all that come from it."""
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                status = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(status[1])
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def _stock(name: str, *line: str, needs: tuple[str, ...] = (), waits: bool = True) -> Subject:
    return Subject(name, line, needs=(line[0], *needs), waits=waits, stock=True)


def _served(name: str, service: _Service, *needs: str) -> Subject:
    return Subject(name, service=service, needs=needs, waits=True, stock=True)


def _compile(what: str) -> tuple[str, ...]:
    return ("sh", str(SOURCES / "compile.sh"), what, str(SECONDS))


_TAR = f"timeout {SECONDS} tar -C /usr/lib -c . 2>/dev/null | gzip >/dev/null"
_OPENSSL = "openssl speed -seconds 1 rsa2048 sha256 >/dev/null 2>&1"

SUBJECTS = (
    *(Subject(f"deep {depth}", workload("deep", depth)) for depth in (10, 30, 100)),
    Subject("deep 300, --max-depth 511", workload("deep", 300), depth=511),
    Subject("deep 30, 4 threads", workload("deep", 30, "mixed", 16, 4), cpu=False, waits=True),
    Subject("callbacks", workload("callbacks")),
    Subject("odd_frames", workload("odd_frames"), waits=True),
    Subject("throwing", workload("throwing")),
    Subject("virtual_calls", workload("virtual_calls")),
    Subject("late_library", workload("late_library")),
    Subject("thread_life", workload("thread_life"), cpu=False, waits=True),
    Subject("exec_chain", workload("exec_chain")),
    Subject("fork_burn", workload("fork_burn")),
    Subject("pipe_chain", workload("pipe_chain"), cpu=False, waits=True),
    _stock("python3", *busy("/usr/bin/python3", "busy.py")),
    _stock("perl", *busy("/usr/bin/perl", "busy.pl")),
    _stock("node", *busy("/usr/bin/node", "busy.js")),
    _stock("bash", *busy("/bin/bash", "busy.sh")),
    _stock("gcc -O2, a large file", *_compile("large"), needs=("gcc",), waits=False),
    _stock("gcc, many small files", *_compile("small"), needs=("gcc",)),
    _stock("tar to gzip", "sh", "-c", _TAR, needs=("tar", "gzip")),
    _stock("openssl speed", "sh", "-c", _OPENSSL, needs=("openssl",), waits=False),
    _served("postgres, pgbench", _postgres, "pgbench", "setpriv"),
    _served("nginx, wrk", _nginx, "nginx", "wrk"),
)
