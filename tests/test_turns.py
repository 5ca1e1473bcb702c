"""Taking turns with other programs that use the NPU: each gets its turn, nobody waits for ever."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tars_rag.adapters.model_fields import EmbedderFields
from tars_rag.errors import DeviceError
from tars_rag.runtimes.base import Feeds, FloatArray
from tars_rag.runtimes.npu.turns import Turns, find_turns, turns_at
from tars_rag.settings import Placement, Settings
from test_pool import FakeCpu, FakeSession, check, feed, pool_of

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "npu.lock"


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """As another program does it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_free(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def texts(number: int) -> list[Feeds]:
    return [feed(20 + i) for i in range(number)]


class Watching(FakeSession):
    """Looks at each run, and when it is opened, whether others could lock the file."""

    def __init__(self, lock: Path) -> None:
        super().__init__()
        self.lock = lock
        self.free: list[bool] = []

    def run(self, feed: Feeds) -> FloatArray:
        self.free.append(is_free(self.lock))
        return super().run(feed)


def test_the_npu_is_ours_while_it_works_and_free_in_between(lock: Path) -> None:
    core = Watching(lock)
    pool = pool_of({1: core}, turns=Turns(lock))
    assert is_free(lock)
    check(pool.run(texts(30)), texts(30))
    assert core.free == [False] * 30
    assert is_free(lock)
    pool.close()


def test_cores_are_opened_in_a_turn_too(lock: Path) -> None:
    free = []

    class Opening(dict[int, FakeSession]):
        def __getitem__(self, mask: int) -> FakeSession:
            free.append(is_free(lock))
            return super().__getitem__(mask)

    pool = pool_of(Opening({1: FakeSession(), 2: FakeSession()}), turns=Turns(lock))
    assert free == [False, False]
    pool.close()


def test_without_a_lock_nothing_is_waited_for(lock: Path) -> None:
    pool = pool_of({1: FakeSession()})
    with held(lock):
        check(pool.run(texts(2)), texts(2))
    pool.close()


def test_waiting_for_a_turn_is_no_hang_of_a_core(lock: Path) -> None:
    pool = pool_of({1: FakeSession()}, turns=Turns(lock), timeout=0.1)
    with ThreadPoolExecutor(1) as thread:
        with held(lock):
            answer = thread.submit(pool.run, texts(3))
            time.sleep(0.4)
            assert not answer.done()
        check(answer.result(10), texts(3))
    [core] = pool.status().cores
    assert (core.reason, core.recoveries) == ("", 0)
    pool.close()


def test_all_cores_and_callers_share_a_turn(lock: Path) -> None:
    together = threading.Barrier(3)

    class Meeting(FakeSession):
        def run(self, feed: Feeds) -> FloatArray:
            together.wait(10)  # all three cores at once, or never
            return super().run(feed)

    turns = Turns(lock)
    pool = pool_of({1: Meeting(), 2: Meeting()}, turns=turns)
    other = pool_of({4: Meeting()}, turns=turns)
    with ThreadPoolExecutor(2) as threads:
        rows = threads.submit(pool.run, texts(2))
        check(other.run(texts(1)), texts(1))
        check(rows.result(10), texts(2))
    pool.close()
    other.close()


def test_bulk_work_gives_way_to_others(lock: Path) -> None:
    core = FakeSession(lambda length: 0.005)
    pool = pool_of({1: core}, turns=Turns(lock))
    others = []

    def other_program() -> None:
        core.entered.wait(10)
        for _ in range(3):
            with held(lock):
                others.append(time.monotonic())

    thread = threading.Thread(target=other_program)
    thread.start()
    check(pool.run(texts(150)), texts(150))
    end = time.monotonic()
    thread.join(10)
    assert len(others) == 3
    assert others[0] < end
    pool.close()


def test_a_steady_stream_of_calls_gives_way_too(lock: Path) -> None:
    """There is always a caller inside: those who come have to wait for the others' turn."""
    turns = Turns(lock, longest=0.05)
    pool = pool_of({1: FakeSession(lambda length: 0.002)}, turns=turns)
    stop = threading.Event()

    def calls() -> None:
        while not stop.is_set():
            check(pool.run(texts(4)), texts(4))

    with ThreadPoolExecutor(4) as threads:
        callers = [threads.submit(calls) for _ in range(4)]
        time.sleep(0.1)
        with held(lock):
            assert all(not caller.done() for caller in callers)
        stop.set()
        for caller in callers:
            caller.result(10)
    pool.close()


def test_others_that_never_leave_are_an_error_with_a_command(lock: Path) -> None:
    pool = pool_of({1: FakeSession()}, turns=Turns(lock, patience=0.1))
    with held(lock), pytest.raises(DeviceError, match=r"in use by others.*fuser -v .*npu\.lock"):
        pool.run(texts(2))
    check(pool.run(texts(2)), texts(2))
    pool.close()


def test_others_that_never_leave_the_cpu_answers_where_it_may(
    lock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cpu = FakeCpu()
    pool = pool_of({1: FakeSession()}, turns=Turns(lock, patience=0.1), fallback=lambda: cpu)
    with held(lock), caplog.at_level(logging.WARNING, "tars_rag"):
        check(pool.run(texts(30)), texts(30))
    assert cpu.ran == 30
    assert "in use by others" in caplog.text
    check(pool.run(texts(2)), texts(2))
    assert cpu.ran == 30
    assert pool.device == "npu"
    pool.close()


def test_an_error_of_a_run_gives_the_turn_back(lock: Path) -> None:
    pool = pool_of({1: FakeSession(fault=lambda token: DeviceError("broken"))}, turns=Turns(lock))
    with pytest.raises(DeviceError):
        pool.run(texts(2))
    assert is_free(lock)
    pool.close()


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "absent" / "npu.lock")
    with pytest.raises(DeviceError, match=r"NPU_LOCK=.*export NPU_LOCK="), turns.turn():
        pass


def test_one_turn_for_each_file_in_a_process(tmp_path: Path) -> None:
    assert turns_at(tmp_path / "a") is turns_at(tmp_path / "a")
    assert turns_at(tmp_path / "a") is not turns_at(tmp_path / "b")


def test_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NPU_LOCK", raising=False)
    assert find_turns() is None
    assert Settings.from_env().embedder_placement.npu_lock is None
    lock = Path("/run/lock/npu.lock")
    assert find_turns(lock) is turns_at(lock)
    monkeypatch.setenv("NPU_LOCK", str(lock))
    assert find_turns() is turns_at(lock)
    for placement in (
        Settings.from_env().embedder_placement,
        Settings.from_env().reranker_placement,
        EmbedderFields.from_env().placement,
        Placement(npu_lock=str(lock)),
    ):
        assert placement.npu_lock == lock
