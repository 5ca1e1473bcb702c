"""Both sides searched and fused, from one consistent state of the two indexes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.fusion import Ranking, check_weight, convex, ranked
from tars_rag.retrieval.lexical import LexicalIndex
from tars_rag.retrieval.passage import ScoredPassage
from tars_rag.retrieval.timing import Stopwatch
from tars_rag.retrieval.vectors import VectorIndex, Where
from tars_rag.settings import Strategy

DEFAULT_WEIGHT = 0.5
_LEAST_CANDIDATES = 30


@dataclass(frozen=True, slots=True)
class Request:
    """A checked search."""

    query: str
    k: int
    strategy: Strategy
    where: Where | None
    weight: float

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
    *,
    has_vector: bool,
) -> Request:
    """The request, if it is one.

    Raises:
        InvalidInputError: Something is not; the message names it and what is allowed.
    """
    if strategy not in get_args(Strategy):
        msg = f"strategy must be one of {', '.join(get_args(Strategy))}, got {strategy!r}."
        raise InvalidInputError(msg)
    if query is None and has_vector and strategy == "naive":
        query = ""
    if not isinstance(query, str):
        msg = f"The query must be a string, got {query!r}."
        raise InvalidInputError(msg)
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        msg = f"k must be a whole number of at least 1, got {k!r}."
        raise InvalidInputError(msg)
    share = DEFAULT_WEIGHT if weight is None else check_weight(weight)
    return Request(query, k, strategy, where or None, share)  # type: ignore[arg-type]


def search(
    vectors: VectorIndex,
    lexical: LexicalIndex,
    request: Request,
    vector: NDArray[np.float32] | None,
    watch: Stopwatch,
) -> list[ScoredPassage]:
    """Search; the caller sees to it that nothing is written meanwhile."""
    near: Ranking = []
    worded: Ranking = []
    if vector is not None:
        with watch.step("vectors") as notes:
            near = vectors.query(vector, request.candidates, request.where)
            notes.append(f"{len(near)} hits")
    if request.needs_lexical:
        with watch.step("lexical") as notes:
            worded = _lexical_hits(vectors, lexical, request)
            notes.append(f"{len(worded)} hits")
    if request.strategy != "hybrid":
        ranking = (near if request.strategy == "naive" else worded)[: request.k]
        return _scored(vectors, ranking, dict(near), dict(worded), fused=False)
    with watch.step("fuse") as notes:
        cosine, bm25 = dict(near), dict(worded)
        if vector is not None and request.needs_lexical and worded:
            _complete(vectors, lexical, request.query, vector, cosine, bm25)
        fused = convex(cosine, bm25, weight=request.weight) if bm25 else near
        notes.append(f"{len(fused)} candidates")
        return _scored(vectors, fused[: request.k], cosine, bm25, fused=True)


def _complete(
    vectors: VectorIndex,
    lexical: LexicalIndex,
    query: str,
    vector: NDArray[np.float32],
    cosine: dict[str, float],
    bm25: dict[str, float],
) -> None:
    """Give every candidate its true score on the side that did not return it."""
    unseen = [passage_id for passage_id in bm25 if passage_id not in cosine]
    unit = vector / np.linalg.norm(vector)
    for passage_id, stored in vectors.vectors(unseen).items() if unseen else ():
        cosine[passage_id] = float(stored @ unit / np.linalg.norm(stored))
    unmatched = [passage_id for passage_id in cosine if passage_id not in bm25]
    true = lexical.scores(query, unmatched)
    bm25.update({passage_id: true.get(passage_id, 0.0) for passage_id in unmatched})


def _lexical_hits(vectors: VectorIndex, lexical: LexicalIndex, request: Request) -> Ranking:
    """The best hits that pass the filter, which Chroma alone decides.

    Few of the best hits may pass; then the ids that pass are asked for, and scored.
    """
    limit, where = request.candidates, request.where
    if where is None:
        return lexical.search(request.query, limit)
    vectors.check_where(where)
    hits = lexical.search(request.query, 4 * limit)
    allowed = set(vectors.matching([i for i, _ in hits], where)) if hits else set()
    passed = [hit for hit in hits if hit[0] in allowed]
    if len(passed) >= limit or len(hits) < 4 * limit:
        return passed[:limit]
    return ranked(lexical.scores(request.query, vectors.matching(None, where)))[:limit]


def _scored(
    vectors: VectorIndex,
    ranking: Ranking,
    cosine: dict[str, float],
    bm25: dict[str, float],
    *,
    fused: bool,
) -> list[ScoredPassage]:
    # Texts are read for what is returned, not for every candidate: that is half of the time.
    passages = vectors.get([passage_id for passage_id, _ in ranking]) if ranking else {}
    return [
        ScoredPassage(
            passages[passage_id],
            score,
            vector_score=cosine.get(passage_id),
            lexical_score=bm25.get(passage_id),
            fused_score=score if fused else None,
        )
        for passage_id, score in ranking
    ]
