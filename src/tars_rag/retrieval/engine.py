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
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import ConfigError, FingerprintError, StoreError
from tars_rag.retrieval import segments
from tars_rag.retrieval.journal import Journal
from tars_rag.retrieval.lexical import LexicalIndex
from tars_rag.retrieval.lock import ReadWriteLock, StoreLock
from tars_rag.retrieval.manifest import NAME as MANIFEST
from tars_rag.retrieval.manifest import StoreManifest, read_manifest
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.rebuild import Embed, Progress, rebuild_vectors
from tars_rag.retrieval.seal import NAME as SEAL
from tars_rag.retrieval.seal import Seal
from tars_rag.retrieval.vectors import VectorIndex

_CHROMA, _LEXICAL, _JOURNAL, _LOCK = "chroma", "lexical", "journal", "lock"
_OURS = {_CHROMA, _LEXICAL, _JOURNAL, _LOCK, SEAL, MANIFEST, SEAL + ".tmp", MANIFEST + ".tmp"}
_REPAIR_BATCH = 1000
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
        self._journal = Journal(path / _JOURNAL)
        self._seal = None if chroma_url else Seal(path / SEAL, path / _CHROMA)
        self._prepare_directory()
        self._lock = StoreLock(path / _LOCK, read_only=read_only)
        try:
            # With a server the lock is held for each operation, otherwise until close().
            self.shared_by_processes = chroma_url is not None
            self._lock.acquire(shared=read_only and chroma_url is None, wait=chroma_url is not None)
            self.manifest = self._manifest(fingerprint, chroma_url)
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

    def _prepare_directory(self) -> None:
        try:
            if not self.read_only:
                self.path.mkdir(parents=True, exist_ok=True)
            present = {entry.name for entry in self.path.iterdir()}
        except OSError as error:
            msg = f"The store {self.path} cannot be opened: {error}. Check path and permissions."
            raise StoreError(msg) from error
        if MANIFEST in present:
            return
        if self.read_only:
            msg = f"{self.path} is not a store: it has no {MANIFEST}. Make one: tars-rag index"
            raise StoreError(msg)
        if present - {_LOCK, MANIFEST + ".tmp"}:
            what = "has lost its " + MANIFEST if present <= _OURS else "is not empty and no store"
            msg = (
                f"{self.path} {what} (it holds {', '.join(sorted(present)[:5])}). "
                "Give another directory, or restore the missing file from a backup."
            )
            raise StoreError(msg)

    def _manifest(self, fingerprint: str | None, chroma_url: str | None) -> StoreManifest:
        manifest = read_manifest(self.path)
        if manifest is None:
            if fingerprint is None:
                msg = f"{self.path} is not a store: it has no {MANIFEST}. Make one: tars-rag index"
                raise StoreError(msg)
            collection = f"tars-{uuid.uuid4().hex}" if chroma_url else "passages"
            new = StoreManifest.new(fingerprint, collection, chroma_url)
            try:
                return new.write(self.path)
            except OSError as error:
                msg = f"The store {self.path} cannot be written: {error}. Check permissions, space."
                raise StoreError(msg) from error
        if fingerprint is not None and manifest.fingerprint != fingerprint:
            msg = (
                f"The store {self.path} was made with the embedder {manifest.fingerprint!r}, the "
                f"one given is {fingerprint!r}; their vectors do not mix. Use the first, or embed "
                f"the store anew: tars-rag store reembed {self.path} --model MODEL"
            )
            raise FingerprintError(msg)
        if (manifest.chroma_url is None) != (chroma_url is None):
            its = manifest.chroma_url or "embedded in its directory"
            msg = (
                f"The store {self.path} has its Chroma at: {its}; chroma_url={chroma_url!r} was "
                "given. Give the same, or make another store."
            )
            raise ConfigError(msg)
        return manifest

    def _create(self) -> None:
        """Make both indexes; nothing was acknowledged before the manifest says ready."""
        if self.read_only:
            msg = f"The store {self.path} is not complete yet. Open it for writing first."
            raise StoreError(msg)
        try:
            for name in (_CHROMA, _LEXICAL):
                shutil.rmtree(self.path / name, ignore_errors=True)
            self._journal.clear()
            (self.path / SEAL).unlink(missing_ok=True)
            self._open_vectors(create=True)
            self.seal_vectors()
            self.lexical = LexicalIndex(self.path / _LEXICAL)
            self.manifest = self.manifest.write(self.path, ready=True)
        except OSError as error:
            msg = f"The store {self.path} cannot be written: {error}. Check permissions and space."
            raise StoreError(msg) from error

    def _open_vectors(self, *, create: bool = False) -> None:
        url = self.manifest.chroma_url
        path = None if url else self.path / _CHROMA
        if path and not create and not (path / "chroma.sqlite3").is_file():
            msg = (
                f"The store {self.path} has lost its texts and vectors: {path}/chroma.sqlite3 is "
                "missing. Restore the directory from a backup, or index the sources again."
            )
            raise StoreError(msg)
        try:
            self.vectors = VectorIndex(path, self.manifest.collection, url=url, create=create)
        except StoreError as error:
            if url:
                raise
            msg = (
                f"The texts and vectors of the store {self.path} cannot be opened: {error}. If "
                "the disk is full or read-only, mend that; otherwise the database is damaged: "
                "restore the directory from a backup, or index the sources again."
            )
            raise StoreError(msg) from error

    def _open(self, progress: Progress | None) -> None:
        if self._vectors is None:
            rebuild = self._vectors_to_rebuild()
            self._open_vectors()
            if rebuild and self._embed and self._seal:
                fingerprint = self._embed_fingerprint or self.manifest.fingerprint
                self.rebuilt = rebuild_vectors(self, self._embed, fingerprint, progress)
                self._seal.discard()
        if self._lexical is None:
            self._open_lexical(progress)
        self.recover(progress)
        if self.lexical.count() != self.vectors.count():
            self._refuse_if_read_only("its two indexes do not hold the same number of passages")
            self.reconcile_all(progress)

    def _vectors_to_rebuild(self) -> bool:
        """Whether Chroma's vector files are damaged; they are then out of its way."""
        problem = self._seal.problem() if self._seal else None
        if self._seal is None or problem is None:
            return False
        if self._embed is None:
            msg = (
                f"The vectors in {self.path} are damaged ({problem}). Texts and metadata are kept "
                f"apart: make the vectors anew: tars-rag store reembed {self.path} --model MODEL"
            )
            raise StoreError(msg)
        self._refuse_if_read_only(f"its vectors are damaged ({problem})")
        _log.warning("%s: vectors are damaged (%s); embedding all texts anew", self.path, problem)
        self._seal.set_aside()
        return True

    def _open_lexical(self, progress: Progress | None) -> None:
        path = self.path / _LEXICAL
        problem = segments.damage(path)
        if problem is None:
            try:
                self.lexical = LexicalIndex(path, read_only=self.read_only)
            except StoreError as error:
                problem = str(error)
        if problem is not None:
            self._refuse_if_read_only(f"its lexical index is damaged ({problem})")
            shutil.rmtree(path, ignore_errors=True)
            self.lexical = LexicalIndex(path)
            self.reconcile_all(progress)

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
                if not self._journal.path.exists():
                    yield
                    return
            # A write failed half-way, here or in another process: mend before anyone looks.
            with self.writing():
                pass

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold while writing; what an earlier write left undone is repaired first."""
        self._check_usable()
        self._refuse_if_read_only_write()
        with self._threads.write(), self._between_processes(shared=False):
            self._check_usable()
            self.recover(None)
            yield

    def _refuse_if_read_only_write(self) -> None:
        if self.read_only:
            msg = f"The store {self.path} is open read-only. Open it without read_only=True."
            raise StoreError(msg)

    @contextlib.contextmanager
    def _between_processes(self, *, shared: bool) -> Iterator[None]:
        if not self.shared_by_processes:
            yield
            return
        lock = StoreLock(self.path / _LOCK, read_only=self.read_only)
        try:
            lock.acquire(shared=shared, wait=True)
            stamp = self.lexical.stamp()
            if stamp != self._lexical_stamp:
                self.lexical.refresh()
                self._lexical_stamp = stamp
            yield
        finally:
            if not shared and self._lexical is not None:
                self._lexical.release_writer()
            lock.close()

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
            with self._intent([passage.id for passage in passages]):
                self.vectors.upsert(passages, vectors)
                self.lexical.apply((), ((passage.id, passage.text) for passage in passages))

    def delete(self, ids: Sequence[str]) -> None:
        """Delete one batch from both indexes; durable in both on return. Call within `writing`."""
        with self._intent(ids):
            self.vectors.delete(ids)
            self.lexical.apply(ids, ())

    @contextlib.contextmanager
    def _intent(self, ids: Sequence[str]) -> Iterator[None]:
        """The journal names the ids while the block runs, and after it if it fails."""
        try:
            self._journal.begin(ids)
            yield
            self.seal_vectors()
            self._journal.clear()
        except OSError as error:
            msg = f"Writing to the store {self.path} failed: {error}. Check space and permissions."
            raise StoreError(msg) from error

    def seal_vectors(self) -> None:
        """Make what Chroma wrote to its vector files durable, and checkable at the next open."""
        if self._seal is not None:
            self._seal.renew()

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
        old, self.vectors = self.vectors, vectors
        old.close()

    # -- repair -----------------------------------------------------------------------------

    def recover(self, progress: Progress | None) -> None:
        """Finish what a crash or a failed write left: make the lexical index follow Chroma."""
        intent = self._journal.pending()
        if intent is None:
            return
        self._refuse_if_read_only("a write was interrupted")
        if intent.ids is None:
            self.reconcile_all(progress)
        else:
            self._reconcile(intent.ids)
        self.seal_vectors()
        self._journal.clear()

    def _reconcile(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), _REPAIR_BATCH):
            batch = ids[start : start + _REPAIR_BATCH]
            held = self.vectors.get(batch)
            gone = [passage_id for passage_id in batch if passage_id not in held]
            self.lexical.apply(gone, ((p.id, p.text) for p in held.values()))

    def reconcile_all(self, progress: Progress | None) -> int:
        """Compare every passage and mend the lexical index; the number of ids mended."""
        wrong = list(self.differences(progress))
        self._reconcile(wrong)
        return len(wrong)

    def differences(self, progress: Progress | None = None) -> Iterable[str]:
        """Ids that one index lacks, or whose text the lexical index has otherwise."""
        digests: dict[str, list[str]] = {}
        for passage_id, digest in self.lexical.digests():
            digests.setdefault(passage_id, []).append(digest)
        done, total = 0, self.vectors.count()
        for batch in self.vectors.scan():
            for passage, _, _ in batch:
                if digests.pop(passage.id, None) != [segments.text_digest(passage.text)]:
                    yield passage.id
            done += len(batch)
            if progress is not None:
                progress(done, total)
        yield from digests

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
