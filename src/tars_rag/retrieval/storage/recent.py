"""Small writes: durable in the log at once, in the indexes later, in the background.

A write is appended to the log, with whatever else waits for it, and acknowledged when the
log is durable: one fdatasync for all of them. From then on every read sees it in the tail. A flush
brings the oldest of the tail into the indexes; when nothing is left, the log begins anew.

Locks, in the order in which they are taken: `order` (whose writes come first), `_flushing` (one
flush at a time), the store's own lock around the indexes, `_turn` (who uses the log), `_mutex` (a
moment).
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from tars_rag.errors import StoreError
from tars_rag.files import writing_problem
from tars_rag.retrieval.commands import check_command
from tars_rag.retrieval.storage.change import Change
from tars_rag.retrieval.storage.flusher import Flusher
from tars_rag.retrieval.storage.index_set import IndexSet
from tars_rag.retrieval.storage.lock import closed
from tars_rag.retrieval.storage.tail import Held, Tail
from tars_rag.retrieval.storage.write_ahead_log import WriteAheadLog

_BATCH = 256  # passages that a flush brings into the indexes at once
_FULL, _FULL_BYTES = 256, 4 << 20  # what begins a flush
_MOST, _MOST_BYTES = 1024, 16 << 20  # what a write waits for a flush at
_OLDEST_SECONDS = 600.0
_LONGEST_LOG = 16 << 20
_RETRY_SECONDS = 5.0, 300.0
_LEAST_ROOM = 1 << 20

_log = logging.getLogger(__name__)


class _Ticket:
    """A write that waits for the log."""

    __slots__ = ("change", "done", "error")

    def __init__(self, change: Change) -> None:
        self.change = change
        self.done = False
        self.error: BaseException | None = None


class RecentWrites:
    """The log of an open store, and what of it the indexes do not have.

    Args:
        log: Of the store, not yet read.
        into_indexes: Calls what it is given with the indexes, while nobody else uses them.
        tidy: Called after a flush in the background.
        check_in_place: Raises an error that says so if the store's directory was moved.
        dimension: Of the store's vectors.
        read_only: Nothing may be written.
        salvage: Take what can be read of a damaged log, instead of refusing it.

    Raises:
        StoreError: The log is damaged, or cannot be read or written.
    """

    def __init__(
        self,
        log: WriteAheadLog,
        into_indexes: Callable[[Callable[[IndexSet], None]], None],
        tidy: Callable[[], None],
        check_in_place: Callable[[], None],
        *,
        dimension: int | None,
        read_only: bool,
        salvage: bool = False,
    ) -> None:
        self.order = threading.Lock()
        self.tail = Tail({})
        self._damaged = False
        self._log = log
        self._into_indexes, self._tidy = into_indexes, tidy
        self._check_in_place = check_in_place
        self._flushing = threading.RLock()
        self._turns, self._used = threading.Condition(), False
        self._mutex = threading.Lock()
        self._queue: list[_Ticket] = []
        self._began: float | None = None
        self._woken = self._closed = False
        self._failures = 0
        self._stamp = ""  # of the indexes after the last flush
        self._retry = 0.0
        self.flusher = Flusher(self)
        self._open(dimension, read_only=read_only, salvage=salvage)

    # -- writing ----------------------------------------------------------------------------

    def write(self, change: Change) -> None:
        """Make a write durable, and seen by every read from now on.

        Raises:
            StoreError: It could not be.
        """
        self.make_room()
        with self.order:
            ticket = self.enqueue(change)
        self.finish(ticket)

    def make_room(self) -> None:
        """Wait for the indexes where too much is ahead of them. Call without `order`.

        Raises:
            StoreError: They cannot be written.
        """
        while len(self.tail) >= _MOST or self.tail.size >= _MOST_BYTES:
            self.flush()

    def enqueue(self, change: Change) -> _Ticket:
        """Give a write its place. Call with `order`.

        Raises:
            StoreError: The store was closed meanwhile.
        """
        if self._closed:
            raise closed(self._log.path.parent)
        ticket = _Ticket(change)
        with self._mutex:
            self._queue.append(ticket)
        return ticket

    def finish(self, ticket: _Ticket) -> None:
        """Wait until it is durable: whoever comes first appends what all the others wait for."""
        with self._turn(lambda: ticket.done) as mine:
            if mine:
                self._append()
        if ticket.error is not None:
            self._check_in_place()  # whoever looks for room in another directory blames the disk
            cause = writing_problem(self._log.path.parent, _LEAST_ROOM) or ticket.error
            msg = (
                f"Writing to the store {self._log.path.parent} failed: {cause}. Nothing "
                "that was acknowledged is lost. Check space and permissions (df, ls -ld), then "
                "repeat what failed."
            )
            raise StoreError(msg) from ticket.error
        if self._woken or self.due() == 0:
            self._woken = False
            self.flusher.wake()

    def settle(self) -> None:
        """Wait until all that has its place is durable. Call with `order`."""
        with self._turn():
            self._append()

    @contextlib.contextmanager
    def _turn(self, unless: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Be the one that uses the log, unless something has come about meanwhile: then False."""
        with self._turns:
            while not (given_up := unless()) and self._used:
                self._turns.wait()
            if not given_up:
                self._used = True
        try:
            yield not given_up
        finally:
            if not given_up:
                with self._turns:
                    self._used = False
                    self._turns.notify_all()

    def _append(self) -> None:
        batch: list[_Ticket] = []
        error: BaseException | None = None
        try:
            with self._mutex:
                batch, self._queue = self._queue, []
            if batch:
                self._log.append([ticket.change.packed() for ticket in batch])
                with self._mutex:
                    self.tail = self.tail.after([ticket.change for ticket in batch])
                    if self._began is None:
                        self._began, self._woken = time.monotonic(), True
        except OSError as caught:
            error = caught
        except BaseException as caught:
            error = caught
            raise
        finally:
            for ticket in batch:
                ticket.error, ticket.done = error, True

    # -- into the indexes ---------------------------------------------------------------------

    def flush(self, *, whole: bool = True) -> None:
        """Bring what is in the log into the indexes, and begin the log anew if that is all.

        Args:
            whole: Also if the background thread is to stop.

        Raises:
            StoreError: The indexes cannot be written. Nothing is lost: it stays in the log.
        """
        with self._flushing:
            left = self.tail.held  # what comes meanwhile is for the next time
            try:
                while left and (whole or not self.flusher.stopping.is_set()):
                    batch = dict(list(left.items())[:_BATCH])
                    self._into_indexes(partial(self._flush_batch, batch))
                    left = {key: entry for key, entry in left.items() if key not in batch}
                self._reset()
            except BaseException:
                self._failed()
                raise
            self._failures = 0

    def _flush_batch(self, batch: Held, indexes: IndexSet) -> None:
        entries = [entry for entry in batch.values() if entry is not None]
        deleted = [key for key, entry in batch.items() if entry is None]
        if entries:
            vectors = np.stack([entry.vector for entry in entries])
            indexes.upsert([entry.passage for entry in entries], vectors)
        if deleted:
            indexes.delete(deleted)
        self._stamp = indexes.exact.stamp
        with self._mutex:
            self.tail = self.tail.without(batch)

    def _reset(self, identity: str | None = None) -> None:
        with self._turn():
            if not len(self.tail) and (self._log.size or self._damaged or identity is not None):
                try:
                    self._log.reset(identity, self._stamp)
                    self._damaged = False
                except OSError as error:
                    msg = f"The log {self._log.path} cannot be written: {error}. Check the disk."
                    raise StoreError(msg) from error
            with self._mutex:
                self._began = time.monotonic() if len(self.tail) else None

    def renew(self, identity: str) -> None:
        """Begin the log of another embedder's vectors. Call with `order`, when it is empty."""
        with self._flushing:
            self._reset(identity)

    def due(self) -> float | None:
        """Seconds until a flush should begin; None: there is nothing to flush."""
        began, now = self._began, time.monotonic()
        if began is None or not len(self.tail):
            return None
        full = len(self.tail) >= _FULL or self.tail.size >= _FULL_BYTES
        return max(0.0, self._retry - now, 0.0 if full else began + _OLDEST_SECONDS - now)

    def flush_if_due(self) -> None:
        """Flush in the background: a failure is logged, and told again by `close`."""
        try:
            if self._log.size < _LONGEST_LOG:
                self.flush(whole=False)
            else:
                with self.order:  # nothing is added meanwhile, so that the log can begin anew
                    self.settle()
                    self.flush(whole=False)
            self._tidy()
        except Exception as error:
            _log.warning(
                "%s: small writes stay in the log, where they are safe, and are not yet in the "
                "indexes: %s",
                self._log.path.parent,
                error,
            )

    def covers(self, ids: Sequence[str] | None) -> bool:
        """Whether what the indexes hold of these ids does not matter, because it is in the log."""
        held = self.tail.held
        return ids is not None and all(key in held for key in ids)

    def close(self) -> None:
        """Let go of the log. Call with `order`; may be called twice."""
        self._closed = True
        self._log.close()

    def _open(self, dimension: int | None, *, read_only: bool, salvage: bool) -> None:
        path = self._log.path
        try:
            self.tail, damage = read_tail(self._log, dimension)
            if damage and not salvage:
                msg = (
                    f"The log of the store, {path}, is damaged: {damage}. To go on with what can "
                    f"be read of it: {check_command(path.parent, repair=True)}"
                )
                raise StoreError(msg)
            if damage:
                shutil.copyfile(path, path.with_name(f"{path.name}.damaged"))
                _log.warning("%s is damaged (%s): kept as %s.damaged", path, damage, path.name)
            if not read_only:
                self._log.open()
                self._began = time.monotonic() if len(self.tail) else None
        except OSError as error:
            msg = f"The log of the store, {path}, cannot be read: {error}. Check the disk."
            raise StoreError(msg) from error
        if damage or self._began is not None:
            self._damaged = damage is not None
            self.flusher.wake()

    def _failed(self) -> None:
        least, most = _RETRY_SECONDS
        self._retry = time.monotonic() + min(least * 2**self._failures, most)
        self._failures = min(self._failures + 1, 10)


def read_tail(log: WriteAheadLog, dimension: int | None) -> tuple[Tail, str | None]:
    """What a log holds, and what is wrong with it; None: nothing.

    Raises:
        OSError: It cannot be read.
    """
    contents = log.read()
    changes, damage = [], contents.damage
    for record in contents.records:
        try:
            change = Change.unpacked(record)
        except ValueError as error:
            damage = damage or str(error)
            continue
        if any(len(entry.vector) != dimension for entry in change.entries):
            damage = damage or "its vectors are of another length than the store's"
            continue
        changes.append(change)
    return Tail({}).after(changes), damage
