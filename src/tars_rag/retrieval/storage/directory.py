"""The two indexes of one store directory, opened, locked, repaired and kept in step.

What may run when: a write holds the write lock from the journal's first byte to its removal, a
read holds the read lock over both indexes, so that no read sees one index before a write and the
other after it. With a Chroma server the same holds between processes, through the lock file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import FingerprintError, StoreError
from tars_rag.retrieval.indexes.chroma_files import Seal
from tars_rag.retrieval.indexes.codec import decode
from tars_rag.retrieval.indexes.lexical import LexicalIndex
from tars_rag.retrieval.indexes.vectors import Record, VectorIndex, records
from tars_rag.retrieval.passage import Embed, Passage, Progress
from tars_rag.retrieval.storage.journal import Journal
from tars_rag.retrieval.storage.layout import (
    CHROMA,
    JOURNAL,
    LEXICAL,
    LOCK,
    SEAL,
    open_manifest,
    prepare_directory,
)
from tars_rag.retrieval.storage.lock import ReadWriteLock, StoreLock
from tars_rag.retrieval.storage.opening import lexical_damage, open_vectors
from tars_rag.retrieval.storage.rebuild import rebuild_vectors
from tars_rag.retrieval.storage.repair import differences, reconcile
from tars_rag.retrieval.storage.store_json import read_manifest

_log = logging.getLogger(__name__)


class Engine:
    """See the module. `HybridStore` is the way in for users.

    Args:
        path: The store's directory; made if missing, unless `read_only`.
        fingerprint: Of the embedder; None: whatever the store has (no new store then).
        read_only: Open beside other readers; nothing is repaired or written.
        chroma_url: A Chroma server; several processes may then write.
        embed: Makes vectors anew where Chroma's were damaged; None: such a store is refused.
        embed_fingerprint: Of `embed`, where `fingerprint` is None.
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
        fingerprint: str | None,
        *,
        read_only: bool = False,
        chroma_url: str | None = None,
        embed: Embed | None = None,
        embed_fingerprint: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.path = path
        self.rebuilt = 0
        self._embed = embed
        self._embed_fingerprint = embed_fingerprint or fingerprint
        self.read_only = read_only
        self._pid = os.getpid()
        self._closed = False
        self._vectors: VectorIndex | None = None
        self._lexical: LexicalIndex | None = None
        self._lexical_stamp: object = None
        self._threads = ReadWriteLock(max(2, os.cpu_count() or 2))
        self._journal = Journal(path / JOURNAL)
        prepare_directory(path, create=not read_only and fingerprint is not None)
        self._lock = StoreLock(path / LOCK, read_only=read_only)
        try:
            # With a server the lock is held for each operation, otherwise until close().
            known = read_manifest(path)
            url = known.chroma_url if known and fingerprint is None else chroma_url
            self._url = url
            self.shared_by_processes = url is not None
            self._lock.acquire(shared=read_only and url is None, wait=url is not None)
            self.manifest = open_manifest(path, fingerprint, url)
            self._seal = None if url else Seal(path / SEAL, path / CHROMA)
            if not self.manifest.ready:
                self._create()
            self._open(progress)
            if self.shared_by_processes:
                self.lexical.release_writer()
                self._lock.release()
        except BaseException:
            self._close_all()
            raise

    # -- opening ----------------------------------------------------------------------------

    def _create(self) -> None:
        """Make both indexes; nothing was acknowledged before the manifest says ready."""
        if self.read_only:
            msg = f"The store {self.path} is not complete yet. Open it for writing first."
            raise StoreError(msg)
        try:
            for name in (CHROMA, LEXICAL):
                shutil.rmtree(self.path / name, ignore_errors=True)
            self._journal.clear()
            (self.path / SEAL).unlink(missing_ok=True)
            self.vectors = open_vectors(
                self.path, self.manifest, self._url, self._lock, create=True
            )
            self.seal_vectors()
            self.lexical = LexicalIndex(self.path / LEXICAL)
            self.manifest = self.manifest.write(self.path, ready=True)
        except OSError as error:
            msg = f"The store {self.path} cannot be written: {error}. Check permissions and space."
            raise StoreError(msg) from error

    def _open(self, progress: Progress | None) -> None:
        if self._vectors is None:
            self._open_vectors(progress)
        if self._lexical is None:
            damaged = lexical_damage(self.path)
            if damaged:
                self._refuse_if_read_only(f"its lexical index is damaged ({damaged})")
                shutil.rmtree(self.path / LEXICAL, ignore_errors=True)
            self.lexical = LexicalIndex(self.path / LEXICAL, read_only=self.read_only)
        self.recover(progress)
        if self.lexical.count() != self.vectors.count():
            self._refuse_if_read_only("its two indexes do not hold the same number of passages")
            self.reconcile_all(progress)
        if not self.read_only:
            self.seal_vectors()  # Chroma may have saved what it had in its log

    def _open_vectors(self, progress: Progress | None) -> None:
        """Open Chroma, whose files are compared with their seal before it may load them."""
        rebuild = self._set_damaged_vectors_aside()
        self.vectors = open_vectors(self.path, self.manifest, self._url, self._lock)
        if rebuild and self._embed:
            fingerprint = self._embed_fingerprint or self.manifest.fingerprint
            self.rebuilt = rebuild_vectors(self, self._embed, fingerprint, progress)
        if self._seal and not self.read_only:
            attempt = self.manifest.reembedding
            self.vectors.drop_others([attempt["collection"]] if attempt else [])
            self._seal.discard()

    def _set_damaged_vectors_aside(self) -> bool:
        """Get damaged vector files out of Chroma's way; whether they were this store's own.

        Otherwise they are the half-made ones of a change of embedder, which then starts again.
        """
        damage = self._seal.damage() if self._seal else None
        if self._seal is None or damage is None:
            return False
        own = self._seal.directory_of(self.manifest.collection)
        hurt = own is None or own in damage.directories
        if hurt:
            if self._embed is None:
                msg = (
                    f"The vectors in {self.path} are damaged ({damage.problem}). Texts and "
                    "metadata are kept apart: make the vectors anew: "
                    f"tars-rag store reembed {self.path} --model MODEL"
                )
                raise StoreError(msg)
            self._refuse_if_read_only(f"its vectors are damaged ({damage.problem})")
            _log.warning(
                "%s: vectors are damaged (%s): making them anew", self.path, damage.problem
            )
        if not self.read_only:
            self._seal.set_aside(damage.directories)
            self.update_manifest(reembedding=None)
        return hurt

    def _refuse_if_read_only(self, problem: str) -> None:
        if self.read_only:
            msg = (
                f"The store {self.path} must be repaired first: {problem}. Open it once for "
                f"writing, or run: tars-rag store check {self.path} --repair"
            )
            raise StoreError(msg)

    # -- what reads and writes stand on -----------------------------------------------------

    @property
    def vectors(self) -> VectorIndex:
        """Texts, metadata and vectors."""
        if self._vectors is None:
            msg = f"The store {self.path} is closed. Open it again."
            raise StoreError(msg)
        return self._vectors

    @vectors.setter
    def vectors(self, index: VectorIndex) -> None:
        self._vectors = index

    @property
    def lexical(self) -> LexicalIndex:
        """BM25."""
        if self._lexical is None:
            msg = f"The store {self.path} is closed. Open it again."
            raise StoreError(msg)
        return self._lexical

    @lexical.setter
    def lexical(self, index: LexicalIndex) -> None:
        self._lexical = index

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Hold while reading: both indexes are of one state, whatever is being written."""
        self._check_usable()
        while True:
            with self._threads.read(), self._between_processes(shared=True):
                self._check_usable()
                if self.vectors.alive and not self._journal.path.exists():
                    yield
                    return
            # A write failed half-way, here or in another process, or Chroma's process died: mend
            # before anyone looks.
            with self._threads.write(), self._between_processes(shared=self.read_only):
                self._check_usable()
                self.recover(None)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold while writing; what an earlier write left undone is repaired first."""
        self._check_usable()
        self.check_writable()
        with self._threads.write(), self._between_processes(shared=False):
            self._check_usable()
            self.recover(None)
            yield

    def check_writable(self) -> None:
        """Raise a `StoreError` if the store was opened read-only."""
        if self.read_only:
            msg = f"The store {self.path} is open read-only. Open it without read_only=True."
            raise StoreError(msg)

    @contextlib.contextmanager
    def _between_processes(self, *, shared: bool) -> Iterator[None]:
        if not self.shared_by_processes:
            yield
            return
        lock = StoreLock(self.path / LOCK, read_only=self.read_only)
        try:
            lock.acquire(shared=shared, wait=True)
            self._follow_manifest()
            stamp = self.lexical.stamp()
            if stamp != self._lexical_stamp:
                self.lexical.refresh()
                self._lexical_stamp = stamp
            yield
        finally:
            if not shared and self._lexical is not None:
                self._lexical.release_writer()
            lock.close()

    def _follow_manifest(self) -> None:
        """Another process may have changed the embedder, or stored the first passage."""
        manifest = open_manifest(self.path, None, self._url)
        if manifest.collection != self.manifest.collection:
            msg = (
                f"The store {self.path} was embedded anew by another process, with the embedder "
                f"{manifest.fingerprint!r}. Open it again with that one."
            )
            raise FingerprintError(msg)
        self.manifest = manifest

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

    # -- writing ----------------------------------------------------------------------------

    def upsert(self, passages: Sequence[Passage], vectors: NDArray[np.float32]) -> None:
        """Write one batch to both indexes; durable in both on return."""
        with self.writing():
            if self.manifest.dimension is None:
                self.manifest = self.manifest.write(self.path, dimension=int(vectors.shape[1]))
            ids = [passage.id for passage in passages]
            made = records(passages, vectors)
            replaced = set(self.vectors.matching(ids, None))
            redo = [record for key, record in zip(ids, made, strict=True) if key in replaced]
            with self._intent(ids, redo):
                self.vectors.write(made, replaced)
                self.lexical.apply((), passages)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete one batch from both indexes; durable in both on return. Call within `writing`."""
        with self._intent(ids):
            self.vectors.delete(ids)
            self.lexical.apply(ids, ())

    @contextlib.contextmanager
    def _intent(self, ids: Sequence[str], redo: Sequence[Record] = ()) -> Iterator[None]:
        """The journal names the ids while the block runs, and after it if it fails."""
        try:
            self._journal.begin(ids, redo)
            yield
            self.seal_vectors()
            self._journal.clear()
        except OSError as error:
            msg = f"Writing to the store {self.path} failed: {error}. Check space and permissions."
            raise StoreError(msg) from error

    def seal_vectors(self) -> None:
        """Make what Chroma wrote to its vector files durable, and checkable at the next open."""
        if self._seal is not None:
            try:
                self._seal.renew()
            except OSError as error:
                self.vectors.abandon()  # what it wrote is checked again before it is loaded
                msg = (
                    f"The vectors of the store {self.path} could not be saved: {error}. "
                    "Check space and permissions."
                )
                raise StoreError(msg) from error

    def update_manifest(self, **changes: Any) -> None:
        """Change store.json, atomically and durably."""
        self.manifest = self.manifest.write(self.path, **changes)

    def switch(self, vectors: VectorIndex, fingerprint: str) -> None:
        """Make another collection the store's own. The old one stays in Chroma."""
        self.update_manifest(
            fingerprint=fingerprint,
            collection=vectors.name,
            dimension=vectors.dimension(),
            reembedding=None,
        )
        self.vectors = vectors

    # -- repair -----------------------------------------------------------------------------

    def recover(self, progress: Progress | None) -> None:
        """Finish what a crash or a failed write left: redo it, and let the lexical index follow."""
        if not self.vectors.alive:
            self.vectors.close()
            self._open_vectors(progress)
        intent = self._journal.pending()
        if intent is None:
            return
        self._refuse_if_read_only("a write was interrupted")
        if intent.ids is None:
            self.reconcile_all(progress)
        else:
            self.vectors.write(intent.redo, [decode(record["id"]) for record in intent.redo])
            reconcile(self.vectors, self.lexical, intent.ids)
        self.seal_vectors()
        self._journal.clear()

    def reconcile_all(self, progress: Progress | None) -> int:
        """Compare every passage and mend the lexical index; the number of ids mended."""
        wrong = list(differences(self.vectors, self.lexical, progress))
        reconcile(self.vectors, self.lexical, wrong)
        return len(wrong)

    # -- closing ----------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for running operations, then release everything. May be called twice."""
        if self._closed or os.getpid() != self._pid:
            return
        with self._threads.write():
            self._close_all()

    def _close_all(self) -> None:
        self._closed = True
        with contextlib.ExitStack() as stack:  # every part is closed, whatever the others raise
            stack.callback(self._lock.close)
            if self._vectors is not None:
                stack.callback(self._vectors.close)
            if self._lexical is not None:
                stack.callback(self._lexical.close)
            self._vectors = self._lexical = None
