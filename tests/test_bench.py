"""The bench measures what a device does: over a device whose times are known, it finds them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tars_rag.bench import embedder_bench, reranker_bench
from tars_rag.bench.conditions import Watch
from tars_rag.bench.contenders import Contender, Subject, contenders
from tars_rag.bench.evaluate import Collection
from tars_rag.bench.measuring import Clock, busy_seconds, take_turns
from tars_rag.bench.reranker_bench import with_ratios
from tars_rag.bench.results import Report
from tars_rag.bench.rows import EmbedderRow, RerankerRow
from tars_rag.bench.run import Bench, Wanted
from tars_rag.bench.tables import terminal
from tars_rag.bench.texts import made_up, own
from tars_rag.bench.verdict import measurements
from tars_rag.models.assignment import Candidate, Plan
from tars_rag.models.batching import PAIR_TOKENS_PER_BATCH, TOKENS_PER_BATCH, run_batched
from tars_rag.models.cache import ModelCache
from tars_rag.models.following import look_up
from tars_rag.models.tokenizer import Encoding, Tokenizer
from tars_rag.models.verdict import Verdict
from tars_rag.retrieval.passage import Passage
from tars_rag.runtimes.base import Feeds, FloatArray
from tars_rag.runtimes.npu.probe import probe
from tars_rag.settings import Placement

pytest_plugins = ["tiny_models"]


class Time:
    """A clock that only the device moves."""

    def __init__(self) -> None:
        self.seconds, self.busy = 0.0, 0.0
        self.clock = Clock(lambda: self.seconds, lambda: self.busy)


class Device:
    """A runtime whose service times are given: `base` and per token, milliseconds a run."""

    def __init__(
        self,
        time: Time,
        *,
        base: float = 1.0,
        token: float = 0.1,
        lengths: tuple[int, ...] | None = None,
        max_rows: int | None = None,
        cores: int = 1,
        busy: float = 1.0,
    ) -> None:
        self.time, self.base, self.token, self.busy = time, base, token, busy
        self.lengths, self.max_rows, self.cores = lengths, max_rows, cores
        self.device = "npu" if lengths else "cpu"
        self.input_names = ("input_ids", "attention_mask", "token_type_ids")
        self.shapes: list[tuple[int, int]] = []
        self.closed = 0

    def run(self, feeds: Sequence[Feeds], *, urgent: bool = False) -> list[FloatArray]:
        shapes = [feed["input_ids"].shape for feed in feeds]
        self.shapes += shapes
        for rows, length in shapes:
            ms = (self.base + self.token * rows * length) / self.cores
            self.time.seconds += ms / 1e3
            self.time.busy += ms / 1e3 * self.busy
        return [np.ones((rows, 1), np.float32) for rows, _ in shapes]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def still() -> Watch:
    return Watch(Path("/nowhere"))


def subject(device: Device, model: Path, kind: str = "cross-encoder", **known: object) -> Subject:
    engine = "" if device.device == "npu" else "onnxruntime"
    fields = {"precision": "fp16" if device.device == "npu" else "int8", "cores": device.cores}
    place = Contender("tiny", kind, device.device, engine, **(fields | known))  # type: ignore[arg-type]
    tokens = PAIR_TOKENS_PER_BATCH if kind == "cross-encoder" else TOKENS_PER_BATCH
    return Subject(place, device, Tokenizer(model, 512), megabytes=1.0, tokens_per_batch=tokens)


def reranked(
    subjects: list[Subject], time: Time, still: Watch, **amount: object
) -> list[RerankerRow]:
    rows: list[RerankerRow] = []
    reranker_bench.measure_rerankers(
        subjects,
        amount=reranker_bench.Amount(**amount),  # type: ignore[arg-type]
        clock=time.clock,
        watch=still,
        keep=rows.append,
    )
    return with_ratios(rows)


def test_the_published_protocol(reranker_dir: str, still: Watch) -> None:
    """Five passages of 122 tokens, five runs: one at a time, and five in a call."""
    time = Time()
    cpu = Device(time)
    rows = reranked([subject(cpu, Path(reranker_dir))], time, still)
    plain = next(r for r in rows if r.tokens == r.length == 122 and r.batch == 1)
    assert plain.passage_ms == pytest.approx(1 + 12.2)
    assert plain.five_ms == pytest.approx(5 * 13.2)
    assert plain.spread_ms == pytest.approx(0, abs=1e-9)
    assert (plain.runs, plain.vs_cpu, plain.vs_fp16) == (5, 1.0, None)
    assert plain.cpu_seconds_100 == pytest.approx(1.32)
    padded = next(r for r in rows if r.length == 512 and r.batch == 1)
    assert padded.tokens == 122
    assert padded.passage_ms == pytest.approx(1 + 51.2)
    assert padded.vs_cpu == pytest.approx(13.2 / 52.2)
    together = next(r for r in rows if r.length == 122 and r.batch == 5)
    assert together.five_ms == pytest.approx(1 + 61)
    assert {r.length for r in rows if r.tokens == 122} == {122, 128, 256, 384, 512}
    assert {r.tokens for r in rows} == {32, 64, 122}


def test_an_npu_pads_to_its_lengths_and_leaves_the_processor_free(
    reranker_dir: str, still: Watch
) -> None:
    time, model = Time(), Path(reranker_dir)
    npu = Device(time, lengths=(64, 128, 256), max_rows=1, cores=3, busy=0.1)
    rows = reranked([subject(npu, model)], time, still)
    measured = [r for r in rows if not r.absent]
    assert {(r.tokens, r.length) for r in measured} == {(32, 64), (64, 64), (122, 128), (122, 256)}
    assert all(rows == 1 for rows, _ in npu.shapes)
    row = next(r for r in measured if r.length == 128)
    assert row.five_ms == pytest.approx(5 * 13.8 / 3)
    assert row.cpu_seconds_100 == pytest.approx(100 * 13.8 / 3 * 0.1 / 1e3)
    assert row.vs_fp16 == 1.0
    assert [r.absent for r in rows if r.absent] == ["its files take 1 text(s) in one run"]


def test_batches_are_what_the_reranker_would_make_too(reranker_dir: str, still: Watch) -> None:
    time = Time()
    rows = reranked([subject(Device(time), Path(reranker_dir))], time, still, lengths=())
    assert {r.batch for r in rows if r.tokens == 32} == {1, 4, 5}
    assert {r.batch for r in rows if r.tokens == 64} == {1, 2, 5}
    assert {r.batch for r in rows if r.tokens == 122} == {1, 5}


def test_the_embedder_in_parts(embedder_dir: str, still: Watch) -> None:
    time = Time()
    rows: list[EmbedderRow] = []
    subjects = [
        subject(Device(time), Path(embedder_dir), "embedder"),
        subject(Device(time, token=0.2), Path(embedder_dir), "embedder", precision="fp32"),
    ]
    embedder_bench.measure_embedders(
        subjects,
        amount=embedder_bench.Amount(3, (32, 64), (1, 4)),
        clock=time.clock,
        watch=still,
        own=["fish " * 20, "cat", "dog " * 30],
        keep=rows.append,
    )
    found = {(r.precision, r.sample, r.texts): r for r in rows}
    one = found["int8", "32 tokens", 1]
    assert (one.infer_ms, one.total_ms) == pytest.approx((4.2, 4.2))
    assert one.tokenise_ms == 0
    assert one.pooled == "in the graph"
    assert found["fp32", "64 tokens", 4].total_ms == pytest.approx(1 + 4 * 12.8)
    assert found["fp32", "64 tokens", 4].per_second == pytest.approx(4000 / 52.2)
    assert found["int8", "own p50", 1].tokens == 22


def test_a_long_measurement_ends_after_one_run(still: Watch) -> None:
    time = Time()

    def call() -> None:
        time.seconds += 10

    timing = take_turns({"a": call, "b": call}, 50, clock=time.clock, most_seconds=15)
    assert [len(t.milliseconds) for t in timing.values()] == [1, 1]


def test_calls_take_turns() -> None:
    said: list[str] = []
    take_turns({n: lambda n=n: said.append(n) for n in "ab"}, 2, clock=Clock())  # type: ignore[misc]
    assert "".join(said) == "ababab"


def test_processor_time_counts() -> None:
    before = busy_seconds()
    sum(n * n for n in range(300_000))
    assert busy_seconds() > before


def test_a_throttled_run_is_told_as_one(reranker_dir: str, tmp_path: Path) -> None:
    policy = tmp_path / "sys/devices/system/cpu/cpufreq/policy4"
    npu = tmp_path / "sys/class/devfreq/fdab0000.npu"
    for folder in (policy, npu):
        folder.mkdir(parents=True)
    (policy / "cpuinfo_max_freq").write_text("2400000\n")
    (policy / "scaling_cur_freq").write_text("408000\n")
    (policy / "scaling_governor").write_text("powersave\n")
    (npu / "max_freq").write_text("1000000000\n")
    (npu / "cur_freq").write_text("1000000000\n")
    (npu / "governor").write_text("rknpu_ondemand\n")
    time = Time()
    rows = reranked([subject(Device(time), Path(reranker_dir))], time, Watch(tmp_path), lengths=())
    said = {row.note for row in rows}
    assert said == {"throttled: cpu policy4 at 408 of 2400 MHz (governor powersave)"}


def test_texts_have_the_tokens_asked_for(embedder_dir: str) -> None:
    tokenizer = Tokenizer(Path(embedder_dir), 128)
    for tokens in (8, 32, 122, 128, 500):
        sample = made_up(tokenizer, tokens, 3)
        assert sample.tokens == min(tokens, 128)
        assert {len(e) for e in tokenizer.encode(sample.passages)} == {min(tokens, 128)}
    assert own(tokenizer, ["", "  "], 5) == ()


def test_what_is_not_here_is_a_row(tmp_path: Path) -> None:
    cache, machine = ModelCache(tmp_path), probe(tmp_path, wheel=None)
    rows = contenders("ms-marco-MiniLM-L-12-v2", "cross-encoder", cache=cache, machine=machine)
    assert [row.absent for row in rows] == [
        "not on this machine; fetch it: tars-rag models pull ms-marco-MiniLM-L-12-v2"
    ]


def wanted(cache: Path, embedder: str, reranker: str, **more: object) -> Wanted:
    machine = probe(cache / "no-board")
    return Wanted(ModelCache(cache), machine, [embedder], [reranker], quick=True, **more)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_whole_run_over_real_models(
    tmp_path: Path, embedder_dir: str, reranker_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tars_rag.bench.run.reranker_bench.QUICK", reranker_bench.Amount(1, (), ()))
    small = embedder_bench.Amount(1, (16,), (1,))
    monkeypatch.setattr("tars_rag.bench.run.embedder_bench.QUICK", small)
    want = wanted(tmp_path, embedder_dir, reranker_dir, texts=["a cat on a sofa"] * 8)
    report = Bench(want, Report({}, "how"), watch=Watch(tmp_path)).run().as_dict()
    assert {"reranker", "embedder", "query", "verdict"} <= report.keys()
    assert not report["interrupted"]
    json.dumps(report, allow_nan=False)
    places = {(r["device"], bool(r["absent"])) for r in report["embedder"]["rows"]}
    assert places >= {("cpu", False), ("npu", True)}  # and OpenVINO, there or not
    # The verdict is kept, and holds for what an Embedder or Reranker would look up.
    assert report["verdict"]["kept"]
    for name, kind in ((embedder_dir, "embedder"), (reranker_dir, "cross-encoder")):
        local = want.cache.get(name)
        placement = Placement(cache_dir=tmp_path)
        found = look_up(local, kind, tmp_path, placement, want.machine)  # type: ignore[arg-type]
        assert isinstance(found, Verdict)
        assert {row.candidate.engine for row in found.rows} >= {"onnxruntime"}
    query = [r for r in report["query"]["rows"] if not r["absent"]]
    assert {r["reranker"] for r in query} >= {"none"}
    assert all(r["total_ms"] > 0 and r["embed"] > 0 for r in query)
    assert any(r["rerank"] for r in query)
    text = "\n".join(piece for piece in terminal(report) if isinstance(piece, str))
    assert "no Rockchip NPU" in text
    assert "published, RK3588" in text


def test_ctrl_c_leaves_what_was_measured(
    tmp_path: Path, embedder_dir: str, reranker_dir: str, still: Watch
) -> None:
    time = Time()
    devices: list[Device] = []

    def opened(place: Contender) -> Subject:
        if place.kind == "embedder":
            raise KeyboardInterrupt
        devices.append(Device(time))
        return subject(devices[-1], Path(reranker_dir))

    want = wanted(tmp_path, embedder_dir, reranker_dir)
    report = Bench(want, Report({}, "how"), time.clock, still, open=opened).run()
    assert report.interrupted
    assert report.reranker
    assert not report.embedder
    assert all(device.closed for device in devices)
    assert "Interrupted" in list(terminal(report.as_dict()))[-1]


@pytest.mark.slow
def test_judged_queries_with_and_without_each_reranker(
    tmp_path: Path, embedder_dir: str, reranker_dir: str, still: Watch
) -> None:
    time = Time()
    texts = ("the cat sleeps", "a piano in the garden", "board and npu", "heat of the fan")
    collection = Collection(
        [Passage(f"d{n}", text) for n, text in enumerate(texts)],
        {"q1": "piano garden", "q2": "npu board"},
        {"q1": {"d1": 1}, "q2": {"d2": 1}},
    )
    machine = probe(tmp_path / "no-board")
    want = Wanted(
        ModelCache(tmp_path),
        machine,
        [embedder_dir],
        [reranker_dir],
        parts=["reranker"],
        collection=collection,
        keep=False,
    )
    amount = reranker_bench.Amount(1, (), (), (1,))
    run = Bench(want, Report({}, "how"), time.clock, still)
    tokens = Tokenizer(Path(reranker_dir), 128)
    run.open = lambda place: Subject(place, Device(time), tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tars_rag.bench.run.reranker_bench.Amount", lambda: amount)
        report = run.run()
    assert report.quality[0].reranker == "none"
    assert report.quality[0].ndcg_10 == 1.0
    assert report.quality[0].queries == 2
    lengths = {row.max_length for row in report.quality if "onnxruntime" in row.reranker}
    assert lengths == {128, 256, 384, 512}
    assert [row.absent for row in report.quality if row.absent] == []
    assert report.verdict == {"rows": [], "kept": False}
    assert not report.query


def seconds(device: Device, lengths: Sequence[int]) -> float:
    """What a device takes for texts of these lengths, batched as an embedder does."""
    if not lengths:
        return 0.0
    start = device.time.seconds
    encodings = [Encoding(np.ones(n, np.int64), np.zeros(n, np.int64)) for n in lengths]
    run_batched(device, encodings)
    return device.time.seconds - start


@pytest.mark.parametrize("npu_token", [0.01, 0.3])
def test_the_placement_is_the_one_that_trying_all_finds(
    embedder_dir: str, still: Watch, npu_token: float
) -> None:
    """From measured rows alone: which of a call's texts go to which of two devices."""
    time = Time()
    cpu = Device(time, base=0.5, token=0.1)
    npu = Device(time, base=6.0, token=npu_token, lengths=(32, 64, 128), max_rows=1)
    places = [subject(device, Path(embedder_dir), "embedder") for device in (cpu, npu)]
    rows: list[EmbedderRow] = []
    for place in places:
        embedder_bench.measure_embedders(
            [place],
            amount=embedder_bench.Amount(1, (32, 64, 128), (1, 8)),
            clock=time.clock,
            watch=still,
            keep=rows.append,
        )
    names = {
        ("tiny", "cpu", "onnxruntime", "int8"): Candidate("cpu", "onnxruntime", "fp32"),
        ("tiny", "npu", "", "fp16"): Candidate("npu", "rknn", "fp16"),
    }
    # Same class, whatever the double says of its fidelity.
    placed = Plan(measurements(rows, names))
    draw = random.Random(7)
    for _ in range(12):
        # Of one length: in a batch of the CPU a shorter text is padded, which no row has measured.
        lengths = [draw.choice((32, 64, 128))] * draw.randint(1, 8)

        def spent(on_npu: set[int], lengths: list[int] = lengths) -> float:
            theirs = [n for place, n in enumerate(lengths) if place in on_npu]
            ours = [n for place, n in enumerate(lengths) if place not in on_npu]
            return max(seconds(cpu, ours), seconds(npu, theirs))

        best = min(spent(set(range(n))) for n in range(len(lengths) + 1))
        share = {c.device: set(texts) for c, texts in placed.assign(lengths)}
        chosen = spent(share.get("npu", set()))
        single = min(spent(set()), spent(set(range(len(lengths)))))
        assert chosen <= 1.05 * best + 1e-9
        assert chosen <= 1.05 * single + 1e-9
