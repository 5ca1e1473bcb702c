"""The encoder of ModernBERT: pre-norm, rotary positions, GeGLU, local and global attention.

Rotary positions without taking tensors apart, which the NPU's toolkit is slow or wrong at: x W
with its halves swapped is x (W R) with a constant R, so q and k have a second projection each, and
q = (x W) cos + (x W R) sin with constant tables. A local layer adds a constant mask.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.models.architectures.builder import GraphBuilder
from tars_rag.models.architectures.ends import Inputs
from tars_rag.models.architectures.tensors import WORDS
from tars_rag.models.weights import BertWeights

_PARTS: Final = ("q", "q.turned", "k", "k.turned", "v", "o", "ff1", "gate", "ff2")


def traced(weights: BertWeights) -> list[str]:
    """The names of all tensors that go into or come out of a linear layer."""
    found = {"final"}
    for layer in range(weights.config.layers):
        found |= {f"l{layer}.{part}" for part in (*_PARTS, "ln1", "ctx", "ln2", "glu")}
    return sorted(found - {"l0.ln1"} | {"emb.ln"})


class ModernBertEncoder:
    """Builds the encoder into a graph.

    Args:
        graph: The graph.
        inputs: What it takes.
        weights: The model; its config has `rotary`.
    """

    def __init__(self, graph: GraphBuilder, inputs: Inputs, weights: BertWeights) -> None:
        rotary = weights.config.rotary
        if rotary is None:  # pragma: no cover - `build_graph` asks only with one
            raise AssertionError
        self.graph = graph
        self.inputs = inputs
        self.config = weights.config
        self.rotary = rotary
        self.w = weights.arrays
        self._made: set[str] = set()

    def tokens(self) -> str:
        """The vectors of all tokens, [batch, tokens, hidden]."""
        g = self.graph
        x = self._norm(self.inputs.words(self.w[WORDS]), "embeddings.norm", "emb.ln")
        everywhere = self.inputs.mask()
        near = everywhere
        if any(self.rotary.local):
            near = g.op("Add", [self._window(), everywhere], "mask.local")
        for layer, local in enumerate(self.rotary.local):
            x = self._layer(x, near if local else everywhere, layer)
        return self._norm(x, "final_norm", "final")

    def _window(self) -> str:
        """0 within the window, `masked` outside of it, [1, 1, tokens, tokens]."""
        g, reach = self.graph, self.rotary.window // 2
        if g.shape:
            places = np.arange(g.tokens)
            beyond = np.abs(places[:, None] - places[None]) > reach
            return g.const("window", np.where(beyond, g.masked, 0)[None, None])
        # Of a graph for any length, a constant would be the square of 8,192.
        zero, one = g.const("zero.i", 0, np.int64), g.const("one.i", 1, np.int64)
        first = g.const("window.first", [0], np.int64)
        count = g.op("Squeeze", [self.inputs.count(), first], "window.count")
        row = g.as_float(g.op("Range", [zero, count, one], "window.range"), "window.places")
        down = g.reshape(row, "window.down", [1, 1, -1, 1])
        across = g.reshape(row, "window.across", [1, 1, 1, -1])
        distance = g.op("Abs", [g.op("Sub", [down, across], "window.sub")], "window.distance")
        far = g.op("Greater", [distance, g.const("window.reach", float(reach))], "window.far")
        far = g.as_float(far, "window.outside")
        return g.op("Mul", [far, g.const("window.value", g.masked)], "window")

    def _layer(self, x: str, mask: str, layer: int) -> str:
        g, c, p, stored = self.graph, self.config, f"l{layer}", f"layers.{layer}."
        h = c.hidden
        n = self._norm(x, f"{stored}attn_norm", f"{p}.ln1") if layer else x
        w = self.w[f"{stored}attn.Wqkv.weight"]
        b = self.w.get(f"{stored}attn.Wqkv.bias")
        parts = [slice(i * h, (i + 1) * h) for i in range(3)]
        q, k, v = ((w[part].T, None if b is None else b[part]) for part in parts)
        scale = np.float32(1 / math.sqrt(c.head_size))
        q = (q[0] * scale, None if q[1] is None else q[1] * scale)
        local = self.rotary.local[layer]
        query = self._turned(n, *q, f"{p}.q", [0, 2, 1, 3], local)
        key = self._turned(n, *k, f"{p}.k", [0, 2, 3, 1], local)
        value = g.heads(self._linear(n, *v, f"{p}.v"), c.heads, c.head_size, [0, 2, 1, 3])
        context = g.attention(query, key, value, mask, p, h)
        x = g.op("Add", [x, self._stored(context, f"{stored}attn.Wo", f"{p}.o")], f"{p}.sum1")
        n = self._norm(x, f"{stored}mlp_norm", f"{p}.ln2")
        w, b = self.w[f"{stored}mlp.Wi.weight"], self.w.get(f"{stored}mlp.Wi.bias")
        f = c.intermediate
        y = self._linear(n, w[:f].T, None if b is None else b[:f], f"{p}.ff1")
        gate = self._linear(n, w[f:].T, None if b is None else b[f:], f"{p}.gate")
        y = g.op("Mul", [g.activation(c.activation, y, f"{p}.gelu"), gate], f"{p}.glu")
        return g.op("Add", [x, self._stored(y, f"{stored}mlp.Wo", f"{p}.ff2")], f"{p}.sum2")

    def _turned(
        self,
        x: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        name: str,
        order: list[int],
        local: bool,
    ) -> str:
        """A projection of x, turned by its positions."""
        g, c = self.graph, self.config
        other = None if bias is None else _swapped(bias[None], c.head_size)[0]
        plain = self._linear(x, weight, bias, name)
        swapped = self._linear(x, _swapped(weight, c.head_size), other, f"{name}.turned")
        cos, sin = self._angles(local, transposed=order == [0, 2, 3, 1])
        a = g.op("Mul", [g.heads(plain, c.heads, c.head_size, order), cos], f"{name}.cos")
        b = g.op("Mul", [g.heads(swapped, c.heads, c.head_size, order), sin], f"{name}.sin")
        return g.op("Add", [a, b], f"{name}.rotary")

    def _angles(self, local: bool, *, transposed: bool) -> tuple[str, str]:
        """Cosine and sine of each position, [1, 1, tokens, head size] or with those two swapped."""
        g, size = self.graph, self.config.head_size
        theta = self.rotary.local_theta if local else self.rotary.theta
        speed = 1.0 / theta ** (np.arange(0, size, 2) / size)
        length = g.tokens if g.shape else self.config.positions
        angle = np.outer(np.arange(length), speed)
        angle = np.concatenate([angle, angle], -1)[None, None]
        found = []
        for kind, values in (("cos", np.cos(angle)), ("sin", np.sin(angle))):
            name = f"{kind}.{theta:g}"
            if g.shape:
                turned = values.transpose(0, 1, 3, 2) if transposed else values
                found.append(g.const(f"{name}.t" if transposed else name, turned))
                continue
            cut = f"{name}.cut"
            if cut not in self._made:
                self._made.add(cut)
                g.first_tokens(g.const(name, values), cut, self.inputs.count(), [2])
                g.op("Transpose", [cut], f"{cut}.t", perm=[0, 1, 3, 2])
            found.append(f"{cut}.t" if transposed else cut)
        return found[0], found[1]

    def _stored(self, x: str, weights: str, name: str) -> str:
        return self._linear(x, self.w[f"{weights}.weight"].T, self.w.get(f"{weights}.bias"), name)

    def _linear(
        self, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, name: str
    ) -> str:
        g = self.graph
        if bias is not None:
            y = g.product(x, weight, name)
            return g.op("Add", [g.const(f"{name}.b", bias), y], name)
        return g.op("MatMul", [x, g.const(f"{name}.w", weight)], name)

    def _norm(self, x: str, weights: str, name: str) -> str:
        weight, bias = self.w[f"{weights}.weight"], self.w.get(f"{weights}.bias")
        return self.graph.norm(x, weight, bias, self.config.epsilon, name)


def _swapped(weight: NDArray[np.float32], head_size: int) -> NDArray[np.float32]:
    """W R: the halves of each head's columns exchanged, the second of them negated."""
    halves = weight.reshape(len(weight), -1, 2, head_size // 2)
    turned = np.stack([-halves[:, :, 1], halves[:, :, 0]], axis=2)
    return np.ascontiguousarray(turned.reshape(weight.shape))
