"""Whether float16, in which the NPU computes, can hold what a model computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tars_rag.errors import ConversionError
from tars_rag.models.bert_graph import build_graph, traced
from tars_rag.models.weights import BertWeights
from tars_rag.runtimes.base import Feeds

LIMIT: Final = 16_000.0
"""A quarter of what float16 can hold (65,504): other texts may go further than those tried."""


def largest_activation(weights: BertWeights, feeds: Sequence[Feeds]) -> tuple[str, float]:
    """The largest magnitude that goes into or comes out of a linear layer, in FP32.

    Args:
        weights: The model.
        feeds: One text each, [1, tokens], unpadded.

    Returns:
        The name of the tensor, and the magnitude.
    """
    import onnxruntime
    from onnx import helper

    names = traced(weights)
    graph = build_graph(weights, output="logit" if weights.head else "tokens")
    graph.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    largest = dict.fromkeys(names, 0.0)
    for feed in feeds:
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            largest[name] = max(largest[name], float(np.abs(value).max()))
    return max(largest.items(), key=lambda item: (np.isnan(item[1]), item[1]))


def check_range(model: str, weights: BertWeights, feeds: Sequence[Feeds]) -> float:
    """Refuse a model that would overflow; the largest magnitude otherwise.

    Raises:
        ConversionError: It would, on texts like those tried.
    """
    name, value = largest_activation(weights, feeds)
    if value <= LIMIT:
        return value
    msg = (
        f"{model} does not fit into float16, in which the NPU computes: {name} reaches "
        f"{value:.4g} over {len(feeds)} texts, where {LIMIT:.0f} leaves a margin for others "
        "(float16 ends at 65504, and the answer would be NaN). Nothing was kept. Run it on the CPU "
        "(NPU_EMBEDDER_ENABLED=0, NPU_RERANK_ENABLED=0); to convert it all the same, add: "
        "--allow-degraded"
    )
    raise ConversionError(msg)
