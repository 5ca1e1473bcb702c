"""Several runs of a graph at once, each with one thread: bulk work needs no threads that wait."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tars_rag.errors import DeviceError, ModelError
from tars_rag.runtimes.base import Feeds, FloatArray

Run = Callable[[Feeds], FloatArray]

# Bytes of a graph that is not held twice in memory: the time is not worth half of a small board's.
_LARGEST: Final = 200 << 20

_SHORT: Final = 100
"""Tokens of a run that several threads end little sooner than one."""


def worth_it(model: Path | bytes) -> bool:
    """Whether a graph is small enough to be opened twice."""
    return (len(model) if isinstance(model, bytes) else model.stat().st_size) <= _LARGEST


class Streams:
    """A graph opened a second time, for runs of one thread each, several at once.

    A run of several threads makes each wait for the others some hundred times; where there are
    enough batches for all, each thread has one of its own instead.

    Args:
        count: How many runs at once.
        open_single: Opens the graph for runs of one thread; called at the first use.
        cores: The threads are kept on these; None: anywhere.
    """

    def __init__(
        self, count: int, open_single: Callable[[], Run], cores: Sequence[int] | None = None
    ) -> None:
        self._count, self._open_single, self._cores = count, open_single, cores
        self._opening = threading.Lock()
        self._single: Run | None = None

    def split(self, feeds: Sequence[Feeds]) -> int:
        """How many of the feeds are to run here, the longest first.

        As many for each thread, and what is left if it is short.
        """
        if self._count < 2 or len(feeds) < self._count or not self.prepare():
            return 0
        even = len(feeds) // self._count * self._count
        left = [next(iter(feed.values())).size for feed in feeds[even:]]
        return len(feeds) if max(left, default=0) <= _SHORT else even

    def prepare(self) -> bool:
        """Open the graph now, if that is of use; whether it is open."""
        with self._opening:
            if self._count > 1 and self._single is None:
                try:
                    self._single = self._open_single()
                except ModelError:  # its files went away meanwhile; what is open goes on
                    self._count = 1
            return self._single is not None

    def run(self, feeds: Sequence[Feeds]) -> list[FloatArray]:
        """Run as many feeds as `split` said, and give their rows in the same order.

        Raises:
            DeviceError: The graph was released meanwhile, or one of the runs failed.
        """
        if not feeds:
            return []
        if (single := self._single) is None:
            msg = "This model is closed. Make a new one to go on."
            raise DeviceError(msg)
        rows: list[FloatArray | None] = [None] * len(feeds)
        numbers = itertools.count()
        stopped = threading.Event()

        def work() -> None:
            try:
                while not stopped.is_set() and (number := next(numbers)) < len(feeds):
                    rows[number] = single(feeds[number])
            except BaseException:
                stopped.set()
                raise

        with ThreadPoolExecutor(self._count, "tars-rag-stream", self._settle) as pool:
            working = [pool.submit(work) for _ in range(min(self._count, len(feeds)))]
            try:
                for one in working:
                    one.result()
            finally:
                stopped.set()
        return [row for row in rows if row is not None]

    def close(self) -> None:
        """Release the graph once the runs under way are through."""
        with self._opening:
            self._count, self._single = 1, None  # a call under way does not open it again

    def _settle(self) -> None:
        if self._cores is not None:
            os.sched_setaffinity(0, self._cores)  # of this thread alone
