"""The graph equals BERT, in every form the devices need."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from modelkit import reference_bert, reference_logit
from tars_rag.errors import ModelError
from tars_rag.models.bert_graph import (
    LINEAR,
    Output,
    build_graph,
    host_input_names,
    linear_input,
    linear_weight,
)
from tars_rag.models.random_model import SMALL, write_random_model
from tars_rag.models.spec import Pooling
from tars_rag.models.weights import BertConfig, load_weights, random_weights
from tars_rag.runtimes.npu.host_inputs import device_inputs

WEIGHTS = random_weights(SMALL, seed=1)
IDS = np.array([[2, 40, 300, 7, 99, 3]])


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, feeds)[0]


def padded(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, length - array.shape[1])))


def test_tokens_equal_the_reference() -> None:
    model = build_graph(WEIGHTS, output="tokens")
    onnx.checker.check_model(model, full_check=True)
    tokens = run(model, input_ids=IDS, attention_mask=np.ones_like(IDS))
    np.testing.assert_allclose(tokens[0], reference_bert(WEIGHTS, IDS[0]), atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(0, SMALL.vocabulary - 1), min_size=1, max_size=12),
        min_size=1,
        max_size=4,
    )
)
def test_padding_and_batch_mates_change_nothing(texts: list[list[int]]) -> None:
    length = max(map(len, texts)) + 2
    ids = np.array([t + [0] * (length - len(t)) for t in texts])
    mask = np.array([[1] * len(t) + [0] * (length - len(t)) for t in texts])
    rows = run(build_graph(WEIGHTS, output="pooled"), input_ids=ids, attention_mask=mask)
    for row, text in zip(rows, texts, strict=True):
        mean = reference_bert(WEIGHTS, text).mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-4)


def test_padding_has_no_weight_at_all_on_a_cpu() -> None:
    graph = build_graph(random_weights(SMALL, head=False, seed=1), output="pooled")
    named = {held.name: onnx.numpy_helper.to_array(held) for held in graph.graph.initializer}
    assert (
        np.exp(named["mask.value"].astype(np.float32)) == 0
    )  # not a denormal number, which is slow


def test_cls_pooling() -> None:
    model = build_graph(WEIGHTS, output="pooled", pooling="cls")
    row = run(model, input_ids=IDS, attention_mask=np.ones_like(IDS))[0]
    first = reference_bert(WEIGHTS, IDS[0])[0]
    np.testing.assert_allclose(row, first / np.linalg.norm(first), atol=1e-4)


def test_the_logit_follows_the_token_types() -> None:
    model = build_graph(WEIGHTS, output="logit")
    logits = set()
    for types in ([[0] * 6], [[0, 0, 0, 1, 1, 1]]):
        kinds = np.array(types)
        logit = run(model, input_ids=IDS, attention_mask=np.ones_like(IDS), token_type_ids=kinds)
        assert logit.shape == (1, 1)
        assert logit[0, 0] == pytest.approx(reference_logit(WEIGHTS, IDS[0], kinds[0]), abs=1e-4)
        logits.add(round(float(logit[0, 0]), 4))
    assert len(logits) == 2


@pytest.mark.parametrize("output", ["pooled", "tokens", "logit"])
def test_fixed_shapes_and_the_table_outside_give_the_same(output) -> None:  # type: ignore[no-untyped-def]
    feeds = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    if output == "logit":
        feeds["token_type_ids"] = np.array([[0, 0, 0, 1, 1, 1]])
    expected = run(build_graph(WEIGHTS, output=output), **feeds)
    fixed = {name: padded(array, 16) for name, array in feeds.items()}
    model = build_graph(WEIGHTS, output=output, shape=(1, 16))
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == [1, 16]
    assert "Shape" not in {node.op_type for node in model.graph.node}
    got = run(model, **fixed)
    np.testing.assert_allclose(got[:, :6] if output == "tokens" else got, expected, atol=1e-5)

    # Padding shows in none of them, where a graph takes a mask.
    fixed["input_ids"][0, 6:] = 77
    model = build_graph(WEIGHTS, output=output, shape=(1, 16), host_inputs=True)
    again = run(model, **on_host(model, fixed))
    np.testing.assert_allclose(again[:, :6] if output == "tokens" else again, expected, atol=1e-5)


def on_host(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the host prepares of a feed, for the inputs that a graph has."""
    names = [value.name for value in model.graph.input]
    table = WEIGHTS.arrays["embeddings.word_embeddings.weight"]
    mask = feeds["attention_mask"]
    feeds = {**feeds, "attention_mask": np.where(np.arange(mask.shape[1]) < 6, mask, 0)}
    return dict(zip(names, device_inputs(names, feeds, table), strict=True))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("output", ["pooled", "tokens", "logit"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", [(2, 8), None])
def test_a_graph_of_what_the_host_prepares_takes_no_integers(
    output: Output, pooling: Pooling, scaled: bool, shape: tuple[int, int] | None
) -> None:
    scale = {(0, "o"): (np.full(SMALL.hidden, 3, np.float32), np.full(SMALL.hidden, 2, np.float32))}
    scales = scale if scaled else None
    model = build_graph(
        WEIGHTS, output=output, pooling=pooling, shape=shape, host_inputs=True, scales=scales
    )
    onnx.checker.check_model(model, full_check=True)
    names = tuple(value.name for value in model.graph.input)
    assert names == host_input_names(WEIGHTS, output, pooling, scaled=scaled)
    assert {value.type.tensor_type.elem_type for value in model.graph.input} == {
        onnx.TensorProto.FLOAT
    }
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Gather", "Cast", "ReduceMax"}
    feeds = {
        "input_ids": np.array([[2, 40, 300, 7, 99, 3, 0, 0], [2, 8, 3, 0, 0, 0, 0, 0]]),
        "attention_mask": np.array([[1] * 6 + [0] * 2, [1] * 3 + [0] * 5]),
        "token_type_ids": np.array([[0] * 3 + [1] * 3 + [0] * 2, [0] * 8]),
    }
    got = run(model, **on_host(model, feeds))
    plain = build_graph(WEIGHTS, output=output, pooling=pooling)
    asked = {value.name: feeds[value.name] for value in plain.graph.input}
    np.testing.assert_allclose(got, run(plain, **asked), atol=1e-4)


def test_scales_change_the_numbers_inside_and_not_the_result() -> None:
    random = np.random.default_rng(3)
    scales = {}
    for layer in range(SMALL.layers):
        shared = np.exp(random.normal(size=SMALL.hidden)).astype(np.float32)
        for key in LINEAR:
            rows, columns = linear_weight(WEIGHTS, layer, key).shape
            s = shared if key in "qkv" else np.exp(random.normal(size=rows)).astype(np.float32)
            scales[layer, key] = s, np.exp(random.normal(size=columns)).astype(np.float32)
    ids = padded(IDS, 8)
    mask = np.array([[1] * 6 + [0] * 2])
    plain = build_graph(WEIGHTS, output="pooled", shape=(1, 8))
    scaled = build_graph(WEIGHTS, output="pooled", shape=(1, 8), scales=scales)
    np.testing.assert_allclose(
        run(scaled, input_ids=ids, attention_mask=mask),
        run(plain, input_ids=ids, attention_mask=mask),
        atol=1e-4,
    )
    nodes = {node.name: node for node in scaled.graph.node}
    # One division for q, k and v; every scale goes through max(mask), or it would be folded away.
    assert [nodes[f"l0.{k}.mm"].input[0] for k in "qkv"] == ["l0.q.in"] * 3
    assert "mask.one" in nodes["l0.q.in.s"].input
    assert "mask.one" in nodes["l1.ff2.out"].input
    before = {c.name: onnx.numpy_helper.to_array(c) for c in scaled.graph.initializer}
    assert not np.allclose(before["l0.ff1.w"], linear_weight(WEIGHTS, 0, "ff1"))


def test_the_names_that_the_converter_goes_by() -> None:
    nodes = {node.name: node for node in build_graph(WEIGHTS, output="logit").graph.node}
    assert {"emb.word", "l0.q.mm", "l1.ff2", "head.0", "head.1"} <= set(nodes)
    for layer in range(SMALL.layers):
        for key in LINEAR:
            assert nodes[f"l{layer}.{key}.mm"].op_type == "MatMul"
            assert nodes[f"l{layer}.{key}.mm"].input[0] == linear_input(layer, key)
    assert sum(node.op_type == "Gather" for node in nodes.values()) == 1


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_weights_are_read_with_any_prefix_and_precision(
    tmp_path: Path, head: bool, dtype: type, prefix: str
) -> None:
    write_random_model(tmp_path, head=head, seed=5)
    path = tmp_path / "model.safetensors"
    arrays = {name.removeprefix("bert."): array for name, array in load_file(path).items()}
    arrays = {
        name if name.startswith("classifier") else prefix + name: array.astype(dtype)
        for name, array in arrays.items()
    }
    save_file(arrays, path)
    weights = load_weights(tmp_path)
    expected = random_weights(SMALL, head=head, seed=5)
    assert (weights.config, weights.head) == (SMALL, head)
    assert weights.arrays.keys() == expected.arrays.keys()
    for name, array in weights.arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected.arrays[name].astype(dtype), rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2'.*'bert'.*'modernbert'"),
        ({"model_type": ["bert"]}, "model_type="),
        ({"model_type": "distilbert"}, "lacks or garbles 'n_layers'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 5}, "multiple of 5 heads"),
        ({"num_hidden_layers": None}, "garbles"),
        ({"num_hidden_layers": 3}, r"lacks the tensor encoder\.layer\.2"),
        ({"intermediate_size": 65}, r"intermediate\.dense\.weight is F32 \(64, 32\)"),
    ],
)
def test_what_is_not_supported_is_said(tmp_path: Path, change: dict, message: str) -> None:
    write_random_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_weights(tmp_path)


def test_several_logits_are_refused(tmp_path: Path) -> None:
    write_random_model(tmp_path)
    path = tmp_path / "model.safetensors"
    arrays = load_file(path)
    arrays["classifier.weight"] = np.repeat(arrays["classifier.weight"], 3, 0)
    save_file(arrays, path)
    with pytest.raises(ModelError, match=r"3 logits.*single.*models list"):
        load_weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, None])
def test_damaged_weights_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = write_random_model(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        load_weights(tmp_path)


def test_a_head_that_is_not_there_and_a_length_that_is_too_long() -> None:
    with pytest.raises(ModelError, match="no classifier"):
        build_graph(random_weights(SMALL, head=False), output="logit")
    with pytest.raises(ModelError, match="Length 600"):
        build_graph(WEIGHTS, output="tokens", shape=(1, 600))


def test_random_weights_are_seeded() -> None:
    small = replace(SMALL, layers=1)
    one, same, other = (random_weights(small, seed=n).arrays for n in (0, 0, 1))
    name = "encoder.layer.0.output.dense.weight"
    np.testing.assert_array_equal(one[name], same[name])
    assert not np.array_equal(one[name], other[name])


def test_config_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL.to_dict()))
    assert BertConfig.from_json(path) == SMALL


@pytest.mark.data
def test_a_trained_cross_encoder_gives_its_published_logits(shared: Path) -> None:
    """transformers 5.24 and torch 2.13 on the same pairs (float32)."""
    from tokenizers import Tokenizer

    directory = shared / "models" / "cranfield-ce-6L"
    if not directory.is_dir():
        pytest.skip(f"{directory} is not there")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    model = build_graph(load_weights(directory), output="logit")
    canonical = {
        ("what is a boundary layer", "flow near a flat plate boundary layer"): 0.08859,
        ("what is a boundary layer", "heat transfer in chickens"): -1.02221,
        ("slip flow", "the slip flow past a cone . " * 120): 2.91220,
    }
    for pair, logit in canonical.items():
        e = tokenizer.encode(*pair)
        arrays = (np.array([x]) for x in (e.ids, e.attention_mask, e.type_ids))
        feeds = dict(zip(("input_ids", "attention_mask", "token_type_ids"), arrays, strict=True))
        assert run(model, **feeds)[0, 0] == pytest.approx(logit, abs=1e-4)
