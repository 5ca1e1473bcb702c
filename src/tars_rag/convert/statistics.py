"""What flows through the linear layers of a model while it reads the calibration texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tars_rag.models.bert_graph import build_graph, linear_input
from tars_rag.models.weights import BertWeights
from tars_rag.runtimes.base import Feeds

FloatArray: TypeAlias = NDArray[np.float32]
Linear: TypeAlias = tuple[int, str]
"""(encoder layer, key of `bert_graph.LINEAR`)."""


@dataclass(frozen=True, slots=True)
class Channels:
    """The values of one tensor.

    Attributes:
        low: The least value of each channel, [channels].
        high: The greatest, [channels].
        gram: The sum over all tokens of x xᵀ, [channels, channels].
    """

    low: FloatArray
    high: FloatArray
    gram: FloatArray

    @property
    def largest(self) -> FloatArray:
        """The largest magnitude of each channel, [channels]."""
        return np.maximum(-self.low, self.high)


def observe(
    weights: BertWeights, feeds: Sequence[Feeds], linears: Iterable[Linear]
) -> dict[str, Channels]:
    """Run FP32 over unpadded texts and look at the inputs and outputs of linear layers.

    Unpadded, because what a padded position holds widens the ranges and reaches no result.

    Args:
        weights: The model.
        feeds: One text each, [1, tokens].
        linears: Which layers.

    Returns:
        By name of the tensor: `bert_graph.linear_input`, and ``l{layer}.{key}`` for outputs.
    """
    import onnxruntime
    from onnx import helper

    wanted = {name for at in linears for name in (linear_input(*at), f"l{at[0]}.{at[1]}")}
    names = sorted(wanted)
    graph = build_graph(weights, output="logit" if weights.head else "tokens")
    graph.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    seen: dict[str, Channels] = {}
    for feed in feeds:
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            rows = value.reshape(-1, value.shape[-1])
            now = Channels(rows.min(axis=0), rows.max(axis=0), rows.T @ rows)
            before = seen.get(name, now)
            seen[name] = Channels(
                np.minimum(before.low, now.low),
                np.maximum(before.high, now.high),
                before.gram + now.gram if name in seen else now.gram,
            )
    return seen
