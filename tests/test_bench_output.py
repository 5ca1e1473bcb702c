"""What is made of measured rows: the placement, the page, the report that is sent, comparisons."""

from __future__ import annotations

import dataclasses
import getpass
import json
import re
import shutil
import socket
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tars_rag.bench import embedder_bench
from tars_rag.bench.compare import compare
from tars_rag.bench.page import page
from tars_rag.bench.plots import lines
from tars_rag.bench.results import Report, read
from tars_rag.bench.rows import EmbedderRow, QualityRow, QueryRow, RerankerRow
from tars_rag.bench.tables import notes_of
from tars_rag.bench.verdict import Model, as_rows, judge, measurements
from tars_rag.cli import app
from tars_rag.cli.bench_report import shareable
from tars_rag.errors import InvalidInputError
from tars_rag.models import verdict
from tars_rag.models.assignment import Candidate, Measurement
from tars_rag.models.cache import ModelCache
from tars_rag.runtimes.npu.probe import probe

pytest_plugins = ["tiny_models"]

EMBEDDER = EmbedderRow(
    "tiny", "cpu", "onnxruntime", "fp32", 2, "exact", "32 tokens", 32, 32, 1, 90.0, 0.2, 4.0,
    "in the graph", 4.2, 0.1, 238.0, 7, 0.8,
)  # fmt: skip
RERANKER = RerankerRow(
    "ce", "cpu", "onnxruntime", "int8", 2, "exact", "122 tokens", 122, 122, 2, True, 34.0, 20.0,
    0.5, 90.0, 5, cpu_seconds_100=4.0,
)  # fmt: skip


def with_rows(**more: object) -> dict[str, object]:
    report = Report({"processor": "A <fast> one", "cpu_cores": 2}, "how & why", notes=["a note"])
    report.reranker = [
        RERANKER,
        dataclasses.replace(RERANKER, length=512, batch=1, passage_ms=90.0),
        RerankerRow("ce", "npu", absent="this machine has no Rockchip NPU"),
    ]
    report.quality = [QualityRow("none", queries=50, ndcg_10=0.55, gain=0.0)]
    report.embedder = [EMBEDDER, dataclasses.replace(EMBEDDER, length=64, tokens=64, total_ms=8.0)]
    report.query = [QueryRow("tiny cpu", "ce cpu", 742, 5, 4.0, 1.0, 0.5, 0.2, 90.0, 96.0, 1.0, 25)]
    report.verdict = {"rows": [], "kept": False}
    return report.as_dict() | more


class Parsed(HTMLParser):
    """Every tag that is opened is closed, and what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself() -> None:
    made = page(with_rows(interrupted=True))
    parsed = Parsed()
    parsed.feed(made)
    assert parsed.open == []
    assert parsed.fetched == []
    assert not re.search(r"https?:|url\(|@import|<script", made)
    assert "A &lt;fast&gt; one" in made
    assert "how &amp; why" in made
    assert "published, RK3588" in made
    assert "no Rockchip NPU" in made
    assert "Interrupted" in made
    assert made.count("<svg") == 3


def test_a_plot_has_its_points_where_they_belong() -> None:
    drawn = lines("t", {"a": [(0.0, 0.0), (100.0, 50.0)]}, x="x", y="y")
    points = re.search(r'points="([^"]+)"', drawn)
    assert points
    (x0, y0), (x1, y1) = (tuple(map(float, p.split(","))) for p in points.group(1).split())
    assert (x0, y0) == (38, 192)  # the origin
    assert x1 == pytest.approx(348)  # 100 is a mark, so the axis ends there
    assert y1 == pytest.approx(22 + 170 * (1 - 50 / 60), abs=0.05)
    assert lines("t", {}, x="x", y="y") == ""


def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    file, shot = tmp_path / "bench.html", tmp_path / "bench.png"
    file.write_text(page(with_rows()), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=400,900"]
    command.append(f"--user-data-dir={tmp_path / 'profile'}")
    ran = subprocess.run(
        [*command, f"--screenshot={shot}", "--dump-dom", f"file://{file}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert shot.stat().st_size > 5000
    assert "<polyline" in ran.stdout
    # Nothing but tables, which scroll by themselves, is wider than a phone.
    assert 'class="wide"' in ran.stdout


def test_the_report_has_nothing_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedder_dir: str
) -> None:
    monkeypatch.setenv("RKNN_EMBEDDER_PATH", str(tmp_path / "secret-project" / "model"))
    monkeypatch.setenv("NPU_LOCK", "/srv/acme/npu.lock")
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    monkeypatch.setenv("HOME", "/home/dorothea")
    monkeypatch.setattr(getpass, "getuser", lambda: "dorothea")
    monkeypatch.setattr(socket, "gethostname", lambda: "dorotheas-board")
    bench = Report({"cpu_cores": 4}, "how", notes=["on dorotheas-board, in ~/notes/x"])
    bench.embedder = [
        dataclasses.replace(EMBEDDER, model="acme-legal"),
        EmbedderRow("all-MiniLM-L6-v2", "cpu", absent="/home/dorothea/models/x is damaged"),
    ]
    bench.query = [QueryRow("acme-legal cpu onnxruntime", "none", total_ms=1.0)]
    bench.verdict = {"rows": [], "kept": False}
    text = shareable(bench.as_dict())
    for private in ("dorothea", "acme", "secret", "hf_abc", "notes/x", str(tmp_path)):
        assert private not in text, private
    sent = json.loads(text)
    assert sent["doctor"]["npu_usable"] is False
    assert sent["doctor"]["versions"]["packages"]
    assert [row["model"] for row in sent["bench"]["embedder"]["rows"]] == [
        "own model 1",
        "all-MiniLM-L6-v2",
    ]
    assert sent["bench"]["query"]["rows"][0]["embedder"] == "own model 1 cpu onnxruntime"


def test_reports_side_by_side(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps(with_rows()))
    other = with_rows(machine={"model": "Orange Pi 5 Max"})
    other["embedder"]["rows"][0]["total_ms"] = 39.0  # type: ignore[index]
    del other["reranker"]["rows"][0]  # type: ignore[attr-defined]
    two.write_text(json.dumps({"bench": other}))
    found = compare([one, two])
    assert [file["machine"] for file in found["files"]] == ["A <fast> one", "Orange Pi 5 Max"]
    values = {
        row["what"]: row["values"] for part in ("reranker", "embedder") for row in found[part]
    }
    assert values["tiny, cpu onnxruntime fp32 x2, 32 tokens, 1 text(s)"] == [4.2, 39.0]
    assert values["ce, cpu onnxruntime int8 x2, 122 tokens, batches of 2"] == [20.0, None]
    shown = CliRunner().invoke(app, ["bench", "--compare", str(one), "--compare", str(two)])
    assert shown.exit_code == 0, shown.output
    assert "Orange Pi 5 Max" in shown.stdout
    plain = CliRunner().invoke(app, ["bench", "--compare", str(one), "--json"])
    assert json.loads(plain.stdout)["query"][0]["values"] == [96.0]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"bench": 3}', '{"format": 1}', "not json", "[" * 100_000]
)
def test_what_is_no_report_is_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(InvalidInputError, match="tars-rag bench --report"):
        read(file)


def test_the_placement_rests_on_whole_devices_and_real_weights() -> None:
    rows = [
        EMBEDDER,
        dataclasses.replace(EMBEDDER, cores=1, total_ms=1.0),
        dataclasses.replace(EMBEDDER, random=True, total_ms=1.0),
        dataclasses.replace(EMBEDDER, sample="own p50", total_ms=1.0),
        EmbedderRow("tiny", "npu", absent="no NPU"),
        dataclasses.replace(
            EMBEDDER, device="npu", engine="", precision="fp16", cores=3, length=64, total_ms=3.0
        ),
        RERANKER,
        dataclasses.replace(
            RERANKER, batch=1, planned=False, passage_ms=1.0
        ),  # not what Reranker would send
    ]
    names = {
        ("tiny", "cpu", "onnxruntime", "fp32"): Candidate("cpu", "onnxruntime", "fp32"),
        ("tiny", "npu", "", "fp16"): Candidate("npu", "rknn", "fp16"),
        ("ce", "cpu", "onnxruntime", "int8"): Candidate("cpu", "onnxruntime", "ready"),
    }
    found = [(str(m.candidate), m.length, m.count, m.ms) for m in measurements(rows, names)]
    assert found == [
        ("cpu, onnxruntime fp32", 32, 1, 4.2),
        ("npu, rknn fp16", 64, 1, 3.0),
        ("cpu, onnxruntime ready", 122, 1, 20.0),
        ("cpu, onnxruntime ready", 122, 5, 90.0),
    ]


def test_the_verdict_is_what_was_measured_and_for_this_machine(
    tmp_path: Path, embedder_dir: str
) -> None:
    cache, machine = ModelCache(tmp_path), probe(tmp_path / "no-board")
    fast = dataclasses.replace(EMBEDDER, engine="openvino", precision="bf16", total_ms=2.0)
    slow = dataclasses.replace(EMBEDDER, note="throttled: cpu policy0 at 408 of 2400 MHz")
    model = Model("tiny", "embedder", embedder_dir)
    names = {
        ("tiny", "cpu", "onnxruntime", "fp32"): Candidate("cpu", "onnxruntime", "fp32"),
        ("tiny", "cpu", "openvino", "bf16"): Candidate("cpu", "openvino", "bf16"),
    }
    made = judge([model], [slow, fast], names, cache=cache, machine=machine, notes={"a": "b"})
    rows = as_rows(made)
    assert [row["place"] for row in rows] == ["cpu, openvino bf16"]
    assert rows[0]["reason"] == "2.0 ms against 4.2 ms on cpu, onnxruntime fp32"
    assert "408 of 2400" in made[0].throttled
    verdict.write(tmp_path, made)
    held = verdict.read(tmp_path, "tiny", "embedder", made[0].key)
    assert isinstance(held, verdict.Verdict)
    other = {**made[0].key, "onnxruntime": "0.0"}
    assert isinstance(verdict.read(tmp_path, "tiny", "embedder", other), verdict.Stale)
    assert judge([model], [], names, cache=cache, machine=machine, notes={}) == []


def test_a_reranker_s_verdict_is_told_against_every_class() -> None:
    float32 = Candidate("cpu", "onnxruntime", "fp32", "exact")
    bf16 = Candidate("cpu", "openvino", "bf16", "bf16")
    rows = (Measurement(122, 5, float32, 90.0), Measurement(122, 5, bf16, 30.0))
    told = as_rows([verdict.Verdict("ce", "cross-encoder", {}, rows, "now")])
    assert [row["place"] for row in told] == ["cpu, openvino bf16"]
    assert told[0]["reason"] == "30.0 ms against 90.0 ms on cpu, onnxruntime fp32"


def test_what_is_absent_for_one_reason_is_said_once() -> None:
    report = Report({}, "how")
    pull = "not on this machine; fetch it: tars-rag models pull "
    report.reranker = [
        RerankerRow("a", "cpu", "onnxruntime", absent=pull + "a"),
        RerankerRow("b", "cpu", "onnxruntime", absent=pull + "b"),
        RerankerRow("a", "npu", absent="there is none"),
    ]
    assert notes_of(report.as_dict(), "reranker") == [
        f"not measured: a, cpu onnxruntime; b, cpu onnxruntime: {pull}NAME",
        "not measured: a, npu: there is none",
    ]


def test_a_place_for_files_is_asked_for_before_anything_is_measured(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["bench", "--html", str(tmp_path / "no" / "x.html")])
    assert told.exit_code == 1
    assert "cannot be written" in told.stderr


@pytest.mark.parametrize("judged", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_command_writes_all_that_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedder_dir: str, judged: bool
) -> None:
    data = tmp_path / "data"
    (data / "qrels").mkdir(parents=True)
    (data / "corpus.jsonl").write_text('{"_id": "1", "text": "a cat on a sofa"}\n')
    (data / "queries.jsonl").write_text('{"_id": "q", "text": "cat"}\n')
    if judged:
        (data / "qrels" / "test.tsv").write_text("q\t1\t1\n")
    small = embedder_bench.Amount(1, (16,), (1,))
    monkeypatch.setattr("tars_rag.bench.run.embedder_bench.QUICK", small)
    page_, sent = tmp_path / "bench.html", tmp_path / "bench.json"
    options = ["--quick", "--part", "embedder", "--embedder", embedder_dir, "--data", str(data)]
    options += ["--html", str(page_), "--report", str(sent), "--no-keep"]
    told = CliRunner().invoke(app, ["bench", *options, "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    samples = {row["sample"] for row in found["embedder"]["rows"] if not row["absent"]}
    assert samples == {"16 tokens", "own p50", "own p90"}
    assert found["machine"]["cpu_cores"] >= 1
    assert not found["verdict"]["kept"]
    assert "<svg" in page_.read_text("utf-8")
    assert read(sent)["embedder"]["rows"]
    shown = CliRunner().invoke(app, ["bench", *options])
    assert shown.exit_code == 0, shown.output
    assert "Embedder tiny" in shown.stdout
