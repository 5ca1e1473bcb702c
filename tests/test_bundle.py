"""What a model path may be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tars_rag.errors import ModelError
from tars_rag.runtimes.npu.bundle import find_bundles, read_model
from tars_rag.runtimes.npu.manifest import Manifest
from tars_rag.runtimes.npu.spec import KnownAnswer, RknnFile


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file(folder: Path, name: str, data: bytes) -> dict[str, Any]:
    (folder / name).write_bytes(data)
    return {"name": name, "sha256": sha(data), "bytes": len(data)}


def bundle(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    fields: dict[str, Any] = {
        "model": "all-MiniLM-L6-v2",
        "kind": "embedder",
        "target": "rk3588",
        "precision": "fp16-host",
        "toolkit": "2.5.0",
        "inputs": ["word_embeddings", "attention_mask"],
        "output": "pooled",
        "dimension": 384,
        "max_length": 256,
        "graphs": [
            file(folder, "a.rknn", b"graph a") | {"lengths": [32]},
            file(folder, "b.rknn", b"graph b") | {"lengths": [64, 256]},
        ],
        "tokenizer": file(folder, "tokenizer.json", b"{}"),
        "word_table": file(folder, "words.npy", b"table"),
        "weights_sha256": "0" * 64,
        "fidelity": {"texts": 96, "mean_cosine": 0.99999, "threshold": 0.9999, "degraded": False},
        "selftest": [{"input_ids": [101, 102], "expected": [0.6, 0.8], "tolerance": 0.01}],
    }
    manifest = Manifest.model_validate(fields | changes)
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def test_a_bundle(tmp_path: Path) -> None:
    path = bundle(tmp_path / "b")
    model = read_model(path, "embedder")
    assert model.spec.graphs == (
        RknnFile(str(path / "a.rknn"), (32,)),
        RknnFile(str(path / "b.rknn"), (64, 256)),
    )
    assert model.spec.inputs == ("word_embeddings", "attention_mask")
    assert model.spec.output == "pooled"
    assert model.spec.word_table == str(path / "words.npy")
    assert model.spec.answers == (KnownAnswer((101, 102), None, (0.6, 0.8), 0.01),)
    assert (model.target, model.toolkit, model.max_length) == ("rk3588", "2.5.0", 256)
    assert model.fidelity is not None
    assert model.identity == sha(b"graph a")


def test_a_bundle_of_the_other_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="of kind embedder, not cross-encoder"):
        read_model(bundle(tmp_path / "b"), "cross-encoder")


@pytest.mark.parametrize("name", ["a.rknn", "b.rknn", "tokenizer.json", "words.npy"])
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_bundle_is_not_run(tmp_path: Path, name: str, damage: str) -> None:
    path = bundle(tmp_path / "b") / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "truncated" else data[:-1] + b"!")
    with pytest.raises(ModelError, match=name):
        read_model(tmp_path / "b", "embedder")


def test_a_single_file(tmp_path: Path) -> None:
    path = tmp_path / "embedder.rknn"
    path.write_bytes(b"anything")
    for given in (path, tmp_path):  # a directory with just that file is as good
        model = read_model(given, "embedder")
        assert model.spec.graphs == (RknnFile(str(path)),)
        assert model.spec.inputs == ()
        assert model.spec.output is None
        assert model.identity == sha(b"anything")
        assert model.fidelity is None


RK = {
    "model_input_names": ["input_ids", "attention_mask", "token_type_ids"],
    "batch_size": 1,
    "target_platform": "rk3588",
    "task": "feature-extraction",
}
QUANTISED = {"quantization": {"do_quantization": True}}


def published(folder: Path, **entries: dict[str, Any]) -> Path:
    for name in entries:
        path = folder / (name + ".rknn")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    config = {"rknn": {name + ".rknn": RK | entry for name, entry in entries.items()}}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"} | config))
    return folder


def test_a_directory_of_rk_transformers(tmp_path: Path) -> None:
    path = published(
        tmp_path,
        model_b1_s256={"max_seq_length": 256},
        model_b1_s128={"max_seq_length": 128},
        model_b4_s64={"max_seq_length": 64, "batch_size": 4},
        **{"rknn/model_b1_s128_w8a8": {"max_seq_length": 128} | QUANTISED},
    )
    model = read_model(path, "embedder")
    assert model.spec.graphs == (
        RknnFile(str(path / "model_b1_s128.rknn"), (128,)),
        RknnFile(str(path / "model_b1_s256.rknn"), (256,)),
    )
    assert model.spec.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert (model.spec.output, model.target, model.max_length) == ("tokens", "rk3588", 256)
    assert read_model(path, "cross-encoder").spec.output == "logit"


def test_a_quantised_file_is_taken_where_there_is_no_other(tmp_path: Path) -> None:
    path = published(tmp_path, model={"max_seq_length": 128} | QUANTISED)
    assert read_model(path, "embedder").spec.graphs[0].path.endswith("model.rknn")


def test_only_batches_is_an_error(tmp_path: Path) -> None:
    path = published(tmp_path, model={"max_seq_length": 128, "batch_size": 4})
    with pytest.raises(ModelError, match="batch size 1"):
        read_model(path, "embedder")


def test_what_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        (tmp_path / "two" / f"{name}.rknn").write_bytes(b"x")
    for path, message in [
        (tmp_path / "absent", "does not exist"),
        (tmp_path, "has no .rknn file"),
        (tmp_path / "model.onnx", "is not a .rknn file"),
        (tmp_path / "two", "has 2 .rknn files"),
    ]:
        with pytest.raises(ModelError, match=message):
            read_model(path, "embedder")


def test_bundles_of_a_folder_come_most_faithful_first(tmp_path: Path) -> None:
    fidelity = {"texts": 96, "threshold": 0.99, "degraded": False}
    bundle(tmp_path / "a-int8", fidelity=fidelity | {"mean_cosine": 0.9964})
    bundle(tmp_path / "b-fp16", fidelity=fidelity | {"mean_cosine": 1.0})
    (tmp_path / "not-a-bundle").mkdir()
    assert [path.name for path, _ in find_bundles(tmp_path)] == ["b-fp16", "a-int8"]
    assert find_bundles(tmp_path / "absent") == []
