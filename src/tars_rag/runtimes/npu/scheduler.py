"""The cores of the NPU and their threads: who works on what, and what happens when one fails.

The only lock of the runtimes is here. All state is guarded by it; a device is only ever entered by
the thread that owns its core.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from tars_rag.errors import DeviceError, InvalidInputError, MissingLengthError, NonFiniteError
from tars_rag.runtimes.base import Feeds, FloatArray, Runtime
from tars_rag.runtimes.npu.core import (
    NO_MEMORY,
    Core,
    CoreStatus,
    Recovery,
    nobody_can,
    patience,
    suits,
)
from tars_rag.runtimes.npu.fallback import CPU_HINT, Fallback, sentence
from tars_rag.runtimes.npu.gate import CoreGate
from tars_rag.runtimes.npu.spec import Session, SessionInfo
from tars_rag.runtimes.npu.work import Call, Job, WorkQueue

logger = logging.getLogger("tars_rag")


class Scheduler:
    """One thread a core, a queue for all. See `pool.NpuPool` for the arguments."""

    def __init__(
        self,
        open_session: Callable[[int], Session],
        core_masks: Sequence[int],
        *,
        timeout: float,
        queue_limit: int,
        fallback: Callable[[], Runtime] | None,
        on_fault: Callable[[int, str], None] | None,
        recovery: Recovery,
        gate: CoreGate | None,
    ) -> None:
        self._open_session = open_session
        self._timeout = timeout
        self._cpu = Fallback(fallback)
        self._on_fault = on_fault
        self._recovery = recovery
        self._gate = gate
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._queue = WorkQueue(self._lock, queue_limit)
        self._opened = threading.Condition(self._lock)
        self._resting = threading.Condition(self._lock)
        self._closing = False
        self._unreported: list[Core] = []
        self._cores = [Core(mask) for mask in core_masks]
        for core in self._cores:
            core.thread = threading.Thread(
                target=self._serve, args=(core,), name=f"npu-{core.core_mask}", daemon=True
            )
            core.thread.start()

    @property
    def alive(self) -> bool:
        """Whether a core is left, at work or about to be again."""
        return any(core.in_use for core in self._cores)

    @property
    def has_cpu(self) -> bool:
        """Whether the CPU had to take over already."""
        return self._cpu.is_open

    def wait_until_open(self) -> SessionInfo:
        """Wait for every core's first opening; what the first that opened turned out to be.

        Raises:
            DeviceError: None could be opened.
        """
        with self._reporting():
            while any(core.state == "opening" for core in self._cores):
                self._opened.wait()
            for core in self._cores:
                if core.session is not None:
                    return core.session.info
            msg = f"No NPU core can be used. {self._reasons()} {CPU_HINT}."
            raise DeviceError(msg)

    def status(self) -> tuple[tuple[CoreStatus, ...], int]:
        """Each core's, and how many feeds had to run on the CPU."""
        with self._lock:
            return tuple(core.status for core in self._cores), self._cpu.feeds

    def gaps(self) -> dict[int, tuple[float, ...]]:
        """How far each core that is open was from the known answers; see `SessionInfo`."""
        with self._lock:
            opened = ((core.core_mask, core.session) for core in self._cores)
            infos = {mask: session.info for mask, session in opened if session is not None}
        return {mask: info.gaps for mask, info in infos.items() if not info.missing}

    def run(
        self, feeds: Sequence[Feeds], urgent: bool, without: Collection[int] = ()
    ) -> list[FloatArray]:
        """Run feeds on the cores, and on the CPU what they cannot.

        Args:
            feeds: Checked.
            urgent: Before all bulk work that has not started.
            without: Numbers of feeds that fit no core.
        """
        if os.getpid() != self._pid:
            msg = (
                "The NPU was opened before this process was forked. Open it in the process that "
                "uses it, for example in the worker's start-up hook."
            )
            raise DeviceError(msg)
        with self._reporting():
            call, waiting = self._queue.admit(feeds, urgent, without)
            try:
                while call.waits and self.alive and not self._closing:
                    self._queue.offer(call, waiting, urgent)
                    self._queue.give_up(lambda job: nobody_can(job, self._cores), NO_MEMORY)
                    if call.left:
                        call.wake.wait(patience(self._cores, self._timeout))
                    self._look_after_overdue()
            finally:
                # Whatever ended the wait, nothing of this call may stay behind.
                self._queue.forget(call)
            if call.error is not None:
                raise call.error
            if call.left and self._closing:
                msg = "The NPU runtime was closed while this call was waiting for it."
                raise DeviceError(msg)
        self._run_on_cpu(call, feeds, urgent)
        return [rows for rows in call.rows if rows is not None]

    def close(self) -> None:
        """Release the cores once they are done with what they run."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closing = True
            self._wake_everyone()
            self._opened.notify_all()
        deadline = time.monotonic() + self._timeout
        for core in self._cores:
            if not core.leave(deadline):
                logger.warning("NPU core mask %d hangs and was left behind.", core.core_mask)
        self._cpu.close()

    # --- under the lock ---------------------------------------------------------------------

    def _look_after_overdue(self) -> None:
        """A caller whose job hangs is waiting anyway: it keeps the time."""
        now = time.monotonic()
        for core in self._cores:
            if now < core.deadline:
                continue
            if core.state == "ready":
                self._failed(core, DeviceError(f"a run took longer than {self._timeout:g} s"))
            else:
                limit = self._recovery.limit
                self._retire(core, f"{core.reason}; it was not ready again after {limit:g} s")

    def _failed(self, core: Core, error: Exception) -> None:
        """A core failed with its job: open it again, or give it up; the job is tried again."""
        reason = str(error) or type(error).__name__
        job = core.end()
        if time.monotonic() - core.failed_at < self._recovery.grace:
            self._retire(core, reason)
        else:
            logger.info("NPU core mask %d failed and is opened again: %s", core.core_mask, reason)
            core.recover(reason, self._recovery.limit)
        self._queue.look_again()
        if job is not None and job.call.waits:
            self._queue.put_back(job)
            job.call.wake.notify()  # to keep the time of the recovery

    def _retire(self, core: Core, reason: str) -> None:
        if core.state != "retired":
            self._unreported.append(core)
        core.retire(reason, self._recovery.rest)
        # Others may take its job over; if there are none, every caller has to know.
        self._queue.look_again()
        self._opened.notify_all()
        if not self.alive:
            self._wake_everyone()

    def _wake_everyone(self) -> None:
        self._queue.wake_everyone()
        for core in self._cores:
            if core.job is not None:
                core.job.call.wake.notify()
        self._resting.notify_all()

    def _reasons(self) -> str:
        unused = (core for core in self._cores if not core.in_use)
        return " ".join(sentence(f"Core mask {core.core_mask}: {core.reason}") for core in unused)

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
            for core in () if closing else retired:
                logger.warning("NPU core mask %d is out of use: %s", core.core_mask, core.reason)
                if self._on_fault is not None:
                    try:
                        self._on_fault(core.core_mask, core.reason)
                    except Exception:  # its trouble, not that of whoever waits for an answer
                        logger.exception("What is told of faults of the NPU failed.")

    def _run_on_cpu(self, call: Call, feeds: Sequence[Feeds], urgent: bool) -> None:
        """What the cores left without an answer."""
        rest = [i for i, rows in enumerate(call.rows) if rows is None]
        if not rest:
            return
        if call.left:
            with self._lock:
                what, reasons = "Every NPU core failed", self._reasons()
        else:
            what = "The NPU cannot answer a text"
            reasons = " ".join(dict.fromkeys(map(sentence, call.refused.values())))
        on_cpu = self._cpu.run([feeds[i] for i in rest], urgent, what=what, reasons=reasons)
        for i, rows in zip(rest, on_cpu, strict=True):
            call.rows[i] = rows

    # --- one core's thread ------------------------------------------------------------------

    def _serve(self, core: Core) -> None:
        """The life of one worker thread: open, work until something fails, rest, open again."""
        if not self._may_open(core):
            return
        while True:
            session = self._open(core)
            if session is not None:
                self._work(core, session)
                try:
                    session.close()
                except Exception:
                    logger.exception("NPU core mask %d could not be released.", core.core_mask)
            if not self._rest(core):
                return

    def _may_open(self, core: Core) -> bool:
        """Wait for those before it, if it has to; whether it is to be opened at all."""
        gate = self._gate
        if gate is None or gate.is_proven(core.core_mask):
            return True
        before = self._cores[: self._cores.index(core)]
        with self._lock:
            while any(other.state == "opening" for other in before) and not self._closing:
                self._opened.wait()
            if self._closing:
                return False
            open_ones = (other.session for other in before if other.session is not None)
            versions = next((session.info.versions for session in open_ones), "")
        reason = gate.refusal(core.core_mask, versions)
        if reason:
            logger.warning("NPU core mask %d: %s", core.core_mask, reason)
            with self._lock:
                core.leave_out(reason)
                self._opened.notify_all()
        return not reason

    def _open(self, core: Core) -> Session | None:
        guard = self._gate.opening(core.core_mask) if self._gate else nullcontext()
        try:
            with guard:
                session = self._open_session(core.core_mask)
        except Exception as error:
            reason = str(error) or type(error).__name__
            with self._reporting():
                before = f"{core.reason}; opened again: " if core.state == "recovering" else ""
                self._retire(core, before + reason)
            return None
        with self._lock:
            again = core.state != "opening"
            core.opened(session)
            self._opened.notify_all()
        if again:
            logger.info("NPU core mask %d works again.", core.core_mask)
        elif session.info.missing:
            told = "NPU core mask %d runs without the lengths %s: %s"
            info = session.info
            logger.warning(told, core.core_mask, list(info.missing), info.why_missing)
        return session

    def _work(self, core: Core, session: Session) -> None:
        while (job := self._take(core)) is not None:
            rows: FloatArray | None = None
            failure: Exception | None = None
            try:
                rows = session.run(job.feed)
            except Exception as error:
                failure = error
            with self._reporting():
                if core.job is not job:
                    return  # it took too long: someone else has the job
                if rows is not None:
                    job.answer(rows)
                elif isinstance(failure, InvalidInputError):
                    job.refuse(failure)
                elif isinstance(failure, NonFiniteError):
                    # The session has tried the core with what it knows: it is not at fault.
                    if job.overflowed(core.core_mask, str(failure)):
                        self._queue.put_back(job)
                elif isinstance(failure, MissingLengthError):
                    core.lacks(job.length)
                    self._queue.put_back(job)
                    job.call.wake.notify()  # there may be nobody who can do it
                else:
                    self._failed(core, failure or DeviceError("it gave no answer"))
                    return
                core.end()

    def _take(self, core: Core) -> Job | None:
        with self._lock:
            while not self._closing and core.state == "ready":
                job = self._queue.take(lambda job: suits(job, core, self._cores))
                if job is not None:
                    core.begin(job, self._timeout)
                    return job
                self._queue.arrived.wait()
            return None

    def _rest(self, core: Core) -> bool:
        """Wait before the core is opened again; false: it is not to be."""
        with self._lock:
            core.session = None
            pause = core.rest if core.state == "retired" else self._recovery.pause
            end = time.monotonic() + pause
            while not self._closing and (left := end - time.monotonic()) > 0:
                self._resting.wait(left)
            return not self._closing
