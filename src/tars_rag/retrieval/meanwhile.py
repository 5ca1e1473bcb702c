"""Two pieces of work at once."""

from __future__ import annotations

import _thread
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.1


class Work(Generic[T]):
    """Something that another thread does, or did.

    Only single locks are waited for, and never given back by the waiting thread: an exception that
    a signal raises can come anywhere, also inside the standard library's conditions.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._claim, self._done = threading.Lock(), threading.Lock()
        self._done.acquire()
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._over = False

    def run(self) -> None:
        """Do it, unless it was cancelled."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._error = error
        self._over = True
        self._done.release()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._over

    def cancel(self) -> bool:
        """See to it that it never begins; false if it has begun."""
        return self._claim.acquire(blocking=False)

    def wait(self) -> None:
        """Wait for its end."""
        while not self._over:
            self._done.acquire(timeout=_POLL_SECONDS)

    def result(self) -> T:
        """What it returned; call when it is over.

        Raises:
            BaseException: What it raised.
        """
        if self._error is not None:
            raise self._error
        return self._results[0]


@contextlib.contextmanager
def meanwhile(work: Callable[[], T]) -> Iterator[Work[T]]:
    """Run `work` in a thread while the block runs; it is over when the block is, whatever happens.

    A thread of its own costs a few hundredths of a millisecond, and there is no pool to close. If
    the block fails before the work has begun, it is not begun.
    """
    other = Work(work)
    try:
        # A `threading.Thread` would hold up the block until the other has run for a while.
        _thread.start_new_thread(other.run, ())
        yield other
        other.wait()
    except BaseException:
        if not other.cancel():
            _finish(other)
        raise


def _finish(other: Work[T]) -> None:
    """Wait for the end though another exception may come meanwhile."""
    try:
        other.wait()
    except BaseException:
        other.wait()
        raise
