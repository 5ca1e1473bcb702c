"""The work that waits for an NPU core: whose turn it is, and how much may wait.

Knows nothing of cores or devices. Nothing here locks: whoever calls holds the lock that the
conditions were made with.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from tars_rag.runtimes.base import Feeds, FloatArray

MAX_OVERFLOWS: Final = 2
"""NaN or infinity twice, from cores that passed their self-test: it is the text that overflows."""


@dataclass(eq=False)
class Call:
    """One `run`: what it still waits for, and the condition its thread sleeps on.

    Attributes:
        rows: The answers, in the order of the feeds.
        wake: Notified when there is something to look at.
        left: Feeds without an answer that a core may still give.
        error: Ends the call.
        refused: Why the NPU does not answer a feed, by its number.
        over: Nobody waits any more.
    """

    rows: list[FloatArray | None]
    wake: threading.Condition
    left: int
    error: Exception | None = None
    refused: dict[int, str] = field(default_factory=dict)
    over: bool = False

    @property
    def waits(self) -> bool:
        """Whether an answer is still of use."""
        return bool(self.left) and self.error is None and not self.over


@dataclass(order=True)
class Job:
    """One feed of a call."""

    # Urgent before bulk, then first come first served, then longest first.
    order: tuple[bool, int, int, int]
    call: Call = field(compare=False)
    index: int = field(compare=False)
    feed: Feeds = field(compare=False)
    overflows: int = field(default=0, compare=False)
    tried: set[int] = field(default_factory=set, compare=False)
    """Cores on which it overflowed."""

    @property
    def length(self) -> int:
        """Tokens, with padding."""
        return int(self.feed["attention_mask"].shape[1])

    def answer(self, rows: FloatArray) -> None:
        """The call has this answer."""
        self.call.rows[self.index] = rows
        self._settled()

    def refuse(self, error: Exception) -> None:
        """The call fails: the feed itself is wrong."""
        self.call.error = error
        self.call.wake.notify()

    def overflowed(self, core_mask: int, reason: str) -> bool:
        """A sound core answered NaN or infinity; whether it is worth another try."""
        self.overflows += 1
        self.tried.add(core_mask)
        if self.overflows < MAX_OVERFLOWS:
            return True
        self.give_up(reason)
        return False

    def give_up(self, reason: str) -> None:
        """No core answers it."""
        self.call.refused[self.index] = reason
        self._settled()

    def _settled(self) -> None:
        self.call.left -= 1
        if not self.call.left:
            self.call.wake.notify()


class WorkQueue:
    """The jobs that no core has taken yet.

    Args:
        lock: Held by whoever calls.
        limit: Bulk jobs that may be queued; callers with more wait before they queue theirs.

    Attributes:
        arrived: Notified for each job; the cores sleep on it.
    """

    def __init__(self, lock: threading.Lock, limit: int) -> None:
        self.arrived = threading.Condition(lock)
        self._lock = lock
        self._limit = limit
        self._jobs: list[Job] = []
        self._full: deque[Call] = deque()
        self._tickets = itertools.count()

    def __len__(self) -> int:
        return len(self._jobs)

    def admit(
        self, feeds: Sequence[Feeds], urgent: bool, without: Collection[int]
    ) -> tuple[Call, deque[Job]]:
        """A call, and its jobs, not yet queued; feeds of the numbers `without` get none."""
        call = Call([None] * len(feeds), threading.Condition(self._lock), len(feeds) - len(without))
        ticket = next(self._tickets)
        jobs = (
            Job((not urgent, ticket, -f["attention_mask"].size, i), call, i, f)
            for i, f in enumerate(feeds)
            if i not in without
        )
        return call, deque(sorted(jobs))

    def offer(self, call: Call, waiting: deque[Job], urgent: bool) -> None:
        """Queue what fits. Urgent work always does; bulk callers take turns, oldest first."""
        my_turn = urgent or not self._full or self._full[0] is call
        while my_turn and waiting and (urgent or len(self._jobs) < self._limit):
            heapq.heappush(self._jobs, waiting.popleft())
            self.arrived.notify()
        if waiting and call not in self._full:
            self._full.append(call)
        elif not waiting and call in self._full:
            self._full.remove(call)
            self._wake_next()

    def take(self, suits: Callable[[Job], bool]) -> Job | None:
        """The next job that suits; None: there is none."""
        passed: list[Job] = []
        found: Job | None = None
        while self._jobs and found is None:
            job = heapq.heappop(self._jobs)
            if suits(job):
                found = job
            else:
                passed.append(job)
        for job in passed:
            heapq.heappush(self._jobs, job)
        if found is not None and len(self._jobs) < self._limit:
            self._wake_next()
        return found

    def put_back(self, job: Job) -> None:
        """Let another core try it."""
        heapq.heappush(self._jobs, job)
        self.arrived.notify()

    def forget(self, call: Call) -> None:
        """Nothing of this call may stay behind."""
        call.over = True
        if any(job.call is call for job in self._jobs):
            self._jobs = [job for job in self._jobs if job.call is not call]
            heapq.heapify(self._jobs)
        if call in self._full:
            self._full.remove(call)
        self._wake_next()

    def give_up(self, hopeless: Callable[[Job], bool], reason: str) -> None:
        """Take out the jobs that no core can do."""
        lost = [job for job in self._jobs if hopeless(job)]
        if lost:
            self._jobs = [job for job in self._jobs if job not in lost]
            heapq.heapify(self._jobs)
        for job in lost:
            job.give_up(reason)

    def look_again(self) -> None:
        """What suits a core may have changed."""
        self.arrived.notify_all()

    def wake_everyone(self) -> None:
        """Callers and cores have to look at the state of things."""
        for job in self._jobs:
            job.call.wake.notify()
        for call in self._full:
            call.wake.notify()
        self.arrived.notify_all()

    def _wake_next(self) -> None:
        if self._full:
            self._full[0].wake.notify()
