"""Vectors as bytes, and how far a cosine of bytes can be from the true one.

A vector x of unit length is kept as

    x'  =  share * m + step * c

m is the centre it was given (see `centres`; zero for most data), share and step are numbers of its
own, and c are whole numbers between -127 and 127, in bytes. The share is chosen so that what is
missing, ``e = x - x'``, is at right angles to m. Its length, the *residual*, is known. A query q is
kept as q' = three planes of whole numbers, each for what the one before leaves, so that
``|q - q'|`` is about a millionth. Then, as m takes no part in e,

    <q, x>  =  share <q, m> + step <q', c>  +  <q - q', step c>  +  <q, e>

the first two terms are computed, the third is at most ``|q - q'| |step c|``, and the fourth, by
Cauchy and Schwarz, at most the length of what of q is at right angles to m, times the residual. The
sum of both is the *slack*: a row whose computed cosine plus its slack is below the k-th best cosine
found is not among the best k.

`<q', c>` is a product of whole numbers, exact. `_ROUNDING` covers what a few operations in float32
and a share that was rounded do to it: at most 16 * 2**-24 of numbers below 2, and 1e-6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.indexes.exact.centres import kinds_of
from tars_rag.runtimes.integer_product import LIMIT, OFFSET, PLANES, integer_product

_LARGEST = 127
_ROUNDING = 4e-6
_UP = 1 + 1e-6  # what float64 and float32 rounding may take from a norm
_SMALLEST = 1e-30  # a step, where there is nothing to keep
_LONGEST = 2.0  # of step * c: 1, and half a step in each of up to 65,000 dimensions
_MANY = 512  # rows whose product is worth planes of whole numbers
_BLOCK = 1 << 15  # numbers in one piece of float64 work: stays in the processor's cache


@dataclass(frozen=True, slots=True)
class Codes:
    """Rows as bytes.

    Attributes:
        rows: c + 128, uint8 [n, dim].
        steps: float32 [n].
        residuals: At least ``|x - x'|``, float32 [n].
        shares: float32 [n].
        kinds: Which of the centres is a row's, uint8 [n].
        centres: float32 [m, dim]; the first is zero, the others have unit length.
    """

    rows: NDArray[np.uint8]
    steps: NDArray[np.float32]
    residuals: NDArray[np.float32]
    shares: NDArray[np.float32]
    kinds: NDArray[np.uint8]
    centres: NDArray[np.float32]

    def part(self, start: int, stop: int) -> Codes:
        """A view of rows that follow one another."""
        return self._of(slice(start, stop), slice(start, stop))

    def at(self, places: NDArray[np.int64], *, rows: bool = True) -> Codes:
        """Copies of some rows; without their bytes, if not `rows`."""
        return self._of(places, places if rows else slice(0))

    def _of(self, places: Any, rows: Any) -> Codes:
        return Codes(
            self.rows[rows],
            self.steps[places],
            self.residuals[places],
            self.shares[places],
            self.kinds[places],
            self.centres,
        )


def encode(
    vectors: NDArray[np.float32],
    centres: NDArray[np.float32],
    kinds: NDArray[np.uint8] | None = None,
) -> Codes:
    """The codes of vectors [n, dim], finite and none of them zero.

    Args:
        vectors: The vectors.
        centres: float32 [m, dim], the first of them zero.
        kinds: Which centre each vector is given; None: the nearest.
    """
    count, dim = vectors.shape
    steps, residuals, shares = (np.empty(count, np.float32) for _ in range(3))
    given = np.empty(count, np.uint8) if kinds is None else kinds
    rows = np.empty((count, dim), np.uint8)
    size = max(1, _BLOCK // dim)
    for start in range(0, count, size):
        piece = slice(start, start + size)
        unit = unit_rows(vectors[piece])
        if kinds is None:
            given[piece] = kinds_of(unit.astype(np.float32), centres)
        rest, middles = unit, np.empty((0, dim))
        if given[piece].any():
            middles = centres[given[piece]].astype(np.float64)
            squares = np.maximum(_dots(middles, middles), _SMALLEST)
            rest = unit - middles * (_dots(unit, middles) / squares)[:, None]
        step = np.maximum(np.abs(rest).max(axis=1) / _LARGEST, _SMALLEST).astype(np.float32)
        wide = step.astype(np.float64)[:, None]
        kept = np.clip(np.rint(rest / wide), -_LARGEST, _LARGEST)
        rows[piece], steps[piece] = (kept + OFFSET).astype(np.uint8), step
        missing = unit - kept * wide
        shares[piece] = 0
        if len(middles):
            shares[piece] = _dots(missing, middles) / squares
            missing -= middles * shares[piece].astype(np.float64)[:, None]
        lengths = (_norms(missing) * _UP).astype(np.float32)
        residuals[piece] = np.nextafter(lengths, np.float32(np.inf))
    return Codes(rows, steps, residuals, shares, given, centres)


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """The vectors [n, dim] at unit length."""
    unit = vectors.astype(np.float64)
    unit /= _norms(unit)[:, None]
    return unit


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
        self._centres = self._along = self._across = np.empty(0, np.float32)

    @cached_property
    def vector(self) -> NDArray[np.float32]:
        """At unit length, but for rounding; [dim]."""
        vector: NDArray[np.float32] = self.unit.astype(np.float32)
        return vector

    @cached_property
    def _planes(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """The query as planes of whole numbers, and what each counts."""
        dim = len(self.unit)
        left = self.unit.copy()
        planes = np.zeros((dim, PLANES), np.int8)
        steps = np.zeros(PLANES, np.float32)
        for plane in range(PLANES):
            step = np.float32(np.abs(left).max() / LIMIT)
            if step > 0:
                numbers = np.clip(np.rint(left / np.float64(step)), -LIMIT, LIMIT)
                planes[:, plane] = numbers
                steps[plane] = step
                left -= numbers * np.float64(step)
        return planes, steps

    @cached_property
    def _missing(self) -> float:
        """What the planes miss of a cosine at most, and rounding.

        Each plane leaves half of its step of each number, the next one's step is that by `LIMIT`.
        """
        left = float(np.abs(self.unit).max()) / math.pow(2 * LIMIT, PLANES)
        return math.sqrt(len(self.unit)) * left * _LONGEST * _UP + _ROUNDING

    def upper(self, codes: Codes) -> NDArray[np.float32]:
        """What the cosines of the rows are at most, float32 [n]."""
        if len(codes.rows) > _MANY:
            cosines = integer_product(codes.rows, *self._planes)
        else:  # planes would take longer to make; what float64 rounds is less than `_ROUNDING`
            products = np.einsum("ij,j->i", codes.rows.astype(np.float64), self.unit)
            products -= OFFSET * self.unit.sum()
            cosines = products.astype(np.float32)
        cosines *= codes.steps
        self.add_centres(cosines, codes)
        cosines += self._slack(codes, self._directions(codes)[1])
        return cosines

    def add_centres(self, cosines: NDArray[np.float32], codes: Codes) -> None:
        """Add what the rows' centres, and their shares of them, are of their cosines [n]."""
        along, _ = self._directions(codes)
        if len(along) > 1:
            cosines += codes.shares * along[codes.kinds]

    def lower(self, upper: NDArray[np.float32], codes: Codes) -> NDArray[np.float32]:
        """What they are at least, given the upper bounds."""
        slack = self._slack(codes, self._directions(codes)[1])
        slack *= -2
        slack += upper
        return slack

    def _directions(self, codes: Codes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines to the centres, and at most the length of the query at right angles to each."""
        if self._centres is not codes.centres:
            self._centres = codes.centres
            along = np.einsum("ij,j->i", codes.centres.astype(np.float64), self.unit)
            across = np.sqrt(np.maximum(1 - np.square(along) * (1 - 1e-6), 0)) * _UP
            self._across = across.astype(np.float32)
            self._along = along.astype(np.float32)
        return self._along, self._across

    def _slack(self, codes: Codes, across: NDArray[np.float32]) -> NDArray[np.float32]:
        slack: NDArray[np.float32]
        slack = codes.residuals * (across[codes.kinds] if len(across) > 1 else across)
        slack += np.float32(self._missing)
        return slack

    def cosines(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """The true cosines of rows [m, dim]; equal rows have equal ones, wherever they stand.

        A matrix product would add in an order that depends on where a row stands; `einsum` adds
        each row alone, in the order that its length prescribes.
        """
        result = np.empty(len(vectors), np.float64)
        size = max(1, _BLOCK // len(self.unit))
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


def _dots(rows: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    products: NDArray[np.float64] = np.einsum("ij,ij->i", rows, others)
    return products


def _norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths of rows [n, dim]; a sum of each row alone, so that it does not matter where it is."""
    norms: NDArray[np.float64] = np.sqrt(np.square(rows).sum(axis=1))
    return norms
