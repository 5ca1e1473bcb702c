"""Weights -> an ONNX graph that both the CPU and the NPU run well.

One entry for embedders and cross-encoders of every architecture, for dynamic shapes (CPU) and
fixed ones (NPU). What is particular to one stands in `architectures`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from tars_rag.errors import ModelError
from tars_rag.models.architectures import bert, ends, modernbert
from tars_rag.models.architectures.bert import LINEAR, Scales, linear_input, linear_weight
from tars_rag.models.architectures.builder import GraphBuilder
from tars_rag.models.spec import Pooling
from tars_rag.models.weights import BertWeights
from tars_rag.runtimes.npu import host_inputs as host

if TYPE_CHECKING:
    import onnx

__all__ = [
    "GRAPH_VERSION",
    "LINEAR",
    "OPSET",
    "Output",
    "Scales",
    "build_graph",
    "host_input_names",
    "linear_input",
    "linear_weight",
    "takes_types",
    "traced",
]

GRAPH_VERSION: Final = 2
"""Goes into the name of cached graphs: raise it when the numbers a graph gives may change."""

OPSET: Final = 17

Output = Literal["pooled", "tokens", "logit"]


def build_graph(
    weights: BertWeights,
    *,
    output: Output,
    pooling: Pooling = "mean",
    shape: tuple[int, int] | None = None,
    host_inputs: bool = False,
    scales: Scales | None = None,
) -> onnx.ModelProto:
    """Build the ONNX model.

    Inputs are int64 [batch, tokens]: ``input_ids``, ``attention_mask`` and, for a cross-encoder
    of an architecture that has them, ``token_type_ids`` (an embedder's are all 0). The output is
    float32 and named like `output`: ``pooled`` [batch, width] of unit length, ``tokens``
    [batch, tokens, hidden] or ``logit`` [batch, 1]. Padding is on the right.

    With `host_inputs` no input is an integer. They are float32 and, see `host_input_names`, of
    these: ``word_embeddings`` [batch, tokens, hidden]; ``additive_mask`` (0, or -100 on padding),
    ``token_types`` (0 or 1), ``pooling_weights`` (each token's share in the mean) and
    ``last_token`` (1 there), all [batch, tokens]; ``live_one`` [batch, 1] (always 1).

    Args:
        weights: From `load_weights` or `random_weights`.
        output: What the graph ends in.
        pooling: How ``pooled`` is made. A cross-encoder's weights say it themselves.
        shape: (batch, tokens) to fix both; None leaves both dynamic.
        host_inputs: Leave to the host what an NPU does not do itself: the word table and all that
            is made of integers.
        scales: Per-channel equalisation of chosen linear layers, for quantisation:
            x' = x / s, W' = W s / t, y = y' t, which is the same function. What is all 1 makes no
            operator. s and t are multiplied
            by ``live_one`` or max(attention_mask), which is always 1, because the NPU's toolkit
            folds constant multiplications back into the weights.

    Raises:
        ModelError: ``logit`` without a classifier, ``pooled`` of one that has it behind modules,
            or `shape` longer than the positions.
    """
    from onnx import TensorProto, helper

    config = weights.config
    if output == "logit" and not weights.head:
        msg = "These weights have no classifier: they are of an embedder, not of a cross-encoder."
        raise ModelError(msg)
    if shape and shape[1] > config.positions:
        msg = f"Length {shape[1]} is more than the model's {config.positions} positions."
        raise ModelError(msg)
    scales = scales or {}
    typed = output == "logit" and takes_types(weights)
    if output == "logit":
        pooling = weights.pooling
    g = GraphBuilder(shape)
    inputs = ends.Inputs(g, on_host=host_inputs, live=bool(scales))
    if config.rotary:
        result = modernbert.ModernBertEncoder(g, inputs, weights).tokens()
    else:
        encoder = bert.BertEncoder(g, inputs, weights, typed=typed, scales=scales)
        result = encoder.tokens()
    if output != "tokens":
        result = inputs.pool(result, pooling, config.hidden)
    # A classification head is not part of an embedding.
    if output == "logit" or (output == "pooled" and not weights.head):
        result = ends.apply(g, result, weights.modules, weights.arrays)
    if output == "pooled":
        result = ends.unit_length(g, result)
    g.op("Identity", [result], output)

    rows, tokens = shape or ("batch", "tokens")
    hidden = config.hidden
    sizes: dict[str, list[int | str]] = {host.WORDS: [rows, tokens, hidden], host.ONE: [rows, 1]}
    if host_inputs:
        scaled = any((x != 1).any() for pair in scales.values() for x in pair)
        names = host_input_names(weights, output, pooling, scaled=scaled)
        number = TensorProto.FLOAT
    else:
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if typed else ()))
        number = TensorProto.INT64
    taken = [
        helper.make_tensor_value_info(name, number, sizes.get(name, [rows, tokens]))
        for name in names
    ]
    width = hidden if weights.head else weights.width
    shapes = {"tokens": [rows, tokens, hidden], "pooled": [rows, width], "logit": [rows, 1]}
    end = helper.make_tensor_value_info(output, TensorProto.FLOAT, shapes[output])
    graph = helper.make_graph(g.nodes, config.architecture, taken, [end], [*g.constants.values()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 8  # what opset 17 came with; newer ones are refused by older runtimes
    return model


def takes_types(weights: BertWeights) -> bool:
    """Whether a cross-encoder is told which tokens are the passage's; without, all are alike."""
    return weights.config.types > 1


def host_input_names(
    weights: BertWeights, output: Output, pooling: Pooling, *, scaled: bool
) -> tuple[str, ...]:
    """The inputs of a graph with `host_inputs`, in order.

    Args:
        weights: Of the model.
        output: What the graph ends in.
        pooling: How ``pooled`` is made.
        scaled: There are scales but 1.
    """
    names = [host.WORDS, host.MASK]
    if output == "logit":
        pooling = weights.pooling
        names += [host.TYPES] if takes_types(weights) else []
    if output != "tokens" and pooling in ("mean", "lasttoken"):
        names.append(host.POOLING if pooling == "mean" else host.LAST)
    if scaled:
        names.append(host.ONE)
    return tuple(names)


def traced(weights: BertWeights) -> list[str]:
    """The names of all tensors that go into or come out of a linear layer of the encoder."""
    return modernbert.traced(weights) if weights.config.rotary else bert.traced(weights)
