"""What the models room needs from a device: arrays in, rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

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
