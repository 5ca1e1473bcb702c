"""Nodes and constants of an ONNX graph, and what all architectures compute alike.

Only operators that the NPU's toolkit also takes are used: layer norm and GELU are spelled out,
and the CPU engines fuse both back when they load the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tars_rag.runtimes.npu.host_inputs import MASK_VALUE

if TYPE_CHECKING:
    import onnx


class GraphBuilder:
    """A graph while it is built. A tensor is its name, which is that of the node that gives it.

    Args:
        shape: (batch, tokens) to fix both; None leaves both dynamic.
    """

    def __init__(self, shape: tuple[int, int] | None) -> None:
        self.shape = shape
        # In Reshape 0 keeps a dimension and -1 infers it; the NPU wants plain numbers.
        self.batch, self.tokens = shape or (0, -1)
        # Where all is float32 the softmax of -100 is not 0 but 4e-44: a denormal number, with
        # which an x86 core computes several times as slowly.
        self.masked = MASK_VALUE if shape else -1e4
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def const(self, name: str, value: ArrayLike, dtype: type = np.float32) -> str:
        """A constant; the first of a name counts."""
        from onnx import numpy_helper

        if name not in self.constants:
            array: NDArray[Any] = np.ascontiguousarray(np.asarray(value, dtype))
            # ascontiguousarray makes a scalar 1-d, which would broadcast ranks up.
            array = array.reshape(np.shape(value))
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """A node with one output, which has its name."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def reshape(self, x: str, name: str, shape: Sequence[int]) -> str:
        """X in another shape."""
        key = "shape." + "x".join(map(str, shape)).replace("-", "n")
        return self.op("Reshape", [x, self.const(key, list(shape), np.int64)], name)

    def sum(self, x: str, name: str, axis: int) -> str:
        """The sum over an axis, which is kept with size 1."""
        axes = self.const(f"axis.{axis}".replace("-", "n"), [axis], np.int64)
        return self.op("ReduceSum", [x, axes], name, keepdims=1)

    def cut(self, x: str, name: str, axes: Sequence[int], starts: Sequence[int], ends: Any) -> str:
        """A part of x; `ends` are numbers, or the name of a tensor."""
        if not isinstance(ends, str):
            ends = self.const(f"{name}.ends", list(ends), np.int64)
        begin = self.const(f"{name}.starts", list(starts), np.int64)
        return self.op("Slice", [x, begin, ends, self.const(f"{name}.axes", axes, np.int64)], name)

    def first_tokens(self, x: str, name: str, count: str, axes: Sequence[int]) -> str:
        """A table cut at the number of tokens, `count`, along some axes."""
        ends = count
        if len(axes) > 1:
            ends = self.op("Concat", [count] * len(axes), f"{name}.ends", axis=0)
        return self.cut(x, name, axes, [0] * len(axes), ends)

    def as_float(self, x: str, name: str) -> str:
        """X as float32."""
        return self.op("Cast", [x], name, to=1)  # 1 is TensorProto.FLOAT

    def product(self, x: str, weight: NDArray[np.float32], name: str) -> str:
        """X times a weight, [in, out]."""
        return self.op("MatMul", [x, self.const(f"{name}.w", weight)], f"{name}.mm")

    def norm(
        self,
        x: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        epsilon: float,
        name: str,
    ) -> str:
        """The layer norm over the last axis."""
        mean = self.op("ReduceMean", [x], f"{name}.mean", axes=[-1], keepdims=1)
        d = self.op("Sub", [x, mean], f"{name}.sub")
        square = self.op("Pow", [d, self.const("two", 2.0)], f"{name}.pow")
        var = self.op("ReduceMean", [square], f"{name}.var", axes=[-1], keepdims=1)
        least = self.const(f"epsilon.{epsilon:g}", epsilon)
        var = self.op("Add", [var, least], f"{name}.eps")
        d = self.op("Div", [d, self.op("Sqrt", [var], f"{name}.sd")], f"{name}.div")
        # The NPU's toolkit makes one operator of a norm that ends in this addition.
        bias = np.zeros_like(weight) if bias is None else bias
        d = self.op("Mul", [d, self.const(f"{name}.g", weight)], f"{name}.mul")
        return self.op("Add", [d, self.const(f"{name}.b", bias)], name)

    def gelu(self, x: str, name: str) -> str:
        """The exact GELU."""
        e = self.op("Div", [x, self.const("sqrt2", math.sqrt(2.0))], f"{name}.div")
        e = self.op(
            "Add", [self.op("Erf", [e], f"{name}.erf"), self.const("one", 1.0)], f"{name}.1"
        )
        x = self.op("Mul", [x, e], f"{name}.mul")
        return self.op("Mul", [x, self.const("half", 0.5)], name)

    def activation(self, kind: str, x: str, name: str) -> str:
        """One of `head.ACTIVATIONS`."""
        if kind == "identity":
            return x
        if kind == "gelu":
            return self.gelu(x, name)
        if kind == "silu":
            return self.op("Mul", [x, self.op("Sigmoid", [x], f"{name}.sigmoid")], name)
        return self.op({"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid"}[kind], [x], name)

    def heads(self, x: str, heads: int, head_size: int, order: list[int]) -> str:
        """[batch, tokens, hidden] -> one matrix for each attention head."""
        split = [self.batch, self.tokens, heads, head_size]
        return self.op("Transpose", [self.reshape(x, f"{x}.r", split)], f"{x}.t", perm=order)

    def attention(self, q: str, k: str, v: str, mask: str, layer: str, hidden: int) -> str:
        """The context of an attention, [batch, tokens, hidden], of its heads."""
        scores = self.op("Add", [self.op("MatMul", [q, k], f"{layer}.qk"), mask], f"{layer}.masked")
        scores = self.op("Softmax", [scores], f"{layer}.softmax", axis=-1)
        context = self.op("MatMul", [scores, v], f"{layer}.pv")
        context = self.op("Transpose", [context], f"{layer}.pv.t", perm=[0, 2, 1, 3])
        return self.reshape(context, f"{layer}.ctx", [self.batch, self.tokens, hidden])
