"""Conversion without the toolkit: what is asked of it, what is kept of it, what is refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from tars_rag.cli import app
from tars_rag.convert import environment
from tars_rag.convert.build import convert
from tars_rag.convert.recipes import RECIPES, recipe
from tars_rag.convert.texts import sample
from tars_rag.errors import ConversionError, InvalidInputError, ModelError, TarsRagError
from tars_rag.models.architectures.config import BertConfig
from tars_rag.models.catalog import CATALOG
from tars_rag.models.embedder import Embedder
from tars_rag.models.random_model import write_random_model
from tars_rag.runtimes.npu.bundle import read_model
from tars_rag.runtimes.npu.manifest import load_manifest, verify_bundle

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from convert_double import FakeToolkit

pytest_plugins = ["convert_double"]


def nothing_left(folder: Path) -> bool:
    return not folder.exists() or not list(folder.iterdir())


def run(models: Path, tmp_path: Path, model: str = "embedder", **options: Any) -> Path:
    directory, manifest = convert(
        str(models / model), **{"lengths": (16,), "out": tmp_path / "out" / "b", **options}
    )
    assert manifest == load_manifest(directory)
    return directory


def test_every_row_has_a_threshold_for_both_kinds_and_the_four_names_are_kept() -> None:
    assert {"fp16", "fp16-host", "hq", "int8"} <= RECIPES.keys()
    for row in RECIPES.values():
        assert row.thresholds.keys() == {"embedder", "cross-encoder"}
        assert row.calibrated == (row.quantise != "none")
    asked = {
        n: (r.thresholds["embedder"], r.thresholds["cross-encoder"]) for n, r in RECIPES.items()
    }
    assert [t.mean for t in asked["fp16"]] == [0.9999, 0.999]
    assert [t.mean for t in asked["fp16-host"]] == [0.9999, 0.999]
    assert [t.mean for t in asked["hq"]] == [0.9985, 0.99]
    assert asked["hq"][0].least == 0.99
    assert [t.mean for t in asked["int8"]] == [0.995, 0.985]
    assert asked["naive-int8"] == asked["int8"]


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match=r"int4.*fp16-host.*hq"):
        recipe("int4")


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        *(("embedder", name) for name in RECIPES if name != "naive-int8"),
        ("ranker", "fp16"),
        ("ranker", "fp16-host"),
        ("ranker", "int8"),
    ],
)
def test_a_bundle_says_what_it_is_and_how_good(
    models: Path, tmp_path: Path, fake: FakeToolkit, model: str, precision: str
) -> None:
    # Rounding to int8 happens in the graph already; the rest of the loss is the toolkit's.
    directory = run(
        models, tmp_path, model, precision=precision, lengths=(32, 16), allow_degraded=True
    )
    manifest = verify_bundle(directory)
    host = RECIPES[precision].table == "host"
    assert manifest.precision == precision
    assert manifest.lengths == (16, 32)
    assert manifest.max_length == 32
    assert manifest.kind == ("cross-encoder" if model == "ranker" else "embedder")
    assert manifest.output == ("logit" if model == "ranker" else "pooled")
    if host:  # no integers
        words = ("word_embeddings", "additive_mask")
        last = "token_types" if model == "ranker" else "pooling_weights"
        assert manifest.inputs[:3] == (*words, last)
        assert ("live_one" in manifest.inputs) == bool(RECIPES[precision].int8)
    else:
        types = ("token_type_ids",) if model == "ranker" else ()
        assert manifest.inputs == ("input_ids", "attention_mask", *types)
    assert (manifest.calibration_sha256 is not None) == RECIPES[precision].calibrated
    assert manifest.fidelity.texts >= 64
    if precision in ("fp16", "fp16-host"):  # the toolkit has got the same function
        assert not manifest.fidelity.degraded
        assert (manifest.fidelity.min_cosine or manifest.fidelity.mean_spearman or 0) > 0.999
    if precision == "fp16":
        assert 0 < manifest.recipe["largest_activation"] < 100  # type: ignore[operator]
    assert sorted(manifest.recipe["lengths"]) == ["16", "32"]  # type: ignore[call-overload]
    if host:
        assert manifest.word_table is not None
        table = np.load(directory / manifest.word_table.name)
        assert table.dtype == np.float16
        assert table.shape[1] == manifest.dimension
    for graph in manifest.graphs:
        label = json.loads((directory / graph.name).read_bytes()[4:])
        assert label["length"] == graph.lengths[0]
        assert label["weights_sha256"] == manifest.weights_sha256
    lengths = [len(test.input_ids) for test in manifest.selftest]
    assert sum(length <= 16 for length in lengths) >= 2
    assert {16, 32} <= set(lengths), "one that fills each length"
    assert len({test.input_ids for test in manifest.selftest}) == len(lengths)
    names = {path.name for path in directory.iterdir()}
    assert names == {"manifest.json", *(file.name for file in manifest.files)}


@pytest.mark.parametrize("head", [False, True])
def test_a_model_that_float16_cannot_hold_is_refused(
    models: Path, tmp_path: Path, fake: FakeToolkit, head: bool
) -> None:
    """The simulator may not see it: only some texts overflow, and the answer is NaN."""
    name = "ranker" if head else "embedder"
    shutil.copytree(models / name, tmp_path / "large")
    weights = load_file(tmp_path / "large" / "model.safetensors")
    [wide] = [key for key in weights if key.endswith("layer.1.intermediate.dense.bias")]
    weights[wide] = np.full_like(weights[wide], 30_000.0)
    save_file(weights, tmp_path / "large" / "model.safetensors")
    with pytest.raises(ConversionError, match=r"l1\.ff2 reaches \d.*--allow-degraded"):
        convert(str(tmp_path / "large"), precision="fp16", lengths=(32,), out=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    options: dict[str, Any] = {"lengths": (32,), "out": tmp_path / "kept", "allow_degraded": True}
    kept = convert(str(tmp_path / "large"), precision="fp16", **options)[1]
    assert kept.recipe["largest_activation"] >= 30_000  # type: ignore[operator]


def test_the_self_test_holds_what_fp32_says(
    models: Path, tmp_path: Path, fake: FakeToolkit
) -> None:
    manifest = load_manifest(run(models, tmp_path, lengths=(128,)))  # long enough to cut nothing
    with Embedder(str(models / "embedder"), device="cpu") as embedder:
        vectors = embedder.embed(list(sample("embedder", "evaluation").texts))
    for test in manifest.selftest:
        assert np.max(vectors @ np.asarray(test.expected, np.float32)) > 0.9999
        assert 0 < test.tolerance < 0.1


def test_below_the_threshold_nothing_is_kept_and_the_message_says_what_to_try(
    models: Path, tmp_path: Path, fake: FakeToolkit
) -> None:
    fake.behave(noise=0.1)
    with pytest.raises(ConversionError, match=r"length 16 .*0\.9999.*--allow-degraded"):
        run(models, tmp_path)
    assert nothing_left(tmp_path / "out")
    with pytest.raises(ConversionError, match="Try hq or fp16-host"):
        run(models, tmp_path, precision="int8")
    assert nothing_left(tmp_path / "out")


def test_allow_degraded_keeps_it_and_records_it(
    models: Path, tmp_path: Path, fake: FakeToolkit
) -> None:
    fake.behave(noise=0.1)
    fidelity = load_manifest(run(models, tmp_path, allow_degraded=True)).fidelity
    assert fidelity.degraded
    assert fidelity.threshold == 0.9999
    assert fidelity.mean_cosine is not None
    assert fidelity.mean_cosine < 0.9999


def test_a_degraded_bundle_says_so_when_it_is_loaded(
    models: Path, tmp_path: Path, fake: FakeToolkit, caplog: pytest.LogCaptureFixture
) -> None:
    sound = run(models, tmp_path, out=tmp_path / "sound")
    fake.behave(noise=0.1)
    degraded = run(models, tmp_path, out=tmp_path / "poor", allow_degraded=True)
    with caplog.at_level(logging.WARNING, "tars_rag"):
        read_model(sound, "embedder")
        assert caplog.text == ""
        read_model(degraded, "embedder")
    assert "degraded" in caplog.text
    assert "0.9999" in caplog.text


def test_a_large_vocabulary_is_on_disk_once(tmp_path: Path, fake: FakeToolkit) -> None:
    """multilingual-e5-small's words, in narrow layers: no graph holds the table."""
    words = 250_037
    model = write_random_model(
        tmp_path / "model", BertConfig(1, 16, 2, 16, words), head=False, seed=1
    )
    lengths = (16, 32, 64)
    directory, manifest = convert(str(model), lengths=lengths, out=tmp_path / "bundle")
    assert manifest.lengths == lengths
    assert len(list(directory.glob("*.rknn"))) == 3
    [table] = directory.glob("*.npy")
    assert manifest.word_table
    assert manifest.word_table.bytes == table.stat().st_size == words * 16 * 2 + 128
    assert np.load(table, mmap_mode="r").shape == (words, 16)


def test_a_directory_of_any_name_can_be_converted(
    models: Path, tmp_path: Path, fake: FakeToolkit
) -> None:
    named = tmp_path / "mein Modell (ü)"
    shutil.copytree(models / "embedder", named)
    directory, manifest = convert(str(named), lengths=(16,), out=tmp_path / "out")
    assert manifest.model == named.name
    verify_bundle(directory)


def test_what_a_device_answers_with_nan_is_never_good(
    models: Path, tmp_path: Path, fake: FakeToolkit
) -> None:
    fake.behave(noise=float("nan"))
    for model in ("embedder", "ranker"):
        with pytest.raises(ConversionError, match="not faithful"):
            run(models, tmp_path, model)
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ({"kill": True}, "killed by signal 9.*memory"),
        ({"exit": 3, "complain": "unknown operator Foo"}, "exit code 3.*unknown operator Foo"),
        ({"error": "OSError: [Errno 28] No space left on device"}, "disk is full.*--out"),
        ({"exit": 1, "complain": "OSError: No space left on device"}, "disk is full.*--out"),
        ({"error": "ToolkitError: build returned -1"}, "build returned -1"),
        ({"no_file": True}, "wrote no file"),
    ],
)
def test_when_the_toolkit_fails_nothing_is_left(
    models: Path, tmp_path: Path, fake: FakeToolkit, behaviour: dict[str, Any], says: str
) -> None:
    fake.behave(**behaviour)
    with pytest.raises(ConversionError, match=says):
        run(models, tmp_path)
    assert nothing_left(tmp_path / "out")


def test_a_full_disk_on_this_side_is_told_as_well(
    models: Path, tmp_path: Path, fake: FakeToolkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ConversionError, match=r"disk is full.*--out"):
        run(models, tmp_path)
    assert nothing_left(tmp_path / "out")


def test_of_two_conversions_to_one_name_the_first_is_kept(
    models: Path, tmp_path: Path, fake: FakeToolkit
) -> None:
    out = tmp_path / "out" / "b"

    def other(step: str, *_: int) -> None:
        out.mkdir(exist_ok=True)
        (out / "theirs").touch()

    with pytest.raises(ConversionError, match=r"made by someone else.*--out"):
        run(models, tmp_path, progress=other)
    assert [path.name for path in out.parent.iterdir()] == ["b"]
    assert [path.name for path in out.iterdir()] == ["theirs"]


def test_an_interrupted_command_says_that_nothing_was_kept(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "toolkit_python", interrupted)
    done = command(models / "embedder", "--lengths", "16", "--out", tmp_path / "b")
    assert done.exit_code == 130
    assert "Interrupted: nothing was kept" in done.stderr
    assert not (tmp_path / "b").exists()


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_the_command_prints_the_directory_and_what_was_measured(
    models: Path, tmp_path: Path, fake: FakeToolkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = tmp_path / "mine.txt"
    texts.write_text("\n".join(f"some text about the number {n}" for n in range(65)))
    done = command(models / "embedder", "--lengths", "32,16", "--eval", texts)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "embedder-rk3588-fp16-host\n"
    assert "length 16: cosine to FP32 over 65 held-out texts: mean 1.0000" in done.stderr
    assert verify_bundle(tmp_path / done.stdout.strip()).lengths == (16, 32)

    done = command(models / "embedder", "--lengths", "16", "--precision", "int8-host", "--json")
    assert json.loads(done.stdout)["precision"] == "int8-host"


def test_the_command_fails_in_one_line(models: Path, tmp_path: Path, fake: FakeToolkit) -> None:
    fake.behave(noise=0.1)
    for arguments, says in (
        (("--lengths", "16"), "not faithful enough"),
        (("--lengths", "16;32"), "--lengths 16;32 is not a list of numbers"),
        (("--precision", "int2"), "No precision is called 'int2'"),
        (("--lengths", "16", "--eval", tmp_path / "none.txt"), "cannot be read"),
    ):
        done = command(models / "embedder", "--out", tmp_path / "b", *arguments)
        assert done.exit_code == 1
        assert done.stdout == ""
        assert says in done.stderr.splitlines()[-1]
        assert not (tmp_path / "b").exists()


_CHILD = """
import sys
from pathlib import Path
from tars_rag.convert import environment, toolkit
toolkit.WORKER = Path(sys.argv[1])
environment.toolkit_python = lambda **_: Path(sys.executable)
from tars_rag.convert.build import convert
convert(sys.argv[2], lengths=(16,), out=Path(sys.argv[3]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_conversion_leaves_no_bundle_and_no_child(
    models: Path, tmp_path: Path, fake: FakeToolkit, number: signal.Signals
) -> None:
    pid_file, out = tmp_path / "pid", tmp_path / "out" / "b"
    fake.behave(hang=True, pid_file=str(pid_file))
    command = [sys.executable, "-c", _CHILD, str(fake.worker), str(models / "embedder"), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (pid_file.exists() and pid_file.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)  # the parent must have returned from Popen too
        process.send_signal(number)
        assert process.wait(timeout=30) != 0
    finally:
        process.kill()
    worker = int(pid_file.read_text())
    assert not out.exists()
    if number == signal.SIGKILL:
        # The real worker dies with its parent (tested there); its leavings go with the next run.
        os.kill(worker, signal.SIGKILL)
        assert not nothing_left(out.parent)
        fake.behave()
        run(models, tmp_path, lengths=(16,))
        assert [path.name for path in out.parent.iterdir()] == ["b"]
    else:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
        assert nothing_left(out.parent)


def test_an_existing_directory_is_never_touched(
    models: Path, tmp_path: Path, fake: FakeToolkit
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(InvalidInputError, match="exists already"):
        run(models, tmp_path, out=out)
    assert (out / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("lengths", [(), (4,), (0, 64), (16, 513)])
def test_impossible_lengths_are_refused(
    models: Path, tmp_path: Path, fake: FakeToolkit, lengths: tuple[int, ...]
) -> None:
    with pytest.raises(InvalidInputError, match=r"[Ll]ength"):
        run(models, tmp_path, lengths=lengths)


def test_an_unknown_target_is_refused(models: Path, tmp_path: Path, fake: FakeToolkit) -> None:
    with pytest.raises(InvalidInputError, match=r"rk9999.*rk3588"):
        run(models, tmp_path, target="rk9999")


def altered(models: Path, tmp_path: Path, **changes: Any) -> str:
    folder = tmp_path / "altered"
    shutil.copytree(models / "embedder", folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


def test_models_that_cannot_be_converted_are_refused_with_the_reason(
    models: Path, tmp_path: Path, fake: FakeToolkit
) -> None:
    from safetensors.numpy import load_file, save_file

    out = tmp_path / "out" / "b"
    with pytest.raises(ModelError, match="model_type='gpt2'"):
        convert(altered(models, tmp_path, model_type="gpt2"), out=out)
    several = tmp_path / "several"
    shutil.copytree(models / "ranker", several)
    arrays = load_file(several / "model.safetensors")
    name = next(key for key in arrays if key.endswith("classifier.weight"))
    arrays[name] = np.concatenate([arrays[name]] * 3)
    save_file(arrays, several / "model.safetensors")
    with pytest.raises(ModelError, match="3 logits"):
        convert(str(several), out=out)
    onnx = tmp_path / "onnx"
    onnx.mkdir()
    (onnx / "model_quantized.onnx").write_bytes(b"x")
    for model in (onnx, onnx / "model_quantized.onnx"):
        with pytest.raises(InvalidInputError, match=r"model\.safetensors.*not from ONNX"):
            convert(str(model), out=out)
    with pytest.raises(TarsRagError, match="nothing-like-it"):
        convert("nothing-like-it", out=out)
    pooling = altered(models, tmp_path / "p")
    (Path(pooling) / "1_Pooling").mkdir()
    (Path(pooling) / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_weightedmean_tokens": true}'
    )
    with pytest.raises(ConversionError, match="weightedmean_tokens"):
        convert(pooling, out=out)
    assert nothing_left(out.parent)


def test_flashranks_names_lead_to_their_fp32_weights() -> None:
    names = {spec.name for spec in CATALOG}
    rerankers = [spec.name for spec in CATALOG if spec.kind == "reranker"]
    assert rerankers
    assert {f"{name}-fp32" for name in rerankers} <= names


def test_only_the_worker_imports_the_toolkit() -> None:
    source = Path(environment.__file__).parents[1]
    importers = [
        path.name
        for path in source.rglob("*.py")
        if any(
            line.strip().startswith(("import rknn", "from rknn")) and "rknnlite" not in line
            for line in path.read_text(encoding="utf-8").splitlines()
        )
    ]
    assert sorted(importers) == [
        "environment.py",
        "worker.py",
    ]  # the former in a program it passes on
