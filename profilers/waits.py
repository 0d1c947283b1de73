"""The waits that ``sched.bpf.c`` sums up, in user space.

Its keys, links and chains, and the threads that are away before the recording and at its end.

Mirrors ``bpf/programs/sched.bpf.c`` and ``wake.h``: the layouts below are theirs.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence

from bpflame.bpf.counters import LOST_VALUE, NEW_CHAINS, NEW_LINKS
from bpflame.bpf.load import Program
from bpflame.bpf.maps import BpfMap
from bpflame.bpf.unwind.copies import Copy, Place
from bpflame.profile import BLOCKED, PARTIAL, PREEMPTED, RUN_QUEUE
from bpflame.profilers.counting import (
    MAX_DEPTH,
    STACK_LOST,
    STACK_NONE,
    WHO,
    Counts,
    Kept,
    Spaces,
    Who,
    pid_in,
    stack_content,
)
from bpflame.profilers.procfs import exists
from bpflame.profilers.sleepers import Sleeper
from bpflame.raw import AbsoluteAddress, Context, RawSample, RawWaker


class State(enum.IntEnum):
    """How a wait begins: ``enum state``."""

    PREEMPTED = 0
    RUNNABLE = 1
    INTERRUPTIBLE = 2
    UNINTERRUPTIBLE = 3
    STOPPED = 4
    TRACED = 5
    PARKED = 6
    IDLE = 7

    @property
    def blocking(self) -> bool:
        """Whether a wakeup ends it, and not a free CPU."""
        return self > State.RUNNABLE

    @classmethod
    def of(cls, bits: int) -> State:
        """Of ``task_struct.__state``, include/linux/sched.h; of a thread that is off the CPU."""
        if bits & 0x1:
            return cls.INTERRUPTIBLE
        if bits & 0x2:
            return cls.IDLE if bits & 0x400 else cls.UNINTERRUPTIBLE
        for bit, state in ((0x4, cls.STOPPED), (0x8, cls.TRACED), (0x40, cls.PARKED)):
            if bits & bit:
                return state
        return cls.UNINTERRUPTIBLE if bits else cls.RUNNABLE


STATES = {
    "R": (State.PREEMPTED, State.RUNNABLE),
    "S": (State.INTERRUPTIBLE,),
    "D": (State.UNINTERRUPTIBLE,),
    "T": (State.STOPPED,),
    "t": (State.TRACED,),
    "P": (State.PARKED,),
    "I": (State.IDLE,),
}
"""The names that ps gives to the states that a wait can begin in."""

_CHAIN_NONE, _CHAIN_LOST, _CHAIN_UNKNOWN = 0, 1, 2
_CONTEXT_INTERRUPT = 1
_ENDS = {1: Context.UNKNOWN, 2: Context.CYCLE, 3: Context.DEEPER}  # enum chain_end

_KEY = struct.Struct(f"<QQ{WHO.size}sQII")
_LINK = struct.Struct(f"<QQ{WHO.size}sII")
_THREAD = struct.Struct(f"<QQQQQ{WHO.size}sIBBBx")
_TID = struct.Struct("<I")
_WHO_AT = 16
_NS_MAX = (1 << 64) - 1
_OWN_ID = 1 << 63  # ids of ours; the program's are hashes, which will hardly be so near to it

Stack = Sequence[AbsoluteAddress]
Groups = Callable[[], Mapping[int, str]]


@dataclasses.dataclass(frozen=True, slots=True)
class WaitRules:
    """Which waits count, and how.

    Attributes:
        depth: How many wakers in a row are kept; 0 for none.
        shortest: Least length that counts, ns.
        longest: Greatest length that counts, ns.
        whole_only: Leave out waits that began before the recording or had not ended at its end.
        split: Tell blocked, in the run queue and preempted apart.
        wakeups: Only blocked time that somebody ended: whom the wakers kept waiting.
        kernel: Kernel stacks were asked for.
        sample: One in so many waits was followed.
    """

    depth: int = 0
    shortest: int = 0
    longest: int = _NS_MAX
    whole_only: bool = False
    split: bool = True
    wakeups: bool = False
    kernel: bool = True
    sample: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """Entries of the maps."""

    counts: int = 1 << 14
    stacks: int = 1 << 14
    links: int = 1 << 13
    chains: int = 1 << 14


class WaitCounts(Counts):
    """Sums of waits by task, stacks and wakers.

    Args:
        program: A loaded ``sched.bpf.c``.
        rules: Which waits count, and how.
        room: Entries of its maps.
        depth: Most addresses of a stack.

    Attributes:
        threads: The program's map of threads.
        began: When the recording began, CLOCK_MONOTONIC ns; to be set by who begins it.
        end: When it ended, to be set before the last drain.
        truncated_sleepers: Threads that slept before, whose stacks are not whole.
        unfinished: Waits that had not ended.
    """

    def __init__(
        self, program: Program, rules: WaitRules, room: Room, depth: int = MAX_DEPTH
    ) -> None:
        super().__init__(program, _KEY.size, 3, room.counts, room.stacks, depth)
        self._rules = rules
        self._links = self._chains = None
        if rules.depth:
            self._links = self._keep(Kept(program, "links", _LINK.size, room.links, NEW_LINKS))
        if rules.depth > 1:
            self._chain = struct.Struct(f"<{rules.depth}QII")
            self._chains = self._keep(
                Kept(program, "chains", self._chain.size, room.chains, NEW_CHAINS)
            )
        size = _THREAD.size
        if rules.depth:
            wakers = 8 * rules.depth + 8 + 4 * rules.depth
            wakers += -wakers % 8
            size += wakers * (1 if rules.depth == 1 else 2) + (8 if rules.depth > 1 else 0)
        self.threads = BpfMap(program.map_fd("threads"), 4, size)
        self._wakers_made: dict[int, RawWaker] = {}
        self._owned: dict[tuple[str, bytes], int] = {}
        self.began = self.end = 0
        self.truncated_sleepers = 0
        self.unfinished = 0

    def add_away(self, who: Who, sleeper: Sleeper) -> None:
        """Note a thread that was off the CPU before the recording, unless it came since.

        Args:
            who: Whose its stacks are.
            sleeper: The thread.
        """
        user = STACK_LOST if sleeper.lost and not sleeper.user else self._stack(sleeper.user)
        if sleeper.place is not None:
            user = self._copied(sleeper.pid, sleeper.place, sleeper.pages)
        state = State.of(sleeper.state)
        record = _THREAD.pack(
            0, self.began, 0, user, self._stack(sleeper.kernel), WHO.pack(*who), state, 1, 1, 1
        )
        self.threads.insert(
            sleeper.tid.to_bytes(4, "little"), record.ljust(self.threads.value_size, b"\0")
        )

    def drop_away(self, sleeper: Sleeper) -> None:
        """Take back what :meth:`add_away` noted."""
        self.threads.update(sleeper.tid.to_bytes(4, "little"), bytes(self.threads.value_size))

    def drain_last(self) -> set[int]:
        """Also the waits that have not ended."""
        return super().drain_last() | self._close_out()

    def extra(self) -> Mapping[str, int]:
        """What is uncertain in the samples."""
        lost = self.counters.total(LOST_VALUE)
        sampled = {"sample_one_in": self._rules.sample} if self._rules.sample > 1 else {}
        return {
            **sampled,
            LOST_VALUE: lost * self._rules.sample,
            "truncated_sleepers": self.truncated_sleepers,
            "unfinished_waits": self.unfinished,
        }

    def _stack(self, ips: Stack) -> int:
        """The id of a stack that no program has taken."""
        return self._own(self.stacks, stack_content(ips)) if ips else STACK_NONE

    def _copied(self, pid: int, place: Place, pages: tuple[tuple[int, bytes], ...]) -> int:
        """The id of a stack that is still to be unwound."""
        number = _OWN_ID + len(self._owned)
        self._owned["copies", number.to_bytes(8, "little")] = number
        self.copies.append(Copy(number, pid, 0, place, pages))
        return number

    def _own(self, kept: Kept, content: bytes) -> int:
        """An id for content that no program has kept."""
        number = self._owned.setdefault((kept.counter, content), _OWN_ID + len(self._owned))
        kept.content[number] = content
        return number

    def _close_out(self) -> set[int]:
        """Count the waits that have not ended, as far as they go; returns their pids."""
        pids: set[int] = set()
        if self._rules.whole_only:
            return pids
        size = self.threads.value_size
        for tids, threads in self.threads.entries():
            for i, (tid,) in enumerate(_TID.iter_unpack(tids)):
                # There are machines on which the last switch of a thread now and then tells nobody.
                if exists(tid):
                    pids |= self._close(threads[i * size : (i + 1) * size])
        return pids

    def _close(self, thread: bytes) -> set[int]:
        end = self.end
        came, out, woken, user, kernel, who, state, kept, partial, _ = _THREAD.unpack_from(thread)
        begin = max(out, self.began)
        length = end - begin
        if not out or not kept or length <= 0:
            return set()
        if not self._rules.shortest <= length <= self._rules.longest:
            return set()
        blocked, chain = 0, _CHAIN_NONE
        if State(state).blocking:
            seen = woken != 0 and came <= woken <= end
            blocked = max(0, woken - begin) if seen else length
            if seen and self._rules.depth:
                chain = self._chain_of(thread)
        rest = length - blocked
        preempted = rest if state == State.PREEMPTED else 0
        weight = 1 if partial else self._rules.sample
        key = _KEY.pack(user, kernel, who, chain, 1, 0)
        self.add(key, tuple(weight * value for value in (blocked, rest - preempted, preempted)))
        self.unfinished += 1
        return {pid_in(who, 0)}

    def _chain_of(self, thread: bytes) -> int:
        """The id of the chain that a thread carries, which no program has kept yet."""
        depth = self._rules.depth
        (first,) = struct.unpack_from("<Q", thread, _THREAD.size)
        if depth == 1:
            return int(first)
        content = thread[_THREAD.size : _THREAD.size + self._chain.size]
        return self._own(self._chains, content) if self._chains is not None else _CHAIN_NONE

    def samples(self, spaces: Spaces, groups: Groups) -> Iterator[RawSample]:
        """Up to three for each key: blocked, in the run queue, preempted."""
        chains: dict[int, tuple[RawWaker, ...]] = {}
        for key, (blocked, queued, preempted) in self.sums.items():
            user, kernel, data, chain, partial, _ = _KEY.unpack(key)
            weight = 1 if partial else self._rules.sample
            if chain not in chains:
                chains[chain] = self._wakers(chain, spaces, groups)
            who = Who.parse(data)
            end, guessed = self.stacks.end(user)
            whole = RawSample(
                who.task(groups() if who.cgroup else {}),
                spaces.find(who.pid, who.born),
                self.stacks.ips(user),
                self.stacks.ips(kernel),
                self.stacks.lost(user) or self.stacks.lost(kernel),
                0,
                end=end,
                guessed=guessed,
            )
            parts = self._parts(blocked, queued, preempted, chains[chain])
            for value, name, wakers in parts:
                if value:
                    waits = (name,) if name else ()
                    yield dataclasses.replace(
                        whole,
                        value=value * weight,
                        waits=(*waits, PARTIAL) if partial else waits,
                        wakers=wakers,
                    )

    def _parts(
        self, blocked: int, queued: int, preempted: int, wakers: tuple[RawWaker, ...]
    ) -> Iterator[tuple[int, str, tuple[RawWaker, ...]]]:
        """The sums of a key: value, how it went, who ended it."""
        if self._rules.wakeups:
            yield blocked if wakers else 0, "", wakers
            return
        if not self._rules.split:
            yield blocked + queued + preempted, "", wakers
            return
        # Of time that a waker ended, the waker says enough.
        yield blocked, "" if wakers else BLOCKED, wakers
        yield queued, RUN_QUEUE, ()
        yield preempted, PREEMPTED, ()

    def _wakers(self, chain: int, spaces: Spaces, groups: Groups) -> tuple[RawWaker, ...]:
        if chain == _CHAIN_NONE:
            return ()
        if self._links is None or chain in (_CHAIN_LOST, _CHAIN_UNKNOWN):
            return (RawWaker(Context.UNKNOWN),)
        if self._chains is None:
            return (self._waker_of(chain, spaces, groups),)
        content = self._chains.content.get(chain)
        if content is None:
            return (RawWaker(Context.UNKNOWN),)
        *links, depth, end = self._chain.unpack(content)
        found = [self._waker_of(link, spaces, groups) for link in links[:depth]]
        if end in _ENDS:
            found.append(RawWaker(_ENDS[end]))
        return tuple(found)

    def _waker_of(self, link: int, spaces: Spaces, groups: Groups) -> RawWaker:
        if link not in self._wakers_made:
            self._wakers_made[link] = self._waker(link, spaces, groups)
        return self._wakers_made[link]

    def _waker(self, link: int, spaces: Spaces, groups: Groups) -> RawWaker:
        content = self._links.content.get(link) if self._links is not None else None
        if content is None:
            return RawWaker(Context.UNKNOWN)
        user, kernel, data, context, _ = _LINK.unpack(content)
        lost = self.stacks.lost(user) or self.stacks.lost(kernel)
        ips = self.stacks.ips(kernel)
        if context == _CONTEXT_INTERRUPT:
            return RawWaker(Context.INTERRUPT, kernel=ips, lost=lost, bare=not self._rules.kernel)
        who = Who.parse(data)
        space = spaces.find(who.pid, who.born)
        task = who.task(groups() if who.cgroup else {})
        end, guessed = self.stacks.end(user)
        return RawWaker(
            Context.TASK, task, space, self.stacks.ips(user), ips, lost, end=end, guessed=guessed
        )

    def _pids_of(self, kept: Kept, contents: list[bytes]) -> set[int]:
        return {pid_in(link, _WHO_AT) for link in contents} if kept is self._links else set()
