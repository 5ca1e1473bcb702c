"""The clocks, governors and load of a machine while something is measured on it."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_SLOW: Final = 0.8
"""A clock below this share of its maximum is a throttled run: BOARD reports of boards at their
lowest clock are off by more than twice."""

_EVERY: Final = 0.1


@dataclass(frozen=True, slots=True)
class Clocked:
    """One thing with a clock: a group of cores, the NPU, the memory.

    Attributes:
        name: ``cpu policy0``, ``npu``, ``dmc``.
        governor: The kernel's policy.
        most_mhz: Its highest clock.
        seen_mhz: Median while it was measured.
    """

    name: str
    governor: str
    most_mhz: int
    seen_mhz: int

    @property
    def slow(self) -> bool:
        """Whether it ran well below its highest clock."""
        return self.seen_mhz < _SLOW * self.most_mhz


@dataclass(slots=True)
class Conditions:
    """What was seen during one measurement; empty until it has ended.

    Attributes:
        clocks: Those that the kernel tells (a virtual machine has none).
        load: Processes that wanted a processor, averaged by the kernel over the minute before.
    """

    clocks: tuple[Clocked, ...] = ()
    load: float | None = None

    @property
    def throttled(self) -> str:
        """Which clocks were low, in words; empty where none was or none can be read."""
        return "; ".join(
            f"{c.name} at {c.seen_mhz} of {c.most_mhz} MHz (governor {c.governor})"
            for c in self.clocks
            if c.slow
        )


@dataclass
class Watch:
    """Reads the clocks of a machine now and then.

    Args:
        root: Where the file system begins.
        every: Seconds between two looks.
    """

    root: Path = Path("/")
    every: float = _EVERY
    _files: dict[str, tuple[Path, str, int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        policies = self.root / "sys/devices/system/cpu/cpufreq"
        for policy in sorted(policies.glob("policy*")):
            self._add(f"cpu {policy.name}", policy, "scaling_", "cpuinfo_max_freq", 1000)
        for device in sorted((self.root / "sys/class/devfreq").glob("*")):
            kind = next((k for k in ("npu", "dmc") if k in device.name), None)
            if kind:
                self._add(kind, device, "", "max_freq", 1_000_000)

    def _add(self, name: str, folder: Path, prefix: str, most: str, unit: int) -> None:
        highest = _number(folder / most)
        if highest:
            governor = _text(folder / f"{prefix}governor") or "unknown"
            current = folder / f"{prefix}cur_freq"
            self._files[name] = (current, governor, highest // unit, unit)

    @contextmanager
    def during(self) -> Iterator[Conditions]:
        """Look while the block runs; what was seen is in the result when it has ended."""
        seen = Conditions(load=os.getloadavg()[0])
        samples: dict[str, list[int]] = {name: [] for name in self._files}
        over = threading.Event()

        def look() -> None:
            while True:
                # First wait: a core that was idle until now is still at its lowest clock.
                ended = over.wait(self.every)
                for name, (file, _, _, unit) in self._files.items():
                    value = _number(file)
                    if value:
                        samples[name].append(value // unit)
                if ended:
                    return

        thread = threading.Thread(target=look, name="tars-rag clocks", daemon=True)
        if self._files:
            thread.start()
        try:
            yield seen
        finally:
            over.set()
            if self._files:
                thread.join()
            seen.clocks = tuple(
                Clocked(name, governor, most, int(statistics.median(samples[name])))
                for name, (_, governor, most, _) in self._files.items()
                if samples[name]
            )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None
