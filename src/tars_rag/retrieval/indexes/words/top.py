"""The best passages for the terms of a query.

Terms that many passages hold take tantivy nearly all of its time and say next to nothing. So they
are left to the end (Turtle and Flood, "Query Evaluation: Strategies and Optimizations", 1995). The
rare terms alone give a floor: the score of the k-th of their hits, which is at most that of the
k-th of all. Terms that cannot come to the floor together make no passage one of the best; only
passages that hold one of the others are looked at, and of those everything counts. The passages
and scores are those of a search for all terms at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tars_rag.retrieval.indexes.words.bm25 import K1, idf
from tars_rag.retrieval.indexes.words.snapshot import MOST_NESTED, Snapshot, WeightedTerm
from tars_rag.retrieval.passage import Ranking, ranked

_TIES, _MAX_TIES = 100, 4096
_QUICK = 1 << 14  # places of terms in passages that are gone through in no time
_RARE = 32  # terms in less than this part of the passages are rare
_PART = 4  # so much of all passages is as well searched for all terms at once
_UP = 1 + 1e-5  # what single precision may take from a score


def top(
    snapshot: Snapshot,
    terms: Sequence[WeightedTerm],
    limit: int,
    without: Collection[str] = (),
) -> Ranking:
    """The best `limit` of the passages that hold one of the terms, equal ones by id.

    Args:
        snapshot: What is searched.
        terms: What is searched for.
        limit: How many. All that tie with the last one are read, to be cut by id.
        without: Ids that are left out.
    """
    limit = min(limit, snapshot.count)
    if not terms or limit < 1:
        return []
    gone = snapshot.with_ids(list(without)) if without else None
    search = _Search(snapshot, sorted(terms, key=lambda term: term.held), limit, gone)
    query = search.narrowed() or search.any_of(terms)
    fetch = limit + _TIES
    while True:
        hits = snapshot.hits(query, fetch)
        last = hits[limit - 1][0] if len(hits) >= limit else 0.0
        if len(hits) < fetch or hits[-1][0] < last or fetch >= limit + _MAX_TIES:
            return ranked(snapshot.read(hit for hit in hits if hit[0] >= last))[:limit]
        fetch *= 4


@dataclass(frozen=True, slots=True)
class _Search:
    """What is searched for.

    Attributes:
        snapshot: What is searched.
        terms: The rarest first.
        limit: How many passages.
        gone: A query for those that are left out.
    """

    snapshot: Snapshot
    terms: Sequence[WeightedTerm]
    limit: int
    gone: Any

    def any_of(self, terms: Sequence[WeightedTerm]) -> Any:
        """A query for what holds one of some terms."""
        query = self.snapshot.any_of(self.snapshot.clauses(terms))
        return query if self.gone is None else self.snapshot.without(query, self.gone)

    def narrowed(self) -> Any:
        """A query with the same best passages that looks at fewer; None: there is none."""
        terms, snapshot = self.terms, self.snapshot
        places = list(accumulate(term.held for term in terms))  # of the first, the first two, ...
        if places[-1] < _QUICK:
            return None
        most = snapshot.documents / _PART
        rare = self._rare(places)
        if rare == len(terms) or not self.limit <= places[rare - 1] <= most:
            return None
        needed = self._needed(rare)
        common = terms[needed:]
        if places[needed - 1] > most or not 0 < len(common) <= MOST_NESTED:
            return None
        return snapshot.also(self.any_of(terms[:needed]), snapshot.clauses(common))

    def _rare(self, places: Sequence[int]) -> int:
        """How many terms few passages hold; more, where those are hardly as many as are wanted."""
        few = self.snapshot.documents / _RARE
        return sum(
            term.held < few or before < 2 * self.limit
            for term, before in zip(self.terms, [0, *places], strict=False)
        )

    def _needed(self, rare: int) -> int:
        """How many terms there must be one of: the others do not come to the floor together."""
        hits = self.snapshot.hits(self.any_of(self.terms[:rare]), self.limit)
        floor = hits[-1][0] if len(hits) == self.limit else 0.0
        needed, rest = len(self.terms), 0.0
        while needed > rare:
            rest += self._most_of(self.terms[needed - 1])
            if rest >= floor:
                break
            needed -= 1
        return needed

    def _most_of(self, term: WeightedTerm) -> float:
        """What a term adds to a score at most."""
        return term.weight * idf(self.snapshot.documents, term.held) * (K1 + 1) * _UP
