"""The codes of an exact index in a file, mapped into memory.

They are made of the vectors in the row file, which says their checksums. So they need no fsync:
what a crash or a fault took of them is made again when the index is opened.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SPARE = 1024  # rows by which the file grows at least


class CodeFile:
    """Rows of `dim` bytes.

    Args:
        path: The file; made if missing, unless `read_only`.
        dim: Bytes in a row.
        read_only: Never write to the file: rows that are written are kept in memory only.
    """

    def __init__(self, path: Path, dim: int, *, read_only: bool = False) -> None:
        self._dim = dim
        self._read_only = read_only
        self._private = False
        self._rows = np.empty((0, dim), np.uint8)
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        try:
            self._file = os.open(path, flags, 0o666)
        except FileNotFoundError:
            self._file = os.open(os.devnull, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._file)
        self._path = path
        self._map(os.fstat(self._file).st_size // dim)

    def rows(self, count: int) -> NDArray[np.uint8]:
        """The first rows, uint8 [count, dim]; a view that stays what it is."""
        if count > len(self._rows):
            self._map(os.fstat(self._file).st_size // self._dim)
        if count > len(self._rows):
            self._grow(count)
        return self._rows[:count]

    def write(self, first: int, rows: NDArray[np.uint8]) -> None:
        """Put rows at a place where no view looks yet, or that was damaged.

        Raises:
            OSError: There is no room.
        """
        if not len(rows):
            return
        last = first + len(rows)
        if self._read_only and not self._private:
            self._rows, self._private = self._rows.copy(), True
        if last > len(self._rows):
            self._grow(last)
        if self._private:
            self._rows[first:last] = rows
            return
        data, at = np.ascontiguousarray(rows).data.cast("B"), first * self._dim
        while data:
            written = os.pwrite(self._file, data, at)
            data, at = data[written:], at + written

    def close(self) -> None:
        """Release it; views stay usable. May be called twice."""
        self._close()

    def _grow(self, count: int) -> None:
        capacity = count + max(_SPARE, count // 8)
        if self._read_only:
            rows = np.zeros((capacity, self._dim), np.uint8)
            rows[: len(self._rows)] = self._rows
            self._rows, self._private = rows, True
        else:
            os.ftruncate(self._file, capacity * self._dim)  # sparse
            self._map(capacity)

    def _map(self, capacity: int) -> None:
        if capacity and not self._private:
            shape = (capacity, self._dim)
            with open(self._file, "rb", closefd=False) as stream:
                # Of a memmap each slice is one again, which takes numpy ten times as long.
                self._rows = np.memmap(stream, np.uint8, "r", shape=shape).view(np.ndarray)
