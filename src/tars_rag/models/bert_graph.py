"""BERT weights -> an ONNX graph that both the CPU and the NPU run well.

One builder for embedders and single-logit cross-encoders, for dynamic shapes (CPU) and fixed
ones (NPU). Node and tensor names are stable, because the converter chooses layers by name:
``emb.word``, ``l0.q.mm`` (the multiplication), ``l0.q`` (its result with the bias), ``l3.ff2``,
``pool``, ``head.logit``.

Only operators that the NPU's toolkit also takes are used: layer norm and GELU are spelled out,
and ONNX Runtime fuses both back when it loads the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tars_rag.errors import ModelError
from tars_rag.models.spec import Pooling
from tars_rag.models.weights import BertWeights
from tars_rag.runtimes.npu import host_inputs as host

if TYPE_CHECKING:
    import onnx

GRAPH_VERSION: Final = 1
"""Goes into the name of cached graphs: raise it when the numbers a graph gives may change."""

OPSET: Final = 17

Output = Literal["pooled", "tokens", "logit"]
Scales = Mapping[tuple[int, str], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""(layer, key of `LINEAR`) -> (s [in], t [out]), see `build_graph`."""

LINEAR: Final = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "ff1": "intermediate.dense",
    "ff2": "output.dense",
}
"""The linear layers of one encoder layer: key in node names -> name in the weights."""


def linear_input(layer: int, key: str) -> str:
    """The name of the tensor that goes into a linear layer (its output is ``l{layer}.{key}``)."""
    if key in ("q", "k", "v"):
        return f"l{layer - 1}.ln2" if layer else "emb.ln"
    return f"l{layer}." + {"o": "ctx", "ff1": "ln1", "ff2": "gelu"}[key]


def linear_weight(weights: BertWeights, layer: int, key: str) -> NDArray[np.float32]:
    """The weight of a linear layer as the graph multiplies it, [in, out], float32.

    The query projection holds the attention's 1/sqrt(head size).
    """
    weight = weights.arrays[f"encoder.layer.{layer}.{LINEAR[key]}.weight"].T
    scale = math.sqrt(weights.config.head_size) if key == "q" else 1.0
    return np.asarray(weight / np.float32(scale), np.float32)


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

    Inputs are int64 [batch, tokens]: ``input_ids``, ``attention_mask`` and, for a cross-encoder,
    ``token_type_ids`` (an embedder's are all 0). The output is float32 and named like `output`:
    ``pooled`` [batch, hidden] of unit length, ``tokens`` [batch, tokens, hidden] or ``logit``
    [batch, 1].

    With `host_inputs` no input is an integer. They are float32 and, see `host_input_names`, of
    these: ``word_embeddings`` [batch, tokens, hidden]; ``additive_mask`` (0, or -100 on padding),
    ``token_types`` (0 or 1) and ``pooling_weights`` (each token's share in the mean), all
    [batch, tokens]; ``live_one`` [batch, 1] (always 1).

    Args:
        weights: From `load_weights` or `random_weights`.
        output: What the graph ends in.
        pooling: How ``pooled`` is made: the mean over the mask, or the first token.
        shape: (batch, tokens) to fix both; None leaves both dynamic.
        host_inputs: Leave to the host what an NPU does not do itself: the word table and all that
            is made of integers.
        scales: Per-channel equalisation of chosen linear layers, for quantisation:
            x' = x / s, W' = W s / t, y = y' t, which is the same function. What is all 1 makes no
            operator. s and t are multiplied
            by ``live_one`` or max(attention_mask), which is always 1, because the NPU's toolkit
            folds constant multiplications back into the weights.

    Raises:
        ModelError: ``logit`` without a classifier, or `shape` longer than the positions.
    """
    if output == "logit" and not weights.head:
        msg = "These weights have no classifier: they are of an embedder, not of a cross-encoder."
        raise ModelError(msg)
    if shape and shape[1] > weights.config.positions:
        msg = f"Length {shape[1]} is more than the model's {weights.config.positions} positions."
        raise ModelError(msg)
    return _Builder(weights, output, pooling, shape, host_inputs, scales or {}).model()


def host_input_names(output: Output, pooling: Pooling, *, scaled: bool) -> tuple[str, ...]:
    """The inputs of a graph with `host_inputs`, in order; `scaled`: there are scales but 1."""
    names = [host.WORDS, host.MASK]
    if output == "logit":
        names.append(host.TYPES)
    if output == "pooled" and pooling == "mean":
        names.append(host.POOLING)
    if scaled:
        names.append(host.ONE)
    return tuple(names)


class _Builder:
    def __init__(
        self,
        weights: BertWeights,
        output: Output,
        pooling: Pooling,
        shape: tuple[int, int] | None,
        host_inputs: bool,
        scales: Scales,
    ) -> None:
        self.w = weights.arrays
        self.weights = weights
        self.config = weights.config
        self.output = output
        self.pooling = pooling
        self.shape = shape
        self.host_inputs = host_inputs
        self.scales = scales
        # In Reshape 0 keeps a dimension and -1 infers it; the NPU wants plain numbers.
        self.batch, self.tokens = shape or (0, -1)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.scaled: dict[tuple[str, bytes], str] = {}

    def const(self, name: str, value: ArrayLike, dtype: type = np.float32) -> str:
        from onnx import numpy_helper

        if name not in self.constants:
            array: NDArray[Any] = np.ascontiguousarray(np.asarray(value, dtype))
            # ascontiguousarray makes a scalar 1-d, which would broadcast ranks up.
            array = array.reshape(np.shape(value))
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def reshape(self, x: str, name: str, shape: Sequence[int]) -> str:
        key = "shape." + "x".join(map(str, shape)).replace("-", "n")
        return self.op("Reshape", [x, self.const(key, list(shape), np.int64)], name)

    def sum(self, x: str, name: str, axis: int) -> str:
        axes = self.const(f"axis.{axis}".replace("-", "n"), [axis], np.int64)
        return self.op("ReduceSum", [x, axes], name, keepdims=1)

    def model(self) -> onnx.ModelProto:
        from onnx import TensorProto, helper

        x = self.embeddings()
        mask = self.mask()
        for layer in range(self.config.layers):
            x = self.layer(x, mask, layer)
        result = {"tokens": lambda x: x, "pooled": self.pooled, "logit": self.logit}[self.output](x)
        self.op("Identity", [result], self.output)

        rows, tokens = self.shape or ("batch", "tokens")
        hidden = self.config.hidden
        sizes: dict[str, list[int | str]] = {
            host.WORDS: [rows, tokens, hidden],
            host.ONE: [rows, 1],
        }
        if self.host_inputs:
            scaled = any((x != 1).any() for pair in self.scales.values() for x in pair)
            names = host_input_names(self.output, self.pooling, scaled=scaled)
            number = TensorProto.FLOAT
        else:
            types = ("token_type_ids",) if self.output == "logit" else ()
            names = ("input_ids", "attention_mask", *types)
            number = TensorProto.INT64
        inputs = [
            helper.make_tensor_value_info(name, number, sizes.get(name, [rows, tokens]))
            for name in names
        ]
        ends = {"tokens": [rows, tokens, hidden], "pooled": [rows, hidden], "logit": [rows, 1]}
        end = helper.make_tensor_value_info(self.output, TensorProto.FLOAT, ends[self.output])
        graph = helper.make_graph(self.nodes, "bert", inputs, [end], list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = 8  # what opset 17 came with; newer ones are refused by older runtimes
        return model

    def embeddings(self) -> str:
        words = self.w["embeddings.word_embeddings.weight"]
        types = self.w["embeddings.token_type_embeddings.weight"]
        table = self.w["embeddings.position_embeddings.weight"] + types[0]
        if self.shape:
            positions = self.const("positions", table[None, : self.tokens])
        else:
            mask = host.MASK if self.host_inputs else "attention_mask"
            shape = self.op("Shape", [mask], "emb.shape", start=1, end=2)
            start = self.const("positions.start", [0], np.int64)
            axis = self.const("positions.axis", [1], np.int64)
            positions = self.op(
                "Slice", [self.const("positions", table[None]), start, shape, axis], "emb.pos"
            )
        if self.host_inputs:
            x = host.WORDS
        else:
            x = self.op("Gather", [self.const("words", words), "input_ids"], "emb.word", axis=0)
        x = self.op("Add", [x, positions], "emb.sum")
        if self.output == "logit":
            # e0 is in the positions. A second Gather would be quantised along with the words'.
            kind = host.TYPES if self.host_inputs else self.as_float("token_type_ids", "types")
            kind = self.reshape(kind, "types.column", [self.batch, self.tokens, 1])
            step = self.const("types.step", (types[1] - types[0])[None, None])
            x = self.op("Add", [x, self.op("Mul", [kind, step], "emb.types")], "emb.typed")
        return self.norm(x, "embeddings.LayerNorm", "emb.ln")

    def as_float(self, x: str, name: str) -> str:
        return self.op("Cast", [x], name, to=1)  # 1 is TensorProto.FLOAT

    def mask(self) -> str:
        if self.host_inputs:
            if self.scales:
                self.reshape(host.ONE, "mask.one", [self.batch, 1, 1])
            return self.reshape(host.MASK, "mask.add", [self.batch, 1, 1, self.tokens])
        mask = self.as_float("attention_mask", "mask")
        if self.scales:
            one = self.op("ReduceMax", [mask], "mask.max", axes=[1], keepdims=1)
            self.reshape(one, "mask.one", [self.batch, 1, 1])
        mask = self.reshape(mask, "mask.4d", [self.batch, 1, 1, self.tokens])
        mask = self.op("Sub", [self.const("one", 1.0), mask], "mask.inverse")
        return self.op("Mul", [mask, self.const("mask.value", host.MASK_VALUE)], "mask.add")

    def layer(self, x: str, mask: str, layer: int) -> str:
        p = f"l{layer}"
        weights = f"encoder.layer.{layer}."
        q = self.heads(self.linear(x, layer, "q"), [0, 2, 1, 3])
        k = self.heads(self.linear(x, layer, "k"), [0, 2, 3, 1])
        v = self.heads(self.linear(x, layer, "v"), [0, 2, 1, 3])
        scores = self.op("Add", [self.op("MatMul", [q, k], f"{p}.qk"), mask], f"{p}.masked")
        scores = self.op("Softmax", [scores], f"{p}.softmax", axis=-1)
        context = self.op("MatMul", [scores, v], f"{p}.pv")
        context = self.op("Transpose", [context], f"{p}.pv.t", perm=[0, 2, 1, 3])
        context = self.reshape(context, f"{p}.ctx", [self.batch, self.tokens, self.config.hidden])
        x = self.op("Add", [self.linear(context, layer, "o"), x], f"{p}.sum1")
        x = self.norm(x, f"{weights}attention.output.LayerNorm", f"{p}.ln1")
        y = self.gelu(self.linear(x, layer, "ff1"), f"{p}.gelu")
        x = self.op("Add", [self.linear(y, layer, "ff2"), x], f"{p}.sum2")
        return self.norm(x, f"{weights}output.LayerNorm", f"{p}.ln2")

    def heads(self, x: str, order: list[int]) -> str:
        split = [self.batch, self.tokens, self.config.heads, self.config.head_size]
        return self.op("Transpose", [self.reshape(x, f"{x}.r", split)], f"{x}.t", perm=order)

    def linear(self, x: str, layer: int, key: str) -> str:
        p = f"l{layer}.{key}"
        w = linear_weight(self.weights, layer, key)
        b = self.w[f"encoder.layer.{layer}.{LINEAR[key]}.bias"]
        if key == "q":
            b = b / np.float32(math.sqrt(self.config.head_size))
        t = None
        if (layer, key) in self.scales:
            s, t = self.scales[layer, key]
            x = x if (s == 1).all() else self.divided(x, s, f"{p}.in")
            w, b = w * s[:, None] / t, b / t
        y = self.op("MatMul", [x, self.const(f"{p}.w", w)], f"{p}.mm")
        if t is None or (t == 1).all():
            return self.op("Add", [self.const(f"{p}.b", b), y], p)
        y = self.op("Add", [self.const(f"{p}.b", b), y], f"{p}.scaled")
        return self.op("Mul", [y, self.live(t, f"{p}.out")], p)

    def divided(self, x: str, s: NDArray[np.float32], name: str) -> str:
        """X / s, once for q, k and v where they share s."""
        key = (x, s.tobytes())
        if key not in self.scaled:
            self.scaled[key] = self.op("Mul", [x, self.live(np.float32(1) / s, f"{name}.s")], name)
        return self.scaled[key]

    def live(self, value: NDArray[Any], name: str) -> str:
        value = value[None, None]
        return self.op("Mul", ["mask.one", self.const(f"{name}.value", value)], name)

    def norm(self, x: str, weights: str, name: str) -> str:
        mean = self.op("ReduceMean", [x], f"{name}.mean", axes=[-1], keepdims=1)
        d = self.op("Sub", [x, mean], f"{name}.sub")
        square = self.op("Pow", [d, self.const("two", 2.0)], f"{name}.pow")
        var = self.op("ReduceMean", [square], f"{name}.var", axes=[-1], keepdims=1)
        var = self.op("Add", [var, self.const("epsilon", self.config.epsilon)], f"{name}.eps")
        d = self.op("Div", [d, self.op("Sqrt", [var], f"{name}.sd")], f"{name}.div")
        d = self.op("Mul", [d, self.const(f"{name}.g", self.w[f"{weights}.weight"])], f"{name}.mul")
        return self.op("Add", [d, self.const(f"{name}.b", self.w[f"{weights}.bias"])], name)

    def gelu(self, x: str, name: str) -> str:
        e = self.op("Div", [x, self.const("sqrt2", math.sqrt(2.0))], f"{name}.div")
        e = self.op(
            "Add", [self.op("Erf", [e], f"{name}.erf"), self.const("one", 1.0)], f"{name}.1"
        )
        x = self.op("Mul", [x, e], f"{name}.mul")
        return self.op("Mul", [x, self.const("half", 0.5)], name)

    def first(self, x: str, name: str) -> str:
        """The first token; a Slice, because a Gather would be quantised with the word table."""
        ends = [
            self.const(f"first.{k}", [v], np.int64) for k, v in (("0", 0), ("1", 1), ("axis", 1))
        ]
        x = self.op("Slice", [x, *ends], f"{name}.slice")
        return self.reshape(x, name, [self.batch, self.config.hidden])

    def pooled(self, x: str) -> str:
        if self.pooling == "cls":
            x = self.first(x, "pool")
        else:
            # Weights that sum to 1, before the sum: it stays small in float16.
            share = host.POOLING
            if not self.host_inputs:
                share = self.op("Div", ["mask", self.sum("mask", "pool.count", 1)], "pool.share")
            share = self.reshape(share, "pool.column", [self.batch, self.tokens, 1])
            x = self.sum(self.op("Mul", [x, share], "pool.mul"), "pool.sum", 1)
            x = self.reshape(x, "pool", [self.batch, self.config.hidden])
        square = self.sum(self.op("Mul", [x, x], "norm.square"), "norm.sum", -1)
        return self.op("Div", [x, self.op("Sqrt", [square], "norm.length")], "norm")

    def logit(self, x: str) -> str:
        x = self.dense(self.first(x, "head.cls"), "pooler.dense", "head.pool")
        return self.dense(self.op("Tanh", [x], "head.tanh"), "classifier", "head.logit")

    def dense(self, x: str, weights: str, name: str) -> str:
        w, b = self.w[f"{weights}.weight"].T, self.w[f"{weights}.bias"]
        x = self.op("MatMul", [x, self.const(f"{name}.w", w)], f"{name}.mm")
        return self.op("Add", [x, self.const(f"{name}.b", b)], name)
