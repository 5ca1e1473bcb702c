"""Two searches into one ranking, on a scale that means the same in every query.

A convex combination of scores (Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid
Retrieval", TOIS 2023), of scores that are not stretched to what one query happened to find: the
cosine as it is, and the share that a passage reached of the BM25 that the query could come to. So a
stray word in common adds little however few passages there are, and a threshold means something.
What was tried and measured is in docs/fusion.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tars_rag.errors import InvalidInputError, shown
from tars_rag.retrieval.passage import Ranking


def convex(
    cosines: Mapping[str, float],
    shares: Mapping[str, float],
    *,
    weight: float = 0.5,
    floor: float = 0.0,
) -> Ranking:
    """Fuse by scores: ``w * nearness(cosine) + (1 - w) * evidence(share)``, 0 to 1.

    Args:
        cosines: Id to cosine similarity; an id that is missing counts as 0.
        shares: Id to its share of the reachable BM25, 0 to 1; likewise.
        weight: Share of the vectors, 0 to 1.
        floor: The cosine of texts that have nothing to do with each other, below 1.

    Returns:
        Best first; equal scores by falling cosine, and only then by id.

    Raises:
        InvalidInputError: `weight` is not within 0 to 1.
    """
    check_weight(weight)
    asked = (cosines.keys() if weight > 0 else set()) | (shares.keys() if weight < 1 else set())
    fused = {
        key: weight * nearness(cosines.get(key, 0.0), floor)
        + (1 - weight) * evidence(shares.get(key, 0.0))
        for key in asked
    }
    lowest = -math.inf
    return sorted(
        fused.items(), key=lambda item: (-item[1], -cosines.get(item[0], lowest), item[0])
    )


def nearness(cosine: float, floor: float = 0.0) -> float:
    """A cosine counted from that of unrelated texts: ``max(cosine - f, 0) / (1 - f)``, 0 to 1."""
    return min(max(cosine - floor, 0.0) / (1 - floor), 1.0)


def evidence(share: float) -> float:
    """What a share of the reachable BM25 is worth beside a cosine: ``2 s^2 / (1 + s^2)``, 0 to 1.

    Half of the query's words are less than half as telling as all of them: 0.25 gives 0.12, 0.5
    gives 0.4. A passage of average length that holds each word once has a share of 1 / (k1 + 1),
    0.45.
    """
    square = share * share
    return 2 * square / (1 + square)


def check_weight(weight: float) -> float:
    """The weight, if it is a number from 0 (lexical alone) to 1 (vectors alone).

    Raises:
        InvalidInputError: It is not.
    """
    valid = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not valid or not 0 <= weight <= 1:
        msg = f"weight must be a number from 0 (lexical) to 1 (vectors), got {shown(weight)}."
        raise InvalidInputError(msg)
    return float(weight)
