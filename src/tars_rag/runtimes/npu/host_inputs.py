"""What the host prepares for a graph that takes no integers.

On some chips integers are what a graph fails on (casts, the look-up of words and the mask run on
the CPU inside the vendor's runtime, if they run), so such a graph takes float32 only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import DeviceError, InvalidInputError
from tars_rag.runtimes.base import Feeds, FloatArray

WORDS: Final = "word_embeddings"
MASK: Final = "additive_mask"
POOLING: Final = "pooling_weights"
LAST: Final = "last_token"
TYPES: Final = "token_types"
ONE: Final = "live_one"

MASK_VALUE: Final = -100.0
"""Added to the attention scores of padding. -1e4 or less takes the whole int8 range of the scores;
-20 leaks at length 512."""

NEEDS: Final[Mapping[str, str]] = {
    WORDS: "input_ids",
    MASK: "attention_mask",
    POOLING: "attention_mask",
    LAST: "attention_mask",
    TYPES: "token_type_ids",
    ONE: "attention_mask",
}
"""What of a feed each input is made of."""


def look_up(ids: NDArray[np.int64], table: NDArray[Any] | None) -> FloatArray:
    """The words of a feed, float32 [rows, tokens, hidden].

    Raises:
        DeviceError: There is no table.
        InvalidInputError: An id is not in it.
    """
    if table is None:
        msg = (
            "The model takes word embeddings, but has no word table. "
            "To convert it again: tars-rag convert --help"
        )
        raise DeviceError(msg)
    if ids.min() < 0 or ids.max() >= len(table):
        msg = f"Token ids must lie in 0..{len(table) - 1}: {ids.min()}..{ids.max()} is not."
        raise InvalidInputError(msg)
    return np.ascontiguousarray(table[ids], dtype=np.float32)


def _additive(mask: NDArray[np.int64]) -> FloatArray:
    return np.asarray(np.where(mask != 0, 0, MASK_VALUE), np.float32)


def _shares(mask: NDArray[np.int64]) -> FloatArray:
    # They sum to 1 before the sum over the tokens, which so stays small in float16.
    numbers = mask.astype(np.float32)
    return np.asarray(numbers / numbers.sum(axis=1, keepdims=True), np.float32)


def _last(mask: NDArray[np.int64]) -> FloatArray:
    one = np.zeros(mask.shape, np.float32)
    one[np.arange(len(mask)), mask.sum(axis=1) - 1] = 1
    return one


_OF_MASK: Final[Mapping[str, Callable[[NDArray[np.int64]], FloatArray]]] = {
    MASK: _additive,
    POOLING: _shares,
    LAST: _last,
    ONE: lambda mask: np.ones((len(mask), 1), np.float32),
}


def device_inputs(
    names: Sequence[str], feed: Feeds, table: NDArray[Any] | None
) -> list[NDArray[Any]]:
    """The arrays that a graph takes, C-contiguous and in the order of `names`.

    Args:
        names: Of the graph's inputs: those of this module (float32), or of a feed (int64).
        feed: int64 [rows, tokens] each. Token types that it lacks are all 0.
        table: Word embeddings [vocabulary, hidden], where words are looked up here.

    Raises:
        DeviceError: The words are to be looked up, and there is no table.
        InvalidInputError: An id is not in the table.
    """
    mask = feed["attention_mask"]
    arrays: list[NDArray[Any]] = []
    for name in names:
        if name == WORDS:
            array: NDArray[Any] = look_up(feed["input_ids"], table)
        elif name in _OF_MASK:
            array = _OF_MASK[name](mask)
        else:
            asked = feed.get(NEEDS.get(name, name))
            if asked is None:
                asked = np.zeros_like(mask)
            array = asked.astype(np.float32 if name == TYPES else np.int64, copy=False)
        arrays.append(np.ascontiguousarray(array))
    return arrays
