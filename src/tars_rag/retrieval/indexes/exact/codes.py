"""Vectors as bytes, and how far a cosine of bytes can be from the true one.

A vector x is scaled to unit length and kept as whole numbers c between -127 and 127 times a step
of its own, so that x' = step * c is near it: its *residual* ``|x - x'|`` is known exactly. A query
q is kept as q' = two planes of such numbers (-63 to 63), the second for what the first leaves, and
``|q - q'|`` is known too. By Cauchy and Schwarz

    |<q, x> - <q', x'>|  =  |<q - q', x> + <q', x - x'>|  <=  |q - q'| + |q'| |x - x'|

so a row whose ``<q', x'>`` plus that *slack* is below the k-th best cosine found is not among the
best k. `<q', x'>` is a product of whole numbers, exact, and a few float32 operations, whose
rounding `_ROUNDING` covers: at most 10 * 2**-24 of ``|q'| |x'| < 1.3``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError
from tars_rag.runtimes.integer_product import LIMIT, OFFSET, PLANES, integer_product

_LARGEST = 127
_ROUNDING = 3e-6
_UP = 1 + 1e-6  # what float64 and float32 rounding may take from a norm
_WORK = 1 << 15  # numbers that are widened to float64 at once: they stay in the cache
_BLOCK = 1 << 17  # numbers in one piece of float64 work: stays in the processor's cache


@dataclass(frozen=True, slots=True)
class Codes:
    """Rows as bytes.

    Attributes:
        rows: ``round(x / step) + 128``, uint8 [n, dim].
        steps: float32 [n].
        residuals: At least ``|x - x'|``, float32 [n].
    """

    rows: NDArray[np.uint8]
    steps: NDArray[np.float32]
    residuals: NDArray[np.float32]

    def part(self, start: int, stop: int) -> Codes:
        """A view of rows that follow one another."""
        rows = slice(start, stop)
        return Codes(self.rows[rows], self.steps[rows], self.residuals[rows])

    def at(self, places: NDArray[np.int64]) -> Codes:
        """Copies of some rows."""
        return Codes(self.rows[places], self.steps[places], self.residuals[places])


def encode(vectors: NDArray[np.float32]) -> Codes:
    """The codes of vectors [n, dim], finite and none of them zero."""
    count, dim = vectors.shape
    codes = Codes(
        np.empty((count, dim), np.uint8),
        np.empty(count, np.float32),
        np.empty(count, np.float32),
    )
    size = max(1, _BLOCK // dim)
    for start in range(0, count, size):
        piece = slice(start, start + size)
        unit = vectors[piece].astype(np.float64)
        unit /= _norms(unit)[:, None]
        steps = (np.abs(unit).max(axis=1) / _LARGEST).astype(np.float32)
        wide = steps.astype(np.float64)[:, None]
        numbers = np.clip(np.rint(unit / wide), -_LARGEST, _LARGEST)
        codes.rows[piece] = (numbers + OFFSET).astype(np.uint8)
        codes.steps[piece] = steps
        codes.residuals[piece] = np.nextafter(
            (_norms(unit - numbers * wide) * _UP).astype(np.float32), np.float32(np.inf)
        )
    return codes


class Query:
    """One vector to search for.

    Args:
        vector: [dim], of any length but zero.
        dim: What it must be.

    Raises:
        InvalidInputError: It has another shape, is zero, or holds numbers that are not finite.
    """

    def __init__(self, vector: NDArray[np.floating], dim: int) -> None:
        exact = np.asarray(vector, np.float64)
        largest = np.abs(exact).max(initial=0.0)
        if exact.shape != (dim,) or not 0 < largest < np.inf:
            kind = "zero or not finite" if exact.shape == (dim,) else f"not of {dim} numbers"
            msg = (
                f"The vector to search for is {kind} (its shape is {list(exact.shape)}). "
                "Use the embedder that the store was made with."
            )
            raise InvalidInputError(msg)
        exact = exact / largest  # whose square is neither too large nor too small
        self.unit = exact / _norms(exact[None])[0]
        left = self.unit.copy()
        self._planes = np.zeros((dim, PLANES), np.int8)
        self._steps = np.zeros(PLANES, np.float32)
        for plane in range(PLANES):
            step = np.float32(np.abs(left).max() / LIMIT)
            if step > 0:
                numbers = np.clip(np.rint(left / np.float64(step)), -LIMIT, LIMIT)
                self._planes[:, plane] = numbers
                self._steps[plane] = step
                left -= numbers * np.float64(step)
        self._error = float(_norms(left[None])[0]) * _UP + _ROUNDING
        self._length = float(_norms((self.unit - left)[None])[0]) * _UP

    def upper(self, codes: Codes) -> NDArray[np.float32]:
        """What the cosines of the rows are at most, float32 [n]."""
        cosines = integer_product(codes.rows, self._planes, self._steps)
        cosines *= codes.steps
        cosines += self._slack(codes.residuals)
        return cosines

    def lower(
        self, upper: NDArray[np.float32], residuals: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """What they are at least, given the upper bounds."""
        slack = self._slack(residuals)
        slack *= -2
        slack += upper
        return slack

    def _slack(self, residuals: NDArray[np.float32]) -> NDArray[np.float32]:
        slack: NDArray[np.float32] = residuals * np.float32(self._length * _UP)
        slack += np.float32(self._error * _UP)
        return slack

    def cosines(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """The true cosines of rows [m, dim]; equal rows have equal ones, wherever they stand.

        A matrix product would add in an order that depends on where a row stands; `einsum` adds
        each row alone, in the order that its length prescribes.
        """
        result = np.empty(len(vectors), np.float64)
        size = max(1, _WORK // len(self.unit))
        work = np.empty((min(size, len(vectors)), len(self.unit)))
        for start in range(0, len(vectors), size):
            rows = vectors[start : start + size]
            wide = work[: len(rows)]
            wide[:] = rows
            dots = np.einsum("ij,j->i", wide, self.unit)
            result[start : start + size] = dots / np.sqrt(np.einsum("ij,ij->i", wide, wide))
        return np.clip(result, -1.0, 1.0, out=result)


def check_vectors(vectors: NDArray[np.floating], dim: int | None) -> NDArray[np.float32]:
    """The vectors [n, dim] as float32, C-contiguous.

    Raises:
        InvalidInputError: They have another shape, or one is zero or not finite in float32.
    """
    if vectors.ndim != 2 or vectors.shape[1] != (dim or vectors.shape[1]) or not vectors.shape[1]:
        expected = "dim" if dim is None else dim
        msg = (
            f"The vectors have the shape {list(vectors.shape)}, not [n, {expected}]. "
            "Use the embedder that the store was made with."
        )
        raise InvalidInputError(msg)
    with np.errstate(over="ignore"):
        checked = np.ascontiguousarray(vectors, np.float32)
    if not np.isfinite(checked).all():
        msg = "A vector holds a number that is not finite. Check what the embedder was given."
        raise InvalidInputError(msg)
    if not checked.any(axis=1).all():
        msg = "A vector is zero, and has no direction. Check what the embedder was given."
        raise InvalidInputError(msg)
    return checked


def _norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths of rows [n, dim]; a sum of each row alone, so that it does not matter where it is."""
    norms: NDArray[np.float64] = np.sqrt(np.square(rows).sum(axis=1))
    return norms
