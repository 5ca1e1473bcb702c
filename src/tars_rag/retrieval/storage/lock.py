"""Who may touch a store: one writing process or several readers, one writing thread or many."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from tars_rag.errors import StoreError, StoreLockedError

# How long the process of a Chroma may outlive a killed parent: one that writes may be saving a
# large index to a slow disk, one that reads leaves at once.
_ORPHAN_SECONDS, _READER_SECONDS = 60.0, 1.0
# A store of this process may be about to be closed (the garbage collector has it), and one that is
# being closed finishes running calls first.
_COLLECTED_SECONDS, _CLOSING_SECONDS = 0.5, 60.0
# The lock files (device, inode) of stores that this process is closing. A list without a lock: the
# garbage collector closes stores too, at any moment, and appending and removing are atomic.
_closing: list[tuple[int, int]] = []


class StoreLock:
    """An advisory lock on a file, shared or exclusive, released by the kernel when the holder dies.

    The file holds the pid of the last writer, for the error message. Locks belong to the open
    file, so that two stores in one process exclude each other too.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        try:
            self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
        except OSError as error:
            msg = f"The store's lock {path} cannot be opened: {error}. Check path and permissions."
            raise StoreError(msg) from error

    def acquire(self, *, shared: bool = False, wait: bool = False) -> None:
        """Take the lock.

        A writer that was killed leaves its Chroma process, which holds the lock until it has
        finished what it was told to write: that is waited for.

        Raises:
            StoreLockedError: Another holds it (and `wait` is false); the message names its pid.
        """
        operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        began = time.monotonic()
        try:
            while not self._try(operation):
                if time.monotonic() - began > self._patience():
                    if self._try(operation):  # given back while its holder was looked up
                        break
                    raise StoreLockedError(self._locked_message())
                time.sleep(0.02)
        except OSError as error:
            msg = f"The store's lock {self.path} cannot be taken: {error}. Use a local file system."
            raise StoreError(msg) from error
        if not shared and not wait:
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Give the lock back; the file stays open."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Tell others in this process, while the block runs, that the lock is about to be free."""
        try:
            file = self._file()
        except OSError:
            file = (0, 0)  # closed already
        _closing.append(file)
        try:
            yield
        finally:
            _closing.remove(file)

    def close(self) -> None:
        """Release and close. May be called twice."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)

    def _try(self, operation: int) -> bool:
        try:
            fcntl.flock(self.descriptor, operation)
        except BlockingIOError:
            return False
        return True

    def _patience(self) -> float:
        """Seconds to wait for whoever holds the lock."""
        if self._only_read():
            return _READER_SECONDS
        pid = self._writer()
        if pid == str(os.getpid()):
            return _CLOSING_SECONDS if self._file() in _closing else _COLLECTED_SECONDS
        return _ORPHAN_SECONDS if pid.isdecimal() and not _exists(int(pid)) else 0

    def _file(self) -> tuple[int, int]:
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino

    def _writer(self) -> str:
        return os.pread(self.descriptor, 32, 0).decode("ascii", "replace").strip()

    def _locked_message(self) -> str:
        where = self.path.parent
        share = (
            "or let several processes share one Chroma server: start `chroma run --path DIR` and "
            "pass chroma_url='http://localhost:8000'."
        )
        if self._only_read():
            return f"The store {where} is being read by another process. Close it there, {share}"
        pid = self._writer()
        if pid == str(os.getpid()):
            return (
                f"The store {where} is already open in this process (pid {pid}). "
                "Use that object, or close() it first."
            )
        return f"The store {where} is open in another process (pid {pid}). Close it there, {share}"

    def _only_read(self) -> bool:
        """Whether all who hold the lock share it."""
        if not self._try(fcntl.LOCK_SH | fcntl.LOCK_NB):
            return False
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        return True


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


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
