"""A store as a search sees it: the indexes, and beside them what is only in the log as yet.

Each of the three answers as the index behind it would once the tail is in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.chroma.filters import Where
from tars_rag.retrieval.indexes.exact.codes import Query
from tars_rag.retrieval.indexes.exact.index import ExactIndex
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.passage import Passage, Ranking, ranked
from tars_rag.retrieval.storage.index_set import IndexSet
from tars_rag.retrieval.storage.tail import Tail, TailWords
from tars_rag.retrieval.storage.tail_words import TailedWords
from tars_rag.retrieval.storage.texts import Texts


class TailedRecords:
    """Texts, metadata and filters: Chroma and a tail.

    Args:
        chroma: The index.
        tail: What replaces passages of it.
        vectors: Of the same passages: they know how many there are.
    """

    def __init__(self, chroma: Texts, tail: Tail, vectors: TailedVectors) -> None:
        self._chroma = chroma
        self._tail = tail
        self._vectors = vectors

    def get(
        self,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        limit: int | None = None,
    ) -> dict[str, Passage]:
        """As `VectorIndex.get`."""
        held = self._tail.held
        rest = None if ids is None else [key for key in ids if key not in held]
        more = None if limit is None else limit + len(held)
        # An empty list of ids still has the filter checked.
        found = self._chroma.get(rest, where, more)
        found = {key: passage for key, passage in found.items() if key not in held}
        found |= {key: self._tail.stored[key].passage for key in self._own(ids, where)}
        return dict(list(found.items())[:limit])

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """As `VectorIndex.matching`."""
        held = self._tail.held
        rest = None if ids is None else [key for key in ids if key not in held]
        found = self._chroma.matching(rest, where)
        return [key for key in found if key not in held] + self._own(ids, where)

    def count(self) -> int:
        """Number of passages."""
        return self._vectors.count()

    def _own(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        stored = self._tail.stored
        wanted = list(stored) if ids is None else [key for key in ids if key in stored]
        passes = self._chroma.decided(where, {key: stored[key].metadata for key in stored})
        return [key for key in wanted if passes(stored[key].metadata)]


class TailedVectors:
    """What is nearest: the exact index and a tail."""

    def __init__(self, exact: ExactIndex, tail: Tail, replaced: Collection[str]) -> None:
        self._exact = exact
        self._tail = tail
        self._replaced = replaced

    def nearest(
        self, vector: NDArray[np.floating], k: int, among: Iterable[str] | None = None
    ) -> Ranking:
        """As `ExactIndex.nearest`."""
        allowed = None if among is None else list(among)
        found = self._exact.nearest(vector, k, allowed, self._replaced)
        wanted = list(self._tail.stored) if allowed is None else allowed
        return ranked(found + list(self._own(vector, wanted).items()))[: max(k, 0)]

    def scores(self, vector: NDArray[np.floating], ids: Sequence[str]) -> dict[str, float]:
        """As `ExactIndex.scores`."""
        rest = [key for key in ids if key not in self._tail.held]
        return self._exact.scores(vector, rest) | self._own(vector, ids)

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """As `ExactIndex.vectors`."""
        found = self._exact.vectors([key for key in ids if key not in self._tail.held])
        stored = self._tail.stored
        return found | {key: stored[key].vector.copy() for key in ids if key in stored}

    def count(self) -> int:
        """As `ExactIndex.count`."""
        return self._exact.count() - len(self._replaced) + len(self._tail.stored)

    def _own(self, vector: NDArray[np.floating], ids: Collection[str]) -> dict[str, float]:
        stored = self._tail.stored
        if not stored or not ids:
            return {}
        matrix = self._tail.matrix
        cosines = Query(np.asarray(vector), matrix.shape[1]).cosines(matrix).tolist()
        wanted = set(ids)
        return {key: score for key, score in zip(stored, cosines, strict=True) if key in wanted}


@dataclass(frozen=True, slots=True)
class View:
    """What is stored, at one moment.

    Attributes:
        vectors: Texts, metadata, filters.
        exact: Vectors.
        lexical: Words.
        agree: Whether they hold the same passages; not so on a full disk, after a failed write.
    """

    vectors: Texts | TailedRecords
    exact: ExactIndex | TailedVectors
    lexical: LexicalIndex | TailedWords
    agree: bool = True


def view_of(indexes: IndexSet, tail: Tail | None) -> View:
    """The indexes with what is only in the log."""
    texts, exact, lexical = indexes.texts, indexes.exact, indexes.lexical
    agree = indexes.whole or not indexes.disk.waits
    if not tail:
        return View(texts, exact, lexical, agree)
    replaced = exact.held(list(tail.held))
    words = TailWords(tail, replaced if indexes.whole else list(tail.held), lexical.terms_of)
    rows = TailedVectors(exact, tail, replaced)
    return View(TailedRecords(texts, tail, rows), rows, TailedWords(lexical, tail, words), agree)
