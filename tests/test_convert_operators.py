"""What the toolkit's log says of a compiled graph: read, recorded, told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from tars_rag.cli import app
from tars_rag.convert.build import convert
from tars_rag.convert.operators import compiled_operators
from tars_rag.errors import InvalidInputError
from tars_rag.runtimes.npu.manifest import Operators, load_manifest

if TYPE_CHECKING:
    from convert_double import FakeToolkit

pytest_plugins = ["convert_double"]

# As toolkit 2.3.2 printed it for a graph that takes integers, without most of its rows.
OF_2_3_2 = """\
D RKNN: [18:19:53.974]          Network Layer Information Table
D RKNN: [18:19:53.974] ----------------------------------------
D RKNN: [18:19:53.974] ID   OpType             DataType Target InputShape                      OutputShape            Cycles(DDR/NPU/Total)    RW(KB)       FullName
D RKNN: [18:19:53.974] 0    InputOperator      INT64    CPU    \\                               (1,32)                 0/0/0                    0            InputOperator:input_ids
D RKNN: [18:19:53.974] 1    InputOperator      INT64    CPU    \\                               (1,32)                 0/0/0                    0            InputOperator:attention_mask
D RKNN: [18:19:53.974] 2    Gather             FLOAT16  CPU    (30522,384),(1,32)              (1,32,384)             0/0/0                    22891        Gather:emb.word
D RKNN: [18:19:53.974] 3    Reshape            INT64    CPU    (1,32),(4)                      (1,1,1,32)             0/0/0                    0            Reshape:attention_mask_rs
D RKNN: [18:19:53.974] 4    exNorm             FLOAT16  NPU    (1,384,1,64),(1,384,1,1),...    (1,384,1,64)           0/0/0                    51           exNorm:emb.ln.mean_2ln
D RKNN: [18:19:53.974] 5    exSDPAttention     FLOAT16  NPU    (12,32,1,64),(12,32,1,64),...   (12,32,1,64)           0/0/0                    144          exSDPAttention:l0.pv_sdpa
D RKNN: [18:19:53.974] 6    ConvExGelu         FLOAT16  NPU    (1,384,1,64),(1536,384,1,1)     (1,1536,1,64)          60521/73728/73728        1206         Conv:l0.ff1.mm#2
D RKNN: [18:19:53.974] 7    exNorm             FLOAT16  NPU    (1,384,1,64),(1,384,1,1),...    (1,384,1,64)           0/0/0                    51           exNorm:l0.ln1.mean_2ln
D RKNN: [18:19:53.974] 8    exNorm             FLOAT16  NPU    (1,384,1,64),(1,384,1,1),...    (1,384,1,64)           0/0/0                    51           exNorm:l0.ln2.mean_2ln
D RKNN: [18:19:53.974] 9    OutputOperator     FLOAT16  CPU    (1,384)                         \\                      0/0/0                    0            OutputOperator:pooled
D RKNN: [18:19:53.974] ----------------------------------------
"""  # noqa: E501

GOOD = [
    ("InputOperator", "FLOAT16", "CPU"),
    *[("exNorm", "FLOAT16", "NPU")] * 5,
    *[("exGelu", "FLOAT16", "NPU")] * 2,
    *[("exSDPAttention", "FLOAT16", "NPU")] * 2,
    ("OutputOperator", "FLOAT16", "CPU"),
]


@pytest.mark.parametrize("coloured", [False, True])
def test_the_table_of_a_log(coloured: bool) -> None:
    log = "I noise before\n" + OF_2_3_2
    if coloured:
        log = "\n".join(f"\x1b[36m{line}\x1b[0m" for line in log.splitlines())
    found = compiled_operators(log, 1, split_attention=False)
    assert found == Operators(
        counts={"ConvExGelu": 1, "Gather": 1, "Reshape": 1, "exNorm": 3, "exSDPAttention": 1},
        on_cpu=("Gather (FLOAT16)", "Reshape (INT64)"),
        integer_inputs=2,
    )


def test_what_the_cpu_does_to_one_number_is_not_told() -> None:
    log = OF_2_3_2.replace("(1,1,1,32)   ", "(1,1,1,1)    ")
    found = compiled_operators(log, 1, split_attention=False)
    assert found is not None
    assert found.on_cpu == ("Gather (FLOAT16)",)


def test_of_several_tables_the_last_counts() -> None:
    first = OF_2_3_2.replace("exSDPAttention     FLOAT16  NPU", "exSDPAttention     FLOAT16  CPU")
    found = compiled_operators(first + OF_2_3_2, 1, split_attention=False)
    assert found == compiled_operators(OF_2_3_2, 1, split_attention=False)


@pytest.mark.parametrize("log", ["", "I rknn-toolkit2 version: 2.3.2", "Network Layer Information"])
def test_a_log_without_a_table_says_nothing(log: str) -> None:
    assert compiled_operators(log, 1, split_attention=False) is None


@pytest.mark.parametrize(
    ("gone", "split", "told"),
    [
        ("exNorm", False, "layer norm (2 of 3)"),
        ("ConvExGelu", False, "GELU (0 of 1)"),
        ("exSDPAttention", False, "attention (0 of 1)"),
        ("exSDPAttention", True, None),
    ],
)
def test_what_is_not_fused(gone: str, split: bool, told: str | None) -> None:
    log = OF_2_3_2.replace(f" {gone} ", " Mul ", 1)
    found = compiled_operators(log, 1, split_attention=split)
    assert found is not None
    assert found.not_fused == ((told,) if told else ())


def made(models: Path, out: Path, **options: Any) -> Path:
    return convert(str(models / "embedder"), lengths=(16, 32), out=out, **options)[0]


def test_a_bundle_records_what_it_was_compiled_to(
    models: Path,
    tmp_path: Path,
    fake: FakeToolkit,
) -> None:
    fake.behave(operators=GOOD)
    manifest = load_manifest(made(models, tmp_path / "bundle"))
    for graph in manifest.graphs:
        assert graph.operators == Operators(counts={"exGelu": 2, "exNorm": 5, "exSDPAttention": 2})
    assert manifest.remarks == ()


def test_convert_and_the_manifest_tell_what_is_not_as_it_should_be(
    models: Path,
    tmp_path: Path,
    fake: FakeToolkit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = [("Gather", "INT64", "CPU"), *(row for row in GOOD if row[0] != "exGelu")]
    fake.behave(operators=bad)
    arguments = ["convert", str(models / "embedder"), "--lengths", "16,32", "--out", "bundle"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    remarks = (
        "length 16, 32: run by the CPU inside the runtime: Gather (INT64)",
        "length 16, 32: not fused: GELU (0 of 2)",
    )
    assert load_manifest(tmp_path / "bundle").remarks == remarks
    for remark in remarks:
        assert remark in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "attention", "split"),
    [
        ("rk3588", None, False),
        ("rk3588", "split", True),
        ("rk3576", None, True),
        ("rk3576", "fused", False),
    ],
)
def test_attention_is_split_where_it_is_asked_for_or_the_chip_needs_it(
    models: Path, tmp_path: Path, fake: FakeToolkit,
    target: str, attention: Any, split: bool,
) -> None:  # fmt: skip
    fake.behave(rules=str(tmp_path / "rules.json"))
    out = made(models, tmp_path / "bundle", target=target, attention=attention)
    assert bool(json.loads((tmp_path / "rules.json").read_text())) == split
    assert load_manifest(out).recipe["attention"] == ("split" if split else "fused")


def test_another_kind_of_attention_is_refused(
    models: Path,
    tmp_path: Path,
    fake: FakeToolkit,
) -> None:
    with pytest.raises(InvalidInputError, match=r"attention='flash' is not valid.*fused, split"):
        made(models, tmp_path / "bundle", attention="flash")
