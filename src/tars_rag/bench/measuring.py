"""Time and processor time of calls that take turns, from a clock that a test can replace."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Clock:
    """What time is read from.

    Attributes:
        now: Seconds that pass on the wall.
        cpu: Seconds that this process and its children kept processors busy.
    """

    now: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = field(default_factory=lambda: busy_seconds)


@dataclass(frozen=True, slots=True)
class Timing:
    """What the runs of one call took.

    Attributes:
        milliseconds: Of each run, in order.
        cpu_seconds: Processor time of all of them together, children included.
    """

    milliseconds: tuple[float, ...]
    cpu_seconds: float = 0.0

    @property
    def median(self) -> float:
        """Of the runs, in milliseconds."""
        return statistics.median(self.milliseconds)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the runs, in milliseconds; None of a single one."""
        return statistics.stdev(self.milliseconds) if len(self.milliseconds) > 1 else None


def take_turns(
    calls: Mapping[Key, Callable[[], object]],
    runs: int,
    *,
    clock: Clock,
    most_seconds: float | None = None,
) -> dict[Key, Timing]:
    """Run the calls in turn, round by round, so that a slow moment of the machine meets all.

    One round before the first, which is not counted, warms them up.

    Args:
        calls: What is measured, by name.
        runs: Rounds that are counted.
        clock: What time is read from.
        most_seconds: After that, no other round begins; one is always measured.
    """
    begun = clock.now()
    for call in calls.values():
        call()
    wall: dict[Key, list[float]] = {name: [] for name in calls}
    busy = dict.fromkeys(calls, 0.0)
    for done in range(runs):
        if done and most_seconds is not None and clock.now() - begun > most_seconds:
            break
        for name, call in calls.items():
            cpu, start = clock.cpu(), clock.now()
            call()
            wall[name].append((clock.now() - start) * 1e3)
            busy[name] += clock.cpu() - cpu
    return {name: Timing(tuple(wall[name]), busy[name]) for name in calls}


def busy_seconds() -> float:
    """Processor time of this process and of its living children (a core of the NPU is one).

    The children's is read from ``/proc``, in steps of the kernel's clock tick (10 ms).
    """
    return time.process_time() + sum(_child_seconds(os.getpid()))


def _child_seconds(parent: int) -> list[float]:
    tick = os.sysconf("SC_CLK_TCK")
    seconds: list[float] = []
    for listing in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            children = [int(word) for word in listing.read_text().split()]
        except (OSError, ValueError):
            continue
        for child in children:
            try:
                # utime and stime are the 14th and 15th field; the 2nd, a name, may have spaces.
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                seconds.append((int(fields[11]) + int(fields[12])) / tick)
            except (OSError, ValueError, IndexError):
                continue  # it has ended
            seconds += _child_seconds(child)
    return seconds
