"""Graphs for batches without padding: same answers as the graph they are made of, or none made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tars_rag.models import attention, graphs
from tars_rag.models.architectures.config import Rotary
from tars_rag.models.bert_graph import build_graph
from tars_rag.models.graphs import quantise, unpadded_form
from tars_rag.models.random_model import SMALL
from tars_rag.models.weights import BertConfig, random_weights

CONFIG = BertConfig(2, 32, 4, 48, 300, 128)


def bert(config: BertConfig = CONFIG, *, head: bool = True, seed: int = 3) -> onnx.ModelProto:
    weights = random_weights(config, head=head, seed=seed)
    return build_graph(weights, output="logit" if head else "pooled")


def kinds(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


def a_feed(rows: int, tokens: int, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(5, 50, (rows, tokens))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.arange(tokens)[None].repeat(rows, 0) // max(1, tokens // 2) % 2,
    }


class Session:
    """A graph as it stands: nothing is fused or left out by ONNX Runtime."""

    def __init__(self, graph: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(graph, options)

    def __call__(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        names = [one.name for one in self.session.get_inputs()]
        return self.session.run(None, {name: feeds[name] for name in names})[0]


@pytest.fixture(scope="module")
def three() -> tuple[Session, Session, Session]:
    graph = bert().SerializeToString()
    fused, bare = attention.fused(graph), attention.without_masks(graph)
    assert fused is not None
    assert bare is not None
    return Session(graph), Session(fused), Session(bare)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 5), tokens=st.integers(1, 128), seed=st.integers(0, 9))
def test_rows_of_one_length_have_the_same_score(
    three: tuple[Session, Session, Session], rows: int, tokens: int, seed: int
) -> None:
    plain, fused, bare = three
    feeds = a_feed(rows, tokens, seed)
    expected = plain(feeds)
    np.testing.assert_array_equal(bare(feeds), expected)
    np.testing.assert_allclose(fused(feeds), expected, atol=2e-6)


def test_each_attention_is_one_operator_and_nothing_is_left_of_it() -> None:
    graph = bert().SerializeToString()
    before, after = kinds(graph), kinds(attention.fused(graph) or b"")
    assert after["MultiHeadAttention"] == CONFIG.layers
    mask = Counter({"Add": 2, "Cast": 1, "Reshape": 1, "Sub": 1, "Mul": 1})
    heads = Counter({"Reshape": 8, "Transpose": 8, "MatMul": 4, "Softmax": 2})
    assert before - after == mask + heads
    assert before - kinds(attention.without_masks(graph) or b"") == mask


def test_a_quantised_graph_too() -> None:
    graph = quantise(bert(head=False), per_channel=True)
    fused = attention.fused(graph) or b""
    assert kinds(fused)["MultiHeadAttention"] == CONFIG.layers
    bare = Session(attention.without_masks(graph) or b"")
    plain, fused_session = Session(graph), Session(fused)
    for rows, tokens in ((1, 7), (3, 30), (1, 128)):
        feeds = a_feed(rows, tokens)
        expected = plain(feeds)
        np.testing.assert_array_equal(bare(feeds), expected)
        assert (fused_session(feeds) * expected).sum(1).min() > 0.999


# -- as others write it


def scaled(kind: str) -> Callable[[onnx.ModelProto], None]:
    """Scores are divided by, or multiplied with, a constant."""

    def change(model: onnx.ModelProto) -> None:
        value = np.float32(0.5 if kind == "Mul" else 1.7)
        model.graph.initializer.append(numpy_helper.from_array(value, "scale"))
        for node in list(model.graph.node):
            if node.name.endswith(".qk"):
                plain = node.output[0]
                node.output[0] = f"{plain}.plain"
                after(model, node, helper.make_node(kind, [f"{plain}.plain", "scale"], [plain]))

    return change


def turned_twice(model: onnx.ModelProto) -> None:
    for node in list(model.graph.node):
        if node.name.endswith(".k.t"):
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("perm", [0, 2, 1, 3]))
            turned, node.output[0] = node.output[0], f"{node.name}.once"
            again = helper.make_node("Transpose", [node.output[0]], [turned], perm=[0, 1, 3, 2])
            after(model, node, again)


def lowest_number(model: onnx.ModelProto) -> None:
    """Padding is the lowest float32, as newer exports have it."""
    for constant in model.graph.initializer:
        if constant.name == "mask.value":
            constant.CopyFrom(
                numpy_helper.from_array(np.float32(np.finfo(np.float32).min), constant.name)
            )


def sizes_of_the_input(model: onnx.ModelProto) -> None:
    """Shapes are put together from those of the inputs when the graph runs."""
    parts = [
        helper.make_node("Shape", ["input_ids"], ["sizes"]),
        helper.make_node("Concat", ["sizes", "heads"], ["divided"], axis=0),
    ]
    heads = np.array([CONFIG.heads, CONFIG.hidden // CONFIG.heads])
    model.graph.initializer.append(numpy_helper.from_array(heads, "heads"))
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.name.endswith((".q.r", ".k.r", ".v.r")):
            node.input[1] = "divided"
    for node in reversed(parts):
        model.graph.node.insert(0, node)


def after(model: onnx.ModelProto, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
    model.graph.node.insert(list(model.graph.node).index(node) + 1, new)


@pytest.mark.parametrize(
    "change", [scaled("Div"), scaled("Mul"), turned_twice, lowest_number, sizes_of_the_input]
)
def test_other_ways_to_write_an_attention(change: Callable[[onnx.ModelProto], None]) -> None:
    model = bert()
    change(model)
    graph = model.SerializeToString()
    fused, bare = attention.fused(graph) or b"", attention.without_masks(graph) or b""
    assert kinds(fused)["MultiHeadAttention"] == CONFIG.layers
    feeds = a_feed(3, 40)
    np.testing.assert_allclose(Session(fused)(feeds), Session(graph)(feeds), atol=2e-6)
    np.testing.assert_array_equal(Session(bare)(feeds), Session(graph)(feeds))


# -- what only looks like one


def of_the_first_layer(name: str, **to: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.name == f"l0.{name}")
        for attribute in list(node.attribute):
            if attribute.name in to:
                node.attribute.remove(attribute)
                node.attribute.append(helper.make_attribute(attribute.name, to[attribute.name]))
        for place, tensor in to.get("inputs", {}).items():
            node.input[place] = tensor

    return change


@pytest.mark.parametrize(
    ("change", "replaced"),
    [
        # Heads lie in another order: the operator would divide the columns otherwise.
        (of_the_first_layer("q.t", perm=[0, 3, 1, 2]), 1),
        # Values of the layer's own queries: the same form, and the operator serves it as well.
        (of_the_first_layer("v.r", inputs={0: "l0.q"}), 2),
        (of_the_first_layer("softmax", axis=-2), 1),
        (of_the_first_layer("softmax", axis=2), 1),
    ],
)
def test_an_attention_of_another_kind_stays(
    change: Callable[[onnx.ModelProto], None], replaced: int
) -> None:
    model = bert(BertConfig(2, 16, 4, 48, 300, 128))  # heads as many as they are wide
    change(model)
    graph = model.SerializeToString()
    fused = attention.fused(graph) or b""
    assert kinds(fused)["MultiHeadAttention"] == replaced
    feeds = a_feed(2, 4)
    np.testing.assert_allclose(Session(fused)(feeds), Session(graph)(feeds), atol=2e-6)


def test_values_that_are_changed_on_their_way_are_no_attention() -> None:
    model = bert()
    for node in list(model.graph.node):
        if node.name.endswith(".v.t"):
            turned, node.output[0] = node.output[0], f"{node.name}.own"
            after(model, node, helper.make_node("Neg", [node.output[0]], [turned]))
    assert attention.fused(model.SerializeToString()) is None


@pytest.mark.parametrize(("window", "lengths"), [(8, (5, 30)), (1040, (30, 1100))])
def test_what_hides_distant_tokens_is_kept(window: int, lengths: tuple[int, ...]) -> None:
    """ModernBERT: local layers hide what is far away, which no short text shows."""
    config = replace(
        CONFIG,
        layers=3,
        positions=1200,
        types=0,
        architecture="modernbert",
        rotary=Rotary((False, True, False), window=window),
        classifier_activation="gelu",
    )
    graph = bert(config).SerializeToString()
    bare = attention.without_masks(graph) or b""
    assert kinds(graph) - kinds(bare) == Counter({"Add": 2}), "the global layers'"
    assert attention.fused(graph) is None, "what turns queries stands between them and the product"
    for tokens in lengths:
        feeds = a_feed(2, tokens)
        np.testing.assert_array_equal(Session(bare)(feeds), Session(graph)(feeds))


def test_what_lowers_late_tokens_is_kept() -> None:
    """A number for each key, like a mask, and 0 for the first hundred."""
    model = bert()
    numbers = {"axis": np.int64(1), "first": np.float32(100), "slope": np.float32(-0.3)}
    for name, value in numbers.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    node = next(node for node in model.graph.node if node.name == "mask.4d")
    place, column = list(model.graph.node).index(node), node.input[1]
    for kind, inputs, name in reversed(
        [
            ("CumSum", ["mask", "axis"], "late.place"),
            ("Sub", ["late.place", "first"], "late.sub"),
            ("Relu", ["late.sub"], "late.relu"),
            ("Mul", ["late.relu", "slope"], "late.slope"),
            ("Reshape", ["late.slope", column], "late"),
        ]
    ):
        model.graph.node.insert(place, helper.make_node(kind, inputs, [name], name=name))
    node = next(node for node in model.graph.node if node.name == "mask.add")
    node.output[0] = "mask.plain"
    after(model, node, helper.make_node("Add", ["mask.plain", "late"], ["mask.add"]))
    graph = model.SerializeToString()
    assert Session(graph)(a_feed(1, 100)) == Session(bert().SerializeToString())(a_feed(1, 100))
    assert attention.fused(graph) is None
    assert attention.without_masks(graph) is None


def test_relative_positions_are_kept(tmp_path: Path) -> None:
    config = replace(CONFIG, types=0, architecture="mpnet", first_position=2, buckets=32)
    graph = bert(config, head=False).SerializeToString()
    assert unpadded_form(attention.fused, graph, "name", tmp_path) is None
    assert unpadded_form(attention.without_masks, graph, "name", tmp_path) is None


@pytest.mark.parametrize("rename", ["input_mask", "position_ids"])
def test_other_inputs(rename: str) -> None:
    model = bert()
    if rename == "input_mask":
        next(i for i in model.graph.input if i.name == "attention_mask").name = rename
    else:
        model.graph.input.append(
            helper.make_tensor_value_info(rename, onnx.TensorProto.INT64, [None, None])
        )
    assert attention.fused(model.SerializeToString()) is None
    assert attention.without_masks(model.SerializeToString()) is None


def test_weights_in_other_files(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(bert(), path, save_as_external_data=True, location="data", size_threshold=0)
    assert attention.fused(path) is None


# -- the cache


def test_it_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(bert().SerializeToString())
    made = unpadded_form(attention.fused, path, "name", tmp_path)
    assert isinstance(made, Path)
    assert kinds(made.read_bytes())["MultiHeadAttention"] == CONFIG.layers
    other = unpadded_form(attention.without_masks, path, "name", tmp_path)
    assert other not in (None, made)
    monkeypatch.setattr(attention._Graph, "read", None)
    assert unpadded_form(attention.fused, path, "name", tmp_path) == made
    made.write_bytes(made.read_bytes()[:-1])
    assert unpadded_form(attention.fused, path, "name", tmp_path) is None, "a damaged one was used"


def test_none_is_remembered_as_well(tmp_path: Path) -> None:
    calls = []

    def none(source: Path | bytes) -> None:
        calls.append(source)

    assert unpadded_form(none, b"graph", "name", tmp_path) is None
    assert unpadded_form(none, b"graph", "name", tmp_path) is None
    assert calls == [b"graph"]


def test_without_a_cache_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / ".graphs").write_text("in the way")
    made = unpadded_form(attention.fused, bert().SerializeToString(), "name", tmp_path)
    assert isinstance(made, bytes)
    assert kinds(made)["MultiHeadAttention"] == CONFIG.layers


def test_large_graphs_and_broken_ones_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = bert(SMALL).SerializeToString()
    assert unpadded_form(attention.fused, graph[: len(graph) // 2], "name", tmp_path) is None
    monkeypatch.setattr(graphs, "_SMALL", len(graph) - 1)
    assert unpadded_form(attention.fused, graph, "name", tmp_path) is None
    assert unpadded_form(attention.fused, tmp_path / "gone.onnx", "name", tmp_path) is None
    assert not list(tmp_path.iterdir()), "what failed is remembered as if there were none"
