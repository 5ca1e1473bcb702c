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
        gram: The sum over all tokens of x xᵀ, [channels, channels]; None for outputs.
    """

    low: FloatArray
    high: FloatArray
    gram: FloatArray | None = None

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

    linears = list(linears)
    inputs = {linear_input(*at) for at in linears}
    names = sorted(inputs | {f"l{layer}.{key}" for layer, key in linears})
    graph = build_graph(weights, output="logit" if weights.head else "tokens")
    graph.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    seen: dict[str, Channels] = {}
    for feed in feeds:
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            rows = value.reshape(-1, value.shape[-1])
            low, high = rows.min(axis=0), rows.max(axis=0)
            gram = rows.T @ rows if name in inputs else None
            if before := seen.get(name):
                low, high = np.minimum(low, before.low), np.maximum(high, before.high)
                gram = None if gram is None or before.gram is None else gram + before.gram
            seen[name] = Channels(low, high, gram)
    return seen
