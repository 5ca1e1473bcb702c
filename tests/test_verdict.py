"""What was measured, the placement that follows from it, and when it holds no more."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_rag.errors import InvalidInputError, ModelError
from tars_rag.models.assignment import Candidate, Measurement, Plan
from tars_rag.models.verdict import (
    NAME,
    Stale,
    Verdict,
    machine_key,
    model_key,
    read,
    read_all,
    write,
)
from tars_rag.runtimes.npu.probe import probe

ORT = Candidate("cpu", "onnxruntime", "fp32")
OPENVINO = Candidate("cpu", "openvino", "bf16")
NPU = Candidate("npu", "rknn", "fp16-host")
LENGTHS = (32, 128, 256)


def device_double(
    candidate: Candidate, per_run: dict[int, float], *, cores: int, rows: int, most: int = 6
) -> list[Measurement]:
    """What is measured of a device that runs `rows` texts at once on each of its cores."""
    return [
        Measurement(length, count, candidate, per_run[length] * math.ceil(count / (cores * rows)))
        for length in LENGTHS
        for count in range(1, most + 1)
        if length in per_run
    ]


def brute_force(rows: Sequence[Measurement], lengths: Sequence[int]) -> float:
    """The least time over every way to give each text to a candidate."""
    times = {(row.candidate, row.length, row.count): row.ms for row in rows}
    candidates = sorted({row.candidate for row in rows}, key=str)
    best = math.inf
    for given_to in itertools.product(candidates, repeat=len(lengths)):
        busy = {"cpu": 0.0, "npu": 0.0}
        for (candidate, length), count in Counter(zip(given_to, lengths, strict=True)).items():
            busy[candidate.device] += times.get((candidate, length, count), math.inf)
        best = min(best, max(busy.values()))
    return best


MS = st.floats(0.1, 100)


@st.composite
def doubles(draw: st.DrawFn) -> list[Measurement]:
    rows: list[Measurement] = []
    for candidate in (ORT, OPENVINO, NPU):
        most = 2 if candidate is NPU and draw(st.booleans()) else 3  # a bundle that ends at 128
        per_run = {length: draw(MS) for length in LENGTHS[:most]}
        cores = draw(st.integers(1, 3)) if candidate is NPU else 1
        rows += device_double(candidate, per_run, cores=cores, rows=draw(st.integers(1, 4)))
    return rows


@settings(max_examples=60, deadline=None)
@given(doubles(), st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=6))
def test_the_placement_is_the_one_that_trying_all_finds(
    rows: list[Measurement], lengths: list[int]
) -> None:
    plan = Plan(rows, "exact")
    assert plan.milliseconds(lengths) == pytest.approx(brute_force(rows, lengths))
    shares = plan.assign(lengths)
    assert sorted(n for _, numbers in shares for n in numbers) == list(range(len(lengths)))
    busy = {"cpu": 0.0, "npu": 0.0}
    for candidate, numbers in shares:
        busy[candidate.device] += plan.predict([lengths[n] for n in numbers], candidate)
    assert max(busy.values()) == pytest.approx(plan.milliseconds(lengths))


@settings(max_examples=40, deadline=None)
@given(doubles(), st.lists(st.integers(1, 256), min_size=1, max_size=300))
def test_no_single_candidate_is_faster(rows: list[Measurement], lengths: list[int]) -> None:
    """In calls too large to try all, with lengths that were not measured."""
    plan = Plan(rows, "exact")
    best = min(plan.predict(lengths, candidate) for candidate in plan.candidates)
    assert plan.milliseconds(lengths) <= best * 1.000001


def test_one_short_query_and_many_long_texts_need_not_go_the_same_way() -> None:
    rows = [
        *device_double(ORT, {32: 2, 128: 20, 256: 50}, cores=1, rows=1),
        *device_double(NPU, {32: 10, 128: 12, 256: 19}, cores=3, rows=1),
    ]
    plan = Plan(rows)
    assert plan.assign([12]) == [(ORT, (0,))]
    assert plan.assign([200]) == [(NPU, (0,))]
    assert plan.assign([200, 12, 250]) == [(ORT, (1,)), (NPU, (0, 2))]
    assert [c.candidate for c in plan.choices() if c.count == 1] == [ORT, NPU, NPU]
    assert "19.0 ms against 50.0 ms on cpu, onnxruntime fp32" in plan.choices()[-6].reason


def test_only_one_class_of_vectors_is_in_a_plan() -> None:
    quick = Candidate("cpu", "onnxruntime", "int8", "int8")
    rows = [
        *device_double(ORT, {32: 4, 128: 20, 256: 50}, cores=1, rows=1),
        *device_double(quick, {32: 1, 128: 5, 256: 9}, cores=1, rows=1),
    ]
    assert Plan(rows, "exact").candidates == (ORT,)
    assert Plan(rows).candidates == (quick,), "without one the fastest"
    with pytest.raises(InvalidInputError, match="class hq"):
        Plan(rows, "hq")


def test_a_text_that_fits_no_candidate_is_refused() -> None:
    plan = Plan(device_double(NPU, {32: 10, 128: 12}, cores=1, rows=1))
    with pytest.raises(InvalidInputError, match="129 tokens"):
        plan.assign([5, 129])


@pytest.mark.parametrize("ms", [0, -1, math.nan, math.inf])
def test_what_is_no_time_is_refused(ms: float) -> None:
    with pytest.raises(InvalidInputError, match="must be positive"):
        Plan([Measurement(32, 1, ORT, ms)])


@pytest.fixture
def verdict() -> Verdict:
    rows = device_double(ORT, {32: 2, 128: 20}, cores=1, rows=1)
    key = {**machine_key(probe()), **model_key("a" * 64)}
    return Verdict("tiny", "embedder", key, tuple(rows), "2026-01-01T00:00:00Z", notes={"mhz": "2"})


def test_what_was_written_is_read(tmp_path: Path, verdict: Verdict) -> None:
    other = dataclasses.replace(verdict, model="other", throttled="408 of 1800 MHz")
    assert read(tmp_path, "tiny", "embedder", verdict.key) is None
    path = write(tmp_path / "new", [verdict])
    assert path == tmp_path / "new" / NAME
    write(tmp_path / "new", [other])
    assert read(tmp_path / "new", "tiny", "embedder", verdict.key) == verdict
    assert read(tmp_path / "new", "other", "embedder", verdict.key) == other
    assert read(tmp_path / "new", "tiny", "cross-encoder", verdict.key) is None
    chosen = json.loads(path.read_text())["models"][0]["choices"]["exact"][0]
    assert chosen["candidate"]["engine"] == "onnxruntime"
    assert chosen["reason"]
    again = dataclasses.replace(verdict, rows=verdict.rows[:2])
    write(tmp_path / "new", [again])
    assert read_all(tmp_path / "new") == [other, again]


@pytest.mark.parametrize(
    "name",
    [
        "processor",
        "cores",
        "soc",
        "onnxruntime",
        "openvino",
        "rknn-toolkit-lite2",
        "librknnrt",
        "weights",
        "bundle",
        "threads",
    ],
)
def test_a_change_of_anything_makes_it_stale(tmp_path: Path, verdict: Verdict, name: str) -> None:
    write(tmp_path, [verdict])
    now = {**verdict.key, name: "9.9"}
    stale = read(tmp_path, "tiny", "embedder", now)
    assert isinstance(stale, Stale)
    assert stale.reason.startswith(f"{name} was ")
    assert "and is 9.9" in stale.reason
    assert stale.reason.endswith("tars-rag bench")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(version=2),
        lambda data: data.pop("models"),
        lambda data: data["models"][0]["rows"].clear(),
        lambda data: data["models"][0]["rows"][0].update(ms=0),
        lambda data: data["models"][0]["rows"][0]["candidate"].update(device="gpu"),
        lambda data: data["models"][0].update(key=[]),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, verdict: Verdict, change) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path, [verdict])
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ModelError, match=r"placement\.json cannot be read.*tars-rag bench"):
        read_all(tmp_path)
    write(tmp_path, [verdict])
    assert read_all(tmp_path) == [verdict], "measuring again mends it"
