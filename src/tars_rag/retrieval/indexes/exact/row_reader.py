"""Rows of a row file by slot, for searches: vectors, ids and content hashes."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.exact.row_tables import decode_id
from tars_rag.retrieval.indexes.exact.rows import RowFile, read, read_into

_PAIR, _END = struct.Struct("<II"), struct.Struct("<I")
_GAP = 8  # rows that are read and thrown away rather than asking once more


class RowReader:
    """The rows of a file up to some batch, by slot. Never changes; any thread may use it.

    Args:
        file: The file; its descriptor stays open as long as this lives.
        dim: Numbers in a vector.
        batches: `Batch.place` of each, int64 [b, 5].
    """

    def __init__(self, file: RowFile, dim: int, batches: NDArray[np.int64]) -> None:
        self._file, self._dim, self._batches = file, dim, batches
        self.batches = len(batches)

    def vectors(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors [m, dim] of ascending slots."""
        found = np.empty((len(slots), self._dim), "<f4")
        size = 4 * self._dim
        where = self._where(slots)
        at = self._batches[where, 3] + (slots - self._batches[where, 0]) * size
        breaks = (np.diff(at) > _GAP * size) | (np.diff(where) != 0)
        cuts = np.flatnonzero(breaks) + 1
        bounds = [0, *cuts.tolist(), len(slots)]
        starts = at.tolist()
        buffer = found.data.cast("B") if found.size else memoryview(b"")
        for start, stop in itertools.pairwise(bounds):
            # Most runs are one row, which the system reads in less time than numpy takes to think.
            row = buffer[start * size : stop * size]
            if stop - start != 1 or os.preadv(self._file.file, (row,), starts[start]) < size:
                self._read_run(found[start:stop], at[start:stop])
        return found

    def _read_run(self, out: NDArray[np.float32], at: NDArray[np.int64]) -> None:
        """Read rows that are near one another into `out` [m, dim]."""
        if not len(at):
            return
        start, size = int(at[0]), 4 * self._dim
        total = int(at[-1]) + size - start
        if total == out.nbytes:
            read_into(self._file, out, start)
            return
        scratch = np.empty((total // size, self._dim), "<f4")
        read_into(self._file, scratch, start)
        out[:] = scratch[(at - start) // size]

    def contents(self, slots: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The content hashes of ascending slots; rows of equal vectors have equal ones."""
        found = np.empty(len(slots), "<u8")
        for batch, start, stop in self._groups(slots):
            first, ends_at = int(self._batches[batch, 0]), int(self._batches[batch, 1])
            added = int(self._batches[batch, 4])
            table = np.empty(added, "<u8")
            read_into(self._file, table, ends_at - 8 * added)
            found[start:stop] = table[slots[start:stop] - first]
        return found

    def ids(self, slots: NDArray[np.int64]) -> list[str]:
        """The ids of ascending slots."""
        return [decode_id(data) for data in self.encoded_ids(slots)]

    def encoded_ids(self, slots: NDArray[np.int64]) -> list[bytes]:
        """The ids of ascending slots in UTF-8, which sort as they do."""
        found: list[bytes] = []
        for batch, start, stop in self._groups(slots):
            first, ends_at, ids_at = self._batches[batch, :3].tolist()
            places = (slots[start:stop] - first).tolist()
            if places[-1] - places[0] >= _GAP * len(places) or len(places) == 1:
                found += [self._id(place, ends_at, ids_at) for place in places]
            else:
                found += self._near_ids(places, ends_at, ids_at)
        return found

    def _id(self, place: int, ends_at: int, ids_at: int) -> bytes:
        """One id of a batch."""
        begin, at = 0, ends_at + 4 * place
        if place:
            begin, end = _PAIR.unpack(self._read(_PAIR.size, at - 4))
        else:
            (end,) = _END.unpack(self._read(_END.size, at))
        return self._read(end - begin, ids_at + begin)

    def _near_ids(self, places: list[int], ends_at: int, ids_at: int) -> Iterator[bytes]:
        """Ids of a batch that are near one another."""
        low, high = places[0], places[-1] + 1
        ends = np.zeros(high - low + 1, "<u4")
        skip = low == 0
        read_into(self._file, ends[int(skip) :], ends_at + 4 * (low - 1 + int(skip)))
        base = int(ends[0])
        blob = self._read(int(ends[-1]) - base, ids_at + base)
        bounds = (ends - base).tolist()
        return (blob[bounds[place - low] : bounds[place - low + 1]] for place in places)

    def _read(self, size: int, at: int) -> bytes:
        data = read(self._file.file, size, at)
        if len(data) < size:
            raise self._file.cut_off(at + len(data))
        return data

    def _where(self, slots: NDArray[np.int64]) -> NDArray[np.intp]:
        return np.searchsorted(self._batches[:, 0], slots, side="right") - 1

    def _groups(self, slots: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """(batch, start, stop) for the slots of each batch."""
        where = self._where(slots)
        cuts = (np.flatnonzero(np.diff(where)) + 1).tolist()
        for start, stop in zip([0, *cuts], [*cuts, len(slots)], strict=True):
            if stop > start:
                yield int(where[start]), start, stop
