"""Waits: where threads are off the CPU, who ends their waits, and who ended that one's.

One BPF program, ``sched.bpf.c``, answers four questions; constants leave out what one does not
need.
"""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

from bpflame.bpf.btf import Btf
from bpflame.bpf.kallsyms import KernelEntries, kernel_entries, macro
from bpflame.bpf.load import RAW_TRACEPOINT, Program
from bpflame.profile import Metadata
from bpflame.profilers.assemble import Kind
from bpflame.profilers.command import Command
from bpflame.profilers.counting import depth_defines, stack_depth
from bpflame.profilers.recall import LESSON_ENTRIES, RECALL_ENTRIES, Recall
from bpflame.profilers.recorder import Recorder
from bpflame.profilers.sched_events import TRACEPOINTS, SchedEvents
from bpflame.profilers.sleepers import Sleeper, Sleepers
from bpflame.profilers.target import Target
from bpflame.profilers.targeting import choose_targets, target_defines
from bpflame.profilers.unwind_choice import Unwind
from bpflame.profilers.unwind_setup import get_ready, set_walkers, unwind_defines
from bpflame.profilers.waits import STATES, Room, State, WaitCounts, WaitRules

OFFCPU, WAKEUP, OFFWAKE, CHAIN = "offcpu", "wakeup", "offwake", "chain"
MAX_WAKERS = 16

_MIN_THREADS, _MAX_THREADS = 1 << 13, 1 << 18


@dataclasses.dataclass(frozen=True, slots=True)
class SchedOptions:
    """Which waits to record, and how.

    Attributes:
        question: ``offcpu``, ``wakeup``, ``offwake`` or ``chain``.
        target: Whose waits.
        depth: How many wakers in a row, for a chain.
        shortest: Least length of a wait, ns.
        longest: Greatest length of a wait, ns; None for no limit.
        states: How a wait must begin: letters as ps gives them; empty for all.
        user: Take user stacks.
        kernel: Take kernel stacks.
        only: ``user`` or ``kernel``: only the waits of such threads; empty for all.
        threads: Tell the threads of a process apart.
        cgroups: Keep the control group of each wait.
        split: Tell blocked, in the run queue and preempted apart.
        whole_only: Leave out waits that are seen in part.
        sample: Follow one in so many waits.
        check: Verify every kernel stack that is recognised, and count.
        unwind: How to unwind user stacks.
        max_depth: How many frames a user stack may have.
        timed: Keep count of what walks take, for benchmarks.
    """

    question: str
    target: Target = dataclasses.field(default_factory=Target)
    depth: int = 8
    shortest: int = 0
    longest: int | None = None
    states: tuple[str, ...] = ()
    user: bool = True
    kernel: bool = True
    only: str = ""
    threads: bool = False
    cgroups: bool = False
    split: bool = True
    whole_only: bool = False
    sample: int = 1
    check: bool = False
    unwind: Unwind = Unwind.FP
    max_depth: int = 127
    timed: bool = False

    @property
    def kind(self) -> Kind:
        """What is measured."""
        return Kind(self.question, "ns")

    @property
    def wakers(self) -> int:
        """How many wakers in a row the question wants."""
        return {OFFCPU: 0, WAKEUP: 1, OFFWAKE: 1, CHAIN: self.depth}[self.question]

    @property
    def walks(self) -> bool:
        """Whether user stacks are unwound by tables."""
        return self.user and self.unwind is Unwind.DWARF

    @property
    def walkers(self) -> tuple[str, ...]:
        """The programs that walk on, in the order of ``enum walker``."""
        return tuple(
            name
            for name, needed in (
                ("bpflame_switch_walk", self.question != WAKEUP),
                ("bpflame_waking_walk", self.wakers > 0),
            )
            if needed
        )

    @property
    def rules(self) -> WaitRules:
        """What user space has to know of it."""
        return WaitRules(
            depth=self.wakers,
            shortest=self.shortest,
            longest=(1 << 64) - 1 if self.longest is None else self.longest,
            whole_only=self.whole_only,
            split=self.split,
            wakeups=self.question == WAKEUP,
            kernel=self.kernel,
            sample=self.sample,
        )

    @property
    def mask(self) -> int:
        """The states as bits of ``enum state``."""
        chosen = [state for letter in self.states or STATES for state in STATES[letter]]
        return sum(1 << state for state in chosen)

    def wants(self, sleeper: Sleeper) -> bool:
        """Whether the wait of a thread that was away before the recording counts."""
        return bool(self.mask >> State.of(sleeper.state) & 1) and self.only != (
            "user" if sleeper.kernel_thread else "kernel"
        )


def thread_entries() -> int:
    """Room for the threads that live at one time: four times those that do now."""
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    return max(_MIN_THREADS, min(_MAX_THREADS, 1 << (4 * running).bit_length()))


def compile_program(options: SchedOptions, entries: KernelEntries, room: Room) -> Program:
    """Compile ``sched.bpf.c`` for the options.

    Raises:
        BpflameError: This kernel cannot run it.
    """
    btf = Btf.of_kernel()
    rules = options.rules
    defines: dict[str, int | str | None] = {
        **target_defines(options.target, btf),
        **depth_defines(options.max_depth),
        "CHAIN_DEPTH": options.wakers,
        "CHAIN_ENTRIES": room.chains,
        "COUNT_ENTRIES": room.counts,
        "INTERRUPT_RANGES": macro(entries.interrupts),
        "LESSON_ENTRIES": LESSON_ENTRIES,
        "LINK_ENTRIES": room.links,
        "MAX_NS": f"{rules.longest}ULL",
        "MIN_NS": f"{rules.shortest}ULL",
        "RECALL_ENTRIES": RECALL_ENTRIES,
        "STACK_ENTRIES": room.stacks,
        "STATES": f"{options.mask}",
        "TASK_COMM": btf.offset("task_struct", "comm"),
        "TASK_FLAGS": btf.offset("task_struct", "flags"),
        "TASK_START_TIME": btf.offset("task_struct", "start_time"),
        "THREAD_ENTRIES": thread_entries(),
        "USER_EXIT_RANGES": macro(entries.user_exits),
    }
    if not btf.has_parameters("preempt", "prev", "next", "prev_state"):
        defines["TASK_STATE"] = btf.task_state()
    if options.sample > 1:
        defines["SAMPLE_ONE_IN"] = options.sample
    switches = {
        "KERNEL_STACKS": options.kernel,
        "KERNEL_THREADS": options.only == "kernel",
        "KEY_CGROUP": options.cgroups,
        "KEY_TID": options.threads,
        "RECALL_CHECK": options.check,
        "USER_STACKS": options.user,
        "USER_THREADS": options.only == "user",
        "WAITER_STACKS": options.question != WAKEUP,
        "WALK_TIMES": options.timed,
        "WHOLE_ONLY": options.whole_only,
        "ENTRY_REGS": platform.machine() == "x86_64" and btf.knows("BPF_FUNC_task_pt_regs"),
    }
    defines.update({name: None for name, on in switches.items() if on})
    if options.walks:
        defines.update(unwind_defines(options.max_depth, btf))
    with get_ready(options.walks):
        return Program("sched", defines)


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A compiled program, ready for its targets."""

    options: SchedOptions
    entries: KernelEntries
    room: Room
    program: Program
    sleepers: Sleepers | None

    def recorder(self, command: Command | None, meta: Metadata) -> Recorder:
        """Set the program's filters, and give what records.

        Raises:
            BpflameError: The kernel refuses the program.
        """
        options, program = self.options, self.program
        meta = dataclasses.replace(meta, event="sched_switch")
        counts = WaitCounts(program, options.rules, self.room, stack_depth(options.max_depth))
        recall = Recall(program, self.entries, counts.stacks.peek)
        events = SchedEvents(
            program,
            counts,
            recall,
            self.sleepers,
            options.target,
            options.wants,
            options.threads,
            options.cgroups,
        )
        for function, _ in TRACEPOINTS:
            program.load(
                function, RAW_TRACEPOINT
            )  # it takes a while, and a wait is to be seen whole
        if options.walks:
            set_walkers(program, RAW_TRACEPOINT, options.walkers)
        choose_targets(program, options.target, None if command is None else command.pid)
        walked = options.max_depth if options.walks else 0
        return Recorder(
            program, events, counts, options.target, command, options.kind, meta, walked
        )


def prepare(options: SchedOptions) -> Prepared:
    """Compile the programs: the slow part, before anything is started."""
    entries, room = kernel_entries(), Room()
    program = compile_program(options, entries, room)
    # For wakeups their stacks are of no use; but only so are states and control groups known.
    stacks = options.question != WAKEUP
    needless = not stacks and not options.states and options.target.cgroup is None
    unseen = options.whole_only or options.target.command or needless
    sleepers = (
        None
        if unseen
        else Sleepers(options.user and stacks, options.kernel and stacks, options.walks)
    )
    return Prepared(options, entries, room, program, sleepers)
