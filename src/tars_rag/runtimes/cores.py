"""The processor's cores: which are fast, and which of them this process may use."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tars_rag.errors import InvalidInputError

T = TypeVar("T")

# Cores below this share of the fastest one are "little" (Cortex-A55 beside A76: about 0.5).
_BIG = 0.85


def allowed_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def big_cores(sysfs: Path = Path("/sys"), allowed: Sequence[int] | None = None) -> list[int]:
    """The fastest cores this process may use, by the kernel's own figures.

    ``cpu_capacity`` where the kernel has it (big.LITTLE), the highest frequency otherwise. All
    allowed cores, where neither is there or they are alike.
    """
    cores = list(allowed_cores() if allowed is None else allowed)
    folder = sysfs / "devices/system/cpu"
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        power = {core: _number(folder / f"cpu{core}" / name) for core in cores}
        known = [value for value in power.values() if value]
        if len(known) == len(cores):
            best = max(known)
            return [core for core in cores if (power[core] or 0) >= _BIG * best]
    return cores


def require_threads(threads: int | None) -> None:
    """Refuse a number of threads that is none.

    Raises:
        InvalidInputError: It is less than 1.
    """
    if threads is not None and threads < 1:
        msg = f"threads={threads} is not valid: give 1 or more, or None for all (big) cores."
        raise InvalidInputError(msg)


def on_cores(cores: Sequence[int], work: Callable[[], T]) -> T:
    """Do some work in a thread that keeps to `cores`, as do the threads that it starts."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            os.sched_setaffinity(0, cores)  # of this thread alone
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="tars-rag-on-cores")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
