"""An array that grows at its end, while others hold views of what it was."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T", bound=np.generic)


class Growing(Generic[_T]):
    """Rows of one kind, appended in amortised constant time.

    Args:
        start: The first rows [n, ...].
    """

    def __init__(self, start: NDArray[_T]) -> None:
        self._buffer: NDArray[Any] = start
        self._count = len(start)

    def view(self) -> NDArray[_T]:
        """The rows so far; appending changes nothing of a view."""
        view: NDArray[_T] = self._buffer[: self._count]
        return view

    def append(self, rows: NDArray[_T]) -> None:
        """Add rows [m, ...]. One thread at a time."""
        count = self._count + len(rows)
        if count > len(self._buffer):
            size = count + max(1024, count // 8)
            buffer = np.empty((size, *self._buffer.shape[1:]), self._buffer.dtype)
            buffer[: self._count] = self._buffer[: self._count]
            self._buffer = buffer
        self._buffer[self._count : count] = rows
        self._count = count
