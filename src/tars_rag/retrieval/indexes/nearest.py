"""The k nearest rows, proven: bytes say which rows may be among them, float32 vectors decide.

1. The codes of all rows give each an upper and a lower bound of its cosine (see `codes`).
2. The k-th largest lower bound is a floor: a row whose upper bound is below it is out.
3. The vectors of the others are read, those with the highest upper bounds first, a few at first and
   then more at a time, until the k-th best cosine is above every upper bound that is left.

Among copies of one vector all upper bounds are alike and nothing can be left out. Rows whose
vectors are equal byte for byte are therefore read once; what differs is read to the last row if
need be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.codes import Codes, Query
from tars_rag.retrieval.indexes.id_table import IdTable
from tars_rag.retrieval.indexes.rows import RowReader
from tars_rag.retrieval.passage import Ranking, ranked

_LEAST = -2.0  # less than any cosine, more than what stands for no row
_STRIDE = 64  # each of n / 64 groups of rows yields one candidate for the floor
_FIRST, _MOST = 64, 1 << 14  # rows that are read at once: at first, and later
_MANY = 1024  # rows among which copies are looked for
_SLICE = 1 << 15  # rows of a filter that are gathered at once


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The index after some commit. Never changes.

    Attributes:
        dim: Numbers in a vector; 0 as long as there was none.
        reader: The rows.
        codes: Theirs, dead ones included.
        dead: Slots of rows that were removed, ascending.
        table: The living ids.
        generation: How many commits there were.
        digest: 16 hexadecimal digits that name the sequence of commits.
        stamp: What the last commit was given.
    """

    dim: int
    reader: RowReader
    codes: Codes
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
        scores, members = self._rescored(query, k, slots, upper)
        return self._best(scores, members, k)

    def _candidates(
        self, query: Query, k: int, among: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Slots that may be among the best k, and the upper bounds of their cosines."""
        if among is None:
            upper, lower = query.near(self.codes)
            upper[self.dead] = lower[self.dead] = -np.inf
        else:
            pieces = [
                query.near(_some(self.codes, among[start : start + _SLICE]))
                for start in range(0, len(among), _SLICE)
            ]
            if not pieces:
                return among, np.empty(0, np.float32)
            upper, lower = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        chosen = np.flatnonzero(upper >= max(_floor(lower, k), _LEAST))
        if len(chosen) > 2 * k:  # the floor was of the groups' best
            chosen = chosen[upper[chosen] >= _kth(lower[chosen], k)]
        return (chosen if among is None else among[chosen]), upper[chosen]

    def _rescored(
        self, query: Query, k: int, slots: NDArray[np.int64], upper: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
        """Cosines of distinct vectors, best first, and the slots of each: at least the best k."""
        groups = _Groups(self.reader, slots)
        bounds = upper[groups.first]
        order = np.argsort(-bounds, kind="stable")
        scores = np.full(len(order), -np.inf)
        floor, size, done = -np.inf, max(_FIRST, 2 * k), 0
        while done < len(order) and bounds[order[done]] >= floor:
            piece = order[done : done + size]
            piece = np.sort(piece[bounds[piece] >= floor])
            scores[piece] = query.cosines(self.reader.vectors(slots[groups.first[piece]]))
            done, size = done + size, min(_MOST, 4 * size)
            floor = groups.kth(scores, k)
        chosen = np.flatnonzero(scores >= max(floor, _LEAST))
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
        return scores[chosen], [slots[groups.members(int(group))] for group in chosen]

    def _best(
        self, scores: NDArray[np.float64], members: list[NDArray[np.int64]], k: int
    ) -> Ranking:
        """The first k by score, and by id where scores are equal."""
        counts = np.cumsum([len(slots) for slots in members])
        last = scores[min(int(np.searchsorted(counts, k)), len(scores) - 1)]  # ties of it: by id
        slots = np.concatenate(members)
        values = np.repeat(scores, np.diff(counts, prepend=0))[np.argsort(slots)]
        slots = np.sort(slots)
        found: Ranking = []
        for chosen in (values > last, values == last):
            found += ranked(
                zip(self.reader.ids(slots[chosen]), values[chosen].tolist(), strict=True)
            )
        return found[:k]


class _Groups:
    """Slots by content, where there are so many that looking for copies pays.

    Attributes:
        first: A place in the slots for each group, ascending.
    """

    def __init__(self, reader: RowReader, slots: NDArray[np.int64]) -> None:
        self.first = np.arange(len(slots))
        self._counts: NDArray[np.intp] | None = None
        if len(slots) > _MANY:
            _, first, group, counts = np.unique(
                reader.contents(slots), return_index=True, return_inverse=True, return_counts=True
            )
            order = np.argsort(first)
            rank = np.empty_like(order)
            rank[order] = np.arange(len(order))
            self.first, self._counts = first[order], counts[order]
            self._sorted = np.argsort(rank[group.reshape(-1)], kind="stable")
            self._starts = np.cumsum(self._counts) - self._counts

    def members(self, group: int) -> NDArray[np.intp]:
        """Places of a group's slots."""
        if self._counts is None:
            return self.first[group : group + 1]
        start = self._starts[group]
        return self._sorted[start : start + self._counts[group]]

    def kth(self, scores: NDArray[np.float64], k: int) -> float:
        """The k-th best score, counting every slot of a group; -inf if there are fewer."""
        if self._counts is None:
            return _kth(scores, k)
        order = np.argsort(-scores, kind="stable")[:k]
        enough = np.flatnonzero(np.cumsum(self._counts[order]) >= k)
        return float(scores[order[enough[0]]]) if len(enough) else -np.inf


def _some(codes: Codes, slots: NDArray[np.int64]) -> Codes:
    return Codes(codes.rows[slots], codes.steps[slots], codes.residuals[slots])


def _floor(lower: NDArray[np.float32], k: int) -> float:
    """A number that at least k of the bounds reach; the k-th largest, or a little less."""
    groups = len(lower) // _STRIDE
    if groups < 2 * k:
        return _kth(lower, k)
    # Neighbours, which may be copies of one another, are in different groups.
    best = lower[: groups * _STRIDE].reshape(_STRIDE, groups).max(axis=0)
    return _kth(best, k)


def _kth(values: NDArray[np.floating], k: int) -> float:
    """The k-th largest; -inf if there are fewer."""
    if len(values) < k:
        return -np.inf
    return float(np.partition(values, len(values) - k)[len(values) - k])
