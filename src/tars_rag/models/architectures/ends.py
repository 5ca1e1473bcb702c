"""The two ends of a graph: what it takes, and how tokens become a vector or a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.models.architectures.builder import GraphBuilder
from tars_rag.models.architectures.head import Dense, Module
from tars_rag.models.spec import Pooling
from tars_rag.runtimes.npu import host_inputs as host

_FAR: Final = 300.0
"""Times the additive mask: padding is below every token (-30,000), also in float16."""


class Inputs:
    """What a graph takes: the integers of a feed, or what the host makes of them in float32.

    Args:
        graph: The graph.
        on_host: The latter.
        live: Constants are to be multiplied by a 1 that the NPU's toolkit cannot fold away.
    """

    def __init__(self, graph: GraphBuilder, *, on_host: bool, live: bool = False) -> None:
        self.graph = graph
        self.on_host = on_host
        self._live = live
        self._count: str | None = None

    def words(self, table: NDArray[np.float32]) -> str:
        """The word embeddings, [batch, tokens, hidden]."""
        if self.on_host:
            return host.WORDS
        words = self.graph.const("words", table)
        return self.graph.op("Gather", [words, "input_ids"], "emb.word", axis=0)

    def types(self) -> str:
        """Token types as numbers, [batch, tokens, 1]."""
        g = self.graph
        kind = host.TYPES if self.on_host else g.as_float("token_type_ids", "types")
        return g.reshape(kind, "types.column", [g.batch, g.tokens, 1])

    def count(self) -> str:
        """How many tokens a row has, [1]; only in graphs of any shape."""
        if self._count is None:
            mask = host.MASK if self.on_host else "attention_mask"
            self._count = self.graph.op("Shape", [mask], "emb.shape", start=1, end=2)
        return self._count

    def mask(self) -> str:
        """What is added to attention scores: 0, or `masked` on padding, [batch, 1, 1, tokens]."""
        g = self.graph
        if self.on_host:
            if self._live:
                g.reshape(host.ONE, "mask.one", [g.batch, 1, 1])
            return g.reshape(host.MASK, "mask.add", [g.batch, 1, 1, g.tokens])
        mask = g.as_float("attention_mask", "mask")
        if self._live:
            one = g.op("ReduceMax", [mask], "mask.max", axes=[1], keepdims=1)
            g.reshape(one, "mask.one", [g.batch, 1, 1])
        mask = g.reshape(mask, "mask.4d", [g.batch, 1, 1, g.tokens])
        mask = g.op("Sub", [g.const("one", 1.0), mask], "mask.inverse")
        return g.op("Mul", [mask, g.const("mask.value", g.masked)], "mask.add")

    def _shares(self) -> str:
        """Each token's share in the mean, [batch, tokens]."""
        if self.on_host:
            return host.POOLING
        g = self.graph
        # Weights that sum to 1, before the sum: it stays small in float16.
        return g.op("Div", ["mask", g.sum("mask", "pool.count", 1)], "pool.share")

    def _last(self) -> str:
        """1 on the last token, else 0, [batch, tokens]."""
        if self.on_host:
            return host.LAST
        g = self.graph
        # The mask less itself moved left by one; a row is padded on the right.
        end = g.op("Sub", [g.cut("mask", "pool.column.0", [1], [0], [1])] * 2, "pool.none")
        moved = g.op(
            "Concat", [g.cut("mask", "pool.behind", [1], [1], [1 << 30]), end], "pool.moved", axis=1
        )
        return g.op("Sub", ["mask", moved], "pool.last")

    def pool(self, x: str, pooling: Pooling, hidden: int) -> str:
        """One vector of all tokens, [batch, hidden]."""
        g = self.graph
        if pooling == "cls":
            # A Slice, because a Gather would be quantised with the word table.
            x = g.cut(x, "pool.first", [1], [0], [1])
        elif pooling == "max":
            far = g.op("Mul", ["mask.add", g.const("pool.far", _FAR)], "pool.far.mask")
            far = g.reshape(far, "pool.column", [g.batch, g.tokens, 1])
            x = g.op("Add", [x, far], "pool.masked")
            x = g.op("ReduceMax", [x], "pool.max", axes=[1], keepdims=1)
        else:
            share = self._shares() if pooling == "mean" else self._last()
            share = g.reshape(share, "pool.column", [g.batch, g.tokens, 1])
            x = g.sum(g.op("Mul", [x, share], "pool.mul"), "pool.sum", 1)
        return g.reshape(x, "pool", [g.batch, hidden])


def apply(
    graph: GraphBuilder,
    x: str,
    modules: Sequence[Module],
    arrays: Mapping[str, NDArray[np.float32]],
) -> str:
    """What comes after the pooling: ``head.0``, ``head.1``, ...; [batch, width]."""
    for number, module in enumerate(modules):
        name = f"head.{number}"
        weight, bias = arrays[f"{module.name}.weight"], arrays.get(f"{module.name}.bias")
        if not isinstance(module, Dense):
            x = graph.norm(x, weight, bias, module.epsilon, name)
            continue
        x = graph.product(x, weight.T, name)
        if bias is not None:
            x = graph.op("Add", [x, graph.const(f"{name}.b", bias)], name)
        x = graph.activation(module.activation, x, f"{name}.{module.activation}")
    return x


def unit_length(graph: GraphBuilder, x: str) -> str:
    """The vector divided by its length."""
    square = graph.sum(graph.op("Mul", [x, x], "norm.square"), "norm.sum", -1)
    return graph.op("Div", [x, graph.op("Sqrt", [square], "norm.length")], "norm")
