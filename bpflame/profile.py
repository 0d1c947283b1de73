"""The type that crosses every border: a profile of named frames.

Plain values, frozen, no behaviour beyond what keeps them consistent. Recorders and symbolizers
make a :class:`Profile`; transforms take one and give one; writers read one.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping


class FrameKind(str, enum.Enum):
    """What kind of code a frame is. The value is what files store."""

    PROCESS = "process"
    """The root frame that names the process, thread or cgroup."""
    USER = "user"
    KERNEL = "kernel"
    INLINE = "inline"
    JIT = "jit"
    WAIT = "wait"
    """How a wait went, such as ``[blocked]`` (:data:`WAITS`): the leaf of a thread that waits."""
    WAKER = "waker"
    """Of who ended a wait: a function of its stack, or its name."""
    SEPARATOR = "separator"
    """``--``, between who waited and who woke it."""


BLOCKED = "[blocked]"
RUN_QUEUE = "[run queue]"
PREEMPTED = "[preempted]"
PARTIAL = "[partial]"
WAITS = (BLOCKED, RUN_QUEUE, PREEMPTED, PARTIAL)
"""The names of frames of kind ``wait``.

Time blocked, waiting for something; time runnable, waiting for a CPU; time runnable after another
thread was given the CPU. ``[partial]``, above or in place of these: the wait began before the
recording, or had not ended when it ended.
"""


class Reason(str, enum.Enum):
    """Why a frame is a stand-in without a name of its own. The value is shown to the user."""

    UNMAPPED = "address in no mapping"
    NO_MAPS = "process gone before its mappings were read"
    ANONYMOUS = "anonymous memory (JIT code without a map)"
    FILE_GONE = "file gone or replaced"
    BAD_FILE = "file is not a readable ELF file"
    NO_SYMBOL = "no symbol covers the address (stripped)"
    RESTRICTED = "kernel addresses hidden (kptr_restrict)"
    NOT_RESOLVED = "symbolization was cut short"
    MISSING_STACK = "stack could not be read"
    TRUNCATED = "stack is cut short: its callers are not known"
    """In the place of the frames that are missing; the frames that are there have their names."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One function in a stack.

    Attributes:
        name: Shown to the user; any text, also hostile: writers escape it.
        kind: What kind of code it is.
        module: The file or kernel module the code belongs to; empty when unknown.
        file: Source file; empty when unknown.
        line: Line in ``file``; 0 when unknown.
        unnamed: Why ``name`` is a stand-in such as ``[libfoo.so+0x1234]``; None for a real name.
    """

    name: str
    kind: FrameKind = FrameKind.USER
    module: str = ""
    file: str = ""
    line: int = 0
    unnamed: Reason | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """Who ran: the thread, and the name it had at the event.

    Attributes:
        pid: Process id (the kernel's tgid).
        tid: Thread id; 0 when the recording did not tell threads apart.
        comm: The thread's name when the event fired.
        cgroup: Path of its cgroup; empty when not recorded.
    """

    pid: int
    tid: int
    comm: str
    cgroup: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One distinct stack and its weight.

    Attributes:
        stack: Frames, root first.
        value: In the unit of the profile; never negative.
        task: Who ran it; None in profiles read from files that do not tell.
    """

    stack: tuple[Frame, ...]
    value: int
    task: Task | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Metadata:
    """Where a profile comes from. Unknown text is empty, unknown numbers are 0.

    Attributes:
        title: The picture's title; empty for the default of its kind.
        target: What was recorded, as a phrase: ``all CPUs``, ``pid 12``, ``./server --once``.
        host: Host name.
        kernel: Kernel release.
        cpus: CPUs sampled.
        event: What made a sample: ``cpu-clock``, ``cycles``.
        frequency: Samples per second and CPU.
        start: Unix time when the recording began, seconds.
        duration: Length of the recording, seconds.
        counters: What the recording's audit line says: events by name (``samples``,
            ``lost_samples``, ...), as in docs/format.md.
    """

    title: str = ""
    target: str = ""
    host: str = ""
    kernel: str = ""
    cpus: int = 0
    event: str = ""
    frequency: int = 0
    start: float = 0.0
    duration: float = 0.0
    counters: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """A finished profile: what was measured, in which unit, and the stacks.

    Attributes:
        kind: The question asked: ``cpu``, ``offcpu``, ``wakeup``, ...
        unit: ``samples``, ``cycles``, ``ns``, ``bytes`` or ``count``.
        samples: In no particular order; equal stacks of different tasks are separate samples.
        meta: Where it comes from.
    """

    kind: str
    unit: str
    samples: tuple[Sample, ...]
    meta: Metadata = Metadata()

    @property
    def total(self) -> int:
        """The sum of all values."""
        return sum(sample.value for sample in self.samples)
