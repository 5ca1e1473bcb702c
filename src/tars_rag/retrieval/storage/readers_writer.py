"""Threads of one process in a store: many that read, or one that writes."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class ReadWriteLock:
    """Many readers or one writer, first come, first served.

    At most `readers` threads read at once: more would only fight for the interpreter's lock, and
    the event loop would wait behind them.
    """

    def __init__(self, readers: int) -> None:
        self._limit = readers
        self._mutex = threading.Lock()
        self._queue: deque[tuple[bool, threading.Event]] = deque()
        self._reading = 0
        self._writing = False

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """Hold while reading."""
        self._enter(write=False)
        try:
            yield
        finally:
            self._leave(write=False)

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """Hold while writing; not reentrant."""
        self._enter(write=True)
        try:
            yield
        finally:
            self._leave(write=True)

    def _enter(self, *, write: bool) -> None:
        with self._mutex:
            if not self._queue and self._admits(write=write):
                self._admit(write=write)
                return
            turn = threading.Event()
            self._queue.append((write, turn))
        try:
            turn.wait()
        except BaseException:  # Ctrl-C: whoever waits behind must not wait for us
            with self._mutex:
                admitted = turn.is_set()
                if not admitted:
                    self._queue.remove((write, turn))
            if admitted:
                self._leave(write=write)
            raise

    def _leave(self, *, write: bool) -> None:
        with self._mutex:
            if write:
                self._writing = False
            else:
                self._reading -= 1
            while self._queue and self._admits(write=self._queue[0][0]):
                next_writes, turn = self._queue.popleft()
                self._admit(write=next_writes)
                turn.set()

    def _admits(self, *, write: bool) -> bool:
        if write:
            return not self._writing and self._reading == 0
        return not self._writing and self._reading < self._limit

    def _admit(self, *, write: bool) -> None:
        if write:
            self._writing = True
        else:
            self._reading += 1
