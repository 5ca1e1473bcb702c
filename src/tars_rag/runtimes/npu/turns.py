"""Taking turns with other programs that use the NPU: an advisory lock on a file.

Whoever else uses the NPU (a language model, a camera) locks the same file while it does, with
``flock``, and leaves it in between. All cores and all models of this process share one turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

from tars_rag.errors import DeviceError

VARIABLE: Final = "NPU_LOCK"
_POLL: Final = 0.005
_PAUSE: Final = 0.002


class Turns:
    """The lock on one file, shared by the threads of this process.

    Args:
        path: The file; made if it is not there.
        patience: Seconds to wait for the others.
        longest: Seconds after which those who come have to wait until the others had their turn.
    """

    def __init__(self, path: Path, *, patience: float = 60.0, longest: float = 1.0) -> None:
        self._path = path
        self._patience = patience
        self._longest = longest
        self._changed = threading.Condition()
        self._users = 0
        self._taking = False
        self._descriptor: int | None = None
        self._since = 0.0

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Around what uses the NPU; see `take`."""
        self.take()
        try:
            yield
        finally:
            self.leave()

    def take(self) -> None:
        """Wait for the turn of this process; `leave` has to follow.

        Raises:
            DeviceError: Others did not leave the NPU in time, or the file cannot be locked.
        """
        end = time.monotonic() + self._patience
        with self._changed:
            while self._taking or (self._users and self._overdue()):
                if not self._changed.wait(max(0.0, end - time.monotonic())):
                    raise self._too_long()
            if self._users:
                self._users += 1
                return
            self._taking = True
        try:
            descriptor = self._lock(end)
        except BaseException:
            with self._changed:
                self._taking = False
                self._changed.notify_all()
            raise
        with self._changed:
            self._descriptor, self._since = descriptor, time.monotonic()
            self._users, self._taking = 1, False
            self._changed.notify_all()

    def leave(self) -> None:
        """Whoever took the turn is done; the last one gives it back."""
        with self._changed:
            self._users -= 1
            if self._users:
                return
            descriptor, self._descriptor = self._descriptor, None
            self._changed.notify_all()
            if descriptor is not None:
                # Told apart from closing: a fork of this process may hold the file open.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    def _overdue(self) -> bool:
        return time.monotonic() - self._since > self._longest

    def _lock(self, end: float) -> int:
        try:
            descriptor = self._open()
        except OSError as error:
            msg = (
                f"{VARIABLE}={self._path} cannot be opened ({error.strerror}). Name a file that "
                f"all users of the NPU may open: export {VARIABLE}=/run/lock/npu.lock"
            )
            raise DeviceError(msg) from error
        try:
            # Who waits for the lock of a file is woken after it is free: leave them the time.
            time.sleep(_PAUSE)
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return descriptor
                if time.monotonic() > end:
                    raise self._too_long()
                time.sleep(_POLL)
        except BaseException:
            os.close(descriptor)
            raise

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:  # of another user, as it may be in /run/lock
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def _too_long(self) -> DeviceError:
        return DeviceError(
            f"The NPU was in use by others for {self._patience:g} s: {VARIABLE}={self._path} is "
            f"locked. Which program that is: fuser -v {self._path}"
        )


def find_turns(chosen: Path | None = None) -> Turns | None:
    """Those that are to be taken; None: none.

    Args:
        chosen: The file that was named; None: NPU_LOCK.
    """
    named = chosen or os.environ.get(VARIABLE, "").strip()
    return turns_at(Path(named).expanduser()) if named else None


@lru_cache(maxsize=16)
def turns_at(path: Path) -> Turns:
    """The one of a file in this process."""
    return Turns(path)
