"""BM25 of one version of a store: LanceDB finds the candidates, the formula scores them.

LanceDB's own scores are of the statistics of its index, and so change when that is brought up to
date. What is returned is the formula of all other stores (`words.bm25`), with how many passages
there are, hold a term, and how long they are on average, as this version has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from tars_rag.retrieval.indexes.words.analysers import analyser
from tars_rag.retrieval.indexes.words.asked import MOST_TERMS, counting, reach
from tars_rag.retrieval.indexes.words.bm25 import Term, Terms, score
from tars_rag.retrieval.lance.library import library
from tars_rag.retrieval.lance.moment import CANDIDATE, Allowed, Moment, ids_of
from tars_rag.retrieval.lance.table import word
from tars_rag.retrieval.passage import Passage, Ranking, ranked

_MORE: Final = 100  # candidates beyond what is asked for: LanceDB's scores differ a little
_FEW: Final = 512  # passages that are all scored, where a filter leaves no more
_ALIKE: Final = 1.1  # by which LanceDB's scores and the formula's may be in another order
_MOST_TIES: Final = 4096
_ONE_PASS: Final = 2000  # passages, of which few are in an index yet
_COLUMNS: Final = 64
_THREADS: Final = 8


class MomentWords:
    """The words of one version, asked by any number of threads.

    Args:
        moment: The version.
        address: Of the store.
        language: Whose words they are.
    """

    def __init__(self, moment: Moment, address: str, language: str) -> None:
        self._moment = moment
        self._analyser = analyser(language)
        self._held: dict[str, int] = {}
        self._asked: tuple[str, list[Term]] = ("", [])
        self.path = Path(address)

    def search(self, query: str, limit: int) -> Ranking:
        """The best passages by BM25; equal scores in the order of the ids."""
        return self._best(query, limit, None)

    def scores(self, query: str, ids: Sequence[str]) -> dict[str, float]:
        """BM25 of some; those that share no term with the query are left out.

        Of the many that pass a filter, the best alone: as many as a search returns, and more.
        """
        if isinstance(ids, Allowed) and len(ids) > _FEW:
            return dict(self._best(query, _FEW, ids))
        terms = self.terms(query)
        return self._scored(terms, self._moment.candidates(ids)) if terms else {}

    def reach(self, query: str) -> float:
        """What BM25 could come to at most."""
        return reach(self.terms(query), self._moment.count())

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """The passages themselves."""
        return self._moment.passages(ids)

    @cached_property
    def mean(self) -> float:
        """How many terms a passage has on average; one column of small numbers is read for it."""
        count = self._moment.count()
        if not count:
            return 0.0
        lengths = self._moment.read(["length"], None)["length"].to_numpy()
        return float(np.sum(lengths, dtype=np.int64)) / count

    def terms(self, query: str) -> list[Term]:
        """The terms of a query, what each weighs, and how many passages hold it."""
        text, known = self._asked
        if text == query:
            return known  # a search asks for the same terms up to three times
        terms = self._analyser.query_terms(query)
        held = self._holding(list(islice(terms, MOST_TERMS)))
        found = counting(terms, held, held)
        self._asked = query, found
        return found

    def _holding(self, terms: Sequence[str]) -> dict[str, int]:
        """How many passages hold each of the terms."""
        unknown = [term for term in terms if term not in self._held]
        if not self._moment.count():
            return dict.fromkeys(terms, 0)
        if self._moment.count() <= _ONE_PASS:
            for start in range(0, len(unknown), _COLUMNS):
                self._held.update(self._counts(unknown[start : start + _COLUMNS]))
        elif unknown:
            with ThreadPoolExecutor(min(len(unknown), _THREADS)) as pool:
                self._held.update(zip(unknown, pool.map(self._count, unknown), strict=True))
        return {term: self._held[term] for term in terms}

    def _counts(self, terms: Sequence[str]) -> dict[str, int]:
        """The same in one pass over the table, which is short."""
        columns = {f"t{n}": _holds(term) for n, term in enumerate(terms)}
        found = self._moment.table.search().select(columns).to_arrow()
        return {
            term: int(np.sum(found[f"t{n}"].to_numpy(), dtype=np.int64))
            for n, term in enumerate(terms)
        }

    def _count(self, term: str) -> int:
        return int(self._moment.table.count_rows(_holds(term)))

    def _best(self, query: str, limit: int, allowed: Allowed | None) -> Ranking:
        terms = [term for term in self.terms(query) if term.held]
        limit = min(limit, self._moment.count())
        if not terms or limit < 1:
            return []
        passes = None if allowed is None or allowed.exact else set(allowed)
        fetch = 2 * limit + _MORE
        while True:
            found = self._candidates(terms, fetch, allowed)
            seen = self._moment.seen(found)
            rough = dict(zip(ids_of(found), found["_score"].to_pylist(), strict=True))
            if passes is not None:
                seen = {key: one for key, one in seen.items() if key in passes}
            best = ranked(self._scored(terms, seen))[:limit]
            if len(found) < fetch:
                return best
            lowest = min(rough.values())
            clear = len(best) == limit and min(rough[key] for key, _ in best) > lowest * _ALIKE
            if clear or fetch > limit + _MOST_TIES:
                return best
            fetch *= 4

    def _candidates(self, terms: Sequence[Term], fetch: int, allowed: Allowed | None) -> Any:
        asked = library().query
        query: Any
        if all(term.weight == 1 for term in terms):
            query = asked.MatchQuery(" ".join(term.term for term in terms), "terms")
        else:
            parts = [asked.MatchQuery(one.term, "terms", boost=one.weight) for one in terms]
            query = asked.BooleanQuery([(asked.Occur.SHOULD, part) for part in parts])
        found = self._moment.table.search(query, query_type="fts")
        if allowed is not None:
            found = found.where(allowed.sql, prefilter=True)
        return found.select([*CANDIDATE, "_score"]).limit(fetch).to_arrow()

    def _scored(
        self, terms: Sequence[Term], found: Mapping[str, tuple[Any, str]]
    ) -> dict[str, float]:
        documents, mean = self._moment.count(), self.mean
        scores = {}
        for key, (_, text) in found.items():
            counts, length = Terms.of(text.split())
            scores[key] = score(terms, documents, counts, length, mean)
        return {key: bm25 for key, bm25 in scores.items() if bm25 > 0}


def _holds(term: str) -> str:
    return f"array_has(words, {word(term)})"
