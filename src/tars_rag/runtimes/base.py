"""What the models room needs from a device: arrays in, rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float32]
Feeds: TypeAlias = Mapping[str, IntArray]
"""Input name -> int64 array [rows, tokens]: input_ids, attention_mask and, for graphs that
take them, token_type_ids. All arrays of one feed have the same shape."""

OutputKind = Literal["pooled", "tokens", "logit"]
"""What a graph returns: one vector a text, one a token, or a cross-encoder's logit."""


@runtime_checkable
class Runtime(Protocol):
    """One graph, ready to run. Safe to call from any number of threads.

    Every implementation returns the same thing for the same feed, whatever the device: the
    pooled unit-length embeddings [rows, dim] of an embedder, the logits [rows, 1] of a
    cross-encoder. What a device leaves undone (pooling, the word table) is done on the host
    inside the implementation.
    """

    @property
    def device(self) -> str:
        """Where it runs: ``"cpu"`` or ``"npu"``."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names a feed must have."""

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The sequence lengths it accepts, ascending; None: any length."""

    @property
    def max_rows(self) -> int | None:
        """The largest number of rows in one feed; None: any."""

    def run(
        self,
        feeds: Sequence[Feeds],
        *,
        urgent: bool = False,
    ) -> list[FloatArray]:
        """Run every feed and return their rows in the order of `feeds`.

        Args:
            feeds: Batches, each of shape [rows, tokens].
            urgent: A person is waiting: overtake bulk work that has not started yet.

        Returns:
            One float32 array [rows, dim] (embedder) or [rows, 1] (cross-encoder) per feed.

        Raises:
            InvalidInputError: A feed has the wrong names, dtype or shape.
            DeviceError: The device gave no answer that can be trusted.
        """

    def close(self) -> None:
        """Release the device. May be called twice."""


def check_feed(feed: Feeds, names: Sequence[str]) -> None:
    """Refuse what is no feed of a graph with these inputs.

    Raises:
        InvalidInputError: Other names, another dtype than int64, or not one shape [rows, tokens].
    """
    if set(feed) != set(names):
        msg = f"A feed has {sorted(feed)}; this graph takes {sorted(names)}."
        raise InvalidInputError(msg)
    shapes = {array.shape for array in feed.values()}
    types = {array.dtype for array in feed.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or types != {np.dtype(np.int64)}:
        msg = f"A feed must be int64 arrays of one shape [rows, tokens], not {types} {shapes}."
        raise InvalidInputError(msg)
