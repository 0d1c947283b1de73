"""CPU samples: where the processors spend their time.

A perf event interrupts every CPU at a fixed rate; the BPF program ``cpu.bpf.c`` takes the stacks
and counts them in the kernel.
"""

from __future__ import annotations

import dataclasses
import platform

from bpflame.bpf.btf import Btf
from bpflame.bpf.counters import TICKS
from bpflame.bpf.cpus import online_cpus, possible_cpus
from bpflame.bpf.load import PERF_EVENT, Program
from bpflame.bpf.perf_event import sampling_attr
from bpflame.errors import BpflameError, UsageError
from bpflame.profile import Metadata
from bpflame.profilers.assemble import Kind
from bpflame.profilers.command import Command
from bpflame.profilers.counting import StackCounts, depth_defines, stack_depth
from bpflame.profilers.cpu_events import CpuEvents
from bpflame.profilers.recorder import Recorder
from bpflame.profilers.target import Target
from bpflame.profilers.targeting import choose_targets, target_defines
from bpflame.profilers.unwind_choice import Unwind
from bpflame.profilers.unwind_setup import get_ready, set_walkers, unwind_defines

_REGS_WORDS = {"x86_64": 21, "aarch64": 34}  # of bpf_user_pt_regs_t, in u64
_MIN_ENTRIES = 1 << 13
_MAX_ENTRIES = 1 << 18
POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class CpuOptions:
    """What to sample, and how.

    Attributes:
        target: Whom.
        frequency: Samples per second and CPU.
        event: ``cpu-clock`` or ``cycles``.
        cpus: Only these CPUs; None for all.
        user: Take user stacks.
        kernel: Take kernel stacks.
        idle: Sample idle CPUs too.
        threads: Tell the threads of a process apart.
        cgroups: Keep the control group of each sample.
        unwind: How to unwind user stacks.
        max_depth: How many frames a user stack may have.
        timed: Keep count of what walks take, for benchmarks.
    """

    target: Target = dataclasses.field(default_factory=Target)
    frequency: int = 99
    event: str = "cpu-clock"
    cpus: tuple[int, ...] | None = None
    user: bool = True
    kernel: bool = True
    idle: bool = False
    threads: bool = False
    cgroups: bool = False
    unwind: Unwind = Unwind.FP
    max_depth: int = 127
    timed: bool = False

    @property
    def kind(self) -> Kind:
        """What is measured: samples, or what the hardware counted between them."""
        return Kind("cpu", "samples" if self.event == "cpu-clock" else self.event)

    @property
    def walks(self) -> bool:
        """Whether user stacks are unwound by tables."""
        return self.user and self.unwind is Unwind.DWARF

    def check(self) -> None:
        """Raise UsageError if the CPUs or the rate cannot be had here."""
        sampling_attr(self.event, self.frequency)
        missing = set(self.cpus or ()) - set(online_cpus())
        if missing:
            names = ",".join(map(str, sorted(missing)))
            raise UsageError(f"-C {names}: not online", f"online are {online_cpus()}")


def entries(frequency: int) -> int:
    """Room for the maps: what all CPUs can make in eight polls if every stack is new.

    A map is drained when a quarter of it is full, so the worst case needs two polls' worth.
    """
    samples = 2 * len(possible_cpus()) * frequency * POLL_SECONDS * 8
    return max(_MIN_ENTRIES, min(_MAX_ENTRIES, 1 << int(samples).bit_length()))


def compile_program(options: CpuOptions) -> Program:
    """Compile ``cpu.bpf.c`` for the options.

    Raises:
        BpflameError: This machine or kernel cannot run it.
    """
    machine = platform.machine()
    if machine not in _REGS_WORDS:
        raise BpflameError(f"bpflame does not know this architecture: {machine}")
    room = entries(options.frequency)
    btf = Btf.of_kernel()
    defines = {
        **target_defines(options.target, btf),
        **depth_defines(options.max_depth),
        "COUNT_ENTRIES": room,
        "REGS_WORDS": _REGS_WORDS[machine],
        "STACK_ENTRIES": room,
    }
    switches = {
        "INCLUDE_IDLE": options.idle,
        "KERNEL_STACKS": options.kernel,
        "KEY_CGROUP": options.cgroups,
        "KEY_TID": options.threads,
        "USER_STACKS": options.user,
        "WEIGHT_PERIOD": options.event != "cpu-clock",
    }
    if options.walks:
        defines.update(unwind_defines(options.max_depth, btf))
        switches.update(ENTRY_REGS=True, WALK_TIMES=options.timed)
    defines.update({name: None for name, on in switches.items() if on})
    with get_ready(options.walks):
        return Program("cpu", defines)


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A compiled program, ready for its targets."""

    options: CpuOptions
    program: Program

    def recorder(self, command: Command | None, meta: Metadata) -> Recorder:
        """Load the program, set its filters, and give what records.

        Raises:
            UsageError: The event or the rate cannot be had.
            BpflameError: The kernel refuses the program.
        """
        options, program = self.options, self.program
        meta = dataclasses.replace(meta, event=options.event, frequency=options.frequency)
        room = entries(options.frequency)
        depth = stack_depth(options.max_depth)
        counts = StackCounts(program, room, room, depth)
        if options.walks:
            set_walkers(program, PERF_EVENT, ("bpflame_cpu_walk",))
        events = CpuEvents(
            sampling_attr(options.event, options.frequency),
            options.event,
            program.load("bpflame_cpu", PERF_EVENT),
            options.cpus,
            lambda: counts.counters.by_cpu(TICKS),
        )
        choose_targets(program, options.target, None if command is None else command.pid)
        walked = options.max_depth if options.walks else 0
        return Recorder(
            program, events, counts, options.target, command, options.kind, meta, walked
        )


def prepare(options: CpuOptions) -> Prepared:
    """Compile the program: the slow part, before anything is started."""
    return Prepared(options, compile_program(options))
