"""A model whose verdict is followed: who runs which text, and when nothing is followed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tars_rag import Embedder, Reranker, advice
from tars_rag.cli import app
from tars_rag.errors import DeviceError, InvalidInputError, ModelError
from tars_rag.models import following
from tars_rag.models.assignment import Candidate, Measurement, Plan
from tars_rag.models.batching import run_batched
from tars_rag.models.cache import ModelCache
from tars_rag.models.planned import PlannedRuntime
from tars_rag.models.tokenizer import Encoding
from tars_rag.models.verdict import NAME, Verdict, write
from tars_rag.runtimes.base import Feeds, FloatArray, Runtime
from tars_rag.runtimes.npu.probe import probe
from tars_rag.runtimes.onnx import OnnxRuntime
from tars_rag.runtimes.openvino import OpenVinoRuntime
from tars_rag.settings import Placement

pytest.importorskip("openvino")
pytest_plugins = ["tiny_models"]

ORT = Candidate("cpu", "onnxruntime", "fp32")
OPENVINO = Candidate("cpu", "openvino", "bf16", tokens_per_batch=512)
NPU = Candidate("npu", "rknn", "fp16")
TEXTS = ["a cat", "fish", "the board and the npu", "piano " * 90, ""]


class Double:
    """A device that gives each text the sum of its numbers, and notes what it was sent."""

    def __init__(self, device: str, lengths: tuple[int, ...] | None = None) -> None:
        self.device, self.lengths = device, lengths
        self.input_names = ("input_ids", "attention_mask")
        self.max_rows = 1 if lengths else None
        self.shapes: list[tuple[int, ...]] = []
        self.closed = False

    def run(self, feeds: Sequence[Feeds], *, urgent: bool = False) -> list[FloatArray]:
        for feed in feeds:
            assert set(feed) == set(self.input_names)
            assert (feed["input_ids"][feed["attention_mask"] == 0] == 7).all(), "the pad id"
            self.shapes.append(feed["input_ids"].shape)
        return [
            (feed["input_ids"] * feed["attention_mask"]).sum(1, keepdims=True).astype(np.float32)
            for feed in feeds
        ]

    def close(self) -> None:
        self.closed = True


def rows(times: Mapping[Candidate, Mapping[int, float]], most: int = 8) -> list[Measurement]:
    return [
        Measurement(length, count, candidate, ms * count)
        for candidate, per_text in times.items()
        for length, ms in per_text.items()
        for count in (1, most)
    ]


def texts(*lengths: int) -> list[Encoding]:
    rng = np.random.default_rng(0)
    return [Encoding(rng.integers(8, 99, n), np.zeros(n, np.int64)) for n in lengths]


@pytest.fixture
def doubles() -> dict[Candidate, Double]:
    return {ORT: Double("cpu"), OPENVINO: Double("cpu"), NPU: Double("npu", (32, 128))}


def planned(doubles: Mapping[Candidate, Runtime]) -> PlannedRuntime:
    """The NPU for what is long, up to 128 tokens; ONNX Runtime for what is short."""
    plan = Plan(
        rows(
            {
                ORT: {16: 1, 32: 90, 128: 99, 512: 400},
                OPENVINO: {16: 5, 32: 80, 128: 95, 512: 200},
                NPU: {32: 4, 128: 8},
            }
        )
    )
    return PlannedRuntime(plan, doubles.__getitem__, tokens_per_batch=64, pad_id=7)


def test_each_text_goes_where_it_is_fastest(doubles: dict[Candidate, Double]) -> None:
    runtime = planned(doubles)
    assert isinstance(runtime, Runtime)
    assert (runtime.lengths, runtime.max_rows, runtime.device) == (None, None, "cpu")
    some = texts(3, 100, 16, 30, 12)
    found = run_batched(runtime, some, pad_id=7)
    np.testing.assert_array_equal(found[:, 0], [text.ids.sum() for text in some])
    assert sorted(doubles[NPU].shapes) == [(1, 32), (1, 128)], "one text a run, padded"
    assert doubles[ORT].shapes == [(2, 16), (1, 3)], "in the order of length, little of it padding"
    assert runtime.device == "npu"
    assert run_batched(runtime, texts(500), pad_id=7).shape == (1, 1)
    assert doubles[OPENVINO].shapes == [(1, 500)], "too long for the NPU"
    runtime.close()
    assert all(double.closed for double in doubles.values())
    with pytest.raises(DeviceError, match="closed"):
        run_batched(runtime, some, pad_id=7)


def test_what_is_not_needed_is_not_opened(doubles: dict[Candidate, Double]) -> None:
    opened: list[Candidate] = []
    plan = planned(doubles).plan
    runtime = PlannedRuntime(
        plan, lambda c: (opened.append(c), doubles[c])[1], tokens_per_batch=64, pad_id=7
    )
    for _ in range(2):
        run_batched(runtime, texts(5), pad_id=7)
        assert opened == [ORT]
    run_batched(runtime, texts(120), pad_id=7)
    assert opened == [ORT, NPU]
    assert runtime.run([]) == []


def test_one_that_cannot_be_opened_is_left_out(
    doubles: dict[Candidate, Double], caplog: pytest.LogCaptureFixture
) -> None:
    def open_member(candidate: Candidate) -> Runtime:
        if candidate is NPU:
            raise DeviceError("no core")
        return doubles[candidate]

    runtime = PlannedRuntime(planned(doubles).plan, open_member, tokens_per_batch=64, pad_id=7)
    for _ in range(2):
        assert run_batched(runtime, texts(100, 3), pad_id=7).shape == (2, 1)
    assert caplog.text.count("left out of the placement: no core") == 1
    assert NPU not in runtime.plan.candidates

    def none(candidate: Candidate) -> Runtime:
        raise ModelError("damaged")

    with pytest.raises(ModelError, match="damaged"):
        run_batched(PlannedRuntime(runtime.plan, none, tokens_per_batch=64), texts(3))


def test_a_feed_that_is_not_filled_up_on_the_right_is_refused(
    doubles: dict[Candidate, Double],
) -> None:
    names = ("input_ids", "attention_mask", "token_type_ids")
    feed = {name: np.ones((2, 4), np.int64) for name in names}
    feed["attention_mask"][1, 1] = 0
    with pytest.raises(InvalidInputError, match="filled up on the right"):
        planned(doubles).run([feed])


def measured(folder: str, cache: Path, kind, times, **key: str) -> None:  # type: ignore[no-untyped-def]
    """Write a verdict that holds here."""
    local = ModelCache(cache).get(folder)
    now = following.current_key(local, kind, cache, Placement(), probe())
    write(cache, [Verdict(local.name, kind, now | key, tuple(rows(times)), "2026-01-01T00:00Z")])


SPLIT = {ORT: {8: 1, 64: 50, 128: 99}, OPENVINO: {8: 2, 64: 20, 128: 30}}


def test_an_embedder_follows_and_its_vectors_are_the_same(
    embedder_dir: str, tmp_path: Path
) -> None:
    plain = Embedder(embedder_dir, cache_dir=tmp_path)
    measured(embedder_dir, tmp_path, "embedder", SPLIT)
    followed = Embedder(embedder_dir, cache_dir=tmp_path)
    assert isinstance(followed._runtime, PlannedRuntime)
    assert followed.fingerprint == plain.fingerprint
    found, right = followed.embed(TEXTS), plain.embed(TEXTS)
    assert (found * right).sum(1).mean() >= 0.9999
    np.testing.assert_array_equal(followed.embed_query("a cat"), plain.embed_query("a cat"))
    assert set(followed._runtime._members) == {ORT, OPENVINO}
    np.testing.assert_allclose(found[1], right[1], atol=1e-6)  # short: by ONNX Runtime
    for engine in ("onnxruntime", "openvino"):
        named = Embedder(embedder_dir, cache_dir=tmp_path, device="cpu", engine=engine)
        assert not isinstance(named._runtime, PlannedRuntime), "a named engine is the user's word"


def test_only_one_class_is_followed(embedder_dir: str, tmp_path: Path) -> None:
    """INT8 is faster here; the vectors of a store are of another class."""
    quick = Candidate("cpu", "onnxruntime", "int8", "int8")
    measured(embedder_dir, tmp_path, "embedder", {quick: {128: 1}, ORT: {128: 9}})
    assert Embedder(embedder_dir, cache_dir=tmp_path).fingerprint.endswith(":exact")
    int8 = Embedder(embedder_dir, cache_dir=tmp_path, precision="int8")
    assert int8.fingerprint == Embedder(embedder_dir, precision="int8").fingerprint


def test_a_stale_verdict_is_told_once_and_not_followed(
    embedder_dir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured(embedder_dir, tmp_path, "embedder", SPLIT, onnxruntime="1.0")
    with caplog.at_level(logging.WARNING, "tars_rag"):
        for _ in range(2):
            embedder = Embedder(embedder_dir, cache_dir=tmp_path)
            assert not isinstance(embedder._runtime, PlannedRuntime)
    (told,) = [r.getMessage() for r in caplog.records if "holds no more" in r.getMessage()]
    assert "onnxruntime was 1.0 and is " in told
    assert told.endswith("tars-rag bench")


@pytest.mark.parametrize("damage", ["{", '{"format": "other"}', "[" * 100_000])
def test_a_damaged_verdict_stops_nothing(
    embedder_dir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    (tmp_path / NAME).write_text(damage)
    assert Embedder(embedder_dir, cache_dir=tmp_path).embed(["a"]).shape == (1, 32)
    assert "placement.json cannot be read" in caplog.text


def test_a_class_that_was_measured_wrong_is_not_followed(
    reranker_dir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = Candidate("cpu", "openvino", "bf16", "hq")
    measured(reranker_dir, tmp_path, "cross-encoder", {wrong: {8: 1}, ORT: {8: 2}})
    assert isinstance(Reranker(reranker_dir, cache_dir=tmp_path)._runtime, OnnxRuntime)
    assert "was measured as class hq and is " in caplog.text
    assert "Measure again: tars-rag bench" in caplog.text


def test_a_reranker_follows_and_one_ranking_is_of_one_arithmetic(
    reranker_dir: str, tmp_path: Path
) -> None:
    with Reranker(reranker_dir, engine="openvino", cache_dir=tmp_path) as opened:
        arithmetic = opened._runtime.arithmetic
    precision, its_class = ("fp32", "exact") if arithmetic == "f32" else (arithmetic, arithmetic)
    fast = Candidate("cpu", "openvino", precision, its_class, tokens_per_batch=512)
    measured(reranker_dir, tmp_path, "cross-encoder", {ORT: {8: 1, 128: 90}, fast: {8: 2, 128: 9}})
    followed = Reranker(reranker_dir, cache_dir=tmp_path)
    if its_class == "exact":
        assert isinstance(followed._runtime, PlannedRuntime)
    else:
        assert isinstance(followed._runtime, OpenVinoRuntime), "all of it, or none"
    right = Reranker(reranker_dir, engine="openvino", cache_dir=tmp_path).score("a cat", TEXTS)
    np.testing.assert_allclose(followed.score("a cat", TEXTS), right, atol=0.005)
    limited = followed.score("a cat", TEXTS, budget_ms=10_000)
    np.testing.assert_allclose(limited, right, atol=0.005)


def test_an_engine_that_is_gone_is_replaced(
    embedder_dir: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The verdict still holds by its key; the package cannot be imported."""
    measured(embedder_dir, tmp_path, "embedder", {OPENVINO: {8: 1, 128: 1}, ORT: {8: 2, 128: 2}})
    monkeypatch.setitem(sys.modules, "openvino", None)
    embedder = Embedder(embedder_dir, cache_dir=tmp_path)
    assert embedder.embed(TEXTS).shape == (5, 32)
    assert advice.install("openvino") in caplog.text


def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("EMBED_MODEL", model)
    report: dict[str, Any] = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    return report


def test_doctor_tells_of_engines_and_verdicts(
    embedder_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(monkeypatch, tmp_path, embedder_dir)["placements"] == []
    page = CliRunner().invoke(app, ["doctor"]).stdout
    assert "openvino 20" in page
    assert "not measured: defaults" in page
    measured(embedder_dir, tmp_path, "embedder", SPLIT)
    (entry,) = told(monkeypatch, tmp_path, embedder_dir)["placements"]
    assert (entry["model"], entry["kind"]) == ("tiny", "embedder")
    assert entry["choices"]["exact"][0]["candidate"]["engine"] == "onnxruntime"
    assert "tiny (embedder): measured 2026-01-01" in CliRunner().invoke(app, ["doctor"]).stdout
    measured(embedder_dir, tmp_path, "embedder", SPLIT, openvino="2024.1")
    report = told(monkeypatch, tmp_path, embedder_dir)
    assert "openvino was 2024.1" in report["placements"][0]["stale"]
    (finding,) = [f for f in report["findings"] if "holds no more" in f["what"]]
    assert finding["fix"] == "tars-rag bench"
    (tmp_path / NAME).write_text("{")
    assert "placement.json cannot be read" in str(
        told(monkeypatch, tmp_path, embedder_dir)["findings"]
    )


def test_what_there_is_to_measure() -> None:
    machine = probe()
    found = following.candidates(Placement(threads=1), "embedder", machine)
    assert [(p.device, p.engine, p.precision) for p in found] == [
        ("cpu", "onnxruntime", "fp32"),
        ("cpu", "openvino", "fp32"),
        ("cpu", "onnxruntime", "int8"),
    ]
    assert {p.threads for p in found} == {1}
    assert len(following.candidates(Placement(), "cross-encoder", machine)) == 2
