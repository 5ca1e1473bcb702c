"""Two pieces of work at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def meanwhile(work: Callable[[], T]) -> Iterator[Future[T]]:
    """Run `work` in a thread while the block runs; it is over when the block is, whatever happens.

    A thread of its own costs a few hundredths of a millisecond, and there is no pool to close.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="tars-rag-search", daemon=True)
    thread.start()
    try:
        yield future
    finally:
        try:
            thread.join()
        except BaseException:  # Ctrl-C: what the work reads must not be closed before its end
            thread.join()
            raise
