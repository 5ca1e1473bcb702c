"""Directions that many vectors share: the middle of a cluster.

What repeats (log lines, forms, chat) lies close together, closer than bytes can tell apart. What a
vector shares with the middle of its kind is therefore kept as a number, and only the rest as bytes
(see `codes`). Which centre a vector is given decides how narrow its bounds are, never whether they
are right.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MOST = 64  # centres, the first of them zero, for vectors of no kind
_NEAR = 0.8  # cosine to the centre from which on a vector is of its kind
_PIVOTS = 4  # vectors of a batch of which it is asked whether many are near them
_ENOUGH = 8, 16  # so many are many, and this part of those that are of no kind yet


def no_centres(dim: int) -> NDArray[np.float32]:
    """The first centre [1, dim]: zero."""
    return np.zeros((1, dim), np.float32)


def kinds_of(unit: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Which centre each vector [n, dim] of unit length is given, uint8 [n]."""
    if len(centres) == 1 or not len(unit):
        return np.zeros(len(unit), np.uint8)
    # Not a matrix product: its threads would wait for one another longer than they work.
    cosines = np.einsum("ij,kj->ik", unit, centres)
    kinds: NDArray[np.uint8] = cosines.argmax(axis=1).astype(np.uint8)
    kinds[cosines.max(axis=1) < _NEAR] = 0
    return kinds


def new_centres(unit: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centres [m, dim] to be added to those there are, for vectors [n, dim] of no kind yet."""
    found: list[NDArray[np.float32]] = []
    least, part = _ENOUGH
    left = unit[kinds_of(unit, centres) == 0]
    for pivot in left[:: max(1, len(left) // _PIVOTS)]:
        if len(centres) + len(found) == _MOST:
            break
        near = np.einsum("ij,j->i", left, pivot) >= _NEAR
        if near.sum() >= max(least, len(left) // part):
            centre = left[near].mean(axis=0)
            found.append(centre / np.linalg.norm(centre))
            left = left[np.einsum("ij,j->i", left, found[-1]) < _NEAR]
    return np.array(found, np.float32).reshape(-1, centres.shape[1])
