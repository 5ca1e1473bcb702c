"""The amount of arithmetic that a device is sent, with padding; computed, not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tars_rag.models.batching import plan


@dataclass(frozen=True, slots=True)
class Encoder:
    """The shape of a BERT encoder."""

    layers: int
    hidden: int
    intermediate: int

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of one text of that many tokens.

        Per layer: four hidden x hidden products (query, key, value, output) and two hidden x
        intermediate ones for every token, and two products of tokens x tokens x hidden (scores,
        context). Everything else (LayerNorm, softmax, GELU) is left out: under 1 %.
        """
        linear = 4 * self.hidden**2 + 2 * self.hidden * self.intermediate
        return self.layers * tokens * (linear + 2 * tokens * self.hidden)


MINILM_L6 = Encoder(layers=6, hidden=384, intermediate=1536)
"""all-MiniLM-L6-v2."""


def work(
    lengths: Sequence[int], buckets: Sequence[int] | None, encoder: Encoder = MINILM_L6
) -> int:
    """Multiply-accumulates sent to the device for texts of these lengths.

    Args:
        lengths: Tokens of each text.
        buckets: The lengths the device takes, ascending; None: no padding at all.
        encoder: The model's shape.

    Returns:
        The sum over all texts, each padded to the smallest bucket that it fits, one text a run:
        as `models.batching` sends them.

    Raises:
        InvalidInputError: A text is longer than the longest bucket.
    """
    return sum(encoder.macs(b.length) for b in plan(lengths, buckets=buckets, max_rows=1))
