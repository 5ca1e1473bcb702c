"""The scheduler of the NPU cores, over a double of the device boundary (`Session`)."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_rag.errors import DeviceError, InvalidInputError, MissingLengthError, NonFiniteError
from tars_rag.runtimes.base import Feeds, FloatArray, Runtime
from tars_rag.runtimes.npu.core import Recovery
from tars_rag.runtimes.npu.pool import NpuPool
from tars_rag.runtimes.npu.spec import SessionInfo

LENGTHS = (32, 64, 96, 128, 192, 256)
NAMES = ("input_ids", "attention_mask")
CORES = (1, 2, 4)


def feed(token: int, length: int = 32) -> dict[str, np.ndarray]:
    ids = np.zeros((1, length), np.int64)
    ids[0, 0] = token
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


def answer(feed: Feeds) -> FloatArray:
    """What the model returns: the token and the length, so that nothing can be mixed up."""
    return np.array([[feed["input_ids"][0, 0], feed["input_ids"].shape[1]]], np.float32)


class FakeSession:
    """A core with a fixed service time per bucket, and faults on demand."""

    info = SessionInfo(NAMES, LENGTHS, "double")

    def __init__(
        self,
        seconds: Callable[[int], float] = lambda length: 0.0,
        fault: Callable[[int], Exception | str | None] = lambda token: None,
    ) -> None:
        self.seconds, self.fault = seconds, fault
        self.order: list[int] = []
        self.users = 0
        self.entered = threading.Event()
        self.aborted = threading.Event()
        self.closed = False

    def run(self, feed: Feeds) -> FloatArray:
        self.users += 1
        assert self.users == 1, "two threads in one device context"
        token = int(feed["input_ids"][0, 0])
        self.order.append(token)
        self.entered.set()
        fault = self.fault(token)
        try:
            if fault == "hang":
                self.aborted.wait(30)
                raise DeviceError("killed")
            if isinstance(fault, Exception):
                raise fault
            time.sleep(self.seconds(feed["input_ids"].shape[1]))
            return answer(feed)
        finally:
            self.users -= 1

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        self.closed = True


class FakeCpu:
    """A CPU runtime that counts what it had to do."""

    device, input_names, lengths, max_rows = "cpu", NAMES, None, None

    def __init__(self) -> None:
        self.ran = 0
        self.closed = False

    def run(self, feeds: Sequence[Feeds], *, urgent: bool = False) -> list[FloatArray]:
        self.ran += len(feeds)
        return [answer(f) for f in feeds]

    def close(self) -> None:
        self.closed = True


QUICKLY = Recovery(pause=0.01, limit=1.0)


def pool_of(sessions: dict[int, FakeSession], **options: object) -> NpuPool:
    """A pool over these sessions; one that is opened again is the same, with the same faults."""
    options = {"recovery": QUICKLY, **options}
    return NpuPool(sessions.__getitem__, tuple(sessions), **options)  # type: ignore[arg-type]


def check(rows: list[FloatArray], feeds: Sequence[Feeds]) -> None:
    assert len(rows) == len(feeds)
    for row, asked in zip(rows, feeds, strict=True):
        np.testing.assert_array_equal(row, answer(asked))


# --- order, throughput, priority ----------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.sampled_from(LENGTHS), max_size=60),
    cores=st.integers(1, 3),
    limit=st.integers(1, 8),
    urgent=st.booleans(),
)
def test_rows_come_back_in_the_order_of_the_feeds(
    lengths: list[int], cores: int, limit: int, urgent: bool
) -> None:
    feeds = [feed(i + 1, n) for i, n in enumerate(lengths)]
    pool = pool_of({m: FakeSession() for m in CORES[:cores]}, queue_limit=limit)
    try:
        check(pool.run(feeds, urgent=urgent), feeds)
    finally:
        pool.close()


def test_longest_first() -> None:
    core = FakeSession()
    pool = pool_of({1: core})
    lengths = [64, 256, 32, 192, 256, 96]
    # The first feed is taken before the rest is queued or after: both are longest first.
    pool.run([feed(i + 1, n) for i, n in enumerate(lengths)])
    pool.close()
    assert [lengths[i - 1] for i in core.order] == sorted(lengths, reverse=True)


@pytest.mark.slow
def test_three_cores_give_nearly_three_times_the_throughput() -> None:
    rng = np.random.default_rng(0)
    feeds = [feed(i + 1, int(n)) for i, n in enumerate(rng.choice(LENGTHS, 300))]

    def seconds(length: int) -> float:
        return 0.0025 + length * 2.5e-5  # 3.3 to 9 ms, as the board's buckets may take

    def elapsed(masks: Sequence[int]) -> float:
        pool = pool_of({m: FakeSession(seconds) for m in masks})
        start = time.perf_counter()
        check(pool.run(feeds), feeds)
        took = time.perf_counter() - start
        pool.close()
        return took

    # The quickest of some: other programs on the machine can only make it slower.
    one = min(elapsed([1]) for _ in range(2))
    assert any(elapsed(CORES) <= one / 2.8 for _ in range(10))


@pytest.mark.slow
def test_a_query_waits_for_at_most_one_running_bucket() -> None:
    bulk_seconds = 0.05
    sessions = {m: FakeSession(lambda n: bulk_seconds if n == 256 else 0.001) for m in CORES}
    pool = pool_of(sessions)
    bulk = threading.Thread(target=lambda: pool.run([feed(i + 1, 256) for i in range(200)]))
    bulk.start()
    for session in sessions.values():
        assert session.entered.wait(5)
    waits = []
    for i in range(8):
        asked = feed(1000 + i, 32)
        start = time.perf_counter()
        check(pool.run([asked], urgent=True), [asked])
        waits.append(time.perf_counter() - start)
        position = {s: s.order.index(1000 + i) for s in sessions.values() if 1000 + i in s.order}
        assert len(position) == 1
    assert bulk.is_alive(), "the bulk work was over before the queries were done"
    # One running bucket, plus the machine's own scheduling.
    assert float(np.median(waits)) <= bulk_seconds + 0.03
    bulk.join(30)
    pool.close()


def test_an_urgent_job_is_taken_before_all_queued_bulk_work() -> None:
    release = threading.Event()
    core = FakeSession(lambda n: 0.0 if release.wait(10) else 1.0)
    pool = pool_of({1: core})
    with ThreadPoolExecutor(2) as threads:
        bulk = threads.submit(pool.run, [feed(i) for i in range(1, 20)])
        assert core.entered.wait(5)
        query = threads.submit(pool.run, [feed(99)], urgent=True)
        while not query.running():
            time.sleep(0.001)
        time.sleep(0.05)
        release.set()
        query.result(10)
        bulk.result(10)
    pool.close()
    assert core.order[1] == 99


def test_no_more_bulk_feeds_are_queued_than_the_limit() -> None:
    deepest = 0

    def look(length: int) -> float:
        nonlocal deepest
        deepest = max(deepest, len(pool._scheduler._queue))
        return 0.0

    pool = pool_of({m: FakeSession(look) for m in CORES}, queue_limit=4)
    batches = [[feed(100 * t + i + 1) for i in range(40)] for t in range(6)]
    with ThreadPoolExecutor(6) as threads:
        for rows, feeds in zip(threads.map(pool.run, batches), batches, strict=True):
            check(rows, feeds)
    pool.close()
    assert 0 < deepest <= 4


# --- many callers -------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_sixty_four_threads_do_not_deadlock() -> None:
    pool = pool_of({m: FakeSession(lambda n: 0.0005) for m in CORES}, queue_limit=8)

    def caller(number: int) -> None:
        for turn in range(5):
            feeds = [
                feed(1 + number * 1000 + turn * 100 + i, LENGTHS[(number + i) % 6])
                for i in range(number % 7)
            ]
            check(pool.run(feeds, urgent=number % 4 == 0), feeds)

    with ThreadPoolExecutor(64) as threads:
        for done in [threads.submit(caller, n) for n in range(64)]:
            done.result(50)
    pool.close()


@pytest.mark.timeout(60)
def test_sixty_four_threads_while_cores_fail() -> None:
    sessions = {
        1: FakeSession(fault=lambda t: DeviceError("lost") if t % 50 == 0 else None),
        2: FakeSession(fault=lambda t: "hang" if t % 70 == 0 else None),
        4: FakeSession(lambda n: 0.0005),
    }
    pool = pool_of(sessions, timeout=0.3, queue_limit=8)
    batches = [[feed(1 + n * 10 + i) for i in range(10)] for n in range(64)]
    with ThreadPoolExecutor(64) as threads:
        for rows, feeds in zip(threads.map(pool.run, batches), batches, strict=True):
            check(rows, feeds)
    assert pool.device == "npu"
    pool.close()


def test_event_loops_share_a_pool() -> None:
    pool = pool_of({m: FakeSession(lambda n: 0.001) for m in CORES})

    async def ask(start: int) -> None:
        batches = [[feed(start + 10 * b + i) for i in range(5)] for b in range(4)]
        all_rows = await asyncio.gather(*(asyncio.to_thread(pool.run, b) for b in batches))
        for rows, feeds in zip(all_rows, batches, strict=True):
            check(rows, feeds)

    loops = [threading.Thread(target=lambda n=n: asyncio.run(ask(n))) for n in (1, 1001)]
    for thread in loops:
        thread.start()
    for thread in loops:
        thread.join(20)
    pool.close()


# --- faults -------------------------------------------------------------------------------------


def test_work_of_a_failing_core_is_done_by_another(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[int, str]] = []
    sessions = {
        1: FakeSession(lambda n: 0.002, fault=lambda t: DeviceError("rknn_run returned -1")),
        2: FakeSession(lambda n: 0.002),
    }
    pool = pool_of(sessions, on_fault=lambda mask, reason: told.append((mask, reason)))
    feeds = [feed(i + 1) for i in range(20)]
    check(pool.run(feeds), feeds)
    assert told == [(1, "rknn_run returned -1")]
    assert sum("out of use" in r.message for r in caplog.records) == 1
    failed, working = pool.status().cores
    assert failed.reason == "rknn_run returned -1"
    assert working.reason == ""
    assert working.runs == 20
    assert working.busy_seconds > 0.02
    pool.close()
    assert sessions[1].closed
    assert sessions[2].closed


@pytest.mark.parametrize("fault", [DeviceError("lost"), "hang"])
def test_whoever_is_told_of_faults_may_fail(fault: Exception | str) -> None:
    """Neither the caller nor the core's thread pays for it: the session is released."""

    def on_fault(mask: int, reason: str) -> None:
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "the log is damaged")

    sessions = {
        1: FakeSession(lambda n: 0.002, fault=lambda t: fault),
        2: FakeSession(lambda n: 0.002),
    }
    pool = pool_of(sessions, timeout=0.2, on_fault=on_fault)
    feeds = [feed(i + 1) for i in range(20)]
    check(pool.run(feeds), feeds)
    pool.close()
    assert sessions[1].closed
    assert sessions[2].closed


def test_two_cores_that_take_long_to_fail_each_job_leave_the_third() -> None:
    """As cores 1 and 2 with an old driver: submit fails, after the driver's own time-out."""

    class LateFailure(FakeSession):
        def run(self, feed: Feeds) -> FloatArray:
            time.sleep(0.15)
            raise DeviceError("failed to submit")

    pool = pool_of({1: FakeSession(), 2: LateFailure(), 4: LateFailure()}, timeout=0.6)
    feeds = [feed(20 + i) for i in range(40)]
    end = time.monotonic() + 20
    while time.monotonic() < end and len([c for c in pool.status().cores if c.reason]) < 2:
        check(pool.run(feeds), feeds)
        time.sleep(0.02)
    reasons = [core.reason for core in pool.status().cores]
    assert reasons == ["", "failed to submit", "failed to submit"]
    began = time.monotonic()
    check(pool.run(feeds), feeds)
    assert time.monotonic() - began < 0.6, "nobody waits for cores that are out of use"
    pool.close()


def test_a_hanging_core_is_retired_after_the_second_time_out() -> None:
    sessions = {1: FakeSession(fault=lambda t: "hang"), 2: FakeSession(lambda n: 0.005)}
    pool = pool_of(sessions, timeout=0.2)
    feeds = [feed(i + 1) for i in range(10)]
    start = time.perf_counter()
    check(pool.run(feeds), feeds)
    assert 0.15 < time.perf_counter() - start < 3
    assert sessions[1].aborted.is_set()
    assert pool.status().cores[0].recoveries == 1
    assert pool.status().cores[0].reason == ""
    while not pool.status().cores[0].reason:
        sessions[1].aborted.clear()
        check(pool.run(feeds), feeds)
    assert "took longer than 0.2 s" in pool.status().cores[0].reason
    pool.close()


def test_a_core_that_cannot_be_opened_is_left_out() -> None:
    good = FakeSession()

    def open_session(mask: int) -> FakeSession:
        if mask == 2:
            raise DeviceError("core mask refused")
        return good

    pool = NpuPool(open_session, (1, 2))
    feeds = [feed(1), feed(2)]
    check(pool.run(feeds), feeds)
    assert pool.status().cores[1].reason == "core mask refused"
    pool.close()


def test_no_core_at_all_is_an_error_that_says_why() -> None:
    def open_session(mask: int) -> FakeSession:
        raise DeviceError(f"no driver for {mask}")

    with pytest.raises(DeviceError, match=r"no driver for 1.*no driver for 2.*tars-rag doctor"):
        NpuPool(open_session, (1, 2))


def test_without_fall_back_the_last_fault_is_an_error() -> None:
    pool = pool_of({m: FakeSession(fault=lambda t: DeviceError("broken")) for m in CORES})
    with pytest.raises(DeviceError, match=r"broken.*NPU_FALLBACK_CPU=1"):
        pool.run([feed(1), feed(2)])
    with pytest.raises(DeviceError, match="broken"):
        pool.run([feed(3)])
    pool.close()


def test_with_fall_back_the_cpu_takes_over_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made: list[FakeCpu] = []

    def make() -> Runtime:
        made.append(FakeCpu())
        return made[0]

    # Each core dies at its third run; what it was working on must not be lost.
    def dying() -> FakeSession:
        session = FakeSession()
        session.fault = lambda t: DeviceError("gone") if len(session.order) > 2 else None
        return session

    pool = pool_of({m: dying() for m in CORES}, fallback=make)
    assert (pool.device, pool.lengths, pool.max_rows) == ("npu", LENGTHS, 1)
    batches = [[feed(100 * b + i + 1) for i in range(10)] for b in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for rows, feeds in zip(threads.map(pool.run, batches), batches, strict=True):
            check(rows, feeds)
    assert (pool.device, pool.lengths, pool.max_rows) == ("cpu", None, None)
    assert len(made) == 1
    assert pool.status().cpu_feeds == made[0].ran == 40 - 6
    assert sum("the CPU takes over" in r.message for r in caplog.records) == 1
    pool.close()
    assert made[0].closed


def test_the_cpu_may_be_given_a_batch_once_the_cores_are_gone() -> None:
    pool = pool_of({1: FakeSession(fault=lambda t: DeviceError("gone"))}, fallback=FakeCpu)
    pool.run([feed(1)])
    ids = np.ones((3, 7), np.int64)
    assert len(pool.run([{"input_ids": ids, "attention_mask": ids}])) == 1
    pool.close()


def test_an_unexpected_exception_counts_as_a_fault() -> None:
    sessions = {1: FakeSession(fault=lambda t: TypeError("surprise")), 2: FakeSession()}
    pool = pool_of(sessions)
    feeds = [feed(i + 1) for i in range(9)]
    check(pool.run(feeds), feeds)
    pool.close()


def test_the_callers_mistake_does_not_cost_a_core() -> None:
    core = FakeSession(fault=lambda t: InvalidInputError("id 7 is too large") if t == 7 else None)
    pool = pool_of({1: core})
    with pytest.raises(InvalidInputError, match="id 7"):
        pool.run([feed(7)])
    check(pool.run([feed(8)]), [feed(8)])
    pool.close()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"input_ids": np.ones((1, 32), np.int64)}, "lacks"),
        (feed(1, 33), "one of"),
        ({k: np.vstack([v, v]) for k, v in feed(1).items()}, "one of"),
        ({k: v.astype(np.int32) for k, v in feed(1).items()}, "int64"),
        ({k: v[0] for k, v in feed(1).items()}, "int64"),
        ({**feed(1), "input_ids": np.ones((1, 64), np.int64)}, "same shape"),
        (feed(0), "at least one token"),
    ],
)
def test_wrong_feeds_never_reach_a_device(bad: Feeds, message: str) -> None:
    core = FakeSession()
    pool = pool_of({1: core})
    with pytest.raises(InvalidInputError, match=message):
        pool.run([bad])
    pool.close()
    assert core.order == []


# --- a hiccup is not a death --------------------------------------------------------------------


class Board:
    """Cores that are opened again and again; what each does is decided when it is opened."""

    def __init__(self, *faults: Callable[[int], Exception | str | None]) -> None:
        self.faults = faults
        self.sessions: dict[int, list[FakeSession]] = {}
        self.refusal: Exception | None = None
        self.delay = 0.0

    def open(self, mask: int) -> FakeSession:
        past = self.sessions.setdefault(mask, [])
        if past:
            time.sleep(self.delay)
            if self.refusal:
                raise self.refusal
        fault = self.faults[min(len(past), len(self.faults) - 1)]
        past.append(FakeSession(lambda n: 0.001, fault))
        return past[-1]

    def openings(self) -> list[int]:
        return [len(past) for past in self.sessions.values()]

    def pool(self, cores: Sequence[int] = CORES, **options: object) -> NpuPool:
        options = {"recovery": QUICKLY, **options}
        return NpuPool(self.open, cores, **options)  # type: ignore[arg-type]


def well(token: int) -> None:
    return None


def reset(token: int) -> Exception:
    return DeviceError("rknn_run returned -22")


def test_a_reset_of_the_driver_costs_no_core() -> None:
    """One timed-out job of another program fails whatever runs, on all cores at once."""
    told: list[object] = []
    board = Board(reset, well)
    pool = board.pool(fallback=FakeCpu, on_fault=lambda *fault: told.append(fault))
    feeds = [feed(i + 1, LENGTHS[i % 6]) for i in range(60)]
    check(pool.run(feeds), feeds)
    check(pool.run(feeds), feeds)
    assert pool.device == "npu"
    assert told == []
    assert board.openings() == [2, 2, 2]
    status = pool.status()
    assert status.cpu_feeds == 0
    assert {(core.reason, core.recoveries) for core in status.cores} == {("", 1)}
    pool.close()
    assert all(session.closed for past in board.sessions.values() for session in past)


def test_a_single_core_repeats_the_job_itself() -> None:
    board = Board(reset, well)
    pool = board.pool([1])
    check(pool.run([feed(1)], urgent=True), [feed(1)])
    assert board.openings() == [2]
    pool.close()


def test_the_second_failure_within_minutes_retires() -> None:
    told: list[tuple[int, str]] = []
    board = Board(reset, reset, well)
    pool = board.pool([1], on_fault=lambda mask, reason: told.append((mask, reason)))
    with pytest.raises(DeviceError, match="returned -22"):
        pool.run([feed(1)])
    end = time.monotonic() + 5
    while not told and time.monotonic() < end:
        time.sleep(0.01)  # by the core's thread or the caller's, whichever is first
    assert told == [(1, "rknn_run returned -22")]
    assert board.openings() == [2]
    pool.close()


def test_failures_that_lie_far_apart_do_not_retire() -> None:
    board = Board(reset, reset, well)
    pool = board.pool([1], recovery=Recovery(pause=0.05, grace=0.02))
    check(pool.run([feed(1)]), [feed(1)])
    assert pool.status().cores[0].recoveries == 2
    pool.close()


def test_a_retired_core_is_tried_again_and_takes_the_work_back() -> None:
    board = Board(reset, reset, well)
    pool = board.pool(fallback=FakeCpu, recovery=Recovery(pause=0.01, limit=1, grace=60, rest=0.2))
    feeds = [feed(i + 1) for i in range(12)]
    while pool.device == "npu":
        check(pool.run(feeds), feeds)
    assert pool.lengths is None
    end = time.monotonic() + 10
    while pool.device == "cpu" and time.monotonic() < end:
        check(pool.run(feeds), feeds)
        time.sleep(0.02)
    assert (pool.device, pool.lengths, pool.max_rows) == ("npu", LENGTHS, 1)
    before = pool.status().cpu_feeds
    check(pool.run(feeds), feeds)
    assert pool.status().cpu_feeds == before
    # What was cut for the CPU a moment before is not the caller's mistake.
    ids = np.ones((3, 7), np.int64)
    assert len(pool.run([{"input_ids": ids, "attention_mask": ids}, feed(5)])) == 2
    pool.close()


def test_a_core_that_does_not_open_again_is_retired_with_both_reasons() -> None:
    board = Board(reset)
    board.refusal = DeviceError("failed to open rknpu module")
    pool = board.pool([1])
    with pytest.raises(DeviceError, match=r"returned -22; opened again: failed to open"):
        pool.run([feed(1)])
    pool.close()


@pytest.mark.slow
def test_a_core_that_hangs_when_opened_again_holds_nobody_up() -> None:
    board = Board(reset, well)
    board.delay = 3.0
    pool = board.pool([1], fallback=FakeCpu, recovery=Recovery(pause=0.01, limit=0.3))
    start = time.perf_counter()
    check(pool.run([feed(1)]), [feed(1)])
    assert time.perf_counter() - start < 2
    assert "not ready again after 0.3 s" in pool.status().cores[0].reason
    end = time.monotonic() + 10
    while pool.device == "cpu" and time.monotonic() < end:
        time.sleep(0.05)
    assert pool.device == "npu"
    pool.close()


def test_close_does_not_wait_for_cores_that_rest() -> None:
    board = Board(reset)
    pool = board.pool(recovery=Recovery(pause=0.01, rest=60))
    with pytest.raises(DeviceError):
        pool.run([feed(1), feed(2), feed(3)])
    start = time.perf_counter()
    pool.close()
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("cores", [[1], CORES])
def test_a_text_that_overflows_twice_is_at_fault_and_not_the_cores(cores: list[int]) -> None:
    board = Board(lambda token: NonFiniteError("NaN") if token % 10 == 3 else None)
    pool = board.pool(cores, fallback=FakeCpu)
    feeds = [feed(i + 1) for i in range(60)]
    check(pool.run(feeds), feeds)
    status = pool.status()
    assert status.cpu_feeds == 6
    assert {(core.reason, core.recoveries) for core in status.cores} == {("", 0)}
    assert sum(s.order.count(13) for past in board.sessions.values() for s in past) == 2
    pool.close()


def test_without_fall_back_such_a_text_is_an_error_and_others_are_not() -> None:
    pool = Board(lambda token: NonFiniteError("NaN") if token == 13 else None).pool()
    with pytest.raises(DeviceError, match=r"cannot answer a text.*NaN.*NPU_FALLBACK_CPU=1"):
        pool.run([feed(12), feed(13)])
    check(pool.run([feed(12)]), [feed(12)])
    assert pool.device == "npu"
    pool.close()


def test_what_overflows_on_one_core_is_tried_on_another() -> None:
    """A core may pass its self-test and be wrong now and then; it must not be asked twice."""
    sessions = {
        1: FakeSession(fault=lambda token: NonFiniteError("NaN") if token % 3 == 0 else None),
        2: FakeSession(lambda n: 0.003),
    }
    pool = pool_of(sessions)
    feeds = [feed(i + 1) for i in range(60)]
    check(pool.run(feeds), feeds)
    assert pool.status().cpu_feeds == 0
    assert not [token for token in set(sessions[1].order) if sessions[1].order.count(token) > 1]
    pool.close()


def test_an_overflow_waits_for_no_core_that_is_gone() -> None:
    """The other core is lost while the text waits for it."""
    release = threading.Event()

    def hang_until_released(token: int) -> Exception | None:
        release.wait(10)
        return DeviceError("lost")

    sessions = {
        1: FakeSession(fault=lambda token: NonFiniteError("NaN") if token == 3 else None),
        2: FakeSession(fault=hang_until_released),
    }
    pool = pool_of(sessions, fallback=FakeCpu, recovery=Recovery(pause=30, limit=60))
    with ThreadPoolExecutor(2) as threads:
        bulk = threads.submit(pool.run, [feed(i) for i in range(1, 7)])
        assert sessions[2].entered.wait(5)
        threading.Timer(0.2, release.set).start()
        check(bulk.result(5), [feed(i) for i in range(1, 7)])
    pool.close()


class Small(FakeSession):
    """A core that had no memory for the longest lengths."""

    def __init__(self, *missing: int, **options: Any) -> None:
        super().__init__(**options)
        there = tuple(n for n in LENGTHS if n not in missing)
        self.info = SessionInfo(NAMES, there, "double", (), missing, "out of memory")

    def run(self, feed: Feeds) -> FloatArray:
        assert feed["input_ids"].shape[1] in self.info.lengths
        return super().run(feed)


MIXED = [feed(i + 1, LENGTHS[i % 6]) for i in range(36)]


def test_each_core_gets_the_lengths_it_has(caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of({1: Small(), 2: Small(256), 4: Small(128, 192, 256)}, fallback=FakeCpu)
    assert pool.lengths == LENGTHS
    check(pool.run(MIXED), MIXED)
    assert pool.status().cpu_feeds == 0
    assert "core mask 2 runs without the lengths [256]: out of memory" in caplog.text
    pool.close()


def test_what_no_core_has_memory_for_goes_to_the_cpu() -> None:
    pool = pool_of({1: Small(192, 256), 2: Small(256)}, fallback=FakeCpu)
    check(pool.run(MIXED), MIXED)
    assert pool.status().cpu_feeds == 6
    assert pool.device == "npu"
    pool.close()


def test_without_fall_back_it_is_an_error_and_the_rest_is_not() -> None:
    pool = pool_of({1: Small(256)})
    with pytest.raises(DeviceError, match=r"cannot answer a text.*memory.*NPU_FALLBACK_CPU=1"):
        pool.run(MIXED)
    short = [f for f in MIXED if f["input_ids"].shape[1] < 256]
    check(pool.run(short), short)
    pool.close()


def test_a_length_that_turns_out_to_be_missing_goes_elsewhere() -> None:
    class Late(FakeSession):
        def run(self, feed: Feeds) -> FloatArray:
            if feed["input_ids"].shape[1] == 256:
                self.order.append(-1)
                raise MissingLengthError("out of memory")
            return super().run(feed)

    late = Late()
    pool = pool_of({1: late, 2: FakeSession(lambda n: 0.002)})
    check(pool.run(MIXED), MIXED)
    assert late.order.count(-1) <= 1, "it is not asked again"
    pool.close()
    pool = pool_of({1: Late(), 2: Late()}, fallback=FakeCpu)
    check(pool.run(MIXED), MIXED)
    assert pool.status().cpu_feeds == 6
    assert {(core.reason, core.recoveries) for core in pool.status().cores} == {("", 0)}
    pool.close()


def test_when_the_only_core_with_a_length_is_lost_its_texts_do_not_wait() -> None:
    sessions = {
        1: Small(fault=lambda token: DeviceError("lost") if token == 6 else None),
        2: Small(256, seconds=lambda n: 0.002),
    }
    pool = pool_of(sessions, fallback=FakeCpu)
    check(pool.run(MIXED), MIXED)
    assert pool.device == "npu"
    assert pool.status().cpu_feeds > 0
    pool.close()


def test_an_overflow_that_does_not_repeat_is_answered() -> None:
    seen: set[int] = set()

    def once(token: int) -> Exception | None:
        new = token not in seen
        seen.add(token)
        return NonFiniteError("NaN") if new else None

    pool = Board(once).pool([1])
    check(pool.run([feed(7)]), [feed(7)])
    pool.close()


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_whatever_fails_answers_are_right(data: st.DataObject) -> None:
    """Any mixture of faults at any runs: every row is right, and nobody waits for ever."""
    kinds = st.sampled_from([None] * 6 + ["reset", "overflow", "surprise"])
    script = data.draw(st.lists(kinds, min_size=40, max_size=40))
    ran = iter([*script, *([None] * 10_000)])

    def fault(token: int) -> Exception | None:
        made = {
            "reset": DeviceError("reset"),
            "overflow": NonFiniteError("NaN"),
            "surprise": OSError("surprise"),
        }
        return made.get(next(ran) or "")

    pool = Board(fault).pool(
        fallback=FakeCpu, recovery=Recovery(pause=0.001, limit=1, grace=0.05, rest=0.01)
    )
    feeds = [feed(i + 1, LENGTHS[i % 6]) for i in range(20)]
    with ThreadPoolExecutor(3) as threads:
        for rows in threads.map(lambda n: pool.run(feeds, urgent=n == 1), range(3)):
            check(rows, feeds)
    pool.close()


# --- the end ------------------------------------------------------------------------------------


def test_close_joins_and_may_be_called_twice() -> None:
    before = threading.active_count()
    sessions = {m: FakeSession() for m in CORES}
    pool = pool_of(sessions)
    pool.run([feed(1)])
    pool.close()
    pool.close()
    assert threading.active_count() == before
    assert all(s.closed for s in sessions.values())
    with pytest.raises(DeviceError, match="closed"):
        pool.run([feed(1)])


def test_close_while_others_wait_gives_them_an_error() -> None:
    core = FakeSession(lambda n: 0.02)
    pool = pool_of({1: core})
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.run, [feed(i + 1) for i in range(100)])
        assert core.entered.wait(5)
        pool.close()
        with pytest.raises(DeviceError, match="closed while"):
            waiting.result(5)


def test_close_does_not_wait_for_ever_for_a_core_that_hangs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    core = FakeSession(fault=lambda t: "hang")
    pool = pool_of({1: core}, timeout=0.3)
    with ThreadPoolExecutor(1) as threads:
        caller = threads.submit(pool.run, [feed(1)])
        assert core.entered.wait(5)
        start = time.perf_counter()
        pool.close()
        assert time.perf_counter() - start < 5
        with pytest.raises(DeviceError):
            caller.result(5)


def test_a_forgotten_pool_releases_its_cores() -> None:
    sessions = {m: FakeSession() for m in CORES}
    pool = pool_of(sessions)
    pool.run([feed(1)])
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    assert all(s.closed for s in sessions.values())


def test_use_after_fork_is_refused() -> None:
    pool = pool_of({1: FakeSession()})
    child = os.fork()
    if not child:
        try:
            pool.run([feed(1)])
        except DeviceError as error:
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    pool.close()
