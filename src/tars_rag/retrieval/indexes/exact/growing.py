"""An array that grows at its end, while others hold views of what it was."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T", bound=np.generic)


class Growing(Generic[_T]):
    """Rows of one kind, appended in amortised constant time.

    It does not know how many rows count: who holds the last view does. So an append that comes to
    nothing needs no undoing.

    Args:
        start: The first rows [n, ...].
    """

    def __init__(self, start: NDArray[_T]) -> None:
        self._buffer: NDArray[Any] = start

    def extended(self, count: int, rows: NDArray[_T]) -> NDArray[_T]:
        """A view of the first `count` rows and of `rows` [m, ...] after them.

        Views of `count` rows or fewer stay what they are. One thread at a time.
        """
        total = count + len(rows)
        if total > len(self._buffer):
            size = total + max(1024, total // 8)
            buffer = np.empty((size, *self._buffer.shape[1:]), self._buffer.dtype)
            buffer[:count] = self._buffer[:count]
            self._buffer = buffer
        self._buffer[count:total] = rows
        view: NDArray[_T] = self._buffer[:total]
        return view
