"""ONNX Runtime on the CPU: cores, threads, checks at the door, many threads at once."""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tars_rag.errors import DeviceError, InvalidInputError, ModelError
from tars_rag.models.bert_graph import build_graph
from tars_rag.models.graphs import quantise
from tars_rag.models.random_model import SMALL
from tars_rag.models.weights import random_weights
from tars_rag.runtimes import cores, onnx, streams
from tars_rag.runtimes.base import Runtime
from tars_rag.runtimes.cores import big_cores
from tars_rag.runtimes.onnx import OnnxRuntime, affinities
from tars_rag.runtimes.streams import Streams


@pytest.fixture(scope="module")
def graph() -> bytes:
    return build_graph(random_weights(SMALL, head=False), output="pooled").SerializeToString()


def a_feed(rows: int = 2, tokens: int = 5) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(rows * tokens).integers(5, 300, (rows, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def processor(root: Path, name: str, values: list[int]) -> Path:
    for core, value in enumerate(values):
        path = root / f"devices/system/cpu/cpu{core}" / name
        path.parent.mkdir(parents=True)
        path.write_text(f"{value}\n")
    return root


@pytest.mark.parametrize(
    ("name", "values", "big"),
    [
        # RK3588: four Cortex-A55 and two pairs of A76, of which one is binned a little lower.
        ("cpu_capacity", [530, 530, 530, 530, 1008, 1008, 1024, 1024], [4, 5, 6, 7]),
        ("cpufreq/cpuinfo_max_freq", [1800000] * 4 + [2256000] * 2 + [2400000] * 2, [4, 5, 6, 7]),
        # RK3576: four A53 and four A72.
        ("cpufreq/cpuinfo_max_freq", [1608000] * 4 + [2208000] * 4, [4, 5, 6, 7]),
        ("cpu_capacity", [1024] * 4, [0, 1, 2, 3]),
        ("cpufreq/cpuinfo_max_freq", [4900000, 5000000, 4900000, 5000000], [0, 1, 2, 3]),
    ],
)
def test_the_big_cores(tmp_path: Path, name: str, values: list[int], big: list[int]) -> None:
    assert big_cores(processor(tmp_path, name, values), range(len(values))) == big


def test_onlyallowed_cores_count(tmp_path: Path) -> None:
    sysfs = processor(tmp_path, "cpu_capacity", [530] * 4 + [1024] * 4)
    assert big_cores(sysfs, [0, 1, 2, 6, 7]) == [6, 7]
    assert big_cores(sysfs, [0, 1]) == [0, 1]


def test_without_the_kernels_figures_all_cores_are_alike(tmp_path: Path) -> None:
    assert big_cores(tmp_path, [0, 1, 2]) == [0, 1, 2]
    path = tmp_path / "devices/system/cpu/cpu0/cpu_capacity"
    path.parent.mkdir(parents=True)
    path.write_text("unknown")
    assert big_cores(tmp_path, [0, 1, 2]) == [0, 1, 2]


def test_every_extra_thread_may_use_every_big_core() -> None:
    assert affinities([4, 5, 6, 7], 4) == "5,6,7,8;5,6,7,8;5,6,7,8"


def test_a_session_runs_on_the_big_cores(
    tmp_path: Path, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake board whose big cores are cores that this machine has."""
    import onnxruntime

    monkeypatch.setattr(onnx, "allowed_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(cores, "allowed_cores", lambda: [0, 1, 2, 3])
    sysfs = processor(tmp_path, "cpu_capacity", [1024, 1024, 400, 400])
    entries = []
    add = onnxruntime.SessionOptions.add_session_config_entry
    monkeypatch.setattr(
        onnxruntime.SessionOptions,
        "add_session_config_entry",
        lambda self, *entry: (entries.append(entry), add(self, *entry))[1],
    )
    runtime = OnnxRuntime(graph, sysfs=sysfs)
    assert runtime.threads == 2
    spin = ("session.intra_op.spin_duration_us", "200")
    assert entries == [spin, ("session.intra_op_thread_affinities", "1,2")]
    assert runtime.run([a_feed()])[0].shape == (2, SMALL.hidden)
    entries.clear()
    assert OnnxRuntime(graph, threads=1, sysfs=sysfs).threads == 1
    assert not entries
    assert OnnxRuntime(graph, threads=4, sysfs=sysfs).threads == 4, "the user's word counts"
    assert entries == [spin]
    entries.clear()
    assert OnnxRuntime(graph, threads=4, as_others=True, sysfs=sysfs).threads == 4
    assert not entries


def test_threads_let_go_of_their_cores_soon_after_a_run(graph: bytes) -> None:
    """By themselves they turn in circles for some 55 ms."""
    pytest.importorskip("onnxruntime", "1.32")
    runtime = OnnxRuntime(graph, threads=2)

    def spent_waiting() -> float:
        runtime.run([a_feed()])
        begun = time.process_time()
        time.sleep(0.1)
        return time.process_time() - begun

    assert min(spent_waiting() for _ in range(5)) < 0.02


def test_a_short_run_that_is_left_over_goes_along() -> None:
    def feed(tokens: int) -> dict[str, Any]:
        return {"input_ids": np.zeros((1, tokens), np.int64)}

    def run(feed: Any) -> Any:
        return feed["input_ids"].astype(np.float32)

    streams = Streams(2, lambda: run)
    assert streams.split([feed(200)]) == 0
    assert streams.split([feed(200)] * 3) == 2
    feeds = [feed(200), feed(180), feed(30)]
    assert streams.split(feeds) == 3
    assert [row.shape[1] for row in streams.run(feeds)] == [200, 180, 30]


def test_it_is_a_runtime(graph: bytes) -> None:
    runtime = OnnxRuntime(graph, threads=1)
    assert isinstance(runtime, Runtime)
    assert (runtime.device, runtime.lengths, runtime.max_rows) == ("cpu", None, None)
    assert runtime.input_names == ("input_ids", "attention_mask")


def test_rows_come_feed_by_feed(graph: bytes) -> None:
    runtime = OnnxRuntime(graph, threads=1)
    first, second = a_feed(3, 4), a_feed(1, 9)
    together = runtime.run([first, second], urgent=True)
    assert [rows.shape for rows in together] == [(3, SMALL.hidden), (1, SMALL.hidden)]
    assert together[0].dtype == np.float32
    np.testing.assert_array_equal(together[1], runtime.run([second])[0])
    assert runtime.run([]) == []


def test_many_threads_get_their_own_rows(graph: bytes) -> None:
    runtime = OnnxRuntime(graph, threads=2)
    feeds = [a_feed(1 + n % 4, 3 + n % 7) for n in range(40)]
    alone = [runtime.run([feed])[0] for feed in feeds]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda feed: runtime.run([feed])[0], feeds))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_sums_and_norms_stay_apart(
    tmp_path: Path, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime is slower at what it makes of the two; others' files run as they run them."""
    import onnx as onnx_package
    import onnxruntime

    small = quantise(onnx_package.load_from_string(graph), per_channel=True)
    open_session = onnxruntime.InferenceSession
    optimised = tmp_path / "optimised.onnx"

    def keeping(source: bytes, options: Any, **arguments: Any) -> Any:
        options.optimized_model_filepath = str(optimised)
        return open_session(source, options, **arguments)

    monkeypatch.setattr(onnxruntime, "InferenceSession", keeping)
    rows, norms = [], []
    for as_others in (False, True):
        runtime = OnnxRuntime(small, threads=1, as_others=as_others)
        rows.append(runtime.run([a_feed(3, 7)])[0])
        kinds = Counter(node.op_type for node in onnx_package.load(optimised).graph.node)
        norms.append((kinds["LayerNormalization"], kinds["SkipLayerNormalization"]))
    plain, fused = norms
    assert plain == (1 + 2 * SMALL.layers, 0)
    assert fused[1] > 0, "the fusion has another name now, or is gone"
    assert (rows[0] * rows[1]).sum(1).min() > 0.999


@pytest.mark.parametrize("count", range(12))
def test_bulk_work_gives_each_thread_runs_of_its_own(
    graph: bytes, count: int, opened: list[Any]
) -> None:
    """Feeds are divided over graphs of one thread each; their rows are the same, in their order."""
    runtime = OnnxRuntime(graph, threads=3)
    feeds = [a_feed(1 + n % 4, 3 + n % 7) for n in range(count)]
    alone = [runtime.run([feed])[0] for feed in feeds]
    for one, other in zip(alone, runtime.run(feeds), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert [threads for _, threads in opened] == ([3, 1] if count >= 3 else [3])


def test_a_bulk_run_that_fails_is_an_error_and_the_next_one_runs(
    graph: bytes, opened: list[Any]
) -> None:
    runtime = OnnxRuntime(graph, threads=2)
    feeds = [a_feed() for _ in range(6)]
    feeds[3]["input_ids"][0, 0] = 10**6
    with pytest.raises(DeviceError, match="could not run"):
        runtime.run(feeds)
    assert len(runtime.run([a_feed() for _ in range(6)])) == 6
    runtime.close()
    with pytest.raises(DeviceError, match="closed"):
        runtime.run(feeds)
    assert runtime._streams.split(6) == 0, "a call under way would open the graph again"
    assert [threads for _, threads in opened] == [2, 1]


def test_a_large_graph_and_one_whose_file_is_gone_are_not_opened_twice(
    tmp_path: Path, graph: bytes, monkeypatch: pytest.MonkeyPatch, opened: list[Any]
) -> None:
    feeds = [a_feed(n % 3 + 1) for n in range(5)]
    path = tmp_path / "model.onnx"
    path.write_bytes(graph)
    gone = OnnxRuntime(path, threads=2)
    path.unlink()
    monkeypatch.setattr(streams, "_LARGEST", len(graph) - 1)
    large = OnnxRuntime(graph, threads=2)
    for one, other in zip(gone.run(feeds), large.run(feeds), strict=True):
        np.testing.assert_array_equal(one, other)
    assert opened == [(path, 2), (graph, 2)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux")
def test_bulk_work_stays_on_the_big_cores(
    tmp_path: Path, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("needs two cores")
    monkeypatch.setattr(onnx, "allowed_cores", lambda: [*allowed[:2], 98, 99])
    monkeypatch.setattr(cores, "allowed_cores", lambda: [*allowed[:2], 98, 99])
    sysfs = tmp_path
    for core, power in zip([*allowed[:2], 98, 99], (1024, 1024, 400, 400), strict=True):
        path = sysfs / f"devices/system/cpu/cpu{core}/cpu_capacity"
        path.parent.mkdir(parents=True)
        path.write_text(str(power))
    kept = []
    settle = os.sched_setaffinity
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda pid, at: (kept.append((pid, at)), settle(pid, at))[1]
    )
    OnnxRuntime(graph, sysfs=sysfs).run([a_feed() for _ in range(4)])
    assert kept
    assert all(call == (0, allowed[:2]) for call in kept)
    assert sorted(os.sched_getaffinity(0)) == allowed, "the caller's thread stays free"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was opened as a session, in order: (source, threads)."""
    found: list[Any] = []
    open_session = onnx._session

    def keeping(source: Any, threads: int, *rest: Any, **options: Any) -> Any:
        session = open_session(source, threads, *rest, **options)
        found.append((source, threads))
        return session

    monkeypatch.setattr(onnx, "_session", keeping)
    return found


def other_graph() -> bytes:
    """Of other weights, so that its rows tell that it ran."""
    weights = random_weights(SMALL, head=False, seed=1)
    return build_graph(weights, output="pooled").SerializeToString()


def padded(rows: int = 2, tokens: int = 5) -> dict[str, np.ndarray]:
    feed = a_feed(rows, tokens)
    feed["attention_mask"][-1, -1] = 0
    return feed


@pytest.mark.parametrize("count", [1, 2, 5])
def test_feeds_without_padding_have_a_graph_of_their_own(
    graph: bytes, count: int, opened: list[Any]
) -> None:
    other = other_graph()
    runtime = OnnxRuntime(graph, unpadded=other, threads=2)
    plain, bare = OnnxRuntime(graph, threads=2), OnnxRuntime(other, threads=2)
    opened.clear()
    feeds = [f for n in range(count) for f in (a_feed(1 + n, 7), padded(2, 3 + n), a_feed(1, 1))]
    for feed, rows in zip(feeds, runtime.run(feeds), strict=True):
        whole = bool(feed["attention_mask"].all())
        expected = (bare if whole else plain).run([feed])[0]
        np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert sorted(threads for _, threads in opened) == [1, 1], "each once more for bulk work"


def test_bulk_work_opens_only_the_graph_that_it_needs(graph: bytes, opened: list[Any]) -> None:
    other = other_graph()
    runtime = OnnxRuntime(graph, unpadded=other, threads=2)
    assert opened == [(graph, 2), (other, 2)]
    runtime.run([a_feed(1), a_feed(2), a_feed(3)])
    assert opened[2:] == [(other, 1)]
    runtime.run([padded(), padded()])
    assert opened[3:] == [(graph, 1)]
    runtime.run([padded(), padded(), a_feed(), a_feed()])
    assert len(opened) == 4


def test_a_second_graph_that_cannot_be_opened_is_done_without(tmp_path: Path, graph: bytes) -> None:
    path = tmp_path / "unpadded.onnx"
    path.write_bytes(other_graph())
    plain = OnnxRuntime(graph, threads=2)
    gone_later = OnnxRuntime(graph, unpadded=path, threads=2)
    path.write_bytes(b"no graph")
    damaged = OnnxRuntime(graph, unpadded=path, threads=2)
    feeds = [a_feed(n, 4) for n in (1, 2, 3, 4)]
    for one, other in zip(damaged.run(feeds), plain.run(feeds), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    expected = gone_later.run(feeds[:1])[0]
    np.testing.assert_allclose(gone_later.run(feeds)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.pop("attention_mask"),
        lambda f: f.update(token_type_ids=f["input_ids"]),
        lambda f: f.update(input_ids=f["input_ids"].astype(np.int32)),
        lambda f: f.update(input_ids=f["input_ids"][:, :3]),
        lambda f: f.update({name: array[0] for name, array in f.items()}),
    ],
    ids=["missing", "unknown", "dtype", "shapes differ", "one dimension"],
)
def test_a_wrong_feed_is_refused(graph: bytes, change) -> None:  # type: ignore[no-untyped-def]
    feed = a_feed()
    change(feed)
    with pytest.raises(InvalidInputError):
        OnnxRuntime(graph, threads=1).run([feed])


def test_an_id_outside_the_vocabulary_is_an_error_of_the_device(graph: bytes) -> None:
    feed = a_feed()
    feed["input_ids"][0, 0] = 10**6
    with pytest.raises(DeviceError, match="could not run"):
        OnnxRuntime(graph, threads=1).run([feed])


def test_numbers_that_are_not_finite_are_an_error() -> None:
    weights = random_weights(SMALL, head=False)
    weights.arrays["encoder.layer.1.output.LayerNorm.bias"][3] = np.nan
    graph = build_graph(weights, output="pooled").SerializeToString()
    with pytest.raises(DeviceError, match="not finite"):
        OnnxRuntime(graph, threads=1).run([a_feed()])


def test_a_damaged_graph_is_named(tmp_path: Path, graph: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(graph[: len(graph) // 2])
    with pytest.raises(ModelError, match=r"model\.onnx cannot be loaded"):
        OnnxRuntime(path)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(graph: bytes, threads: int) -> None:
    with pytest.raises(InvalidInputError, match=f"threads={threads}"):
        OnnxRuntime(graph, threads=threads)


def test_closed_is_closed(graph: bytes) -> None:
    runtime = OnnxRuntime(graph, threads=1)
    runtime.close()
    runtime.close()
    with pytest.raises(DeviceError, match="closed"):
        runtime.run([a_feed()])
