"""Two rankings into one.

Reciprocal rank fusion: Cormack, Clarke and Buettcher, SIGIR 2009. Convex combination of normalised
scores: Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", TOIS 2023.
Figures that decide the default are in docs/store.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.passage import Ranking, ranked

Fusion = Literal["convex", "rrf"]
RRF_K = 60


def reciprocal_rank(
    vectors: Mapping[str, float],
    lexical: Mapping[str, float],
    *,
    weight: float = 0.5,
    k: int = RRF_K,
) -> Ranking:
    """Fuse by ranks: ``w / (k + rank_v) + (1 - w) / (k + rank_l)``, ranks from 1.

    Equal scores share a rank. An id that one side lacks gets nothing from that side.

    Args:
        vectors: Id to cosine similarity.
        lexical: Id to BM25.
        weight: Share of the vectors, 0 to 1.
        k: The constant that keeps the first ranks from deciding alone.

    Raises:
        InvalidInputError: `weight` is not within 0 to 1.
    """
    check_weight(weight)
    fused: dict[str, float] = {}
    for share, side in ((weight, vectors), (1 - weight, lexical)):
        if share:
            for passage_id, rank in _ranks(side).items():
                fused[passage_id] = fused.get(passage_id, 0.0) + share / (k + rank)
    return ranked(fused)


def convex(
    vectors: Mapping[str, float], lexical: Mapping[str, float], *, weight: float = 0.5
) -> Ranking:
    """Fuse by scores: ``w * norm(v) + (1 - w) * norm(l)``, each side scaled to 0..1 by min-max.

    An id that one side lacks gets 0 from that side: pass true scores where they can be had.

    Args:
        vectors: Id to cosine similarity.
        lexical: Id to BM25.
        weight: Share of the vectors, 0 to 1.

    Raises:
        InvalidInputError: `weight` is not within 0 to 1.
    """
    check_weight(weight)
    fused: dict[str, float] = {}
    for share, side in ((weight, vectors), (1 - weight, lexical)):
        if share:
            for passage_id, score in _min_max(side).items():
                fused[passage_id] = fused.get(passage_id, 0.0) + share * score
    return ranked(fused)


def check_weight(weight: float) -> float:
    """The weight, if it is a number from 0 (lexical alone) to 1 (vectors alone).

    Raises:
        InvalidInputError: It is not.
    """
    valid = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not valid or not math.isfinite(weight) or not 0 <= weight <= 1:
        msg = f"weight must be a number from 0 (lexical) to 1 (vectors), got {weight!r}."
        raise InvalidInputError(msg)
    return float(weight)


def _ranks(side: Mapping[str, float]) -> dict[str, int]:
    ranks: dict[str, int] = {}
    rank, last = 0, math.nan
    for position, (passage_id, score) in enumerate(ranked(side), 1):
        if score != last:
            rank, last = position, score
        ranks[passage_id] = rank
    return ranks


def _min_max(side: Mapping[str, float]) -> dict[str, float]:
    if not side:
        return {}
    low, high = min(side.values()), max(side.values())
    spread = high - low
    return {key: (score - low) / spread if spread > 0 else 1.0 for key, score in side.items()}
