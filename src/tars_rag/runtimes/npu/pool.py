"""One worker per NPU core: ordered results, back-pressure, time-outs, fail-over.

The only locks of the runtimes are here. All state is guarded by one lock; a device is only ever
entered by the thread that owns its core.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from tars_rag.errors import DeviceError, InvalidInputError
from tars_rag.runtimes.base import Feeds, FloatArray, Runtime
from tars_rag.runtimes.npu.session import Session, SessionInfo

logger = logging.getLogger("tars_rag")

CPU_HINT = "Set NPU_FALLBACK_CPU=1 to go on with the CPU, or run: tars-rag doctor"


@dataclass(frozen=True)
class CoreStatus:
    """What became of one core. `reason` says why it was retired; empty while it is in use."""

    core_mask: int
    runs: int
    busy_seconds: float
    reason: str = ""


@dataclass(frozen=True)
class PoolStatus:
    """The cores, and how many feeds had to run on the CPU."""

    cores: tuple[CoreStatus, ...]
    cpu_feeds: int


@dataclass(eq=False)
class _Core:
    core_mask: int
    thread: threading.Thread | None = None
    session: Session | None = None
    job: _Job | None = None
    started: float = 0.0
    runs: int = 0
    busy: float = 0.0
    reason: str = ""


@dataclass(eq=False)
class _Call:
    """One `run`: what it still waits for, and the condition its thread sleeps on."""

    rows: list[FloatArray | None]
    wake: threading.Condition
    error: Exception | None = None
    left: int = 0


@dataclass(order=True)
class _Job:
    # Urgent before bulk, then first come first served, then longest first.
    order: tuple[bool, int, int, int]
    call: _Call = field(compare=False)
    index: int = field(compare=False)
    feed: Feeds = field(compare=False)


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
    ) -> None:
        self._scheduler = _Scheduler(
            open_session, core_masks, timeout, queue_limit, fallback, on_fault
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
            info.lengths,
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

    def status(self) -> PoolStatus:
        """What each core did, and which are retired."""
        return self._scheduler.status()

    def run(self, feeds: Sequence[Feeds], *, urgent: bool = False) -> list[FloatArray]:
        """See `Runtime`. Blocks while too much bulk work is queued already."""
        for feed in feeds:
            self._check(feed)
        return self._scheduler.run(feeds, urgent)

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
        rows, tokens = shape = feed["attention_mask"].shape
        if any(feed[name].shape != shape for name in self._input_names):
            msg = f"All arrays of a feed must have the same shape; the mask has {shape}."
            raise InvalidInputError(msg)
        if rows < 1 or not feed["attention_mask"].any(axis=1).all():
            msg = "Every row of a feed needs at least one token that is not masked."
            raise InvalidInputError(msg)
        # A batch made for the CPU is right too once there is nothing but the CPU.
        if (rows > 1 or tokens not in self._lengths) and self._scheduler.alive:
            msg = f"A feed must be [1, n] with n one of {self._lengths}, not {shape}."
            raise InvalidInputError(msg)


class _Scheduler:
    """The queue, the cores and their threads."""

    def __init__(
        self,
        open_session: Callable[[int], Session],
        core_masks: Sequence[int],
        timeout: float,
        queue_limit: int,
        fallback: Callable[[], Runtime] | None,
        on_fault: Callable[[int, str], None] | None,
    ) -> None:
        self._open_session = open_session
        self._timeout = timeout
        self._limit = queue_limit
        self._make_fallback = fallback
        self._on_fault = on_fault
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._opened = threading.Condition(self._lock)
        self._queue: list[_Job] = []
        self._full: deque[_Call] = deque()
        self._tickets = itertools.count()
        self._closing = False
        self._unreported: list[_Core] = []
        self._cpu: Runtime | None = None
        self._cpu_lock = threading.Lock()
        self._cpu_feeds = 0
        self._cores = [_Core(mask) for mask in core_masks]
        for core in self._cores:
            core.thread = threading.Thread(
                target=self._serve, args=(core,), name=f"npu-{core.core_mask}", daemon=True
            )
            core.thread.start()

    @property
    def alive(self) -> bool:
        return any(not core.reason for core in self._cores)

    def wait_until_open(self) -> SessionInfo:
        with self._reporting():
            while any(core.session is None and not core.reason for core in self._cores):
                self._opened.wait()
            for core in self._cores:
                if core.session is not None:
                    return core.session.info
            msg = f"No NPU core can be used. {self._reasons()} {CPU_HINT}."
            raise DeviceError(msg)

    def status(self) -> PoolStatus:
        with self._lock:
            cores = (CoreStatus(c.core_mask, c.runs, c.busy, c.reason) for c in self._cores)
            return PoolStatus(tuple(cores), self._cpu_feeds)

    def run(self, feeds: Sequence[Feeds], urgent: bool) -> list[FloatArray]:
        if os.getpid() != self._pid:
            msg = (
                "The NPU was opened before this process was forked. Open it in the process that "
                "uses it, for example in the worker's start-up hook."
            )
            raise DeviceError(msg)
        call = _Call([None] * len(feeds), threading.Condition(self._lock), left=len(feeds))
        with self._reporting():
            ticket = next(self._tickets)
            waiting = deque(
                sorted(
                    _Job((not urgent, ticket, -f["attention_mask"].size, i), call, i, f)
                    for i, f in enumerate(feeds)
                )
            )
            try:
                while call.left and call.error is None and self.alive and not self._closing:
                    self._enqueue(call, waiting, urgent)
                    call.wake.wait(self._patience())
                    self._retire_overdue()
            finally:
                # Whatever ended the wait, nothing of this call may stay behind.
                self._forget(call)
            if call.error is not None:
                raise call.error
            if call.left and self._closing:
                msg = "The NPU runtime was closed while this call was waiting for it."
                raise DeviceError(msg)
        rest = [i for i, rows in enumerate(call.rows) if rows is None]
        if rest:
            on_cpu = self._fall_back().run([feeds[i] for i in rest], urgent=urgent)
            for i, rows in zip(rest, on_cpu, strict=True):
                call.rows[i] = rows
            with self._lock:
                self._cpu_feeds += len(rest)
        return [rows for rows in call.rows if rows is not None]

    def close(self) -> None:
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closing = True
            self._wake_everyone()
        deadline = time.monotonic() + self._timeout
        for core in self._cores:
            if core.thread is None or core.thread is threading.current_thread():
                continue
            core.thread.join(max(0.0, deadline - time.monotonic()))
            if core.thread.is_alive() and core.session is not None:
                core.session.abort()
                core.thread.join(5)
            if core.thread.is_alive():
                logger.warning("NPU core mask %d hangs and was left behind.", core.core_mask)
        with self._cpu_lock:
            if self._cpu is not None:
                self._cpu.close()

    # --- under the lock ---------------------------------------------------------------------

    def _enqueue(self, call: _Call, waiting: deque[_Job], urgent: bool) -> None:
        """Queue what fits. Urgent work always does; bulk callers take turns, oldest first."""
        my_turn = urgent or not self._full or self._full[0] is call
        while my_turn and waiting and (urgent or len(self._queue) < self._limit):
            heapq.heappush(self._queue, waiting.popleft())
            self._work.notify()
        if waiting and call not in self._full:
            self._full.append(call)
        elif not waiting and call in self._full:
            self._full.remove(call)
            if self._full:
                self._full[0].wake.notify()

    def _forget(self, call: _Call) -> None:
        if any(job.call is call for job in self._queue):
            self._queue = [job for job in self._queue if job.call is not call]
            heapq.heapify(self._queue)
        if call in self._full:
            self._full.remove(call)
        if self._full:
            self._full[0].wake.notify()

    def _patience(self) -> float:
        """Seconds until the earliest running job is overdue."""
        starts = [core.started for core in self._cores if core.job is not None]
        overdue = min(starts, default=time.monotonic()) + self._timeout
        return max(0.001, overdue - time.monotonic())

    def _retire_overdue(self) -> None:
        """A caller whose job hangs is waiting anyway: it keeps the time."""
        now = time.monotonic()
        for core in self._cores:
            if core.job is not None and now - core.started >= self._timeout:
                self._retire(core, f"a run took longer than {self._timeout:g} s")

    def _retire(self, core: _Core, reason: str) -> None:
        core.reason = reason
        self._unreported.append(core)
        job, core.job = core.job, None
        if core.session is not None:
            core.session.abort()
        if job is not None and job.call.left and job.call.error is None:
            heapq.heappush(self._queue, job)
        # Others may take the job over; if there are none, every caller has to know.
        self._work.notify()
        if not self.alive:
            self._wake_everyone()

    def _wake_everyone(self) -> None:
        for job in self._queue:
            job.call.wake.notify()
        for core in self._cores:
            if core.job is not None:
                core.job.call.wake.notify()
        for call in self._full:
            call.wake.notify()
        self._work.notify_all()

    def _reasons(self) -> str:
        return " ".join(f"Core mask {c.core_mask}: {c.reason}." for c in self._cores if c.reason)

    # --- outside the lock -------------------------------------------------------------------

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Hold the lock; afterwards tell about the cores that were retired meanwhile."""
        try:
            with self._lock:
                yield
        finally:
            with self._lock:
                retired, self._unreported = self._unreported, []
                closing = self._closing
            for core in retired:
                if closing:
                    continue
                logger.warning("NPU core mask %d is out of use: %s", core.core_mask, core.reason)
                if self._on_fault is not None:
                    try:
                        self._on_fault(core.core_mask, core.reason)
                    except Exception:  # its trouble, not that of whoever waits for an answer
                        logger.exception("What is told of faults of the NPU failed.")

    def _fall_back(self) -> Runtime:
        with self._cpu_lock:
            if self._cpu is None:
                with self._lock:
                    reasons = self._reasons()
                if self._make_fallback is None:
                    msg = f"Every NPU core failed. {reasons} {CPU_HINT}."
                    raise DeviceError(msg)
                logger.warning("The NPU cannot be used any more, the CPU takes over. %s", reasons)
                self._cpu = self._make_fallback()
            return self._cpu

    def _serve(self, core: _Core) -> None:
        """The life of one worker thread."""
        try:
            session = self._open_session(core.core_mask)
        except Exception as error:
            with self._reporting():
                self._retire(core, str(error) or type(error).__name__)
                self._opened.notify_all()
            return
        with self._lock:
            core.session = session
            self._opened.notify_all()
        while (job := self._take(core)) is not None:
            rows: FloatArray | None = None
            failure: Exception | None = None
            try:
                rows = session.run(job.feed)
            except Exception as error:
                failure = error
            with self._reporting():
                if core.job is not job:
                    break  # retired meanwhile: too late, someone else has the job
                self._finish(core, job, rows, failure)
        session.close()

    def _take(self, core: _Core) -> _Job | None:
        with self._lock:
            while not self._closing and not core.reason:
                if self._queue:
                    job = heapq.heappop(self._queue)
                    core.job, core.started = job, time.monotonic()
                    if self._full and len(self._queue) < self._limit:
                        self._full[0].wake.notify()
                    return job
                self._work.wait()
            return None

    def _finish(
        self, core: _Core, job: _Job, rows: FloatArray | None, failure: Exception | None
    ) -> None:
        core.runs += 1
        core.busy += time.monotonic() - core.started
        if rows is not None:
            job.call.rows[job.index] = rows
            job.call.left -= 1
        elif isinstance(failure, InvalidInputError):
            job.call.error = failure
        else:
            self._retire(core, str(failure) or type(failure).__name__)
            return
        core.job = None
        if not job.call.left or job.call.error is not None:
            job.call.wake.notify()
