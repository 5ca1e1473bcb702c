"""Architectures beside BERT, heads and layouts: what can be told without torch.

That each graph equals `transformers` is told by test_parity.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from tars_rag.errors import ModelError
from tars_rag.models.architectures.config import BertConfig, Rotary
from tars_rag.models.bert_graph import build_graph, host_input_names, traced
from tars_rag.models.embedder import Embedder
from tars_rag.models.local import INDEX_NAME, LocalModel
from tars_rag.models.random_model import SMALL, write_random_model
from tars_rag.models.reranker import Reranker
from tars_rag.models.spec import Pooling
from tars_rag.models.weights import BertWeights, load_weights, random_weights
from tars_rag.runtimes.npu.host_inputs import device_inputs

SIZES = (3, 16, 2, 24, 60, 40)
CONFIGS = {
    "bert": BertConfig(*SIZES),
    "xlm-roberta": BertConfig(
        *SIZES, types=1, epsilon=1e-5, pad_id=1, architecture="xlm-roberta", first_position=2
    ),
    "distilbert": BertConfig(
        *SIZES, types=0, architecture="distilbert", classifier_activation="relu"
    ),
    "mpnet": BertConfig(
        *SIZES, types=0, pad_id=1, architecture="mpnet", first_position=2, buckets=32
    ),
    "modernbert": BertConfig(
        *SIZES,
        types=0,
        epsilon=1e-5,
        architecture="modernbert",
        rotary=Rotary((False, True, True), window=8),
        classifier_activation="gelu",
    ),
}
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "max", "lasttoken")


def run(graph: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(None, {one.name: feeds[one.name] for one in session.get_inputs()})[0]


def batch(config: BertConfig, lengths: tuple[int, ...] = (1, 9, 20), width: int = 24) -> Any:
    ids = np.full((len(lengths), width), config.pad_id)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = (np.arange(length) * 7 + row) % 50 + 5
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * 0}


def on_host(weights: BertWeights, names: tuple[str, ...], feeds: Any) -> dict[str, np.ndarray]:
    table = weights.arrays["embeddings.word_embeddings.weight"]
    return dict(zip(names, device_inputs(names, feeds, table), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_and_the_form_for_the_npu_change_nothing(name: str) -> None:
    weights = random_weights(CONFIGS[name], seed=4)
    feeds = batch(weights.config)
    whole = run(build_graph(weights, output="tokens"), feeds)
    logits = run(build_graph(weights, output="logit"), feeds)
    assert len(set(logits[:, 0].round(3))) == 3
    for row, length in enumerate((1, 9, 20)):
        one = {key: array[row : row + 1, :length] for key, array in feeds.items()}
        alone = run(build_graph(weights, output="tokens"), one)
        np.testing.assert_allclose(whole[row, :length], alone[0], atol=1e-5)
    graph = build_graph(weights, output="logit", shape=(3, 24), host_inputs=True)
    onnx.checker.check_model(graph, full_check=True)
    assert not {node.op_type for node in graph.graph.node} & {"Gather", "Cast", "Shape", "Range"}
    names = host_input_names(weights, "logit", "mean", scaled=False)
    np.testing.assert_allclose(run(graph, on_host(weights, names, feeds)), logits, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_far_tokens_count_as_the_architecture_says(name: str) -> None:
    """Positions, and the window of ModernBERT's local layers, reach every token."""
    weights = random_weights(CONFIGS[name], seed=4)
    feeds = batch(weights.config, (20,))
    turned = {key: array.copy() for key, array in feeds.items()}
    turned["input_ids"][0, [3, 18]] = turned["input_ids"][0, [18, 3]]
    graph = build_graph(weights, output="tokens")
    a, b = run(graph, feeds)[0], run(graph, turned)[0]
    assert np.abs(a - b)[:20].max(axis=1).min() > 1e-4  # the order of two words is seen everywhere
    if name == "modernbert":
        local = replace(weights.config, rotary=Rotary((True,) * 3, window=4))
        narrow = build_graph(replace(weights, config=local), output="tokens")
        a, b = run(narrow, feeds)[0], run(narrow, turned)[0]
        same = np.abs(a - b)[:20].max(axis=1) < 1e-6
        assert same[10:12].all()  # three layers of two tokens on either side do not reach it
        assert not same[9]


@pytest.mark.parametrize("name", CONFIGS)
def test_each_model_is_read_back_as_it_was_written(name: str, tmp_path: Path) -> None:
    for head in (True, False):
        folder = write_random_model(tmp_path / f"{head}", CONFIGS[name], head=head, seed=2)
        read, made = load_weights(folder), random_weights(CONFIGS[name], head=head, seed=2)
        assert (read.config, read.modules, read.head) == (made.config, made.modules, head)
        assert read.arrays.keys() == made.arrays.keys()
        stored = load_file(folder / "model.safetensors")
        prefixed = [key for key in stored if key.startswith(("bert.", "roberta.", "model."))]
        assert bool(prefixed) == (head and name not in ("distilbert", "mpnet"))
        with onnxruntime_of(build_graph(read, output="tokens")) as names:
            assert set(traced(read)) <= names


class onnxruntime_of:
    """The names of a graph's tensors."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        self.names = {name for node in graph.graph.node for name in node.output}

    def __enter__(self) -> set[str]:
        return self.names

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings_by_hand(pooling: Pooling) -> None:
    weights = random_weights(CONFIGS["bert"], head=False, seed=4)
    feeds = batch(weights.config)
    tokens = run(build_graph(weights, output="tokens"), feeds)
    rows = []
    for row, length in enumerate((1, 9, 20)):
        seen = tokens[row, :length]
        by_hand = {"mean": seen.mean(0), "cls": seen[0], "max": seen.max(0), "lasttoken": seen[-1]}
        rows.append(by_hand[pooling] / np.linalg.norm(by_hand[pooling]))
    pooled = run(build_graph(weights, output="pooled", pooling=pooling), feeds)
    np.testing.assert_allclose(pooled, rows, atol=1e-5)
    graph = build_graph(weights, output="pooled", pooling=pooling, shape=(3, 24), host_inputs=True)
    names = host_input_names(weights, "pooled", pooling, scaled=False)
    assert tuple(one.name for one in graph.graph.input) == names
    np.testing.assert_allclose(run(graph, on_host(weights, names, feeds)), rows, atol=1e-5)


def sharded(folder: Path) -> Path:
    """The same model with its weights in three files, as large models have them."""
    arrays = load_file(folder / "model.safetensors")
    shards: dict[str, dict[str, np.ndarray]] = {}
    for number, (name, array) in enumerate(sorted(arrays.items())):
        shards.setdefault(f"model-{number % 3 + 1:05}-of-00003.safetensors", {})[name] = array
    for file, part in shards.items():
        save_file(part, folder / file)
    where = {name: file for file, part in shards.items() for name in part}
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "model.safetensors").unlink()
    return folder


def test_weights_in_several_files(tmp_path: Path) -> None:
    one = write_random_model(tmp_path / "one", head=False)
    several = sharded(write_random_model(tmp_path / "several", head=False))
    a, b = (Embedder(folder, cache_dir=tmp_path / "cache") for folder in (one, several))
    np.testing.assert_array_equal(a.embed(["a fan"]), b.embed(["a fan"]))
    before = LocalModel("x", several, None, {}).weights_digest
    shard = several / "model-00002-of-00003.safetensors"
    changed = {name: array + 1 for name, array in load_file(shard).items()}
    save_file(changed, shard)
    assert LocalModel("x", several, None, {}).weights_digest != before
    shard.unlink()
    with pytest.raises(ModelError, match="model-00002"):
        load_weights(several)
    (several / INDEX_NAME).write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(ModelError, match=r"index\.json cannot be read.*passwd"):
        load_weights(several)


def test_bfloat16_is_read(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "m")
    path = folder / "model.safetensors"
    exact = load_file(path)
    header: dict[str, Any] = {}
    body = b""
    for name, array in exact.items():
        half = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": array.shape}
        header[name]["data_offsets"] = [len(body), len(body) + len(half)]
        body += half
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    read = load_weights(folder).arrays
    for name, array in random_weights(SMALL).arrays.items():
        assert read[name].dtype == np.float32
        np.testing.assert_allclose(read[name], array, rtol=2**-7)


def test_two_logits_are_their_difference(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "m", seed=3)
    path = folder / "model.safetensors"
    arrays = load_file(path)
    random = np.random.default_rng(1)
    arrays["classifier.weight"] = random.normal(size=(2, SMALL.hidden)).astype(np.float32)
    arrays["classifier.bias"] = np.array([0.5, -0.25], np.float32)
    save_file(arrays, path)
    weights = load_weights(folder)
    np.testing.assert_allclose(
        weights.arrays["classifier.weight"], np.diff(arrays["classifier.weight"], axis=0)
    )
    assert weights.arrays["classifier.bias"] == pytest.approx(-0.75)
    scores = Reranker(folder, cache_dir=tmp_path / "cache").score("a fan", ["a fan", "a cat"])
    assert ((scores > 0) & (scores < 1)).all()


def ettin(folder: Path, config: BertConfig = CONFIGS["modernbert"]) -> Path:
    """The files of a cross-encoder whose head is modules, as the Ettin rerankers have it."""
    write_random_model(folder, config, head=False, seed=5)
    h, random = config.hidden, np.random.default_rng(6)
    kinds = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dense")
    folders = ("", "1_Pooling", "2_Dense", "3_LayerNorm", "4_Dense")
    rows = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(zip(kinds, folders, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    activation = "torch.nn.modules.activation.GELU"
    dense = {"in_features": h, "out_features": h, "bias": False, "activation_function": activation}
    last = dense | {"out_features": 1, "activation_function": "torch.nn.modules.linear.Identity"}
    settings: dict[str, dict[str, Any]] = {
        "1_Pooling": {"word_embedding_dimension": h, "pooling_mode_cls_token": True},
        "2_Dense": dense,
        "3_LayerNorm": {"dimension": h},
        "4_Dense": last | {"bias": True},
    }
    arrays = {
        "2_Dense": {"linear.weight": random.normal(size=(h, h))},
        "3_LayerNorm": {"norm.weight": random.normal(size=h), "norm.bias": random.normal(size=h)},
        "4_Dense": {"linear.weight": random.normal(size=(1, h)), "linear.bias": np.ones(1)},
    }
    for name, said in settings.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(said))
        if name in arrays:
            stored = {key: np.asarray(a, np.float32) for key, a in arrays[name].items()}
            save_file(stored, folder / name / "model.safetensors")
    return folder


def test_the_modules_of_an_ettin_reranker(tmp_path: Path) -> None:
    config = replace(CONFIGS["modernbert"], vocabulary=800)
    folder = ettin(tmp_path / "m", config)
    weights = load_weights(folder)
    assert (weights.head, weights.pooling, weights.width) == (True, "cls", 1)
    reranker = Reranker(folder, cache_dir=tmp_path / "cache")
    first = reranker.score("a fan", ["the fan", "a cat"])
    assert first[0] != first[1]
    digest = LocalModel("x", folder, None, {}).weights_digest
    path = folder / "4_Dense" / "model.safetensors"
    stored = load_file(path)
    save_file(stored | {"linear.bias": np.zeros(1, np.float32)}, path)
    assert LocalModel("x", folder, None, {}).weights_digest != digest
    # The graph that was kept of the other weights is not taken for this one.
    assert (
        Reranker(folder, cache_dir=tmp_path / "cache").score("a fan", ["a cat"]) < first[1]
    ).all()
    path.unlink()
    (folder / "4_Dense" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"no 4_Dense/model\.safetensors.*pickles"):
        load_weights(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("2_Dense/config.json", {"use_residual": True}, "residual"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "text's vector"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Mish"}, "'torch.nn.Mish'.*GELU"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, "'os.system'"),
        ("4_Dense/config.json", {"out_features": None}, "4_Dense.*garbles"),
        ("config.json", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("config.json", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "yarn"),
        ("config.json", {"classifier_pooling": "max"}, "classifier_pooling"),
        ("config.json", {"hidden_activation": "relu"}, "hidden_activation='relu'"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    folder = ettin(tmp_path / "m")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        load_weights(folder)


def test_a_dense_module_makes_narrower_vectors(tmp_path: Path) -> None:
    folder = ettin(tmp_path / "m", replace(SMALL, vocabulary=800))
    rows = json.loads((folder / "modules.json").read_text())[:3]
    unit = {"idx": 3, "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}
    (folder / "modules.json").write_text(json.dumps([*rows, unit]))
    path = folder / "2_Dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"out_features": 12}))
    weight = np.random.default_rng(2).normal(size=(12, SMALL.hidden)).astype(np.float32)
    save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")
    embedder = Embedder(folder, cache_dir=tmp_path / "cache")
    rows = embedder.embed(["a fan", "the board"])
    assert rows.shape == (2, embedder.dimension) == (2, 12)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["xlm-roberta", "mpnet"])
def test_a_cross_encoder_counts_its_positions_from_behind_the_padding(
    name: str, tmp_path: Path
) -> None:
    """The first two rows of the table are nobody's, and the last token has the last row."""
    config = replace(CONFIGS[name], vocabulary=800)
    folder = write_random_model(tmp_path / "model", config, head=True, seed=3)
    path = folder / "model.safetensors"
    stored = load_file(path)
    [table] = [key for key in stored if key.endswith("position_embeddings.weight")]
    assert len(stored[table]) == config.positions + 2
    said = json.loads((folder / "config.json").read_text())
    assert said["max_position_embeddings"] == config.positions + 2

    def score(passage: str, *changed: int) -> float:
        arrays = {key: array.copy() for key, array in stored.items()}
        arrays[table][list(changed), ::2] += 1  # a layer norm would undo it for all
        save_file(arrays, path)
        with Reranker(folder, cache_dir=tmp_path / "cache") as reranker:
            return float(reranker.score("a fan", [passage])[0])

    long = "the board and the fan " * 30  # cut where the positions end
    for passage in ("x", long):
        assert score(passage, 0, 1) == score(passage)
        assert score(passage, 2) != score(passage)
    last = config.positions + 1
    assert score(long, last) != score(long)
    assert score("x", last) == score("x")
