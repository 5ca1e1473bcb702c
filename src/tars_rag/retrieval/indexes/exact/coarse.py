"""Rows at half a byte a number: a first look at what is searched again and again.

The whole numbers c of a row (see `codes`) are rounded once more, to four bits with a scale for
every 64 of them: ``c = c' + f``. With what the codes are off by, e,

    x  =  share * m + step * c' + (step * f + e)

so that a cosine of the coarse row is off by at most its residual, which is ``step |f| + |e|`` and
what the scales are rounded by, and by what the product rounds of the query. That is 0.1 for most
data, where the codes have 0.01; it leaves some hundreds of 100,000 rows, of which the codes are
looked at as if a filter had chosen them.

Coarse rows are kept in memory alone, and take no more than a sixteenth of it. A thread makes them
when a search repeats, so that a command which searches once never pays for them. Which rows have
them decides how long a search takes, never what it finds.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import DeviceError
from tars_rag.retrieval.indexes.exact.codes import Codes, Query
from tars_rag.runtimes.four_bit_product import (
    BFLOAT16,
    BLOCK,
    ZERO,
    FourBitProduct,
    FourBitRows,
    packed,
    to_bfloat16,
)
from tars_rag.runtimes.integer_product import OFFSET, PLANES, integer_product

_SEARCHES = 2  # of the same rows: the second says that there will be more
_LEAST = 1 << 15  # rows that are worth a product of their own
_PART = 4  # and so much of those that have one
_MOST_BYTES = 1 << 25  # of one product, which takes twice as much while it is made
_PIECE = 1 << 18  # numbers that are rounded at once: stays in the processor's cache
_TIMED = 3
_BYTES = 5 / 8  # a number, as they are packed
_OF_MEMORY = 16
_MOST_SKIPPED = 6  # searches, as a power of two
_UP = 1 + 1e-5  # what float32 may take from the length of a residual

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CoarseRows:
    """Rows that follow one another.

    Attributes:
        start: The first.
        stop: The one after the last.
        product: Multiplies what a row is beside its centre.
        residuals: How far each is off at most, float32 [stop - start].
        longest: No row is longer beside its centre.
    """

    start: int
    stop: int
    product: FourBitProduct
    residuals: NDArray[np.float32]
    longest: float

    def bounds(self, query: Query, codes: Codes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the cosines of the rows are at most and at least, float32 [n]; `codes` are theirs.

        Raises:
            DeviceError: ONNX Runtime failed.
        """
        cosines, taken = self.product(query.vector)
        query.add_centres(cosines, codes)
        missing = float(np.linalg.norm(query.unit - taken)) + self.product.rounding
        slack = np.float32(self.longest * missing + self.product.rounding)
        upper = cosines + self.residuals
        upper += slack
        cosines -= self.residuals
        cosines -= slack
        return upper, cosines


class Coarse:
    """The coarse rows of one row file; any thread may ask for them."""

    def __init__(self) -> None:
        self._rows: tuple[CoarseRows, ...] = ()
        self._searches = 0
        self._making = threading.Lock()
        self._stopped = False
        self._futile = self._skipped = 0

    def of(self, codes: Codes) -> Sequence[CoarseRows]:
        """Those of the first of these rows that there are, to be asked once a search.

        None of them after searches of which they left too much.
        """
        count = len(codes.rows)
        rows = [rows for rows in self._rows if rows.stop <= count and rows.product.usable]
        missing = count - (rows[-1].stop if rows else 0)
        if missing >= max(_LEAST, (count - missing) // _PART) and not self._stopped:
            self._searches += 1
            if self._searches >= _SEARCHES and self._making.acquire(blocking=False):
                self._begin(codes)
        if self._skipped:
            self._skipped -= 1
            return ()
        return rows

    def tell(self, *, useful: bool) -> None:
        """Whether they left little enough of the rows in a search.

        Where everything is alike they leave all. Then they are tried ever less often.
        """
        self._futile = 0 if useful else min(self._futile + 1, _MOST_SKIPPED)
        self._skipped = 0 if useful else 1 << self._futile

    def stop(self) -> None:
        """Make no more."""
        self._stopped = True

    def wait(self) -> None:
        """Until those that are being made are there."""
        with self._making:
            pass

    def _begin(self, codes: Codes) -> None:
        # Not a daemon: one that is inside a library when Python ends can crash it.
        thread = threading.Thread(target=self._make, args=(codes,), name="tars-rag-coarse")
        try:
            thread.start()
        except RuntimeError as error:  # no thread can be had
            self._give_up(error)
            self._making.release()

    def _give_up(self, error: Exception) -> None:
        self._stopped = True
        _log.info("Searches go on without coarse rows: %s", error)

    def _make(self, codes: Codes) -> None:
        try:
            _require_memory(codes)
            most = max(_LEAST, 2 * _MOST_BYTES // max(1, codes.rows.shape[1]))
            while (start := self._rows[-1].stop if self._rows else 0) < len(codes.rows):
                stop = min(start + most, len(codes.rows))
                made = coarse(codes.part(start, stop), start, self._is_over)
                if made is None:
                    return
                self._rows = (*self._rows, made)
            self._searches = 0
        except (DeviceError, MemoryError, OSError) as error:
            self._give_up(error)
        finally:
            self._making.release()

    def _is_over(self) -> bool:
        return self._stopped or not threading.main_thread().is_alive()


def coarse(
    codes: Codes, first: int, is_over: Callable[[], bool] = lambda: False
) -> CoarseRows | None:
    """The coarse rows of some codes.

    Args:
        codes: The codes of the rows [n, dim].
        first: Where they begin.
        is_over: Asked now and then whether to give up; then None is returned.

    Raises:
        DeviceError: They would not be searched right, or not faster than the codes.
    """
    count, dim = codes.rows.shape
    rows = FourBitRows(count, dim)
    residuals, longest = np.empty(count, np.float32), 0.0
    size = max(1, _PIECE // dim)
    for start in range(0, count, size):
        if is_over():
            return None
        piece = slice(start, start + size)
        numbers, ends, squares = _rounded(codes.rows[piece], rows.blocks)
        rows.nibbles[piece] = packed(numbers)
        steps = codes.steps[piece]
        rows.scales[piece] = to_bfloat16(ends / np.float32(-ZERO) * steps[:, None])
        rounded = np.sqrt(squares) * steps
        # Beside its centre a row of unit length is no longer than 1; then come two roundings.
        reach = 1 + steps * np.float32(np.sqrt(dim)) + rounded
        off = rounded + codes.residuals[piece] + np.float32(BFLOAT16) * reach
        residuals[piece] = off * np.float32(_UP)
        longest = max(longest, float(reach.max()))
    made = CoarseRows(first, first + count, FourBitProduct(rows), residuals, longest)
    _require_faster(made, codes)
    return made


def _rounded(
    rows: NDArray[np.uint8], blocks: int
) -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.float32]]:
    """Codes at four bits.

    Args:
        rows: Their bytes [n, dim].
        blocks: In a row.

    Returns:
        The numbers plus `ZERO` [n, blocks * BLOCK]; the number of each block that is farthest from
        zero [n, blocks]; and for each row the sum of the squares of what it is off by [n].
    """
    count, dim = rows.shape
    if dim % BLOCK:
        wide = np.full((count, blocks * BLOCK), OFFSET, np.uint8)
        wide[:, :dim] = rows
        rows = wide
    held = rows.reshape(count, blocks, BLOCK)
    high = held.max(axis=2).astype(np.int16) - OFFSET
    low = held.min(axis=2).astype(np.int16) - OFFSET
    ends = np.where(high >= -low, high, low)
    # One look into a table of all pairs of (end, number) instead of arithmetic for each number.
    places = ((ends + OFFSET).astype(np.int32) * 256)[:, :, None] + held
    numbers, squares = _tables()
    taken = squares.take(places).reshape(count, -1).sum(axis=1)
    return numbers.take(places).reshape(count, -1), ends, taken


@cache
def _tables() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """What a number becomes in a block with a certain end: at 256 * end + number, both + `OFFSET`.

    Returns:
        The number at four bits, plus `ZERO`, and the square of what that is off by.
    """
    ends = np.arange(256.0)[:, None] - OFFSET
    numbers = np.arange(256.0)[None] - OFFSET
    scales = np.where(ends == 0, 1, ends / -ZERO)
    rounded = np.clip(np.rint(numbers / scales), -ZERO, ZERO - 1)
    off = np.square(numbers - rounded * np.where(ends == 0, 0, scales))
    return (rounded + ZERO).astype(np.uint8).reshape(-1), off.astype(np.float32).reshape(-1)


def _require_memory(codes: Codes) -> None:
    needed = _BYTES * codes.rows.size
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not told here
        return
    if needed > memory / _OF_MEMORY:
        msg = f"they would take {needed / 1e6:.0f} MB of {memory / 1e6:.0f}"
        raise DeviceError(msg)


def _require_faster(made: CoarseRows, codes: Codes) -> None:
    """Old versions of ONNX Runtime, and old processors, have no kernel but unpack the rows."""
    dim = codes.rows.shape[1]
    vector, planes = np.ones(dim, np.float32), np.ones((dim, PLANES), np.int8)
    steps = np.ones(PLANES, np.float32)
    seconds = [
        min(_timed(lambda: made.product(vector)) for _ in range(_TIMED)),
        min(_timed(lambda: integer_product(codes.rows, planes, steps)) for _ in range(_TIMED)),
    ]
    if seconds[0] >= seconds[1]:
        milliseconds = [round(value * 1e3, 1) for value in seconds]
        msg = f"a product takes {milliseconds[0]} ms, that of codes {milliseconds[1]} ms"
        raise DeviceError(msg)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
