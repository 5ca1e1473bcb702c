"""Two searches into one ranking, on a scale that means the same in every query.

A convex combination of scores (Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid
Retrieval", TOIS 2023), of scores that are not stretched to what one query happened to find: the
cosine as it is, and the share that a passage reached of the BM25 that the query could come to. So a
stray word in common adds little however few passages there are, and a threshold means something.
What was tried and measured is in docs/fusion.md.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping

from tars_rag.errors import InvalidInputError, shown
from tars_rag.retrieval.passage import Ranking

_UP = 1 + 1e-4  # what single precision may take from BM25, in what it adds


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
        key: _by_vector(cosines.get(key, 0.0), weight, floor)
        + _by_words(shares.get(key, 0.0), weight)
        for key in asked
    }
    lowest = -math.inf
    return sorted(
        fused.items(), key=lambda item: (-item[1], -cosines.get(item[0], lowest), item[0])
    )


def contenders(
    cosines: Mapping[str, float],
    shares: Mapping[str, float],
    k: int,
    *,
    asked: int,
    weight: float = 0.5,
    floor: float = 0.0,
) -> set[str]:
    """Those that may be among the first `k` of `convex` once each has both its scores.

    A side that was asked for its best returned no less than that. So a candidate of the other side
    scores there at most what the last one does that was returned, and nothing where fewer were
    than were asked for. Who cannot come so to the k-th of what all score at least is out (Fagin,
    Lotem and Naor, "Optimal Aggregation Algorithms for Middleware", 2001).

    Args:
        cosines: What the vector side returned, by id: all of its best.
        shares: What the lexical side returned, likewise, 0 to 1; in single precision.
        k: How many are wanted, at least 1.
        asked: How many each side was asked for.
        weight: See `convex`; so too the others.
        floor: See `convex`.
    """
    near = {key: _by_vector(cosine, weight, floor) for key, cosine in cosines.items()}
    words = {key: _by_words(share, weight) for key, share in shares.items()}
    everyone = near.keys() | words.keys()
    least = heapq.nlargest(k, (near.get(key, 0.0) + words.get(key, 0.0) for key in everyone))
    if len(least) < k:
        return everyone
    most_near = min(near.values(), default=weight)
    most_words = min(words.values()) * _UP if len(words) >= asked else 0.0
    return {
        key
        for key in everyone
        if near.get(key, most_near) + words.get(key, most_words) >= least[-1]
    }


def _by_vector(cosine: float, weight: float, floor: float) -> float:
    """What a cosine adds to a fused score."""
    return weight * nearness(cosine, floor)


def _by_words(share: float, weight: float) -> float:
    """What a share of the reachable BM25 adds to it."""
    return (1 - weight) * evidence(share)


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
