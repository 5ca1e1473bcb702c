"""The thread that brings small writes into the indexes while nobody waits for it."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

_log = logging.getLogger(__name__)
_IDLE_SECONDS = 3600.0
_EXIT_SECONDS = 60.0


class Flushed(Protocol):
    """What is flushed."""

    def due(self) -> float | None:
        """Seconds until a flush should begin; None: there is nothing."""

    def flush_if_due(self) -> None:
        """Flush; errors are for the log of the program, and remembered."""


class Flusher:
    """A daemon thread, begun when it is first needed.

    It does not keep what it flushes alive, and at the end of the program it is stopped between two
    batches: what is not in the indexes then is in the log.

    Args:
        flushed: What is flushed.
    """

    def __init__(self, flushed: Flushed) -> None:
        self.stopping = threading.Event()
        self._flushed = weakref.ref(flushed)
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._mutex = threading.Lock()
        self._afterwards: Callable[[], None] | None = None

    def wake(self) -> None:
        """Have it look whether there is something to do."""
        if self._thread is None:
            self._begin()
        self._wake.set()

    def stop(self) -> None:
        """End it, once the batch is done that it is at. May be called twice."""
        self.stopping.set()
        self._wake.set()
        atexit.unregister(self.stop)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_EXIT_SECONDS)

    def takes_over(self, close: Callable[[], None]) -> bool:
        """Whether this is the thread itself, which then calls `close` when it is done.

        The garbage collector may close a store in any thread, also in the middle of a flush.
        """
        if threading.current_thread() is not self._thread:
            return False
        self._afterwards = close
        self._wake.set()
        return True

    def _begin(self) -> None:
        with self._mutex:
            if self._thread is None and not self.stopping.is_set():
                atexit.register(self.stop)
                self._thread = threading.Thread(target=self._run, name="tars-flush", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self.stopping.is_set() and self._afterwards is None:
            flushed = self._flushed()
            if flushed is None:
                return
            wait = flushed.due()
            if wait == 0:
                flushed.flush_if_due()
            del flushed
            if wait != 0:
                self._wake.wait(_IDLE_SECONDS if wait is None else wait)
                self._wake.clear()
        if self._afterwards is not None:
            with contextlib.suppress(Exception):
                self._afterwards()
