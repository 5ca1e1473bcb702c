"""The parts of a conversion: texts, equalisation, rounding, fidelity, worker, environment."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_rag.convert import environment, fidelity, toolkit
from tars_rag.convert.balancing import balanced
from tars_rag.convert.quantised import balance_table, prepare, set_constant
from tars_rag.convert.recipes import Threshold
from tars_rag.convert.rounding import round_weights
from tars_rag.convert.statistics import Channels, observe
from tars_rag.convert.texts import Sample, check_disjoint, sample
from tars_rag.errors import ConversionError, InvalidInputError
from tars_rag.models.bert_graph import LINEAR, build_graph, linear_input
from tars_rag.models.weights import BertConfig, random_weights

CONFIG = BertConfig(layers=2, hidden=16, heads=2, intermediate=32, vocabulary=50, positions=24)
EVERY = [(layer, key) for layer in range(CONFIG.layers) for key in LINEAR]


def feeds(rows: int = 6, seed: int = 0, head: bool = False) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        size = int(random.integers(2, 20))
        feed = {
            "input_ids": random.integers(0, CONFIG.vocabulary, (1, size)),
            "attention_mask": np.ones((1, size), np.int64),
        }
        if head:
            feed["token_type_ids"] = (np.arange(size) > size // 2).astype(np.int64)[None]
        made.append(feed)
    return made


def answers(graph: Any, inputs: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return np.concatenate([session.run(None, feed)[0] for feed in inputs])


# --- equalisation and rounding


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0.0, 4.0), head=st.booleans())
def test_equalisation_changes_no_answer(seed: int, spread: float, head: bool) -> None:
    weights = random_weights(CONFIG, head=head, seed=seed % 1000)
    random = np.random.default_rng(seed)

    def scale(size: int) -> Any:
        return np.exp(random.uniform(-spread, spread, size)).astype(np.float32)

    sizes = dict.fromkeys("qkvo", (CONFIG.hidden, CONFIG.hidden))
    sizes |= {
        "ff1": (CONFIG.hidden, CONFIG.intermediate),
        "ff2": (CONFIG.intermediate, CONFIG.hidden),
    }
    scales = {(n, key): (scale(sizes[key][0]), scale(sizes[key][1])) for n, key in EVERY}
    output = "logit" if head else "pooled"
    given_ = feeds(seed=seed, head=head)
    plain = answers(build_graph(weights, output=output), given_)
    equalised = answers(build_graph(weights, output=output, scales=scales), given_)
    np.testing.assert_allclose(equalised, plain, atol=2e-4, rtol=2e-4)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), loud=st.floats(1.0, 300.0), head=st.booleans())
def test_balancing_changes_no_answer_and_evens_the_channels(
    seed: int, loud: float, head: bool
) -> None:
    weights = random_weights(CONFIG, head=head, seed=seed)
    layer = "encoder.layer.0.attention.self"
    weights.arrays[f"{layer}.value.weight"][3] *= loud
    weights.arrays[f"{layer}.query.weight"][5] *= loud
    given_ = feeds(seed=seed, head=head)
    seen = observe(weights, given_, EVERY)
    even = balanced(weights, seen, EVERY)
    output = "logit" if head else "pooled"
    plain = answers(build_graph(weights, output=output), given_)
    np.testing.assert_allclose(
        answers(build_graph(even, output=output), given_), plain, atol=2e-4, rtol=2e-4
    )
    after = observe(even, given_, EVERY)
    for name, channel in (("l0.ctx", 3), ("l0.q", 5)) if loud > 30 else ():
        assert excess(after[name], channel) < 0.6 * excess(seen[name], channel)


def excess(channels: Channels, channel: int) -> float:
    return float(channels.largest[channel] / np.median(channels.largest))


def test_only_what_becomes_int8_is_balanced() -> None:
    weights = random_weights(CONFIG, head=False, seed=1)
    linears = [(n, key) for n, key in EVERY if key in ("q", "v", "ff1")]
    same = balanced(weights, observe(weights, feeds(), linears), linears)
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(same.arrays[name], array)


def test_what_attention_balances_takes_no_multiplication() -> None:
    weights = random_weights(CONFIG, head=False, seed=5)
    prepared = prepare(weights, feeds(20), EVERY)
    graph = build_graph(
        prepared.weights, output="pooled", shape=(1, 16), host_inputs=True, scales=prepared.scales
    )
    names = {node.name for node in graph.graph.node}
    assert {"l0.q.in", "l0.v.out", "l0.ff1.in", "l0.ff1.out", "l0.ff2.out"} <= names
    assert not names & {"l0.q.out", "l0.k.out", "l0.o.in", "l0.o.out"}
    assert "live_one" in {value.name for value in graph.graph.input}


def test_dividing_the_word_table_changes_no_answer() -> None:
    weights = random_weights(CONFIG, head=False, seed=3)
    table = weights.arrays["embeddings.word_embeddings.weight"]
    table[:, 5] *= 40
    graph = build_graph(weights, output="pooled", shape=(1, 8))
    padded = {
        "input_ids": np.array([[1, 2, 3, 4, 5, 0, 0, 0]]),
        "attention_mask": np.array([[1, 1, 1, 1, 1, 0, 0, 0]]),
    }
    before = answers(graph, [padded])
    balance_table(graph, table)
    np.testing.assert_allclose(answers(graph, [padded]), before, atol=1e-5)
    stored = next(t for t in graph.graph.initializer if t.name == "words")
    from onnx import numpy_helper

    assert np.abs(numpy_helper.to_array(stored)).max(axis=0) == pytest.approx(1, abs=1e-5)


def test_set_constant_refuses_a_name_that_is_not_there() -> None:
    with pytest.raises(KeyError):
        set_constant(
            build_graph(random_weights(CONFIG, head=False), output="pooled"), "no", np.zeros(1)
        )


def test_ranges_are_those_of_the_scaled_layer() -> None:
    weights = random_weights(CONFIG, head=False, seed=5)
    given_ = feeds(20)
    prepared = prepare(weights, given_, EVERY)
    assert prepared.ranges.keys() == {f"l{n}.{key}" for n, key in EVERY}
    graph = build_graph(prepared.weights, output="tokens", scales=prepared.scales)
    names = ["l1.q.in", "l1.ff2.scaled"]
    from onnx import helper

    graph.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    seen = [session.run(names, feed) for feed in given_]
    low_x, high_x = prepared.ranges["l1.q"][:2]
    low_y, high_y = prepared.ranges["l1.ff2"][2:]
    assert min(x.min() for x, _ in seen) == pytest.approx(low_x, rel=1e-3)
    assert max(x.max() for x, _ in seen) == pytest.approx(high_x, rel=1e-3)
    assert min(y.min() for _, y in seen) == pytest.approx(low_y, rel=1e-3)
    assert max(y.max() for _, y in seen) == pytest.approx(high_y, rel=1e-3)


def test_observed_channels_match_a_plain_computation() -> None:
    weights = random_weights(CONFIG, head=False, seed=6)
    given_ = feeds(5)
    seen = observe(weights, given_, [(0, "q")])
    graph = build_graph(weights, output="tokens")
    from onnx import helper

    graph.graph.output.extend([helper.make_tensor_value_info("emb.ln", 1, None)])
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    rows = np.concatenate([session.run(["emb.ln"], feed)[0][0] for feed in given_])
    channels = seen[linear_input(0, "q")]
    np.testing.assert_allclose(channels.low, rows.min(axis=0), rtol=1e-5)
    np.testing.assert_allclose(channels.high, rows.max(axis=0), rtol=1e-5)
    np.testing.assert_allclose(channels.gram, rows.T @ rows, rtol=1e-3, atol=1e-3)
    assert seen["l0.q"].gram is None


def nearest(weight: Any) -> Any:
    step = np.abs(weight).max(axis=0) / 127
    return np.rint(weight / step) * step


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), correlated=st.integers(1, 12))
def test_rounded_weights_lie_on_the_toolkits_grid_and_err_less(seed: int, correlated: int) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((40, 12)).astype(np.float32)
    weight[:, 3] = 0
    rows = random.standard_normal((400, correlated)) @ random.standard_normal((correlated, 40))
    rows = (rows + 0.1 * random.standard_normal(rows.shape)).astype(np.float32)
    rounded = round_weights(weight, rows.T @ rows)
    # Quantising again, as the toolkit will, must change nothing.
    used = np.delete(rounded, 3, axis=1)
    np.testing.assert_allclose(used, nearest(used), atol=1e-5)
    np.testing.assert_allclose(np.abs(rounded).max(axis=0), np.abs(weight).max(axis=0), rtol=1e-5)
    assert not rounded[:, 3].any()
    plain = np.where(weight.any(axis=0), nearest(weight + 1e-30), 0)
    error = np.square(rows @ (rounded - weight)).sum()
    assert error < 1.05 * np.square(rows @ (plain - weight)).sum()
    if correlated < 6:
        assert error < 0.6 * np.square(rows @ (plain - weight)).sum()


# --- fidelity


def test_spearman_is_the_textbook_one_with_ties() -> None:
    exact = np.array([1, 2, 3, 4, 5, 10, 20, 30], np.float32)
    given_ = np.array([2, 1, 4, 3, 5, 1, 1, 2], np.float32)
    asked = ["a"] * 5 + ["b"] * 3
    found = fidelity.of_cross_encoder(given_, exact, asked, Threshold(0.5))
    assert found.min_spearman == pytest.approx(0.8)  # 1 - 6 * 4 / (5 * 24)
    assert found.mean_spearman == pytest.approx((0.8 + np.sqrt(0.75)) / 2)
    assert found.top1_agreement == 1.0
    assert not found.degraded


def test_equal_scores_for_everything_are_no_ranking() -> None:
    exact = np.arange(6, dtype=np.float32)
    found = fidelity.of_cross_encoder(np.zeros(6, np.float32), exact, ["q"] * 6, Threshold(0.9))
    assert found.mean_spearman == 0
    assert found.degraded


def test_cosine_of_zeros_or_nan_is_as_bad_as_can_be() -> None:
    exact = np.eye(3, dtype=np.float32)
    given_ = exact.copy()
    given_[1] = 0
    given_[2, 0] = np.nan
    found = fidelity.of_embedder(given_, exact, Threshold(0.9))
    assert found.min_cosine == -1
    assert found.degraded


@pytest.mark.parametrize(("low", "degraded"), [(0.9, False), (0.995, True)])
def test_the_worst_text_counts_where_the_threshold_says_so(low: float, degraded: bool) -> None:
    exact = np.tile(np.array([1, 0], np.float32), (100, 1))
    given_ = exact.copy()
    given_[0] = [0.99, np.sqrt(1 - 0.99**2)]
    found = fidelity.of_embedder(given_, exact, Threshold(0.999, low))
    assert found.mean_cosine == pytest.approx(0.9999, abs=1e-5)
    assert found.degraded is degraded


def test_several_lengths_report_their_worst() -> None:
    exact = np.eye(4, dtype=np.float32)
    good = fidelity.of_embedder(exact, exact, Threshold(0.9))
    bad = fidelity.of_embedder(exact[::-1], exact, Threshold(0.9))
    merged = fidelity.worst([good, bad])
    assert merged.degraded
    assert merged.mean_cosine == bad.mean_cosine


# --- texts


def test_the_bundled_samples_are_many_varied_and_disjoint() -> None:
    for kind in ("embedder", "cross-encoder"):
        calibration = sample(kind, "calibration")
        evaluation = sample(kind, "evaluation")
        assert len(calibration) >= 64
        assert len(evaluation) >= 64
        assert not set(calibration.texts) & set(evaluation.texts)
        assert not set(calibration.queries) & set(evaluation.queries)
        assert calibration.sha256 != evaluation.sha256
    texts = sample("embedder", "evaluation").texts
    assert any(len(text.split()) > 100 for text in texts)
    assert any(" " not in text for text in texts)
    assert sum(not text.isascii() for text in texts) > 8


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_texts_are_read_from_plain_and_json_lines(tmp_path: Path) -> None:
    plain = [f"text {n}\u2028still text {n}" for n in range(70)]
    found = sample("embedder", "evaluation", write(tmp_path / "a.txt", "\r\n".join(plain) + "\n\n"))
    assert found.texts == tuple(plain)
    lines = [json.dumps({"title": f"t{n}", "text": f"body {n}", "more": 1}) for n in range(70)]
    found = sample("embedder", "evaluation", write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert found.texts[3] == "t3 body 3"
    assert found.source == "a.jsonl"


def test_pairs_are_read_from_json_lines_tabs_and_made_from_texts(tmp_path: Path) -> None:
    lines = [json.dumps({"query": f"q{n}", "passages": ["x", "y", f"z{n}"]}) for n in range(30)]
    lines += [json.dumps({"query": "q", "text": "t"})]
    found = sample("cross-encoder", "evaluation", write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert (found.queries[5], found.texts[5]) == ("q1", "z1")
    assert (found.queries[-1], found.texts[-1]) == ("q", "t")
    tabs = "\n".join(f"q{n // 8}\tpassage {n}" for n in range(80))
    found = sample("cross-encoder", "evaluation", write(tmp_path / "a.tsv", tabs))
    assert (found.queries[9], found.texts[9]) == ("q1", "passage 9")
    plain = "\n".join(f"Sentence one of {n}. Sentence two of {n}." for n in range(20))
    found = sample("cross-encoder", "evaluation", write(tmp_path / "a.txt", plain))
    assert len(found) >= 64
    assert set(found.queries) == {f"Sentence one of {n}." for n in range(20)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n \n\t\n", "is empty"),
        (bytes(range(256)), "not UTF-8 text"),
        ("Grüße\n".encode("latin-1") * 80, "not UTF-8 text"),
        (b"a\0b\n" * 80, "binary"),
        (b"only one\n", "has 1 texts.*16"),
        (b'{"text": "a"}\n{"text": }\n', "line 2"),
        (b'{"text": "a"}\n{"body": "b"}\n', "line 2: lacks 'text'"),
        (b'{"text": 7}\n', "line 1: 7 is not a string"),
        (b'{"text": "a"}\n[1]\n', "line 2: is not a JSON object"),
    ],
)
def test_a_file_that_holds_no_texts_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "given.txt"
    path.write_bytes(content)
    for purpose in ("calibration", "evaluation"):
        with pytest.raises(InvalidInputError, match=says):
            sample("embedder", purpose, path)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "no.txt", tmp_path):
        with pytest.raises(InvalidInputError, match="cannot be read"):
            sample("embedder", "calibration", path)


def test_a_ranking_needs_several_passages_for_a_query(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "\n".join(f"q{n}\tpassage {n}" for n in range(80)))
    with pytest.raises(InvalidInputError, match="one passage for each query"):
        sample("cross-encoder", "evaluation", path)
    assert len(sample("cross-encoder", "calibration", path)) == 80


def test_what_is_calibrated_on_cannot_be_measured_on(tmp_path: Path) -> None:
    for kind, line in (("embedder", "text {}"), ("cross-encoder", "q\tpassage {}")):
        path = write(tmp_path / kind, "\n".join(line.format(n) for n in range(80)))
        with pytest.raises(InvalidInputError, match=r"80 texts of .* --eval other"):
            check_disjoint(sample(kind, "calibration", path), sample(kind, "evaluation", path))
        check_disjoint(sample(kind, "calibration"), sample(kind, "evaluation", path))
    # The same query with other passages is another pair.
    check_disjoint(Sample(("a", "b"), ("q", "q"), "one"), Sample(("c", "d"), ("q", "q"), "other"))


def test_a_long_calibration_file_is_thinned_evenly(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n".join(f"text {n}" for n in range(10_000)))
    found = sample("embedder", "calibration", path)
    assert len(found) == 256
    assert found.texts[0] == "text 0"
    assert int(found.texts[-1].split()[1]) > 9_900
    assert len(sample("embedder", "evaluation", path)) == 10_000


# --- the worker, as far as it goes without the toolkit


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_worker", toolkit.WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CFG = """custom_quantize_layers: {}
quantize_parameters:
    x:
        qtype: asym
        min:
        -   -1.5
        max:
        -   2.0
        scale:
        -   0.01
    y:
        min:
        -   -3.5
        max:
        -   3.0
"""


def test_the_worker_changes_the_range_of_one_tensor_only(worker: ModuleType) -> None:
    changed = worker.set_range(CFG, "x", -0.25, 7.5)
    assert changed == CFG.replace("-   -1.5", "-   -0.25").replace("-   2.0", "-   7.5")
    assert worker.set_range(CFG, "y", 1.0, 2.0) == CFG.replace("-   -3.5", "-   0.0").replace(
        "-   3.0", "-   2.0"
    )
    with pytest.raises(worker.ToolkitError, match="does not list z"):
        worker.set_range(CFG, "z", 0, 1)


def test_a_worker_whose_parent_is_gone_does_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", str(toolkit.WORKER), str(tmp_path / "no-job.json"), "1"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout == ""


# --- the environment


def test_the_users_environment_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = {
        "PIP_INDEX_URL": "https://mirror.example/simple",
        "https_proxy": "http://proxy.example:3128",
        "SSL_CERT_FILE": "/etc/ssl/mine.pem",
    }
    kept_back = {
        "PYTHONPATH": "/home/me/lib",
        "VIRTUAL_ENV": "/home/me/venv",
        "PYTHONHOME": "/x",
        "LD_PRELOAD": "x.so",
        "PIP_TARGET": "/tmp/elsewhere",
        "PIP_USER": "1",
        "HF_TOKEN": "secret",
    }
    for name, value in {**passed, **kept_back}.items():
        monkeypatch.setenv(name, value)
    clean = environment.clean_environment()
    assert passed.items() <= clean.items()
    assert not kept_back.keys() & clean.keys()


def test_without_a_suitable_python_it_says_which_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        environment, "_candidates", lambda: iter(["/nonexistent/python", "/bin/true"])
    )
    with pytest.raises(ConversionError, match=r"3\.10, 3\.11 or 3\.12.*apt install"):
        environment.find_python()


def test_a_suitable_python_is_found_behind_unsuitable_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, says in (("new", "3 13"), ("bare", ""), ("good", "3 12")):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho {says}\n")
        path.chmod(0o755)
    candidates = [str(tmp_path / name) for name in ("missing", "new", "bare", "good")]
    monkeypatch.setattr(environment, "_candidates", lambda: iter(candidates))
    assert environment.find_python() == tmp_path / "good"


def test_other_systems_are_told_where_to_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConversionError, match=r"Linux only.*darwin"):
        environment.toolkit_python()


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = write(tmp_path / "file", "x") / "cache"
    with pytest.raises(ConversionError, match="XDG_CACHE_HOME"):
        environment.toolkit_python(blocked)


def test_too_little_room_is_told_before_anything_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "find_python", lambda: Path(sys.executable))
    monkeypatch.setattr(environment, "_ROOM_NEEDED", 10**18)
    with pytest.raises(ConversionError, match="MB free"):
        environment.toolkit_python(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] in ([], [".lock"])
