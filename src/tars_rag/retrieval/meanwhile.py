"""Two pieces of work at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def meanwhile(work: Callable[[], T]) -> Iterator[Future[T]]:
    """Run `work` in a thread while the block runs; it is over when the block is, whatever happens.

    A thread of its own costs a few hundredths of a millisecond, and there is no pool to close. If
    the block fails before the work has begun, it is not begun.
    """
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="tars-rag-meanwhile", daemon=True)
    try:
        thread.start()  # a signal's exception may come out of it though the thread was started
        yield future
        _wait(future)
        thread.join()
    except BaseException:
        if not future.cancel():
            _wait(future)
        raise


def _wait(future: Future[T]) -> None:
    """Wait until the work is over; Ctrl-C is raised afterwards."""
    try:
        wait([future])
    except BaseException:
        _wait(future)
        raise
