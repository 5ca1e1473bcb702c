"""BM25 over the word index and a tail, as if they were one."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from tars_rag.retrieval.indexes.words.bm25 import Terms, score
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.passage import Passage, Ranking, ranked
from tars_rag.retrieval.storage.tail import Tail, TailWords

_ALIKE = 2e-3  # by how much a mean length may differ and every score still be told right
_SINGLE = 2e-6  # what single precision, in which tantivy reckons, cannot tell apart
_FEW = 512  # passages that are reckoned anew by the formula, where a filter leaves more


class TailedWords:
    """The word index and a tail.

    tantivy knows the index alone. What a term weighs is put right by a boost. The average length is
    in every passage's score in another way: where the tail changes it, the best passages are read
    and reckoned anew, and as many are fetched as can be among the best then.

    Args:
        lexical: The index.
        tail: What replaces passages of it.
        words: The tail's terms.
    """

    def __init__(self, lexical: LexicalIndex, tail: Tail, words: TailWords) -> None:
        self._lexical = lexical
        self._tail = tail
        self._words = words
        self._documents = lexical.documents + words.documents
        own, index = lexical.mean_length(), lexical.documents
        self._mean = (own * index + words.tokens) / max(self._documents, 1)
        self._grown = self._mean / own if own and self._mean else 1.0
        self._settled = abs(self._grown - 1) <= _ALIKE
        if self._settled and own:
            self._mean = own

    @property
    def path(self) -> Path:
        """Of the index."""
        return self._lexical.path

    def search(self, query: str, limit: int) -> Ranking:
        """As `LexicalIndex.search`."""
        if limit < 1:
            return []
        own = self._scored(query, self._words.terms)
        if self._settled:
            found = self._lexical.search(query, limit, self._words)
            return ranked(found + _alike(own, [score for _, score in found]))[:limit]
        fetch = limit
        while True:
            rough = self._lexical.search(query, fetch, self._words)
            found = ranked(own | self._anew(query, [key for key, _ in rough]))[:limit]
            if len(rough) < fetch:
                return found
            # Another mean length changes a score by this factor at most.
            unseen = rough[-1][1] * max(self._grown, 1.0) * (1 + _SINGLE)
            if len(found) == limit and found[-1][1] > unseen:
                return found
            fetch *= 2

    def scores(self, query: str, ids: Sequence[str]) -> dict[str, float]:
        """As `LexicalIndex.scores`."""
        stored, held = self._tail.stored, self._tail.held
        own = self._scored(query, {key: self._words.terms[key] for key in ids if key in stored})
        rest = [key for key in ids if key not in held]
        found = self._lexical.scores(query, rest, self._words)
        if self._settled:
            return found | dict(_alike(own, list(found.values())))
        best = [key for key, _ in ranked(found)[:_FEW]]
        return found | self._anew(query, best) | own

    def reach(self, query: str) -> float:
        """As `LexicalIndex.reach`."""
        return self._lexical.reach(query, self._words)

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """As `LexicalIndex.passages`."""
        stored, held = self._tail.stored, self._tail.held
        found = self._lexical.passages([key for key in ids if key not in held])
        return found | {key: stored[key].passage for key in ids if key in stored}

    def _scored(self, query: str, terms: Mapping[str, Terms]) -> dict[str, float]:
        """BM25 by the formula; what shares no term with the query is left out."""
        asked = self._lexical.terms(query, self._words)
        scores = {
            key: score(asked, self._documents, counts, length, self._mean)
            for key, (counts, length) in terms.items()
        }
        return {key: found for key, found in scores.items() if found > 0}

    def _anew(self, query: str, ids: Collection[str]) -> dict[str, float]:
        """The same for passages of the index."""
        return self._scored(query, self._lexical.counted(list(ids)))


def _alike(own: Mapping[str, float], others: Iterable[float]) -> Ranking:
    """The scores, where they are what tantivy rounded a little differently as tantivy has them."""
    known = sorted(others)
    found = []
    for key, exact in own.items():
        place = bisect.bisect_left(known, exact * (1 - _SINGLE))
        near = place < len(known) and known[place] <= exact * (1 + _SINGLE)
        found.append((key, known[place] if near else exact))
    return found
