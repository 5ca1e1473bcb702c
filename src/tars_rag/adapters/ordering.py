"""Orders of scored rows: best first, or near to the query and far from each other."""

from __future__ import annotations

import numpy as np

from tars_rag.errors import InvalidInputError
from tars_rag.runtimes.base import FloatArray


def ranked(scores: FloatArray, top_n: int | None) -> list[tuple[int, float | None]]:
    """Row numbers and scores, best first.

    Args:
        scores: float32 [n]; NaN where a deadline left no time to score the row.
        top_n: How many to keep; None: all.

    Returns:
        ``(row, score)`` with Python floats; equal scores keep their order, and rows without a
        score come last, in their order, with None.
    """
    order = np.argsort(-scores, kind="stable")[:top_n].tolist()  # NaN sorts last
    return [(row, None if np.isnan(scores[row]) else float(scores[row])) for row in order]


def diverse(query: FloatArray, vectors: FloatArray, k: int, weight: float) -> list[int]:
    """Choose rows near to a query and far from each other: maximal marginal relevance.

    Source: Carbonell and Goldstein, SIGIR 1998.

    Args:
        query: float32 [dim].
        vectors: float32 [n, dim], unit length.
        k: How many to choose.
        weight: 1 chooses by nearness alone, 0 by difference alone.

    Returns:
        Row numbers in the order chosen, the nearest first.

    Raises:
        InvalidInputError: `k` is below 1, or `weight` is not within 0 to 1.
    """
    if k < 1:
        msg = f"k must be a whole number of at least 1, got {k!r}."
        raise InvalidInputError(msg)
    if not 0 <= weight <= 1:
        msg = f"The weight of nearness (lambda_mult) must be from 0 to 1, got {weight!r}."
        raise InvalidInputError(msg)
    near = vectors @ (query / np.linalg.norm(query))
    alike = np.full(len(vectors), -1.0, np.float32)
    chosen: list[int] = []
    gain = near.copy()
    for _ in range(min(k, len(vectors))):
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        alike = np.maximum(alike, vectors @ vectors[chosen[-1]])
        gain = weight * near - (1 - weight) * alike
    return chosen
