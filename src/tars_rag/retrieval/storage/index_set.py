"""The indexes of a store, with the store.json, journal and seal that belong to them.

What holds between them: Chroma is the truth, and what searches look into (the exact index for
vectors, the lexical one for words) follows it; the journal names what is being written from before
the first is touched until all have it. The exact index is written last, and says with each commit
which moments of the others it belongs to (`state`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.chroma.files import Seal
from tars_rag.retrieval.indexes.chroma.rows import Record, records
from tars_rag.retrieval.indexes.chroma.vectors import VectorIndex
from tars_rag.retrieval.indexes.exact.index import ExactIndex
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.meanwhile import meanwhile
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage.journal import Journal
from tars_rag.retrieval.storage.layout import CHROMA, EXACT, JOURNAL, LEXICAL, SEAL
from tars_rag.retrieval.storage.lock import StoreLock, closed
from tars_rag.retrieval.storage.moments import moments
from tars_rag.retrieval.storage.opening import open_vectors
from tars_rag.retrieval.storage.state import (
    Mark,
    State,
    read_session,
    read_state,
    write_session,
)
from tars_rag.retrieval.storage.store_json import StoreJson
from tars_rag.retrieval.storage.texts import FullDisk, ReadableTexts, Texts, WordTexts

LEAST_WASTE = 4096
"""Deleted vectors that are not worth the work of getting rid of them."""


class IndexSet:
    """The indexes of a store's directory, written as one.

    It takes no locks: whoever calls it sees to it that nobody else writes, or reads meanwhile
    (`StoreDirectory.reading` and `.writing`).

    Args:
        path: The store's directory.
        store_json: What it says of itself.
        lock: The store's; Chroma's process holds it too.
        url: Of the Chroma server; None: embedded.
        read_only: Nothing may be written.
    """

    def __init__(
        self,
        path: Path,
        store_json: StoreJson,
        lock: StoreLock,
        url: str | None,
        *,
        read_only: bool,
    ) -> None:
        self.path = path
        self.store_json = store_json
        self.read_only = read_only
        self.journal = Journal(path / JOURNAL)
        self.seal = None if url else Seal(path / SEAL, path / CHROMA)
        self.disk = FullDisk(path, lock.check_in_place)
        self._lock = lock
        self._seen: object = None
        self._weighed: object = None
        self._begun = False
        self._url = url
        self._vectors: VectorIndex | None = None
        self._exact: ExactIndex | None = None
        self._lexical: LexicalIndex | None = None

    # -- parts ------------------------------------------------------------------------------

    @property
    def vectors(self) -> VectorIndex:
        """Chroma: texts, metadata and vectors."""
        if self._vectors is None:
            raise closed(self.path)
        return self._vectors

    @property
    def texts(self) -> Texts:
        """Who is to be asked for texts and filters by those who only read."""
        words = WordTexts(self.exact, self.lexical)
        if self.disk.waits and not self.whole:
            return words
        return ReadableTexts(self.vectors, words, self.disk)

    @property
    def exact(self) -> ExactIndex:
        """What is nearest."""
        if self._exact is None:
            raise closed(self.path)
        return self._exact

    @property
    def lexical(self) -> LexicalIndex:
        """BM25."""
        if self._lexical is None:
            raise closed(self.path)
        return self._lexical

    @property
    def whole(self) -> bool:
        """Whether the indexes may be read: Chroma is alive, and no write was cut short."""
        return self.vectors.alive and not self.journal.path.exists()

    def create(self) -> None:
        """Make the indexes; nothing was acknowledged before store.json says ready.

        Raises:
            StoreError: The directory cannot be written.
        """
        try:
            for name in (CHROMA, EXACT, LEXICAL):
                shutil.rmtree(self.path / name, ignore_errors=True)
            self.journal.clear()
            (self.path / SEAL).unlink(missing_ok=True)
            self.open_vectors(create=True)
            self.seal_vectors()
            self.open_exact()
            self.open_lexical()
            self.settle()
            self.update(ready=True)
        except OSError as error:
            raise StoreError(self._unwritable(error)) from error

    def open_vectors(self, *, create: bool = False) -> None:
        """Open Chroma, whose files must have been compared with their seal before."""
        self._vectors = open_vectors(
            self.path,
            self.store_json,
            self._url,
            self._lock,
            create=create,
            read_only=self.read_only,
        )

    def open_exact(self) -> None:
        """Open the exact index, which is made where there is none."""
        self._exact = ExactIndex(
            self.path / EXACT, self.store_json.dimension, read_only=self.read_only
        )

    def close_exact(self) -> None:
        """Let go of the exact index."""
        if self._exact is not None:
            self._exact.close()
            self._exact = None

    def renew_exact(self) -> None:
        """Begin the exact index anew: empty, and without the stamp that says what it follows."""
        self.close_exact()
        shutil.rmtree(self.path / EXACT, ignore_errors=True)
        self.open_exact()

    def open_lexical(self) -> None:
        """Open the lexical index, which is made where there is none."""
        self._lexical = LexicalIndex(
            self.path / LEXICAL, language=self.store_json.language, read_only=self.read_only
        )

    @property
    def is_open(self) -> tuple[bool, bool, bool]:
        """Whether Chroma, the exact and the lexical index are open."""
        return self._vectors is not None, self._exact is not None, self._lexical is not None

    def counts(self) -> tuple[int, int, int]:
        """How many passages Chroma, the exact and the lexical index hold."""
        return self.vectors.count(), self.exact.count(), self.lexical.count()

    def mark(self) -> Mark:
        """The moments at which Chroma and the word index were written last."""
        return moments(self.path, self.store_json, self.lexical.opstamp)

    def refresh(self) -> None:
        """See what another process wrote."""
        self.vectors.refresh()
        self.exact.refresh()
        stamp = self.lexical.stamp()
        if stamp != self._seen:
            self.lexical.refresh()
            self._seen = stamp

    def give_up(self) -> None:
        """After a write that failed: forget what is not on disk, in Chroma's process too.

        One that found no room to save its vectors may die of what it has in memory.
        """
        self.abandon()
        if self._exact is not None:
            self._exact.rollback()

    def abandon(self) -> None:
        """Let go of Chroma before `close`, so that it writes nothing any more."""
        if self._vectors is not None:
            self._vectors.abandon()

    def close(self) -> None:
        """Close all. May be called twice."""
        with contextlib.ExitStack() as stack:  # every part is closed, whatever the others raise
            for part in (self._vectors, self._exact, self._lexical):
                if part is not None:
                    stack.callback(part.close)
            self._vectors = self._exact = self._lexical = None

    # -- writing ----------------------------------------------------------------------------

    def upsert(self, passages: Sequence[Passage], vectors: NDArray[np.float32]) -> None:
        """Write one batch to every index; durable in all on return.

        Args:
            passages: Checked, no id twice.
            vectors: Checked, [n, dim].
        """
        if self.store_json.dimension is None:
            self.update(dimension=int(vectors.shape[1]))
        ids = [passage.id for passage in passages]
        made = records(passages, vectors)
        replaced = set(self.vectors.matching(ids, None))
        redo = [record for key, record in zip(ids, made, strict=True) if key in replaced]
        with self._intent(ids, redo):
            # Chroma writes in a process of its own; in whatever order they end, or do not, the
            # journal says which passages are to be compared.
            with meanwhile(lambda: self.lexical.apply((), passages)) as words:
                self.vectors.write(made, replaced)
            words.result()
            self.exact.add(ids, vectors)
            self.exact.commit(self.mark().stamp)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete one batch from every index; durable in all on return."""
        with self._intent(ids):
            self.vectors.delete(ids)
            self.lexical.apply(ids, ())
            self.exact.remove(ids)
            self.exact.commit(self.mark().stamp)

    def begin_session(self) -> None:
        """Name the session in all indexes, once, before the first write of it."""
        if self._begun:
            return
        state = read_state(self.path) or State()
        shared = self._url is not None and read_session(self.path / LEXICAL) in state.line[:1]
        if not shared:
            self._name_session(state)
        self._begun = True

    def settle(self) -> None:
        """Record that the indexes belong together, as they are, and where they lie."""
        state = self._name_session(read_state(self.path) or State())
        self._begun = True
        self.exact.commit(self.mark().stamp)
        if state.mending:
            replace(state, mending="").write(self.path)

    def _name_session(self, state: State) -> State:
        state = state.begun(self.path).write(self.path)
        if self._url is None:  # what a server holds is told by its revisions
            self.vectors.begin_session(state.line[0])
        write_session(self.path / LEXICAL, state.line[0])
        return state

    @contextlib.contextmanager
    def _intent(self, ids: Sequence[str], redo: Sequence[Record] = ()) -> Iterator[None]:
        """The journal names the ids while the block runs, and after it if it fails."""
        try:
            self.journal.begin(ids, redo, self.exact.stamp)
            self.begin_session()
            yield
            self._lock.check_in_place()
            self.seal_vectors()
            self.journal.clear()
        except BaseException as error:
            self.exact.rollback()
            if isinstance(error, OSError):
                raise StoreError(self._unwritable(error)) from error
            raise

    def seal_vectors(self) -> None:
        """Make what Chroma wrote to its vector files durable, and checkable at the next open."""
        if self.seal is not None:
            try:
                self.seal.renew()
            except OSError as error:
                self.vectors.abandon()  # what it wrote is checked again before it is loaded
                raise StoreError(self._unwritable(error)) from error

    @property
    def wasteful(self) -> bool:
        """Whether Chroma's vector files hold more that was deleted than what there is.

        That can change only when Chroma has saved them.
        """
        if self.seal is None or self.seal.state is self._weighed:
            return False
        self._weighed = self.seal.state
        living = self.vectors.count()
        return self.seal.elements(self.store_json.collection) - living > max(living, LEAST_WASTE)

    def update(self, **changes: Any) -> None:
        """Change store.json, atomically and durably."""
        self.store_json = self.store_json.write(self.path, **changes)

    def switch(self, vectors: VectorIndex, **changes: Any) -> None:
        """Make another collection the store's own, and change store.json with it.

        The old collection stays in Chroma. The exact index must follow, and then `settle`.
        """
        self.update(
            collection=vectors.name, dimension=vectors.dimension(), reembedding=None, **changes
        )
        self._vectors = vectors

    def _unwritable(self, error: OSError) -> str:
        return (
            f"Writing to the store {self.path} failed: {error}. Nothing that was acknowledged is "
            "lost. Check space and permissions (df, ls -ld), then repeat what failed."
        )
