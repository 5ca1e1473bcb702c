"""The best passages for the terms of a query.

Terms that many passages hold take tantivy nearly all of its time and say next to nothing. So they
are left to the end (Turtle and Flood, "Query Evaluation: Strategies and Optimizations", 1995). Of
passages that hold a rare term everything counts, and the k-th of them gives a floor. If the other
terms cannot come to it together, those were the best; if they can, such of them as it takes are
looked for too. The passages and scores are those of a search for all terms at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

from tars_rag.retrieval.indexes.words.bm25 import K1, idf
from tars_rag.retrieval.indexes.words.snapshot import Snapshot, WeightedTerm
from tars_rag.retrieval.passage import Ranking, ranked

_TIES, _MAX_TIES = 100, 4096
_QUICK = 1 << 14  # places of terms in passages that are gone through in no time
_RARE = 32  # terms in less than this part of the passages are rare
_PART = 8  # to look a term up in a passage takes as long as to pass so many places
_MOST_TERMS = 12  # of more there is hardly a part that does not come to the floor
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
    fetch = limit + _TIES
    query, hits = search.narrowed(fetch) or search.plain(fetch)
    while True:
        last = hits[limit - 1][0] if len(hits) >= limit else 0.0
        if len(hits) < fetch or hits[-1][0] < last or fetch >= limit + _MAX_TIES:
            return ranked(snapshot.read(hit for hit in hits if hit[0] >= last))[:limit]
        fetch *= 4
        hits = snapshot.hits(query, fetch)


_Answer: TypeAlias = tuple[Any, list[tuple[float, Any]]]
"""A query, and the best hits of it."""


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

    def plain(self, fetch: int) -> _Answer:
        """A query for all terms at once, and the best `fetch` of it."""
        query = self.any_of(self.terms)
        return query, self.snapshot.hits(query, fetch)

    def narrowed(self, fetch: int) -> _Answer | None:
        """A query with the same best passages that looks at fewer; None: it would take longer."""
        terms, snapshot = self.terms, self.snapshot
        places = list(accumulate(term.held for term in terms))  # of the first, the first two, ...
        if places[-1] < _QUICK or len(terms) > _MOST_TERMS:
            return None
        needed = self._rare(places)
        while needed < len(terms):
            looked_up = places[needed - 1] * (len(terms) - needed)
            if places[needed - 1] < self.limit or looked_up > places[-1] / _PART:
                return None
            needing = self.any_of(terms[:needed])
            query = snapshot.also(needing, snapshot.clauses(terms[needed:]))
            hits = snapshot.hits(query, fetch)
            floor = hits[self.limit - 1][0] if len(hits) >= self.limit else 0.0
            enough = self._needed(needed, floor)
            if enough == needed:
                return query, hits
            needed = enough
        return None

    def _rare(self, places: Sequence[int]) -> int:
        """How many terms few passages hold; more, where those are hardly as many as are wanted."""
        few = self.snapshot.documents / _RARE
        return sum(
            term.held < few or before < 2 * self.limit
            for term, before in zip(self.terms, [0, *places], strict=False)
        )

    def _needed(self, fewest: int, floor: float) -> int:
        """How many terms there must be one of: the others do not come to the floor together."""
        for most in (self._most_possible, self._most):  # what is known, what is to be looked up
            needed, rest = len(self.terms), 0.0
            while needed > fewest and (rest := rest + most(self.terms[needed - 1])) < floor:
                needed -= 1
            if needed == fewest:
                break
        return needed

    def _most_possible(self, term: WeightedTerm) -> float:
        """What a term adds to a score at most, in any passage."""
        return term.weight * idf(self.snapshot.documents, term.held) * (K1 + 1) * _UP

    def _most(self, term: WeightedTerm) -> float:
        """What a term adds to a score at most, in those that there are."""
        return term.weight * self.snapshot.most(term.term) * _UP
