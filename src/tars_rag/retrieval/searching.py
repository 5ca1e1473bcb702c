"""Both sides searched and fused, from one consistent state of the indexes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError, StoreError, shown
from tars_rag.retrieval.commands import check_command
from tars_rag.retrieval.fusion import check_weight, contenders, convex
from tars_rag.retrieval.indexes.chroma.filters import Where
from tars_rag.retrieval.meanwhile import meanwhile
from tars_rag.retrieval.passage import Passage, Ranking, ScoredPassage, ranked
from tars_rag.retrieval.timing import Stopwatch
from tars_rag.settings import Strategy

DEFAULT_WEIGHT = 0.5
_LEAST_CANDIDATES = 30
_MANY = 1 << 14  # passages whose vectors take so long that the words are searched meanwhile


@dataclass(frozen=True, slots=True)
class Request:
    """A checked search."""

    query: str
    k: int
    strategy: Strategy
    where: Where | None
    weight: float
    min_score: float | None = None
    floor: float = 0.0
    every: bool = False

    @property
    def needs_vector(self) -> bool:
        """Whether the vector side is asked."""
        return self.strategy == "naive" or (self.strategy == "hybrid" and self.weight > 0)

    @property
    def needs_lexical(self) -> bool:
        """Whether the lexical side is asked."""
        return self.strategy == "lexical" or (self.strategy == "hybrid" and self.weight < 1)

    @property
    def candidates(self) -> int:
        """How many hits each side is asked for."""
        return max(_LEAST_CANDIDATES, 2 * self.k) if self.strategy == "hybrid" else self.k


def check_request(
    query: object,
    k: object,
    strategy: object,
    where: Where | None,
    weight: float | None,
    min_score: float | None = None,
    *,
    has_vector: bool,
) -> Request:
    """The request, if it is one.

    Raises:
        InvalidInputError: Something is not; the message names it and what is allowed.
    """
    if strategy not in get_args(Strategy):
        msg = f"strategy must be one of {', '.join(get_args(Strategy))}, got {shown(strategy)}."
        raise InvalidInputError(msg)
    if query is None and has_vector and strategy == "naive":
        query = ""
    if not isinstance(query, str):
        msg = f"The query must be a string, got {shown(query)}."
        raise InvalidInputError(msg)
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        msg = f"k must be a whole number of at least 1, got {shown(k)}."
        raise InvalidInputError(msg)
    share = DEFAULT_WEIGHT if weight is None else check_weight(weight)
    least = check_min_score(min_score)
    chosen = None if where == {} else where
    return Request(query, k, strategy, chosen, share, least)  # type: ignore[arg-type]


def check_min_score(min_score: object) -> float | None:
    """The least relevance of a hit, 0 to 1, if it is one; None: no limit.

    Raises:
        InvalidInputError: It is neither.
    """
    if min_score is None:
        return None
    valid = isinstance(min_score, int | float) and not isinstance(min_score, bool)
    if not valid or not 0 <= min_score <= 1:  # type: ignore[operator]
        msg = (
            f"min_score must be a number from 0 to 1, or None for no limit, got {shown(min_score)}."
        )
        raise InvalidInputError(msg)
    return float(min_score)  # type: ignore[arg-type]


def above(hits: Sequence[ScoredPassage], min_score: float | None) -> list[ScoredPassage]:
    """The hits that reach `min_score`, in their order."""
    return [hit for hit in hits if min_score is None or hit.relevance >= min_score]


class Records(Protocol):
    """What a search asks of Chroma."""

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """Which passages pass a filter."""


class Vectors(Protocol):
    """What a search asks of the exact index."""

    def nearest(
        self, vector: NDArray[np.floating], k: int, among: Iterable[str] | None = None
    ) -> Ranking:
        """The nearest passages, with their cosines."""

    def scores(self, vector: NDArray[np.floating], ids: Sequence[str]) -> dict[str, float]:
        """The cosines of some."""

    def count(self) -> int:
        """How many passages there are."""


class Words(Protocol):
    """What a search asks of the lexical index."""

    @property
    def path(self) -> Path:
        """Where it is."""

    def search(self, query: str, limit: int) -> Ranking:
        """The best passages by BM25."""

    def scores(self, query: str, ids: Sequence[str]) -> dict[str, float]:
        """BM25 of some."""

    def reach(self, query: str) -> float:
        """What BM25 could come to at most."""

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """The passages themselves."""


@dataclass(frozen=True, slots=True)
class Sides:
    """What a search looks into.

    Attributes:
        chroma: Decides which passages pass a filter, and nothing else.
        exact: Vectors.
        lexical: Words, and the passages that are returned.
        agree: Whether all hold the same passages. If not, what all hold is found.
        exhaustive: Whether each side finds the best there are, not only most of them.
    """

    chroma: Records
    exact: Vectors
    lexical: Words
    agree: bool = True
    exhaustive: bool = True


def search(
    sides: Sides, request: Request, vector: NDArray[np.float32] | None, watch: Stopwatch
) -> list[ScoredPassage]:
    """Search; the caller sees to it that nothing is written meanwhile."""
    allowed = None
    if request.where is not None or not sides.agree:
        with watch.step("filter") as notes:
            allowed = sides.chroma.matching(None, request.where)
            notes.append(f"{len(allowed)} passages pass")
    (bm25, reach), near = _searched(sides, request, vector, allowed, watch)
    cosine = dict(near)
    if request.strategy != "hybrid":
        ranking = near if vector is not None else ranked(bm25)
        hits = _scored(sides.lexical, ranking[: request.k], cosine, bm25, _shares(bm25, reach))
        return above(hits, request.min_score)
    with watch.step("fuse") as notes:
        notes.append(f"{len(cosine.keys() | bm25.keys())} candidates")
        # Where the query has no word to look for, only vectors can say anything.
        weight = request.weight if reach or vector is None else 1.0
        if bm25 and vector is not None:
            no_others = sides.exhaustive and len(bm25) < request.candidates
            if sides.exhaustive and not request.every:
                kept = contenders(
                    cosine,
                    _shares(bm25, reach),
                    request.k,
                    asked=request.candidates,
                    weight=weight,
                    floor=request.floor,
                )
                cosine = {key: score for key, score in cosine.items() if key in kept}
                bm25 = {key: score for key, score in bm25.items() if key in kept}
            # Every candidate gets its true score on the side that did not return it.
            unmatched = [passage_id for passage_id in cosine if passage_id not in bm25]
            scores = {} if no_others else sides.lexical.scores(request.query, unmatched)
            cosine.update(sides.exact.scores(vector, [key for key in bm25 if key not in cosine]))
            bm25.update({key: scores.get(key, 0.0) for key in unmatched})
        shares = _shares(bm25, reach)
        fused = convex(cosine, shares, weight=weight, floor=request.floor)
        best = fused if request.every else fused[: request.k]
        hits = _scored(sides.lexical, best, cosine, bm25, shares, fused=True)
        return above(hits, request.min_score)


def _searched(
    sides: Sides,
    request: Request,
    vector: NDArray[np.float32] | None,
    allowed: Sequence[str] | None,
    watch: Stopwatch,
) -> tuple[tuple[dict[str, float], float], Ranking]:
    """What the sides find: (BM25 of the hits, what the query could reach), and the nearest."""

    def find_words() -> tuple[dict[str, float], float]:
        with watch.step("lexical") as notes:
            hits = dict(_lexical_hits(sides.lexical, request, allowed))
            reach = sides.lexical.reach(request.query)
            notes.append(f"{len(hits)} hits")
        return hits, reach

    def find_near(vector: NDArray[np.float32]) -> Ranking:
        with watch.step("vectors") as notes:
            near = sides.exact.nearest(vector, request.candidates, allowed)
            notes.append(f"{len(near)} hits")
        return near

    if vector is None:
        return find_words(), []
    if not request.needs_lexical:
        return ({}, 0.0), find_near(vector)
    if sides.exact.count() < _MANY:
        return find_words(), find_near(vector)
    with meanwhile(find_words) as words:
        near = find_near(vector)
    return words.result(), near


def _shares(bm25: Mapping[str, float], reach: float) -> dict[str, float]:
    return {key: min(score / reach, 1.0) if reach else 0.0 for key, score in bm25.items()}


def _lexical_hits(lexical: Words, request: Request, allowed: Sequence[str] | None) -> Ranking:
    """The best hits that pass the filter.

    Few of the best hits may pass; then all that pass are scored.
    """
    limit = request.candidates
    if allowed is None:
        return lexical.search(request.query, limit)
    hits = lexical.search(request.query, 4 * limit)
    pass_filter = set(allowed)
    passed = [hit for hit in hits if hit[0] in pass_filter]
    if len(passed) >= limit or len(hits) < 4 * limit:
        return passed[:limit]
    return ranked(lexical.scores(request.query, allowed))[:limit]


def _scored(
    lexical: Words,
    ranking: Ranking,
    cosine: Mapping[str, float],
    bm25: Mapping[str, float],
    shares: Mapping[str, float],
    *,
    fused: bool = False,
) -> list[ScoredPassage]:
    # Texts are read for what is returned, not for every candidate.
    passages = lexical.passages([passage_id for passage_id, _ in ranking])
    missing = [passage_id for passage_id, _ in ranking if passage_id not in passages]
    if missing:
        msg = (
            f"The lexical index {lexical.path} does not hold {missing[0]!r}, which Chroma holds. "
            f"Repair it: {check_command(lexical.path.parent, repair=True)}"
        )
        raise StoreError(msg)
    return [
        ScoredPassage(
            passages[passage_id],
            score,
            vector_score=cosine.get(passage_id),
            lexical_score=bm25.get(passage_id),
            fused_score=score if fused else None,
            lexical_share=shares.get(passage_id),
        )
        for passage_id, score in ranking
    ]
