"""A store's directory, opened: who may read and write it, and when.

A write holds the write lock from the journal's first byte to its removal, a read holds the read
lock over both indexes, so that no read sees one index before a write and the other after it. With
a Chroma server the same holds between processes, through the lock file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import FingerprintError, StoreError
from tars_rag.retrieval.indexes.chroma.requests import operation_timeout
from tars_rag.retrieval.passage import Progress, TextEmbedder
from tars_rag.retrieval.storage.index_set import IndexSet
from tars_rag.retrieval.storage.layout import (
    LOCK,
    discard_probe_file,
    open_store_json,
    prepare_directory,
    read_probe_file,
)
from tars_rag.retrieval.storage.lock import ReadWriteLock, StoreLock
from tars_rag.retrieval.storage.rebuild import model_of, rebuild_vectors
from tars_rag.retrieval.storage.recovery import Recovery
from tars_rag.retrieval.storage.store_json import StoreJson, read_store_json


class StoreDirectory:
    """An open store: its indexes, and the locks around them.

    `HybridStore` is the way in for users. Reads and writes go through `reading` and `writing`,
    which hand out the indexes.

    Args:
        path: The directory; made if missing, unless `read_only`.
        embedder: Whose vectors are in it, or will be; also makes damaged ones anew. None: whatever
            the store has (no new store then, and damaged vectors are an error).
        read_only: Open beside other readers; nothing is repaired or written.
        chroma_url: A Chroma server; several processes may then write.
        any_embedder: The store may be of another embedder, as it is while that is changed.
        language: How its words are read; None: as they are, or the default in a new store.
        relex: Change the language, if it is another, instead of refusing it.
        progress: Told how the rebuild of a damaged index goes on.

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
    ) -> None:
        self.path = path
        self.read_only = read_only
        self._pid = os.getpid()
        self._closed = False
        self._threads = ReadWriteLock(max(2, os.cpu_count() or 2))
        owner = None if any_embedder else embedder
        prepare_directory(path, create=not read_only and owner is not None)
        with contextlib.ExitStack() as opened:
            self._lock = StoreLock(path / LOCK, read_only=read_only)
            opened.callback(self._lock.close)
            known = read_store_json(path)
            # With a server the lock is held for each operation, otherwise until close().
            self._url = known.chroma_url if known and owner is None else chroma_url
            self._lock.acquire(
                shared=read_only and not self._shared,
                seconds=operation_timeout() if self._shared else None,
            )
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
            self._recovery = Recovery(self._indexes, embedder)
            self._recovery.open(progress)
            if self._shared:
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
    def reading(self) -> Iterator[IndexSet]:
        """Hold while reading: all indexes are of one state, whatever is being written."""
        self._check_usable()
        while True:
            with self._threads.read(), self._between_processes(shared=True):
                self._check_usable()
                if self._indexes.whole:
                    yield self._indexes
                    return
            # A write failed half-way, here or in another process, or Chroma's process died: mend
            # before anyone looks.
            with self._threads.write(), self._between_processes(shared=self.read_only):
                self._check_usable()
                self._recovery.recover(None)

    @contextlib.contextmanager
    def writing(self) -> Iterator[IndexSet]:
        """Hold while writing; what an earlier write left undone is repaired first."""
        self._check_usable()
        self.check_writable()
        with self._threads.write(), self._between_processes(shared=False):
            self._check_usable()
            self._recovery.recover(None)
            yield self._indexes

    def check_writable(self) -> None:
        """Raise a `StoreError` if the store was opened read-only."""
        if self.read_only:
            msg = f"The store {self.path} is open read-only. Open it without read_only=True."
            raise StoreError(msg)

    def reembed(self, embedder: TextEmbedder, progress: Progress | None) -> int:
        """Embed every passage with another embedder; how many were (0: it is the store's own)."""
        with self.writing() as indexes:
            if indexes.store_json.fingerprint == embedder.fingerprint:
                return self.embedded
            return rebuild_vectors(indexes, embedder, progress)

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

    def close(self) -> None:
        """Wait for running operations, then release everything. May be called twice."""
        if self._closed or os.getpid() != self._pid:
            return
        with self._lock.closing(), self._threads.write():
            self._closed = True
            try:
                self._lock.check_in_place()
            except StoreError:
                self._indexes.abandon()  # what Chroma still had to write would go to another store
            self._parts.close()

    @property
    def _shared(self) -> bool:
        """Whether several processes may write: Chroma is a server."""
        return self._url is not None

    @contextlib.contextmanager
    def _between_processes(self, *, shared: bool) -> Iterator[None]:
        if not self._shared:
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

    def _check_usable(self) -> None:
        if self._closed:
            msg = f"The store {self.path} is closed. Open it again."
            raise StoreError(msg)
        if os.getpid() != self._pid:
            msg = (
                f"The store {self.path} was opened by process {self._pid} and does not survive a "
                "fork. Open it in the child, started by the method spawn or forkserver."
            )
            raise StoreError(msg)
        self._lock.check_in_place()
