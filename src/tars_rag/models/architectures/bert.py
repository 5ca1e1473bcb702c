"""The encoder of BERT, RoBERTa, DistilBERT and MPNet: post-norm, positions in a table.

Node and tensor names are stable, because the converter chooses layers by name: ``emb.word``,
``l0.q.mm`` (the multiplication), ``l0.q`` (its result with the bias), ``l3.ff2``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.models.architectures.builder import GraphBuilder
from tars_rag.models.architectures.ends import Inputs
from tars_rag.models.architectures.tensors import WORDS
from tars_rag.models.weights import BertWeights

Scales = Mapping[tuple[int, str], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""(layer, key of `LINEAR`) -> (s [in], t [out]), see `bert_graph.build_graph`."""

LINEAR: Final = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "ff1": "intermediate.dense",
    "ff2": "output.dense",
}
"""The linear layers of one encoder layer: key in node names -> name in the weights."""

_FARTHEST: Final = 128  # relative positions beyond it share a bucket (MPNet)


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


def traced(weights: BertWeights) -> list[str]:
    """The names of all tensors that go into or come out of a linear layer."""
    found = {
        name
        for layer in range(weights.config.layers)
        for key in LINEAR
        for name in (linear_input(layer, key), f"l{layer}.{key}")
    }
    return sorted(found)


class BertEncoder:
    """Builds the encoder into a graph.

    Args:
        graph: The graph.
        inputs: What it takes.
        weights: The model.
        typed: Token types are an input; else they are all 0.
        scales: See `bert_graph.build_graph`.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        inputs: Inputs,
        weights: BertWeights,
        *,
        typed: bool,
        scales: Scales,
    ) -> None:
        self.graph = graph
        self.inputs = inputs
        self.weights = weights
        self.config = weights.config
        self.w = weights.arrays
        self.typed = typed
        self.scales = scales
        self._scaled: dict[tuple[str, bytes], str] = {}

    def tokens(self) -> str:
        """The vectors of all tokens, [batch, tokens, hidden]."""
        x = self._embeddings()
        mask = self.inputs.mask()
        if self.config.buckets:
            mask = self._relative(mask)
        for layer in range(self.config.layers):
            x = self._layer(x, mask, layer)
        return x

    def _embeddings(self) -> str:
        g, first = self.graph, self.config.first_position
        table = self.w["embeddings.position_embeddings.weight"][first:]
        types = self.w.get("embeddings.token_type_embeddings.weight")
        table = table if types is None else table + types[0]
        if g.shape:
            positions = g.const("positions", table[None, : g.tokens])
        else:
            whole = g.const("positions", table[None])
            positions = g.first_tokens(whole, "emb.pos", self.inputs.count(), [1])
        x = g.op("Add", [self.inputs.words(self.w[WORDS]), positions], "emb.sum")
        if self.typed and types is not None:
            # e0 is in the positions. A second Gather would be quantised along with the words'.
            step = g.const("types.step", (types[1] - types[0])[None, None])
            x = g.op("Add", [x, g.op("Mul", [self.inputs.types(), step], "emb.types")], "emb.typed")
        return self._norm(x, "embeddings.LayerNorm", "emb.ln")

    def _relative(self, mask: str) -> str:
        """The mask and what the distance of two tokens adds, [batch, heads, tokens, tokens]."""
        g = self.graph
        places = np.arange(g.tokens if g.shape else self.config.positions)
        bucket = _bucket(places[:, None] - places[None], self.config.buckets)
        bias = self.w["encoder.relative_attention_bias.weight"][bucket].transpose(2, 0, 1)[None]
        name = g.const("relative", bias)
        if not g.shape:
            name = g.first_tokens(name, "relative.cut", self.inputs.count(), [2, 3])
        return g.op("Add", [mask, name], "mask.relative")

    def _layer(self, x: str, mask: str, layer: int) -> str:
        g, c, p = self.graph, self.config, f"l{layer}"
        q = g.heads(self._linear(x, layer, "q"), c.heads, c.head_size, [0, 2, 1, 3])
        k = g.heads(self._linear(x, layer, "k"), c.heads, c.head_size, [0, 2, 3, 1])
        v = g.heads(self._linear(x, layer, "v"), c.heads, c.head_size, [0, 2, 1, 3])
        context = g.attention(q, k, v, mask, p, c.hidden)
        x = g.op("Add", [self._linear(context, layer, "o"), x], f"{p}.sum1")
        x = self._norm(x, f"encoder.layer.{layer}.attention.output.LayerNorm", f"{p}.ln1")
        y = g.gelu(self._linear(x, layer, "ff1"), f"{p}.gelu")
        x = g.op("Add", [self._linear(y, layer, "ff2"), x], f"{p}.sum2")
        return self._norm(x, f"encoder.layer.{layer}.output.LayerNorm", f"{p}.ln2")

    def _norm(self, x: str, weights: str, name: str) -> str:
        weight, bias = self.w[f"{weights}.weight"], self.w[f"{weights}.bias"]
        return self.graph.norm(x, weight, bias, self.config.epsilon, name)

    def _linear(self, x: str, layer: int, key: str) -> str:
        g, p = self.graph, f"l{layer}.{key}"
        w = linear_weight(self.weights, layer, key)
        b = self.w[f"encoder.layer.{layer}.{LINEAR[key]}.bias"]
        if key == "q":
            b = b / np.float32(math.sqrt(self.config.head_size))
        t = None
        if (layer, key) in self.scales:
            s, t = self.scales[layer, key]
            x = x if (s == 1).all() else self._divided(x, s, f"{p}.in")
            w, b = w * s[:, None] / t, b / t
        y = g.product(x, w, p)
        if t is None or (t == 1).all():
            return g.op("Add", [g.const(f"{p}.b", b), y], p)
        y = g.op("Add", [g.const(f"{p}.b", b), y], f"{p}.scaled")
        return g.op("Mul", [y, self._live(t, f"{p}.out")], p)

    def _divided(self, x: str, s: NDArray[np.float32], name: str) -> str:
        """X / s, once for q, k and v where they share s."""
        key = (x, s.tobytes())
        if key not in self._scaled:
            factor = self._live(np.float32(1) / s, f"{name}.s")
            self._scaled[key] = self.graph.op("Mul", [x, factor], name)
        return self._scaled[key]

    def _live(self, value: NDArray[Any], name: str) -> str:
        constant = self.graph.const(f"{name}.value", value[None, None])
        return self.graph.op("Mul", ["mask.one", constant], name)


def _bucket(distance: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """The bucket of query position less key position (T5's, both ways): near ones exact."""
    half = buckets // 2
    exact = half // 2
    far = np.abs(distance)
    with np.errstate(divide="ignore"):
        steps = np.log(far.astype(np.float32) / np.float32(exact)) / np.float32(
            math.log(_FARTHEST / exact)
        )
    large = np.minimum(
        exact + (np.maximum(steps, 0) * np.float32(half - exact)).astype(np.int64), half - 1
    )
    return np.asarray(np.where(far < exact, far, large) + half * (distance < 0))
