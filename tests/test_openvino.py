"""OpenVINO on the CPU: the same rows as ONNX Runtime, or an error; nothing on the network."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tars_rag import Embedder, Reranker, advice
from tars_rag.errors import ConfigError, DeviceError, InvalidInputError, ModelError
from tars_rag.langchain import TarsEmbeddings, TarsRerank
from tars_rag.llama_index import TarsEmbedding
from tars_rag.llama_index import TarsRerank as NodeRerank
from tars_rag.models import cpu
from tars_rag.models.bert_graph import build_graph
from tars_rag.models.random_model import SMALL, flashrank_name, write_random_model
from tars_rag.models.weights import random_weights
from tars_rag.runtimes.base import Runtime
from tars_rag.runtimes.onnx import OnnxRuntime
from tars_rag.runtimes.openvino import OpenVinoRuntime
from tars_rag.settings import Placement, Settings
from test_architectures import CONFIGS, batch

pytest.importorskip("openvino")
pytest_plugins = ["tiny_models"]

TEXTS = ["a cat in the garden", "fish", "the board and the npu", "piano " * 90, ""]


@pytest.fixture(scope="module", params=["pooled", "logit"])
def graph(request: pytest.FixtureRequest) -> bytes:
    weights = random_weights(SMALL, head=request.param == "logit")
    return build_graph(weights, output=request.param).SerializeToString()


@pytest.fixture(scope="module")
def pooled() -> bytes:
    return build_graph(random_weights(SMALL, head=False), output="pooled").SerializeToString()


def a_feed(names: tuple[str, ...], rows: int, tokens: int) -> dict[str, np.ndarray]:
    """Random numbers, each row but the first padded by a third."""
    ids = np.random.default_rng(rows * tokens).integers(5, 300, (rows, tokens))
    mask = np.ones_like(ids)
    mask[1:, max(1, tokens - tokens // 3) :] = 0
    types = np.zeros_like(ids)
    types[:, tokens // 2 :] = 1
    arrays = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types}
    return {name: arrays[name] for name in names}


def test_rows_are_those_of_onnx_runtime(graph: bytes) -> None:
    exact = OnnxRuntime(graph, threads=2)
    same = OpenVinoRuntime(graph, threads=2, arithmetic="f32")
    fast = OpenVinoRuntime(graph, threads=2)
    assert isinstance(same, Runtime)
    assert (same.device, same.lengths, same.max_rows) == ("cpu", None, None)
    assert same.input_names == exact.input_names
    assert same.arithmetic == "f32"
    for rows, tokens in ((1, 1), (3, 17), (2, 512)):
        feed = a_feed(exact.input_names, rows, tokens)
        (right,), (found,), (rounded,) = (r.run([feed]) for r in (exact, same, fast))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, right, atol=2e-5)
        np.testing.assert_allclose(rounded, right, atol=0.03)
        if right.shape[1] == SMALL.hidden:
            np.testing.assert_allclose(np.linalg.norm(rounded, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_gives_the_same_and_knows_its_limits(name: str) -> None:
    config = CONFIGS[name]
    graph = build_graph(random_weights(config, head=False), output="pooled").SerializeToString()
    exact, found = OnnxRuntime(graph), OpenVinoRuntime(graph, arithmetic="f32")
    assert found.tables == {"input_ids": config.vocabulary, "positions": config.positions}
    arrays = batch(config, (1, 9, config.positions), config.positions)
    feed = {name: arrays[name] for name in exact.input_names}
    np.testing.assert_allclose(found.run([feed])[0], exact.run([feed])[0], atol=1e-5)
    longer = {name: np.pad(array, ((0, 0), (0, 1))) for name, array in feed.items()}
    with pytest.raises(DeviceError, match=f"the model has {config.positions}"):
        found.run([longer])


def test_a_model_of_few_positions_is_measured_within_them(tmp_path: Path) -> None:
    few = dataclasses.replace(SMALL, positions=24)
    folder = write_random_model(tmp_path / "few", few, head=False)
    options = {"cache_dir": tmp_path / "cache", "device": "cpu"}
    with_onnx = Embedder(folder, engine="onnxruntime", **options)
    with_openvino = Embedder(folder, engine="openvino", **options)
    found, right = (model.embed(TEXTS) for model in (with_openvino, with_onnx))
    assert np.min((found * right).sum(axis=1)) > 0.999


def test_many_threads_get_their_own_rows(pooled: bytes) -> None:
    runtime = OpenVinoRuntime(pooled, threads=2, arithmetic="f32")
    feeds = [a_feed(runtime.input_names, 1 + n % 4, 3 + n % 7) for n in range(40)]
    alone = [runtime.run([feed])[0] for feed in feeds]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda feed: runtime.run([feed])[0], feeds))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    for number in (2, 3, 40):  # these are divided over streams
        for one, other in zip(alone, runtime.run(feeds[:number], urgent=True), strict=False):
            np.testing.assert_allclose(one, other, atol=1e-6)
    feeds[7]["input_ids"][0, 0] = -1
    with pytest.raises(DeviceError, match="the model has"):
        runtime.run(feeds)
    assert runtime.run([]) == []


def test_signals_are_survived_once_models_are_closed(pooled: bytes, tmp_path: Path) -> None:
    """OpenVINO leaves the stack that signals are handled on to memory that it has freed."""
    (tmp_path / "graph.onnx").write_bytes(pooled)
    code = """
import pathlib, signal, sys
from tars_rag.runtimes.openvino import OpenVinoRuntime
signal.signal(signal.SIGINT, signal.default_int_handler)
one, other = (OpenVinoRuntime(pathlib.Path(sys.argv[1]), threads=1) for _ in range(2))
del one
del other
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("well")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "graph.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


@pytest.mark.parametrize("number", [-1, SMALL.vocabulary, 10**9])
def test_a_number_that_is_in_no_table_is_an_error(pooled: bytes, number: int) -> None:
    """OpenVINO itself reads whatever lies there."""
    runtime = OpenVinoRuntime(pooled, threads=1)
    assert runtime.tables == {"input_ids": SMALL.vocabulary, "positions": SMALL.positions}
    feed = a_feed(runtime.input_names, 1, 5)
    feed["input_ids"][0, 2] = number
    with pytest.raises(DeviceError, match=f"the model has {SMALL.vocabulary}"):
        runtime.run([feed])


def test_what_cannot_be_run_is_an_error_and_the_next_feed_runs(pooled: bytes) -> None:
    runtime = OpenVinoRuntime(pooled, threads=1)
    with pytest.raises(DeviceError, match="could not run"):
        runtime.run([a_feed(runtime.input_names, 1, SMALL.positions + 1)])
    with pytest.raises(InvalidInputError, match="this graph takes"):
        runtime.run([{"input_ids": np.ones((1, 2), np.int64)}])
    assert runtime.run([a_feed(runtime.input_names, 1, 4)])[0].shape == (1, SMALL.hidden)


def test_numbers_that_are_not_finite_are_an_error() -> None:
    weights = random_weights(SMALL, head=False)
    weights.arrays["encoder.layer.1.output.LayerNorm.bias"][3] = np.nan
    graph = build_graph(weights, output="pooled").SerializeToString()
    with pytest.raises(DeviceError, match="not finite"):
        OpenVinoRuntime(graph, threads=1).run([a_feed(("input_ids", "attention_mask"), 1, 3)])


def test_a_damaged_graph_is_named(tmp_path: Path, pooled: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(pooled[: len(pooled) // 2])
    with pytest.raises(ModelError, match=r"model\.onnx cannot be loaded by OpenVINO"):
        OpenVinoRuntime(path)
    with pytest.raises(ModelError, match=r"none\.onnx cannot be loaded by OpenVINO"):
        OpenVinoRuntime(tmp_path / "none.onnx")


def test_closed_is_closed(pooled: bytes) -> None:
    runtime = OpenVinoRuntime(pooled, threads=1)
    runtime.close()
    runtime.close()
    with pytest.raises(DeviceError, match="closed"):
        runtime.run([a_feed(runtime.input_names, 1, 3)])
    with pytest.raises(InvalidInputError, match="threads=0"):
        OpenVinoRuntime(pooled, threads=0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux")
def keep_to_the_big_cores(folder: str) -> None:
    """In a process of its own: OpenVINO's threads are started once."""
    allowed = sorted(os.sched_getaffinity(0))
    for core in allowed:
        path = Path(folder) / f"devices/system/cpu/cpu{core}/cpu_capacity"
        path.parent.mkdir(parents=True)
        path.write_text("1024" if core == allowed[-1] else "400")
    graph = build_graph(random_weights(SMALL, head=False), output="pooled").SerializeToString()
    tasks = Path("/proc/self/task")
    before = {task.name for task in tasks.iterdir()}
    runtime = OpenVinoRuntime(graph, sysfs=Path(folder))
    assert runtime.threads == 1
    runtime.run([a_feed(runtime.input_names, 4, 64)])
    new = [task for task in tasks.iterdir() if task.name not in before]
    held = [t for t in new if f"Cpus_allowed_list:\t{allowed[-1]}\n" in (t / "status").read_text()]
    assert held
    assert sorted(os.sched_getaffinity(0)) == allowed, "the caller's thread stays free"


@pytest.mark.slow
def test_its_threads_keep_to_the_big_cores(tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    code = (
        f"import pathlib, sys, {__name__} as t; t.keep_to_the_big_cores(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=Path(__file__).parent, check=True, timeout=100)


@pytest.mark.slow
def test_nothing_is_sent_and_nothing_written_at_home(tmp_path: Path, embedder_dir: str) -> None:
    """A process without a network, whose home is empty: telemetry shows in one or the other."""
    code = f"""
import os, pathlib, socket
def refuse(*a, **k): pathlib.Path(os.environ["HOME"], "socket").touch()
socket.socket.__init__ = refuse
socket.create_connection = socket.getaddrinfo = refuse
from tars_rag import Embedder
e = Embedder({embedder_dir!r}, engine="openvino")
assert e.embed(["a cat"]).shape == (1, 32)
"""
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
    env |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "c")}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=120)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_embedder_is_exact_and_its_fingerprint_that_of_onnx_runtime(embedder_dir: str) -> None:
    exact = Embedder(embedder_dir, engine="onnxruntime")
    fast = Embedder(embedder_dir, engine="openvino")
    assert fast.fingerprint == exact.fingerprint == Embedder(embedder_dir).fingerprint
    assert fast.fingerprint.endswith(":exact")
    cosines = (fast.embed(TEXTS) * exact.embed(TEXTS)).sum(1)
    assert cosines.mean() >= 0.9999
    np.testing.assert_allclose(fast.embed_query(TEXTS[1]), fast.embed(TEXTS)[1], atol=0.01)
    assert pickle.loads(pickle.dumps(fast)).placement.engine == "openvino"


@pytest.mark.slow
def test_int8_has_a_class_of_its_own(embedder_dir: str) -> None:
    quick = Embedder(embedder_dir, engine="openvino", precision="int8")
    ours = Embedder(embedder_dir, engine="onnxruntime", precision="int8")
    assert (quick.embed(TEXTS) * ours.embed(TEXTS)).sum(1).min() > 0.99
    assert quick.fingerprint == ours.fingerprint


@pytest.mark.slow
def test_arithmetic_that_is_not_faithful_is_not_used(
    embedder_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the processor's fastest is worse than the class asks, float32 is computed."""
    real = cpu._fidelity
    monkeypatch.setattr(
        cpu,
        "_fidelity",
        lambda m, o, r, x: real(m, o, r, x) if r.arithmetic == "f32" else 0.9998,
    )
    monkeypatch.setattr(cpu, "_machine", lambda: "another")
    embedder = Embedder(embedder_dir, engine="openvino")
    exact = Embedder(embedder_dir, engine="onnxruntime")
    assert embedder.fingerprint == exact.fingerprint
    np.testing.assert_allclose(embedder.embed(TEXTS), exact.embed(TEXTS), atol=1e-5)


@pytest.mark.slow
def test_the_compiled_graph_is_kept_and_a_damaged_one_made_again(
    tmp_path: Path, embedder_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> np.ndarray:
        return Embedder(embedder_dir, engine="openvino", cache_dir=tmp_path).embed(TEXTS)

    right = opened()
    (note,) = tmp_path.glob(".graphs/*openvino*/measured.json")
    (blob,) = (file for file in note.parent.iterdir() if file != note)
    stamp = blob.stat().st_mtime_ns
    monkeypatch.setattr(cpu, "_fidelity", lambda *_: pytest.fail("measured twice"))
    for _ in range(2):
        np.testing.assert_array_equal(opened(), right)
        assert {*note.parent.iterdir()} == {note, blob}
    assert blob.stat().st_mtime_ns == stamp
    monkeypatch.undo()
    damaged = bytearray(blob.read_bytes())
    damaged[-2000:-1000] = bytes(1000)
    blob.write_bytes(damaged)
    np.testing.assert_array_equal(opened(), right)
    note.write_text("{}")
    np.testing.assert_array_equal(opened(), right)
    assert json.loads(note.read_text())["fidelity"] > 0.9999


def test_a_cross_encoder_of_weights_ranks_as_with_onnx_runtime(reranker_dir: str) -> None:
    exact = Reranker(reranker_dir, engine="onnxruntime").score("a cat", TEXTS)
    fast = Reranker(reranker_dir, engine="openvino").score("a cat", TEXTS)
    np.testing.assert_allclose(fast, exact, atol=0.01)


def test_a_ready_file_stays_with_onnx_runtime_unless_openvino_is_named(tmp_path: Path) -> None:
    name = "ms-marco-TinyBERT-L-2-v2"
    model = write_random_model(tmp_path / name, onnx=flashrank_name(name), quantised=True)
    ours = Reranker(model)
    assert isinstance(ours._runtime, OnnxRuntime)
    other = Reranker(model, engine="openvino")
    assert isinstance(other._runtime, OpenVinoRuntime)
    np.testing.assert_allclose(
        other.score("a", ["b", "c d"]), ours.score("a", ["b", "c d"]), atol=0.02
    )


def test_without_the_package_the_command_is_named(
    embedder_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match=re.escape(advice.install("openvino"))):
        Embedder(embedder_dir, engine="openvino")
    assert Embedder(embedder_dir).embed(TEXTS).shape == (5, 32), "it is not needed otherwise"


def test_the_engine_is_chosen_everywhere(
    embedder_dir: str, reranker_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"engine='gpu' is not valid.*onnxruntime, openvino"):
        Placement(engine="gpu")  # type: ignore[arg-type]
    monkeypatch.setenv("CPU_ENGINE", "tensorrt")
    with pytest.raises(ConfigError, match=r"CPU_ENGINE='tensorrt' is not valid.*'openvino'"):
        Settings.from_env()
    monkeypatch.setenv("CPU_ENGINE", " OpenVINO ")
    assert Settings.from_env().embedder_placement.engine == "openvino"
    assert Settings.from_env().reranker_placement.engine == "openvino"
    for made in (
        TarsEmbeddings.from_env(model=embedder_dir),
        TarsEmbedding.from_env(model=embedder_dir),
        TarsRerank.from_env(model=reranker_dir, max_length=64),
        NodeRerank.from_env(model=reranker_dir, max_length=64),
    ):
        assert made.engine == "openvino"
        again = pickle.loads(pickle.dumps(made))
        assert again.engine == "openvino"
        assert again.placement == made.placement
    assert TarsEmbedding.from_dict(made_dict(embedder_dir)).engine == "openvino"
    assert again.reranker.max_length == 64
    monkeypatch.setenv("CPU_ENGINE", "")
    assert Settings.from_env().cpu_engine == "auto"


def made_dict(model: str) -> dict[str, object]:
    return TarsEmbedding(model=model, engine="openvino").to_dict()


@pytest.mark.parametrize("length", [0, 15, 2.5, True, "64"])
def test_a_length_that_is_none_is_refused(reranker_dir: str, length: object) -> None:
    with pytest.raises(ConfigError, match="max_length="):
        Reranker(reranker_dir, max_length=length)  # type: ignore[arg-type]


def test_a_shorter_length_reads_less_of_a_passage(reranker_dir: str) -> None:
    short = Reranker(reranker_dir, max_length=16)
    assert short.max_length == 16
    assert Reranker(reranker_dir, max_length=4096).max_length == 128, "what the model takes"
    one, other = short.score("cat", ["a " * 40, "a " * 40 + "piano"])
    assert one == other
    assert pickle.loads(pickle.dumps(short)).max_length == 16
