"""One NPU core as the scheduler sees it: what it does, and how it fared."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tars_rag.runtimes.npu.spec import Session
from tars_rag.runtimes.npu.work import Job

State = Literal["opening", "ready", "recovering", "retired", "left out"]
"""``left out``: not to be opened at all."""

NO_MEMORY = "No core in use had the memory to open its length"

_LONGEST_REST = 3600.0


@dataclass(frozen=True)
class CoreStatus:
    """What became of one core.

    Attributes:
        core_mask: Which core.
        runs: Feeds it was given.
        busy_seconds: How long it worked.
        reason: Why it is not in use; empty while it is.
        recoveries: How often it failed and was opened again.
    """

    core_mask: int
    runs: int
    busy_seconds: float
    reason: str = ""
    recoveries: int = 0


@dataclass(frozen=True)
class Recovery:
    """What happens to a core that failed; all in seconds.

    A soft reset of the driver, usual where a language model shares the NPU, fails whatever runs on
    any core, once. So a core that fails is opened again before it is given up.

    Attributes:
        pause: Before it is opened again.
        limit: Until it must be ready again, or count as retired.
        grace: A second failure within this time retires it.
        rest: Until a retired core is tried again; doubled each time that fails.
    """

    pause: float = 1.0
    limit: float = 30.0
    grace: float = 300.0
    rest: float = 60.0


@dataclass(eq=False)
class Core:
    """A core. Guarded by the scheduler's lock; its session is only entered by its own thread.

    Attributes:
        deadline: When a caller that waits has to look after it (`time.monotonic`).
        missing: Lengths it had no memory for.
    """

    core_mask: int
    state: State = "opening"
    thread: threading.Thread | None = None
    session: Session | None = None
    job: Job | None = None
    started: float = 0.0
    deadline: float = math.inf
    runs: int = 0
    busy: float = 0.0
    reason: str = ""
    recoveries: int = 0
    failed_at: float = -math.inf
    rest: float = 0.0
    missing: frozenset[int] = frozenset()

    @property
    def in_use(self) -> bool:
        """Whether it works, or is about to."""
        return self.state not in ("retired", "left out")

    @property
    def status(self) -> CoreStatus:
        """For those outside."""
        reason = "" if self.in_use else self.reason
        return CoreStatus(self.core_mask, self.runs, self.busy, reason, self.recoveries)

    def opened(self, session: Session) -> None:
        """It can work (again)."""
        self.session, self.state, self.reason, self.deadline = session, "ready", "", math.inf
        self.missing = frozenset(session.info.missing)

    def leave(self, deadline: float) -> bool:
        """Wait for its thread, and end what hangs after the deadline; whether it is gone."""
        thread = self.thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive() and (session := self.session) is not None:
            session.abort()
            thread.join(5)
        return not thread.is_alive()

    def leave_out(self, reason: str) -> None:
        """It is not to be opened."""
        self.state, self.reason = "left out", reason

    def lacks(self, length: int) -> None:
        """It has no memory for a length."""
        self.missing |= {length}

    def begin(self, job: Job, timeout: float) -> None:
        """It works on a job, and may take so long."""
        self.job, self.started = job, time.monotonic()
        self.deadline = self.started + timeout

    def end(self) -> Job | None:
        """It is done with its job, or has lost it; the job."""
        job, self.job, self.deadline = self.job, None, math.inf
        if job is not None:
            self.runs += 1
            self.busy += time.monotonic() - self.started
        return job

    def recover(self, reason: str, limit: float) -> None:
        """It is to be opened again within `limit` seconds."""
        self.failed_at = time.monotonic()
        self.state, self.reason, self.deadline = "recovering", reason, self.failed_at + limit
        self.recoveries += 1
        if self.session is not None:
            self.session.abort()

    def retire(self, reason: str, rest: float) -> None:
        """It is out of use, for `rest` seconds or, where it was so before, for twice as long."""
        self.rest = min(2 * self.rest, _LONGEST_REST) if self.state == "retired" else rest
        self.state, self.reason, self.deadline = "retired", reason, math.inf
        if self.session is not None:
            self.session.abort()


def patience(cores: Sequence[Core], longest: float) -> float:
    """Seconds until a core has to be looked after; `longest` at most."""
    now = time.monotonic()
    return max(0.001, min([now + longest, *(core.deadline for core in cores)]) - now)


def suits(job: Job, core: Core, cores: Sequence[Core]) -> bool:
    """Whether a core is to take a job: it has the length, and nobody else is to try it first."""
    if job.length in core.missing:
        return False
    # What overflowed on this core goes to another one, if there is another.
    return core.core_mask not in job.tried or not any(
        other.state == "ready"
        and other.core_mask not in job.tried
        and job.length not in other.missing
        for other in cores
    )


def nobody_can(job: Job, cores: Sequence[Core]) -> bool:
    """Whether the cores in use all lack the length of a job."""
    in_use = [core for core in cores if core.in_use]
    return bool(in_use) and all(job.length in core.missing for core in in_use)
