"""A model on all cores of the NPU, as one `Runtime`.

Which core runs what, and what happens when one fails: `scheduler`. How work waits: `work`.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from tars_rag.errors import DeviceError, InvalidInputError
from tars_rag.runtimes.base import Feeds, FloatArray, Runtime
from tars_rag.runtimes.npu.core import CoreStatus, Recovery
from tars_rag.runtimes.npu.gate import CoreGate
from tars_rag.runtimes.npu.scheduler import Scheduler
from tars_rag.runtimes.npu.spec import Session
from tars_rag.runtimes.npu.turns import Turns

logger = logging.getLogger("tars_rag")

_RECOVERY = Recovery()
_FEEDS_A_TURN = 12


@dataclass(frozen=True)
class PoolStatus:
    """The cores, and how many feeds had to run on the CPU."""

    cores: tuple[CoreStatus, ...]
    cpu_feeds: int


class NpuPool:
    """A model on several NPU cores, as one `Runtime`.

    Args:
        open_session: Opens the model on the core of that mask; called once per core, in the
            thread that will own it.
        core_masks: One per core to use.
        timeout: Seconds one run may take before its core counts as hung.
        queue_limit: Bulk feeds that may wait; callers with more wait before they queue theirs.
        fallback: Makes a CPU runtime that gives the same rows; None: no fall-back.
        on_fault: Told the core mask and the reason when a core is retired.
        recovery: When a core that failed is opened again, and when it is given up.
        turns: Taken with other programs; None: none are.
        gate: Opens cores that have not worked here before one after the other, or leaves them out;
            None: all are opened at once.

    Raises:
        DeviceError: No core could be opened (with or without fall-back: whoever has a CPU
            runtime needs no pool).
    """

    def __init__(
        self,
        open_session: Callable[[int], Session],
        core_masks: Sequence[int],
        *,
        timeout: float = 10.0,
        queue_limit: int = 64,
        fallback: Callable[[], Runtime] | None = None,
        on_fault: Callable[[int, str], None] | None = None,
        recovery: Recovery = _RECOVERY,
        gate: CoreGate | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._turns = turns
        self._has_fallback = fallback is not None
        with turns.turn() if turns else nullcontext():
            self._scheduler = Scheduler(
                open_session,
                core_masks,
                timeout=timeout,
                queue_limit=queue_limit,
                fallback=fallback,
                on_fault=on_fault,
                recovery=recovery,
                gate=gate,
            )
            # The workers hold the scheduler, not the pool: a forgotten pool closes itself.
            self._finalizer = weakref.finalize(self, self._scheduler.close)
            try:
                info = self._scheduler.wait_until_open()
            except BaseException:
                self.close()
                raise
        self._input_names, self._lengths, self._versions = (
            info.input_names,
            tuple(sorted({*info.lengths, *info.missing})),
            info.versions,
        )

    @property
    def device(self) -> str:
        """``"npu"`` while a core is left, ``"cpu"`` after that."""
        return "npu" if self._scheduler.alive else "cpu"

    @property
    def input_names(self) -> tuple[str, ...]:
        """See `Runtime`."""
        return self._input_names

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The buckets; None once everything runs on the CPU."""
        return self._lengths if self._scheduler.alive else None

    @property
    def max_rows(self) -> int | None:
        """One text a run on the NPU; None once everything runs on the CPU."""
        return 1 if self._scheduler.alive else None

    @property
    def versions(self) -> str:
        """Of the runtime library and the driver, as they say."""
        return self._versions

    @property
    def gaps(self) -> dict[int, tuple[float, ...]]:
        """How far the known answers were off, by core mask; see `spec.SessionInfo`."""
        return self._scheduler.gaps()

    def status(self) -> PoolStatus:
        """What each core did, and which are retired."""
        return PoolStatus(*self._scheduler.status())

    def run(self, feeds: Sequence[Feeds], *, urgent: bool = False) -> list[FloatArray]:
        """See `Runtime`. Blocks while too much bulk work is queued already."""
        for feed in feeds:
            self._check(feed)
        without = {i for i, feed in enumerate(feeds) if not self._fits(feed)}
        # Made for the CPU, which was all there was a moment ago: it is right there still.
        if without and self._scheduler.alive and not self._scheduler.has_cpu:
            shape = feeds[min(without)]["attention_mask"].shape
            msg = f"A feed must be [1, n] with n one of {self._lengths}, not {shape}."
            raise InvalidInputError(msg)
        if self._turns is None:
            return self._scheduler.run(feeds, urgent, without)
        return self._in_turn(self._turns, feeds, urgent, without)

    def _in_turn(
        self, turns: Turns, feeds: Sequence[Feeds], urgent: bool, without: set[int]
    ) -> list[FloatArray]:
        """A few feeds at a time, so that the others do not wait for all of them."""
        rows: list[FloatArray] = []
        while self._scheduler.alive and (part := feeds[len(rows) : len(rows) + _FEEDS_A_TURN]):
            done = len(rows)
            try:
                turns.take()
            except DeviceError as error:
                if not self._has_fallback:
                    raise
                logger.warning("The CPU runs %d texts: %s", len(feeds) - done, error)
                break
            try:
                rows += self._scheduler.run(part, urgent, {i - done for i in without if i >= done})
            finally:
                turns.leave()
        rest = feeds[len(rows) :]
        return rows + self._scheduler.run(rest, urgent, range(len(rest)))

    def close(self) -> None:
        """Release the cores once they are done with what they run. May be called twice.

        Callers that still wait get a DeviceError.
        """
        self._finalizer()

    def _check(self, feed: Feeds) -> None:
        missing = [name for name in self._input_names if name not in feed]
        if missing:
            msg = f"The feed lacks {missing}; it must have {list(self._input_names)}."
            raise InvalidInputError(msg)
        for name in self._input_names:
            array = feed[name]
            if array.dtype != np.int64 or array.ndim != 2:
                msg = f"{name} must be int64 [rows, tokens], not {array.dtype} {array.shape}."
                raise InvalidInputError(msg)
        shape = feed["attention_mask"].shape
        if any(feed[name].shape != shape for name in self._input_names):
            msg = f"All arrays of a feed must have the same shape; the mask has {shape}."
            raise InvalidInputError(msg)
        if shape[0] < 1 or not feed["attention_mask"].any(axis=1).all():
            msg = "Every row of a feed needs at least one token that is not masked."
            raise InvalidInputError(msg)

    def _fits(self, feed: Feeds) -> bool:
        rows, tokens = feed["attention_mask"].shape
        return rows == 1 and tokens in self._lengths
