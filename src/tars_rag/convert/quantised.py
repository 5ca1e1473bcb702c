"""The graph of a quantised recipe, and the int8 ranges that go with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tars_rag.convert.balancing import balanced
from tars_rag.convert.equalise import scales, word_scale
from tars_rag.convert.rounding import round_weights
from tars_rag.convert.statistics import FloatArray, Linear, observe
from tars_rag.models.architectures.bert import Scales, linear_input, linear_weight
from tars_rag.models.weights import BertWeights
from tars_rag.runtimes.base import Feeds

if TYPE_CHECKING:
    import onnx

Ranges: TypeAlias = dict[str, tuple[float, float, float, float]]
"""``l0.q`` -> least and greatest value of the multiplication's input, and of its output."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What makes a model bear int8; the same for every sequence length.

    Attributes:
        weights: Of the same function as the model's, see `balancing`.
        scales: For `bert_graph.build_graph`.
        constants: Values that replace those of the graph, by name.
        ranges: For the toolkit, in place of what it would measure on padded inputs.
    """

    weights: BertWeights
    scales: Scales
    constants: dict[str, FloatArray]
    ranges: Ranges


def prepare(weights: BertWeights, feeds: Sequence[Feeds], linears: Sequence[Linear]) -> Preparation:
    """Equalise, round and find the ranges of linear layers.

    Args:
        weights: The model.
        feeds: Calibration texts, [1, tokens] each, not padded.
        linears: The layers that become int8.
    """
    weights = balanced(weights, observe(weights, feeds, linears), linears)
    seen = observe(weights, feeds, linears)
    chosen = scales(weights, seen, linears)
    constants, ranges = {}, {}
    for (layer, key), (s, t) in chosen.items():
        name = f"l{layer}.{key}"
        x, y = seen[linear_input(layer, key)], seen[name]
        weight = linear_weight(weights, layer, key) * s[:, None] / t
        if x.gram is not None:
            constants[f"{name}.w"] = round_weights(weight, x.gram / np.outer(s, s))
        ends = ((x.low / s).min(), (x.high / s).max(), (y.low / t).min(), (y.high / t).max())
        low_x, high_x, low_y, high_y = map(float, ends)
        ranges[name] = (low_x, high_x, low_y, high_y)
    return Preparation(weights, chosen, constants, ranges)


def set_constant(graph: onnx.ModelProto, name: str, value: FloatArray) -> None:
    """Replace the value of a constant by another of the same shape.

    Raises:
        KeyError: The graph has no such constant.
    """
    from onnx import numpy_helper

    for tensor in graph.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))
            return
    raise KeyError(name)


def balance_table(graph: onnx.ModelProto, table: FloatArray) -> None:
    """Divide the channels of the word table, and multiply again what was looked up."""
    from onnx import helper, numpy_helper

    scale = word_scale(table)
    set_constant(graph, "words", table / scale)
    nodes = graph.graph.node
    place = next(place for place, node in enumerate(nodes) if node.op_type == "Gather")
    looked_up = nodes[place].output[0]
    nodes[place].output[0] = f"{looked_up}.divided"
    graph.graph.initializer.append(numpy_helper.from_array(scale[None, None], "words.scale"))
    again = helper.make_node(
        "Mul", [f"{looked_up}.divided", "words.scale"], [looked_up], name=f"{looked_up}.times"
    )
    nodes.insert(place + 1, again)
