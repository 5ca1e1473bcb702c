"""The k nearest rows, proven: bytes say which rows may be among them, float32 vectors decide.

1. The codes of all rows give each an upper and a lower bound of its cosine (see `codes`).
2. The k-th largest lower bound is a floor: a row whose upper bound is below it is out. Where rows
   have coarse codes (see `coarse`), these two steps are done with them first, and then with the
   codes of those that are left.
3. The vectors of the others are read, those with the highest upper bounds first, a few at first and
   then more at a time, until the k-th best cosine is above every upper bound that is left.

Among copies of one vector all upper bounds are alike and nothing can be left out. Rows whose
vectors are equal byte for byte are therefore read once; what differs is read to the last row if
need be.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.exact.coarse import Coarse, CoarseRows
from tars_rag.retrieval.indexes.exact.codes import Codes, Query
from tars_rag.retrieval.indexes.exact.id_table import IdTable
from tars_rag.retrieval.indexes.exact.row_reader import RowReader
from tars_rag.retrieval.indexes.exact.row_tables import decode_id
from tars_rag.retrieval.passage import Ranking, ranked

_LEAST = -2.0  # less than any cosine, more than what stands for no row
_STRIDE = 64  # each of n / 64 groups of rows yields one candidate for the floor
_FIRST = 32  # rows, and k more, that are read to learn about the others
_MANY = 2048  # rows among which copies are looked for
_PIECE = 2048  # rows that are read at once
_FEW = 4  # a filter that leaves less than this part of the rows has them gathered
_SCATTERED = 32  # gathering more than this part of the rows takes as long as a scan
_BLOCK = 1 << 17  # rows that are scanned at once: 2 MB of numbers in between
_SLICE = 1 << 15  # rows of a filter that are gathered at once


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The index after some commit. Never changes.

    Attributes:
        dim: Numbers in a vector; 0 as long as there was none.
        reader: The rows.
        codes: Theirs, dead ones included.
        coarse: So many of them as were made by now.
        dead: Slots of rows that were removed, ascending.
        table: The living ids.
        generation: How many commits there were.
        digest: 16 hexadecimal digits that name the sequence of commits.
        stamp: What the last commit was given.
    """

    dim: int
    reader: RowReader
    codes: Codes
    coarse: Coarse
    dead: NDArray[np.int64]
    table: IdTable
    generation: int
    digest: str
    stamp: str

    @property
    def count(self) -> int:
        """Living rows."""
        return len(self.codes.rows) - len(self.dead)

    def living(self) -> NDArray[np.int64]:
        """Slots of the living rows, ascending."""
        alive = np.ones(len(self.codes.rows), bool)
        alive[self.dead] = False
        return np.flatnonzero(alive)

    def nearest(self, query: Query, k: int, among: NDArray[np.int64] | None = None) -> Ranking:
        """The k living rows with the largest cosines, of all or of some.

        Args:
            query: What is searched for.
            k: At least 1.
            among: Ascending slots of living rows.

        Raises:
            DamageError: A row cannot be read.
            OSError: So too.
        """
        slots, upper = self._candidates(query, k, among)
        if not len(slots):
            return []
        return self._best(*self._rescored(query, k, slots, upper), k)

    def _candidates(
        self, query: Query, k: int, among: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Slots that may be among the best k, and the upper bounds of their cosines."""
        if among is None:
            among = self._left_by_coarse(query, k)
        if among is not None:
            upper, lower = self._gathered(query, among)
            kept = upper >= _kth(lower, k)
            return among[kept], upper[kept]
        everyone, floor = self._scanned(query, k)
        slots = np.flatnonzero(everyone >= floor)
        upper = everyone[slots]
        if len(slots) > 2 * k:  # the floor was of the groups' best
            kept = upper >= _kth(self._lower(query, upper, slots), k)
            slots, upper = slots[kept], upper[kept]
        return slots, upper

    def _left_by_coarse(self, query: Query, k: int) -> NDArray[np.int64] | None:
        """Slots that may be among the best k by their coarse codes.

        None: there are none, or too many slots are left to gather their codes.
        """
        coarse = self.coarse.of(self.codes)
        if not coarse:
            return None
        upper, floor = self._scanned(query, k, coarse)
        slots = np.flatnonzero(upper >= floor)
        count = _FIRST + k
        if len(slots) > 16 * count:  # the codes of a few tell which of the others are out
            first = slots[np.argpartition(-upper[slots], count)[:count]]
            floor = _kth(self._gathered(query, np.sort(first))[1], k)
            slots = slots[upper[slots] >= floor]
        useful = len(slots) <= max(len(upper) // _SCATTERED, count)
        self.coarse.tell(useful=useful)
        return slots if useful else None

    def _scanned(
        self, query: Query, k: int, coarse: Sequence[CoarseRows] = ()
    ) -> tuple[NDArray[np.float32], float]:
        """Upper bounds of all rows, and a floor that at least k lower bounds reach.

        Of each group of rows only the best lower bound counts for the floor, which may therefore
        be a little lower than the k-th. Neighbours, which may be copies, are in different groups.
        """
        uppers, tops = [], []
        stride = max(1, min(_STRIDE, len(self.codes.rows) // (2 * k)))
        for start, upper, lower in self._bounds(query, coarse):
            if len(self.dead):
                first, last = np.searchsorted(self.dead, (start, start + len(upper)))
                dead = self.dead[first:last] - start
                upper[dead] = lower[dead] = -np.inf
            even = len(lower) // stride * stride
            tops += [lower[:even].reshape(stride, -1).max(axis=0), lower[even:]]
            uppers.append(upper)
        together = uppers[0] if len(uppers) == 1 else np.concatenate(uppers)
        return together, max(_kth(np.concatenate(tops), k), _LEAST)

    def _bounds(
        self, query: Query, coarse: Sequence[CoarseRows]
    ) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
        """Where rows begin, and their upper and lower bounds; together all rows."""
        start, total = 0, len(self.codes.rows)
        for rows in coarse:
            yield rows.start, *rows.bounds(query, self.codes.part(rows.start, rows.stop))
            start = rows.stop
        for first in range(start, total, _BLOCK):
            part = self.codes.part(first, first + _BLOCK)
            upper = query.upper(part)
            yield first, upper, query.lower(upper, part)

    def _gathered(
        self, query: Query, among: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Upper and lower bounds of some rows."""
        if len(among) >= len(self.codes.rows) // _FEW:
            upper = self._scanned(query, 1)[0][among]
            return upper, self._lower(query, upper, among)
        upper, lower = np.empty((2, len(among)), np.float32)
        for start in range(0, len(among), _SLICE):
            codes = self.codes.at(among[start : start + _SLICE])
            upper[start : start + _SLICE] = query.upper(codes)
            lower[start : start + _SLICE] = query.lower(upper[start : start + _SLICE], codes)
        return upper, lower

    def _lower(
        self, query: Query, upper: NDArray[np.float32], slots: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Lower bounds of some rows, given the upper ones; their bytes are not looked at."""
        return query.lower(upper, self.codes.at(slots, rows=False))

    def _rescored(
        self, query: Query, k: int, slots: NDArray[np.int64], upper: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Slots and their cosines: at least the best k, with all that equal the k-th."""
        count = _FIRST + k
        if len(slots) > 4 * count:  # a few tell which of the others are out
            first = np.argpartition(-upper, count)[:count]
            floor = _kth(query.cosines(self.reader.vectors(np.sort(slots[first]))), k)
            kept = upper >= floor
            slots, upper = slots[kept], upper[kept]
        if len(slots) > _MANY:
            return self._rescored_groups(query, k, slots, upper)
        return slots, query.cosines(self.reader.vectors(slots))

    def _rescored_groups(
        self, query: Query, k: int, slots: NDArray[np.int64], upper: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The same for many slots, of which those with equal vectors are read once."""
        _, first, group, counts = np.unique(
            self.reader.contents(slots), return_index=True, return_inverse=True, return_counts=True
        )
        scores = np.full(len(first), -np.inf)
        order = np.argsort(first)  # as they lie in the file
        best, times, floor = scores[:0], counts[:0], -np.inf
        for start in range(0, len(order), _PIECE):
            piece = order[start : start + _PIECE]
            piece = piece[upper[first[piece]] >= floor]
            scores[piece] = query.cosines(self.reader.vectors(slots[first[piece]]))
            best, times = np.append(best, scores[piece]), np.append(times, counts[piece])
            kept = np.argsort(-best)[:k]
            best, times = best[kept], times[kept]
            enough = np.flatnonzero(np.cumsum(times) >= k)
            floor = float(best[enough[0]]) if len(enough) else -np.inf
        everyone = scores[group.reshape(-1)]
        chosen = everyone >= max(floor, _LEAST)
        return slots[chosen], everyone[chosen]

    def _best(self, slots: NDArray[np.int64], scores: NDArray[np.float64], k: int) -> Ranking:
        """The first k by score, and by id where scores are equal."""
        floor = max(_kth(scores, k), _LEAST)
        above, equal = scores > floor, np.flatnonzero(scores == floor)
        ids = self.reader.ids(slots[above])
        found = ranked(zip(ids, scores[above].tolist(), strict=True))
        ties = heapq.nsmallest(k - len(found), self.reader.encoded_ids(slots[equal]))
        return found + [(decode_id(key), floor) for key in ties]


def _kth(values: NDArray[np.floating], k: int) -> float:
    """The k-th largest; -inf if there are fewer."""
    if len(values) < k:
        return -np.inf
    return float(np.partition(values, len(values) - k)[len(values) - k])
