"""Who may touch a store: one writing process or several readers, one writing thread or many."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tars_rag.errors import StoreError, StoreLockedError
from tars_rag.retrieval.storage.holder import Holder, processes_with

# How long the process of a Chroma may outlive a killed parent: one that writes may be saving a
# large index to a slow disk, one that reads leaves at once. Of one that is stopped, or that cannot
# be seen from here, there is little to wait for.
_ORPHAN_SECONDS, _READER_SECONDS, _STOPPED_SECONDS, _FAR_SECONDS = 60.0, 1.0, 5.0, 1.0
_ASK_SECONDS = 0.5  # between two words to readers that the store is wanted
_UNNAMED_SECONDS = 3.0  # until one that has just taken the lock, or gives it back, has said so
# A store of this process may be about to be closed (the garbage collector has it), and one that is
# being closed finishes running calls first.
_COLLECTED_SECONDS, _CLOSING_SECONDS = 0.5, 60.0
# The lock files (device, inode) of stores that this process is closing. A list without a lock: the
# garbage collector closes stores too, at any moment, and appending and removing are atomic.
_closing: list[tuple[int, int]] = []
_SHARE = (
    "open it without share=False on both sides (one user of one machine may), or let several "
    "processes share one Chroma server: start `chroma run --path DIR` and pass "
    "chroma_url='http://localhost:8000'."
)


class HeldError(StoreLockedError):
    """A process that is there holds the lock: not readers, not this one, nothing left of one."""


class HeldHereError(StoreLockedError):
    """Another object of this process holds the lock.

    Attributes:
        made_way: Readers had it, were asked to give it back, and this one of them was quicker.
    """

    made_way = False


class BeingReadError(StoreLockedError):
    """Readers hold the lock; nobody knows who they are."""


class _MovedError(StoreError):
    """The directory is not there any more: no cause of it is looked for there."""


def closed(store: Path) -> StoreError:
    """What is said of a store that was closed, by every part of it."""
    return StoreError(f"The store {store} is closed. Open it again.")


@dataclass(frozen=True, slots=True)
class _Found:
    """Who had a lock at one moment: how long it is waited for, and what is said then, are of that.

    A holder may end, and another come, between any two looks.

    Attributes:
        who: "far" is another container or machine, "unnamed" one that has not said yet, "gone" one
            that left its Chroma behind.
        holder: What the lock's file says; of "readers" it is not to be trusted.
        patience: Seconds.
    """

    who: Literal["readers", "unnamed", "far", "self", "alive", "gone"]
    holder: Holder | None
    patience: float


def forked(store: Path, pid: int) -> StoreError:
    """What is said of a store in a child that was forked from `pid`, which opened it."""
    return StoreError(
        f"The store {store} was opened by process {pid} and does not survive a fork. Open it in "
        "the child, started by the method spawn or forkserver."
    )


class StoreLock:
    """An advisory lock on a file, shared or exclusive, released by the kernel when the holder dies.

    The file says who wrote last, for the error message. Locks belong to the open file, so that
    two stores in one process exclude each other too; a fork's copy is closed at once, or the child
    would hold what its parent has closed.

    Args:
        path: The file; made if missing, unless `read_only`, with what the umask allows, so that
            a group can share a store.
        read_only: The file is not written.

    Attributes:
        shares: Whether its holder answers others at the store's socket; written beside the pid.

    Raises:
        StoreError: It cannot be opened.
    """

    def __init__(self, path: Path, *, read_only: bool = False, shares: bool = False) -> None:
        self.path = path
        self.shares = shares
        self._read_only = read_only
        self._named = False
        self._asked = 0.0
        self._taken = b""
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        try:
            self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        except OSError as error:
            msg = f"The store's lock {path} cannot be opened: {error}. Check path and permissions."
            raise StoreError(msg) from error
        _open_locks.add(self)

    def acquire(self, *, shared: bool = False, seconds: float | None = None) -> None:
        """Take the lock.

        A writer that was killed leaves its Chroma process, which holds the lock until it has
        finished what it was told to write: that is waited for.

        Args:
            shared: With others that share it.
            seconds: How long to wait for whoever has it; None: no longer than for one that is
                about to let go.

        Raises:
            HeldError: Another process holds it; the message says who.
            BeingReadError: Readers do.
            StoreLockedError: This process does, or what another left.
        """
        operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        since, seen = time.monotonic(), None
        try:
            while not self._try(operation):
                found = self._found()
                if seconds is None and seen != found:  # each is waited for anew
                    since, seen = time.monotonic(), found
                if time.monotonic() - since > (found.patience if seconds is None else seconds):
                    if self._try(operation):  # given back while its holder was looked up
                        break
                    raise self._refusal(found) if seconds is None else self._late(found, seconds)
                time.sleep(random.uniform(0.001, 0.02))  # else two that take turns shut others out
        except OSError as error:
            msg = f"The store's lock {self.path} cannot be taken: {error}. Use a local file system."
            raise StoreError(msg) from error
        if shared:
            self._taken = self._record()
        else:
            self.name_holder()

    def name_holder(self, chroma: int = 0) -> None:
        """Write down that we hold it, and the pid of our Chroma; for those who find it locked."""
        if not self._read_only:
            with contextlib.suppress(OSError):  # a full disk
                record = Holder.this_process(chroma, shares=self.shares).record()
                os.pwrite(self.descriptor, record, 0)
                self._named = True

    @property
    def is_wanted(self) -> bool:
        """Whether, since we share it, somebody came who would share the store if we gave it back.

        While it is shared nobody else writes to the file.
        """
        return self._record() != self._taken

    def check_in_place(self) -> None:
        """See that the store's path still leads to the store that was opened.

        Raises:
            StoreError: The directory was renamed, removed or replaced.
        """
        try:
            status = self.path.stat()
            if (status.st_dev, status.st_ino) == self._file():
                return
            now = "another store is there now"
        except OSError:
            now = "it is not there any more"
        if self.descriptor < 0:  # closed by another thread, meanwhile: nothing was moved
            raise closed(self.path.parent)
        msg = (
            f"The directory {self.path.parent} was renamed, removed or replaced while the store "
            f"was open: {now}. Nothing was read or written there. Close this object, and open the "
            "store at its present place."
        )
        raise _MovedError(msg)

    def release(self) -> None:
        """Give the lock back; the file stays open."""
        self._unname()
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
        """Release and close. May be called twice.

        Whoever finds the next holder's lock before that one has written its name reads no old one.
        """
        if self.descriptor >= 0:
            self._unname()
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)

    def _unname(self) -> None:
        if self._named:
            self._named = False
            with contextlib.suppress(OSError):
                os.pwrite(self.descriptor, Holder.nobody(), 0)

    def _try(self, operation: int) -> bool:
        try:
            fcntl.flock(self.descriptor, operation)
        except BlockingIOError:
            return False
        return True

    def _found(self) -> _Found:
        """Who has the lock now."""
        holder = Holder.parsed(self._record())
        if self._only_read():
            return _Found("readers", holder, _READER_SECONDS)
        if holder is None:
            return _Found("unnamed", holder, _UNNAMED_SECONDS)
        if not holder.is_near:
            return _Found("far", holder, _FAR_SECONDS)
        if holder.is_this_process:
            closing = self._file() in _closing
            return _Found("self", holder, _CLOSING_SECONDS if closing else _COLLECTED_SECONDS)
        if holder.is_alive:
            return _Found("alive", holder, 0)
        stopped = holder.chroma_is_stopped
        return _Found("gone", holder, _STOPPED_SECONDS if stopped else _ORPHAN_SECONDS)

    def _record(self) -> bytes:
        return os.pread(self.descriptor, 4096, 0)

    def _file(self) -> tuple[int, int]:
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino

    def _late(self, found: _Found, waited: float) -> StoreLockedError:
        who = found.holder.where() if found.holder else "another process"
        return StoreLockedError(
            f"The store {self.path.parent} was not to be had for {waited:g} s: {who} is writing, "
            "and may wait for a Chroma server that does not answer. Try again, or end that process."
        )

    def _refusal(self, found: _Found) -> StoreLockedError:
        where, holder = self.path.parent, found.holder
        if found.who == "readers":
            return BeingReadError(
                f"The store {where} is being read by another process. Close it there, {_SHARE}"
            )
        if holder is None:
            return StoreLockedError(
                f"The store {where} is open in another process. Close it there, {_SHARE}"
            )
        if found.who == "self":
            error = HeldHereError(
                f"The store {where} is already open in this process (pid {holder.pid}). "
                "Use that object, or close() it first."
            )
            error.made_way = self._asked > 0
            return error
        if found.who == "gone":
            return StoreLockedError(self._orphan_message(holder))
        return HeldError(f"The store {where} is open in {holder.where()}. Close it there, {_SHARE}")

    def _orphan_message(self, holder: Holder) -> str:
        """Who holds the lock now that the process is gone that took it."""
        pids = processes_with(self.descriptor)
        what = "a process that it left"
        if holder.chroma in pids:
            pids = [holder.chroma]
            what = "its Chroma process"
        named = f"{what} (pid {', '.join(map(str, pids))})" if pids else what
        stopped = ", which is stopped," if holder.chroma_is_stopped else ""
        end = f"End it: kill -9 {' '.join(map(str, pids))}" if pids else "End it, or restart."
        return (
            f"The store {self.path.parent} was open in a process that is gone (pid {holder.pid}), "
            f"and {named}{stopped} still holds it. {end}"
        )

    def _only_read(self) -> bool:
        """Whether all who hold the lock share it; they are told that it is wanted."""
        if not self._try(fcntl.LOCK_SH | fcntl.LOCK_NB):
            return False
        if self.shares and time.monotonic() - self._asked > _ASK_SECONDS:
            self._asked = time.monotonic()
            with contextlib.suppress(OSError):  # a full disk
                os.pwrite(self.descriptor, Holder.wanted(), 0)
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        return True

    def _forget(self) -> None:
        """In a forked child: let go of our copy of the lock, and of tantivy's in the same store."""
        self._named = False  # it is our parent's, who holds it
        self.close()
        place = f"{self.path.parent}/"
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                file = str(entry.readlink())
                if file.startswith(place) and file.endswith(".lock"):
                    # Its owner, native code, may yet close the number: it stays taken.
                    os.dup2(nothing, int(entry.name), inheritable=False)
        os.close(nothing)


_open_locks: weakref.WeakSet[StoreLock] = weakref.WeakSet()


def _forked() -> None:
    for lock in list(_open_locks):
        if lock.descriptor >= 0:
            with contextlib.suppress(OSError):
                lock._forget()


os.register_at_fork(after_in_child=_forked)
