"""Graphs for batches without padding: no mask, and ONNX Runtime's one operator for an attention.

A graph that stands ready is searched for the attention of BERT and its kin. What is found is run
and held against the formula before anything is replaced, so a graph that only looks alike stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.runtimes.onnx import as_it_stands

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]

VERSION: Final = 1
"""Goes into the name of cached graphs: raise it when another graph would be made."""

_INPUTS: Final = {"input_ids", "attention_mask", "token_type_ids"}
_LONG: Final = 512
"""Tokens at which a mask is looked at: one that hides what is far away shows it there."""
_SHORT: Final = 9
_CLOSE: Final = 1e-4
"""Of the largest number of a context: how far rounding may take an attention from the formula."""


@dataclass(frozen=True, slots=True)
class _Masked:
    """A softmax over scores to which a mask is added."""

    softmax: onnx.NodeProto
    scores: str
    mask: str


@dataclass(frozen=True, slots=True)
class _Attention:
    """Names of [batch, tokens, hidden] tensors, and of the query's [batch, heads, tokens, size]."""

    query: str
    key: str
    value: str
    context: str
    by_head: str
    scale: float


def without_masks(source: Path | bytes) -> bytes | None:
    """The graph without its masks. Rows of one length get the same numbers, to the bit.

    Returns:
        None: no mask was found that adds nothing to such rows.
    """
    graph = _Graph.read(source)
    if graph is None or not (found := graph.masked()):
        return None
    for one in found:
        one.softmax.input[0] = one.scores
    return graph.written()


def fused(source: Path | bytes) -> bytes | None:
    """The graph with each attention as one operator that has no mask.

    Rows of one length get the same numbers but for rounding; others get wrong ones.

    Returns:
        None: no attention was found.
    """
    graph = _Graph.read(source)
    if graph is None or not (found := graph.attentions()):
        return None
    for one, heads in found:
        graph.replace(one, heads)
    return graph.written()


class _Graph:
    """A model, and which node gives and which ones take a tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._nodes = model.graph.node
        self._constants = {constant.name: constant for constant in model.graph.initializer}
        self._giver = {name: node for node in self._nodes for name in node.output}
        self._takers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._takers.setdefault(name, []).append(node)

    @classmethod
    def read(cls, source: Path | bytes) -> _Graph | None:
        """None: it takes other inputs than texts, or keeps its weights in other files."""
        import onnx

        if isinstance(source, bytes):
            model = onnx.load_from_string(source)
        else:
            model = onnx.load(source, load_external_data=False)
        constants = model.graph.initializer
        outside = any(c.data_location == onnx.TensorProto.EXTERNAL for c in constants)
        names = {i.name for i in model.graph.input} - {c.name for c in constants}
        if outside or "attention_mask" not in names or not names <= _INPUTS:
            return None
        return cls(model)

    def masked(self) -> list[_Masked]:
        """The softmaxes over tokens whose mask is 0 where nothing is padding."""
        found = [*self._masked()]
        values = self._values([one.mask for one in found], _LONG)
        # One number for each key: what hides some keys of some queries is more than a mask.
        return [
            one
            for one in found
            if values[one.mask].shape[1:] == (1, 1, _LONG) and not values[one.mask].any()
        ]

    def attentions(self) -> list[tuple[_Attention, int]]:
        """The attentions that compute the formula, each with the number of its heads."""
        found = [one for one in map(self._attention, self.masked()) if one]
        names = [n for a in found for n in (a.query, a.key, a.value, a.context, a.by_head)]
        values = self._values(names, _SHORT)
        kept = []
        for one in found:
            heads = values[one.by_head].shape[1]
            q, k, v = (_by_head(values[n], heads) for n in (one.query, one.key, one.value))
            expected = _formula(q, k, v, one.scale)
            context = values[one.context]
            same = context.shape == expected.shape
            if same and np.abs(context - expected).max() <= _CLOSE * np.abs(expected).max():
                kept.append((one, heads))
        return kept

    def replace(self, one: _Attention, heads: int) -> None:
        """Let one operator give the context of an attention."""
        from onnx import helper

        node = helper.make_node(
            "MultiHeadAttention",
            [one.query, one.key, one.value],
            [one.context],
            name=f"{one.context}.attention",
            domain="com.microsoft",
            num_heads=heads,
            scale=one.scale,
        )
        self._giver[one.context].CopyFrom(node)  # in its place: the order of nodes stays valid
        if not any(opset.domain == node.domain for opset in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(node.domain, 1))

    def written(self) -> bytes:
        """The model without what nothing takes any more."""
        model = self._ending_in([output.name for output in self.model.graph.output])
        content: bytes = model.SerializeToString()
        return content

    def _ending_in(self, names: Sequence[str]) -> onnx.ModelProto:
        """The part of the model that these tensors need."""
        import onnx

        needed, left = set(names), list(names)
        while left:
            node = self._giver.get(left.pop())
            for name in node.input if node else ():
                if name not in needed:
                    needed.add(name)
                    left.append(name)
        part = onnx.ModelProto()
        part.CopyFrom(self.model)
        graph = part.graph
        for number in reversed(range(len(graph.node))):
            if not needed.intersection(graph.node[number].output):
                del graph.node[number]
        for number in reversed(range(len(graph.initializer))):
            if graph.initializer[number].name not in needed:
                del graph.initializer[number]
        return part

    def _values(self, names: Sequence[str], tokens: int) -> dict[str, Array]:
        """What tensors are for two rows of so many tokens without padding."""
        from onnx import TensorProto, helper

        names = sorted(set(names))
        if not names:
            return {}
        part = self._ending_in(names)
        del part.graph.output[:]
        part.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
        )
        ids = np.arange(2 * tokens, dtype=np.int64).reshape(2, tokens) % 50
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids % 2}
        return dict(zip(names, as_it_stands(part.SerializeToString(), feeds), strict=True))

    def _masked(self) -> Iterator[_Masked]:
        """What has the form of a masked softmax over the last axis of scores."""
        for softmax in self._nodes:
            if softmax.op_type != "Softmax" or _attribute(softmax, "axis", -1) not in (-1, 3):
                continue
            add = self._given(softmax.input[0], "Add")
            if add is None:
                continue
            for scores, mask in (add.input, reversed(add.input)):
                if self._product(scores):
                    yield _Masked(softmax, scores, mask)

    def _attention(self, masked: _Masked) -> _Attention | None:
        product = self._product(masked.scores)
        if product is None:
            return None
        node, scale = product
        query = self._heads(node.input[0], [0, 2, 1, 3])
        key = self._heads(node.input[1], [0, 2, 3, 1])
        if key is None and (once := self._turned(node.input[1], [0, 1, 3, 2])):
            key = self._heads(once, [0, 2, 1, 3])
        weighted = self._taker(masked.softmax.output[0], "MatMul")
        if weighted is None or weighted.input[0] != masked.softmax.output[0]:
            return None
        value = self._heads(weighted.input[1], [0, 2, 1, 3])
        turned = self._taker(weighted.output[0], "Transpose")
        if turned is None or _attribute(turned, "perm") != [0, 2, 1, 3]:
            return None
        end = self._taker(turned.output[0], "Reshape")
        if end is None or query is None or key is None or value is None:
            return None
        return _Attention(query, key, value, end.output[0], node.input[0], scale)

    def _product(self, scores: str) -> tuple[onnx.NodeProto, float] | None:
        """The product of queries and keys behind scores, and what it is multiplied by."""
        scale = 1.0
        node = self._giver.get(scores)
        if node is not None and node.op_type in ("Div", "Mul"):
            factor = self._number(node.input[1])
            if not factor:
                return None
            scale = factor if node.op_type == "Mul" else 1 / factor
            node = self._giver.get(node.input[0])
        return (node, scale) if node is not None and node.op_type == "MatMul" else None

    def _heads(self, name: str, order: list[int]) -> str | None:
        """The [batch, tokens, hidden] tensor that was divided into heads."""
        turned = self._turned(name, order)
        divided = self._given(turned, "Reshape") if turned else None
        return str(divided.input[0]) if divided is not None else None

    def _turned(self, name: str, order: list[int]) -> str | None:
        """The tensor of which this one is the axes in another order."""
        node = self._given(name, "Transpose")
        turned = node is not None and _attribute(node, "perm") == order
        return str(node.input[0]) if node is not None and turned else None

    def _given(self, name: str, kind: str) -> onnx.NodeProto | None:
        node = self._giver.get(name)
        return node if node is not None and node.op_type == kind else None

    def _taker(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The only node that takes a tensor, if it is of a kind."""
        takers = self._takers.get(name, [])
        return takers[0] if len(takers) == 1 and takers[0].op_type == kind else None

    def _number(self, name: str) -> float | None:
        """A constant of one element."""
        from onnx import numpy_helper

        given = self._given(name, "Constant")
        tensor = _attribute(given, "value") if given is not None else self._constants.get(name)
        if tensor is None:
            return None
        array = numpy_helper.to_array(tensor)
        return float(array.reshape(-1)[0]) if array.size == 1 else None


def _attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    from onnx import helper

    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def _by_head(x: Array, heads: int) -> Array:
    """[batch, tokens, hidden] -> float64 [batch, heads, tokens, size]."""
    divided: Array = x.astype(np.float64).reshape(*x.shape[:2], heads, -1)
    return np.moveaxis(divided, 2, 1)


def _formula(q: Array, k: Array, v: Array, scale: float) -> Array:
    """The context softmax(q k' scale) v of all heads, [batch, tokens, hidden]."""
    scores = q @ k.transpose(0, 1, 3, 2) * scale
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    context = (shares / shares.sum(-1, keepdims=True)) @ v
    return np.asarray(context.transpose(0, 2, 1, 3).reshape(len(q), q.shape[2], -1))
