"""The real toolkit, in the environment that is made for it. Some minutes; needs a package index."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tars_rag.convert import environment
from tars_rag.convert.build import convert
from tars_rag.errors import ConversionError
from tars_rag.models.architectures.config import BertConfig, Rotary
from tars_rag.models.random_model import write_random_model
from tars_rag.runtimes.npu.manifest import Manifest, verify_bundle
from tiny_models import write_model

pytestmark = [pytest.mark.convert, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_model(root / "embedder", head=False, seed=1)
    write_model(root / "ranker", head=True, seed=2)
    return root


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers in the shape of a MiniLM: some operators are made for certain widths only."""
    root = tmp_path_factory.mktemp("models")
    for seed, (name, head) in enumerate({"embedder": False, "ranker": True}.items()):
        write_model(root / name, head=head, seed=seed, shape=(2, 384, 12, 1536))
    return root


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue("shared") / "models" / "cranfield-ce-6L"
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    return path


def test_the_environment_is_made_once_and_remade_when_broken(tmp_path: Path) -> None:
    told: list[str] = []

    def tell(what: str, done: int, total: int | None) -> None:
        told.append(what)

    python = environment.toolkit_python(tmp_path, tell)
    home = python.parents[1]
    assert any("installing" in line for line in told)
    megabytes = sum(f.lstat().st_size for f in home.rglob("*")) / 1e6
    assert megabytes < 420

    told.clear()
    assert environment.toolkit_python(tmp_path, tell) == python
    assert told == []

    shutil.rmtree(next(home.glob("lib/python3.*/site-packages/onnx")))
    stale = home.with_name(f".{home.name}.0123456789ab.partial")
    stale.mkdir()
    (stale / "half").write_text("x")
    assert environment.toolkit_python(tmp_path, tell) == python
    assert any("installing" in line for line in told)
    assert sorted(path.name for path in tmp_path.iterdir()) == [home.name, f"{home.name}.lock"]


def test_an_index_out_of_reach_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(ConversionError, match=r"installing the toolkit failed.*PIP_INDEX_URL"):
        environment.toolkit_python(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        ("embedder", "fp16"),
        ("embedder", "fp16-host"),
        ("ranker", "fp16-host"),
        ("embedder", "int8"),
        ("ranker", "hq-host"),
    ],
)
def test_every_kind_of_row_builds(tiny: Path, tmp_path: Path, model: str, precision: str) -> None:
    directory, manifest = convert(
        str(tiny / model),
        precision=precision,
        lengths=(16, 32),
        out=tmp_path / "bundle",
        allow_degraded=True,
    )
    assert verify_bundle(directory) == manifest
    for graph in manifest.graphs:
        content = (directory / graph.name).read_bytes()
        assert content.startswith(b"RKNN")
        assert manifest.weights_sha256.encode() in content  # custom_string survives as it is
    if precision.startswith("fp16"):
        assert not manifest.fidelity.degraded
    # Random weights: nothing says how well they take int8, but they are not noise.
    assert (manifest.fidelity.mean_cosine or manifest.fidelity.mean_spearman or 0) > 0.8


@pytest.mark.parametrize("toolkit", ["2.3.2", "2.5.0"])
@pytest.mark.parametrize(("target", "attention"), [("rk3588", "fused"), ("rk3576", "split")])
@pytest.mark.parametrize("kind", ["embedder", "ranker"])
def test_nothing_is_left_to_the_cpu_and_no_input_is_an_integer(
    wide: Path, tmp_path: Path, kind: str, toolkit: str, target: str, attention: Any
) -> None:
    _, manifest = convert(
        str(wide / kind),
        lengths=(32, 128),
        target=target,
        toolkit=toolkit,
        attention=attention,
        out=tmp_path / "bundle",
        allow_degraded=kind == "ranker",  # the order of random scores hangs on their last bits
    )
    for graph in manifest.graphs:
        operators = graph.operators
        assert operators is not None
        assert operators.on_cpu == ()
        assert operators.integer_inputs == 0
        assert operators.not_fused == ()
        assert ("exSDPAttention" in operators.counts) == (attention == "fused")
    assert manifest.remarks == ()
    fidelity = manifest.fidelity
    assert (fidelity.mean_cosine or 0) > 0.9999 or (fidelity.mean_spearman or 0) > 0.99


def test_a_graph_that_takes_integers_says_what_the_cpu_does(wide: Path, tmp_path: Path) -> None:
    _, manifest = convert(
        str(wide / "embedder"), precision="fp16", lengths=(32,), out=tmp_path / "bundle"
    )
    [graph] = manifest.graphs
    assert graph.operators is not None
    assert graph.operators.integer_inputs == 2
    [remark] = manifest.remarks
    assert "run by the CPU inside the runtime: Gather" in remark


OTHERS = {
    "xlm-roberta": BertConfig(
        2, 64, 4, 128, 200, 64, 1, 1e-5, 1, "xlm-roberta", first_position=2
    ),
    "distilbert": BertConfig(
        2, 64, 4, 128, 200, 64, 0, architecture="distilbert", classifier_activation="relu"
    ),
    "mpnet": BertConfig(
        2, 64, 4, 128, 200, 64, 0, 1e-5, 1, "mpnet", first_position=2, buckets=32
    ),
    "modernbert": BertConfig(
        3, 64, 4, 128, 200, 64, 0, 1e-5, 0, "modernbert",
        rotary=Rotary((False, True, True), 16), activation="silu", classifier_activation="gelu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("architecture", OTHERS)
@pytest.mark.parametrize(("head", "precision"), [(False, "fp16-host"), (True, "fp16")])
def test_every_architecture_builds_exactly(
    architecture: str, head: bool, precision: str, tmp_path: Path
) -> None:
    model = write_random_model(tmp_path / "model", OTHERS[architecture], head=head, seed=3)
    out = tmp_path / "bundle"
    _, manifest = convert(
        str(model), precision=precision, lengths=(48,), out=out, allow_degraded=head
    )
    # The order of random scores hangs on their last bits.
    if head:
        assert (manifest.fidelity.mean_spearman or 0) > 0.99
    else:
        assert (manifest.fidelity.mean_cosine or 0) > 0.9999
        assert manifest.graphs[0].operators
        assert not manifest.graphs[0].operators.on_cpu
    assert "token_type_ids" not in manifest.inputs


def test_int8_of_an_architecture_it_is_not_worked_out_for_is_refused(tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "model", OTHERS["modernbert"], head=False)
    with pytest.raises(ConversionError, match=r"hq is not to be had.*modernbert.*fp16-host"):
        convert(str(model), precision="hq", lengths=(48,), out=tmp_path / "bundle")


def peak(manifest: Manifest) -> int:
    return max(length["peak_mb"] for length in manifest.recipe["lengths"].values())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("precision", "most"), [("fp16-host", 22.0), ("int8", 24.0)])
def test_a_trained_cross_encoder_keeps_its_ranking(
    trained: Path, tmp_path: Path, precision: str, most: float
) -> None:
    began = time.monotonic()
    _, manifest = convert(str(trained), precision=precision, lengths=(64,), out=tmp_path / "bundle")
    assert time.monotonic() - began < 180
    assert peak(manifest) < 2000
    assert manifest.graphs[0].bytes <= most * 2**20
    assert not manifest.fidelity.degraded


def test_the_gate_refuses_what_the_toolkit_makes_when_left_alone(
    trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConversionError, match=r"naive-int8 is not faithful enough.*--allow-degraded"
    ):
        convert(str(trained), precision="naive-int8", lengths=(32,), out=tmp_path / "out" / "b")
    assert not list((tmp_path / "out").iterdir())


def test_the_toolkit_dies_with_the_one_who_waits_for_it(tiny: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tars_rag.convert.build import convert; "
        "convert(sys.argv[1], lengths=(32,), out=Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, str(tiny / "embedder"), str(tmp_path / "bundle")]
    process = psutil.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        workers: list[psutil.Process] = []
        while not workers:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
            workers = [
                one for one in process.children() if any("worker.py" in a for a in one.cmdline())
            ]
        time.sleep(0.5)  # let it arm the death signal: it does so before it loads anything
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
    finally:
        if process.is_running():
            process.kill()
    assert not (tmp_path / "bundle").exists()
