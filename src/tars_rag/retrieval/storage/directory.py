"""A store's directory, opened: who may read and write it, and when.

A write holds the write lock from the journal's first byte to its removal, a read the read lock over
both indexes. With a Chroma server the same holds between processes, through the lock file.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import FingerprintError, StoreError
from tars_rag.retrieval.indexes.chroma.requests import operation_timeout
from tars_rag.retrieval.passage import Progress, TextEmbedder
from tars_rag.retrieval.storage.compaction import tidy
from tars_rag.retrieval.storage.index_set import IndexSet
from tars_rag.retrieval.storage.layout import (
    LOCK,
    LOG,
    discard_probe_file,
    open_store_json,
    prepare_directory,
    read_probe_file,
)
from tars_rag.retrieval.storage.listener import Listener
from tars_rag.retrieval.storage.lock import StoreLock, closed, forked
from tars_rag.retrieval.storage.readers_writer import ReadWriteLock
from tars_rag.retrieval.storage.rebuild import model_of, rebuild_vectors
from tars_rag.retrieval.storage.recent import RecentWrites
from tars_rag.retrieval.storage.recovery import Recovery
from tars_rag.retrieval.storage.store_json import StoreJson, read_store_json
from tars_rag.retrieval.storage.tail import Tail
from tars_rag.retrieval.storage.views import View, view_of
from tars_rag.retrieval.storage.write_ahead_log import WriteAheadLog


class StoreDirectory:
    """An open store: its indexes, and the locks around them.

    `reading` and `writing` hand out the indexes; small writes go through `recent` (`passages`).

    Args:
        path: The directory; made if missing, unless `read_only`.
        embedder: Whose vectors are in it, or will be; makes damaged ones anew. None: whoever it
            is (no new store then, and damaged vectors are an error).
        read_only: Open beside other readers; nothing is repaired or written.
        chroma_url: A Chroma server; several processes may then write.
        any_embedder: The store may be of another embedder, as it is while that is changed.
        language: How its words are read; None: as they are, or the default in a new store.
        relex: Change the language, if it is another, instead of refusing it.
        progress: Told how the rebuild of a damaged index goes on.
        salvage: Go on with what can be read of a damaged log of small writes, or without it.
        listener: Listens from when the lock is taken until it is given back.

    Attributes:
        recent: Small writes; None where Chroma is a server, which several processes write to.

    Raises:
        StoreLockedError: Another process has it open; the message names its pid.
        FingerprintError: The store's vectors are of another embedder.
        StoreError: It is damaged, or cannot be read or written.
        ConfigError: The store lives on another server than `chroma_url`.
    """

    def __init__(
        self,
        path: Path,
        embedder: TextEmbedder | None,
        *,
        read_only: bool = False,
        chroma_url: str | None = None,
        any_embedder: bool = False,
        language: str | None = None,
        relex: bool = False,
        progress: Progress | None = None,
        salvage: bool = False,
        listener: Listener | None = None,
    ) -> None:
        self.path = path
        self.read_only = read_only
        self._pid = os.getpid()
        self._closed = False
        self._threads = ReadWriteLock(max(2, os.cpu_count() or 2))
        self._changing = threading.RLock()  # taken before `_threads` by all who write to indexes
        owner = None if any_embedder else embedder
        prepare_directory(path, create=not read_only and owner is not None)
        with contextlib.ExitStack() as opened:
            self._lock = StoreLock(path / LOCK, read_only=read_only, shares=bool(listener))
            opened.callback(self._lock.close)
            known = read_store_json(path)
            self._url = known.chroma_url if known and owner is None else chroma_url
            # With a server it is held for each operation, otherwise until close().
            self._lock.acquire(
                shared=read_only and not self.shared,
                seconds=operation_timeout() if self.shared else None,
            )
            if listener is not None:
                opened.callback(listener.close)
                self._lock.shares = listener.open()
            store_json = open_store_json(
                path,
                owner.fingerprint if owner else None,
                self._url,
                model=model_of(owner) if owner else None,
                language=None if relex else language,
            )
            if relex and language is not None and language != store_json.language:
                # The lexical index is of another language then, and is made anew when it is opened.
                store_json = store_json.write(path, language=language)
            self._indexes = IndexSet(path, store_json, self._lock, self._url, read_only=read_only)
            opened.callback(self._indexes.close)
            self._recovery = Recovery(self._indexes, embedder, salvage=salvage)
            self._recovery.open(progress)
            self.recent: RecentWrites | None = None
            if not self.shared:
                self.recent = RecentWrites(
                    WriteAheadLog(path / LOG, store_json.fingerprint),
                    self._into_indexes,
                    partial(tidy, self),
                    self._lock.check_in_place,
                    dimension=self._indexes.store_json.dimension,
                    read_only=read_only,
                    salvage=salvage,
                )
                opened.callback(self.recent.close)
            if self.shared:
                self._indexes.lexical.release_writer()
                self._lock.release()
            self._parts = opened.pop_all()

    @property
    def store_json(self) -> StoreJson:
        """What the store says of itself."""
        return self._indexes.store_json

    @property
    def embedded(self) -> int:
        """How many passages were embedded anew because their vectors were damaged."""
        return self._recovery.embedded

    @contextlib.contextmanager
    def reading(self) -> Iterator[View]:
        """Hold while reading: what is seen is of one state, whatever is being written."""
        self.check_usable()
        while True:
            with self._threads.read(), self._between_processes(shared=True):
                self.check_usable()
                if self._readable():
                    yield view_of(self._indexes, self.recent.tail if self.recent else None)
                    return
            # A write failed half-way, or Chroma died: mend before anyone looks.
            with self._threads.write(), self._between_processes(shared=self.read_only):
                self.check_usable()
                with self._indexes.disk.excusing(self._indexes.give_up):
                    self._recovery.recover(None)

    @contextlib.contextmanager
    def writing(self) -> Iterator[IndexSet]:
        """Hold while writing to the indexes; they have all of the log then.

        What an earlier write left undone is repaired first.
        """
        self.check_writable()
        with self.alone():
            if self.recent is not None:
                self.recent.flush()
            with self.exclusive() as indexes:
                yield indexes

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[IndexSet]:
        """Hold while nobody else reads or writes the indexes; the log may be ahead of them."""
        disk = self._indexes.disk.named_in_errors(self._indexes.give_up)
        with self._changing, self._threads.write(), self._between_processes(shared=False), disk:
            self.check_usable()
            self._recovery.recover(None)
            yield self._indexes

    @contextlib.contextmanager
    def changing(self) -> Iterator[IndexSet]:
        """Hold as the only one who writes to the indexes; others read, and write to the log."""
        with self._changing:
            self.check_usable()
            yield self._indexes

    @contextlib.contextmanager
    def still(self) -> Iterator[tuple[IndexSet, Tail]]:
        """Hold while nothing is written: the indexes, and what is only in the log."""
        with self.alone(), self._changing, self.reading():
            yield self._indexes, self.recent.tail if self.recent else Tail({})

    def flush(self) -> None:
        """Bring what is only in the log into the indexes.

        Raises:
            StoreError: They cannot be written; the log keeps it.
        """
        self.check_usable()
        if self.recent is not None and not self.read_only:
            self.recent.flush()

    def check_writable(self) -> None:
        """Raise a `StoreError` if the store was opened read-only, or cannot be used any more."""
        self.check_usable()
        if self.read_only:
            msg = f"The store {self.path} is open read-only. Open it without read_only=True."
            raise StoreError(msg)

    def reembed(self, embedder: TextEmbedder, progress: Progress | None) -> int:
        """Embed every passage with another embedder; how many were (0: it is the store's own)."""
        with self.writing() as indexes:
            if indexes.store_json.fingerprint == embedder.fingerprint:
                return self.embedded
            embedded = rebuild_vectors(indexes, embedder, progress)
            if self.recent is not None:
                self.recent.renew(indexes.store_json.fingerprint)
            return embedded

    def probe(self) -> NDArray[np.float32] | None:
        """What store.json has of the embedder's probe, float32 [dim]; None: nothing usable."""
        found = self.store_json.probe or read_probe_file(self.path)
        row = None if found is None else np.asarray(found, np.float32)
        return row if row is not None and 0 < np.linalg.norm(row) < np.inf else None

    def record_probe(self, probe: NDArray[np.float32]) -> NDArray[np.float32]:
        """Keep a probe in store.json, unless one is there; what is there afterwards."""
        with self.writing() as indexes:
            known = self.probe()
            if known is None or indexes.store_json.probe is None:
                known = probe if known is None else known
                indexes.update(probe=known.tolist())
                discard_probe_file(self.path)
        return known

    def close(self, *, flush: bool = True) -> None:
        """Wait for running operations, then release everything. May be called twice.

        Args:
            flush: Bring what is in the log into the indexes before; it is kept either way.

        Raises:
            StoreError: That could not be; all is released.
        """
        if os.getpid() != self._pid:
            return
        if self.recent is not None:
            if self.recent.flusher.takes_over(self.close):
                return
            self.recent.flusher.stop()  # it may wait for a lock that is taken below
        with self._lock.closing(), self.alone():
            if self._closed:
                return
            try:
                if flush and self.recent is not None and not self.read_only and self._in_place():
                    self.recent.flush()
            except StoreError as error:
                msg = (
                    f"The last small writes to the store {self.path} are not in its indexes: "
                    f"{error} They are kept in its log, and the next opening has them."
                )
                raise StoreError(msg) from error
            finally:
                with self._threads.write():
                    if not self._in_place():
                        self._indexes.abandon()  # what it had to write would go to another store
                    self._closed = True
                    self._parts.close()

    def _in_place(self) -> bool:
        """Whether the path still leads to this store."""
        with contextlib.suppress(StoreError):
            self._lock.check_in_place()
            return True
        return False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No write is given a place in the log while the block runs; those that had are durable."""
        if self.recent is None:
            yield
            return
        with self.recent.order:
            self.recent.settle()
            yield

    def _into_indexes(self, write: Callable[[IndexSet], None]) -> None:
        with self.exclusive() as indexes:
            write(indexes)

    def _readable(self) -> bool:
        """Whether nothing that a read needs was cut short."""
        if self._indexes.whole or self._indexes.disk.waits:
            return True
        if self.recent is None or not self._indexes.vectors.alive:
            return False
        intent = self._indexes.journal.pending()  # of a flush that failed: the log has all of it
        return intent is None or self.recent.covers(intent.ids)

    @property
    def is_wanted(self) -> bool:
        """Whether another process waits for this one, which only reads, to give the store back."""
        return self._lock.is_wanted

    @property
    def shared(self) -> bool:
        """Whether several processes may write: Chroma is a server."""
        return self._url is not None

    @contextlib.contextmanager
    def _between_processes(self, *, shared: bool) -> Iterator[None]:
        if not self.shared:
            yield
            return
        lock = StoreLock(self.path / LOCK, read_only=self.read_only)
        try:
            lock.acquire(shared=shared, seconds=operation_timeout())
            self._follow_others()
            yield
        finally:
            if not shared and not self._closed:
                self._indexes.lexical.release_writer()
            lock.close()

    def _follow_others(self) -> None:
        """See what another process wrote, or that it changed the embedder."""
        indexes = self._indexes
        found = open_store_json(self.path, None, self._url)
        if found.collection != indexes.store_json.collection:
            msg = (
                f"The store {self.path} was embedded anew by another process, with the embedder "
                f"{found.embedder!r}. Open it again with that one."
            )
            raise FingerprintError(msg)
        indexes.store_json = found
        indexes.refresh()

    def check_usable(self) -> None:
        """Raise a `StoreError` if the store is closed, or was opened by another process."""
        if self._closed:
            raise closed(self.path)
        if os.getpid() != self._pid:
            raise forked(self.path, self._pid)
        self._lock.check_in_place()
