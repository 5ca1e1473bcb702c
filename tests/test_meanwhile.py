"""Two pieces of work at once."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from tars_rag.retrieval.meanwhile import meanwhile


def test_both_are_done_at_the_end() -> None:
    begun = threading.Event()
    with meanwhile(lambda: begun.wait(10)) as other:
        assert not other.over
        begun.set()
    assert other.result() is True


def test_an_error_of_the_other_is_its_result() -> None:
    with meanwhile(lambda: 1 // 0) as other:
        pass
    with pytest.raises(ZeroDivisionError):
        other.result()


def test_the_other_is_over_when_the_block_fails() -> None:
    done: list[float] = []

    begun = threading.Event()

    def work() -> None:
        begun.set()
        time.sleep(0.1)
        done.append(time.monotonic())

    def fail() -> None:
        with meanwhile(work):
            begun.wait(10)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert len(done) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_other_is_over_whenever_a_signal_raises() -> None:
    """Also while the thread is being started or waited for."""

    def too_late(*_: object) -> None:
        raise ZeroDivisionError

    running = [0]

    def work() -> None:
        running[0] += 1
        time.sleep(0.002)
        running[0] -= 1

    before = signal.signal(signal.SIGALRM, too_late)
    raised = 0
    try:
        for number in range(400):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 * (number + 1))
                with meanwhile(work):
                    pass
                time.sleep(0.02)  # it may also come where Python ignores it: in a finaliser
            except ZeroDivisionError:
                raised += 1
            assert running[0] == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised > 200
