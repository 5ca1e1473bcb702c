"""``device=`` of Embedder and Reranker, with a board and its cores doubled by the CPU graph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tars_rag import Embedder, Reranker
from tars_rag.errors import ConfigError, DeviceError, ModelError
from tars_rag.files import sha256_of
from tars_rag.models import following, npu
from tars_rag.models.assignment import Candidate, Measurement
from tars_rag.models.bert_graph import Output
from tars_rag.models.cache import ModelCache
from tars_rag.models.graphs import cpu_graph
from tars_rag.models.opening import precision_class
from tars_rag.models.verdict import Verdict, write
from tars_rag.runtimes.base import Feeds, FloatArray
from tars_rag.runtimes.npu import faults, probe
from tars_rag.runtimes.npu.manifest import Manifest
from tars_rag.runtimes.npu.spec import NpuSpec, SessionInfo
from tars_rag.runtimes.onnx import OnnxRuntime
from tars_rag.settings import Placement
from test_kernel import LAPTOPS, NOT, READY
from tiny_models import write_model

TEXTS = ["the cat", "a dog in the garden and the river", "fan", "piano " * 50, "heat of the npu"]
NAMES = ("input_ids", "attention_mask")
LENGTHS = (32, 64)
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


class Cores:
    """Every core opened, and what each is to do wrong."""

    def __init__(self, model: Path, cache: Path, output: Output) -> None:
        store = ModelCache(cache)
        local = store.get(str(model))
        graph = cpu_graph(local, cache, output=output, pooling="mean", precision="fp32")
        self.runtime = npu.SameFeeds(OnnxRuntime(graph.source, threads=1))
        self.opened: list[int] = []
        self.specs: list[NpuSpec] = []
        self.broken = False
        self.noise = 0.0
        self.lengths_seen: list[int] = []
        self.gaps: dict[int, tuple[float, ...]] = {}

    def open(self, spec: NpuSpec, mask: int) -> Core:
        self.opened.append(mask)
        self.specs.append(spec)
        return Core(self, self.gaps.get(mask, ()))


class Core:
    def __init__(self, cores: Cores, gaps: tuple[float, ...] = ()) -> None:
        self.cores = cores
        self.info = SessionInfo(NAMES, LENGTHS, "double", gaps)

    def run(self, feed: Feeds) -> FloatArray:
        if self.cores.broken:
            raise DeviceError("rknn_run returned -1")
        assert set(feed) == set(NAMES)
        assert feed["input_ids"].shape in {(1, n) for n in LENGTHS}
        self.cores.lengths_seen.append(feed["input_ids"].shape[1])
        (rows,) = self.cores.runtime.run([feed])
        noisy = rows + self.cores.noise * np.cos(np.arange(rows.shape[1]))
        return (noisy / np.linalg.norm(noisy) if rows.shape[1] > 1 else rows).astype(np.float32)

    def abort(self) -> None: ...

    def close(self) -> None: ...


BOARD = probe.Machine(
    model="Orange Pi 5 Max", soc="rk3588", npu_cores=3, driver="0.9.8",
    device_nodes=("/dev/dri/renderD129",), library="/usr/lib/librknnrt.so",
    library_version="2.5.0", wheel="2.5.0", python="3.11", container=False, governors=(),
    npu_governor=None, npu_frequency_mhz=None, cpu_cores=8, big_cores=(4, 5, 6, 7),
    memory_mb=16000, memory_available_mb=8000, findings=(),
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("npu")
    write_model(root / "tiny", head=False, seed=1)
    write_model(root / "tiny-ce", head=True, seed=2)
    return root


@pytest.fixture
def cores(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cores:
    found = Cores(models / "tiny", tmp_path / "cache", "pooled")
    monkeypatch.setattr(probe, "probe", lambda: BOARD)
    monkeypatch.setattr(npu, "IsolatedSession", found.open)
    monkeypatch.setattr(faults, "default_path", lambda: tmp_path / "faults.jsonl")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return found


def write_bundle(folder: Path, weights: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    for name in ("g.rknn", "tokenizer.json"):
        (folder / name).write_bytes(name.encode())

    def described(name: str) -> dict[str, Any]:
        path = folder / name
        return {"name": name, "sha256": sha256_of(path), "bytes": path.stat().st_size}

    fields: dict[str, Any] = {
        "model": weights.name, "kind": "embedder", "target": "rk3588", "precision": "fp16",
        "toolkit": "2.5.0", "inputs": NAMES, "output": "pooled", "dimension": 32,
        "max_length": 64, "graphs": [described("g.rknn") | {"lengths": LENGTHS}],
        "tokenizer": described("tokenizer.json"),
        "weights_sha256": sha256_of(weights / "model.safetensors"),
        "fidelity": {"texts": 9, "mean_cosine": 1.0, "threshold": 0.9999, "degraded": False},
    }  # fmt: skip
    manifest = Manifest.model_validate(fields | changes)
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def embedder(models: Path, tmp_path: Path, **options: Any) -> Embedder:
    return Embedder(models / "tiny", cache_dir=tmp_path / "cache", threads=1, **options)


def fidelity(cosine: float) -> dict[str, Any]:
    return {"texts": 9, "mean_cosine": cosine, "threshold": 0.9, "degraded": False}


def test_the_npu_gives_what_the_cpu_gives(cores: Cores, models: Path, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "b", models / "tiny")
    cpu = embedder(models, tmp_path, device="cpu")
    with embedder(models, tmp_path, device="npu", rknn_path=path) as on_npu:
        assert on_npu.device == "npu"
        assert sorted(cores.opened) == [1, 2, 4]
        short = [text for text in TEXTS if len(text) < 100]
        np.testing.assert_allclose(on_npu.embed(short), cpu.embed(short), atol=1e-6)
        np.testing.assert_allclose(on_npu.embed_query("fan"), cpu.embed_query("fan"), atol=1e-6)
        assert set(cores.lengths_seen) == {32}
        on_npu.embed(TEXTS)
        assert set(cores.lengths_seen) == {32, 64}
        assert on_npu.max_length == 64
        # The same class: a store made on one opens on the other, where the lengths agree.
        assert on_npu.fingerprint.split(":")[3] == cpu.fingerprint.split(":")[3] == "exact"


def test_an_old_driver_leaves_core_0(
    cores: Cores, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = probe.Machine(**{**BOARD.__dict__, "driver": "0.9.3"})
    monkeypatch.setattr(probe, "probe", lambda: old)
    path = write_bundle(tmp_path / "b", models / "tiny")
    with embedder(models, tmp_path, device="npu", rknn_path=path) as found:
        assert found.embed(["the cat"]).shape == (1, 32)
    assert cores.opened == [1]
    with embedder(models, tmp_path, device="npu", rknn_path=path, core_mask="0_1_2"):
        assert cores.opened == [1, 1, 2, 4]


@pytest.mark.parametrize(("mask", "opened"), [("1", [2]), ("0_1", [1, 2]), ("all", [1, 2, 4])])
def test_core_masks(
    cores: Cores, models: Path, tmp_path: Path, mask: Any, opened: list[int]
) -> None:
    path = write_bundle(tmp_path / "b", models / "tiny")
    embedder(models, tmp_path, device="npu", rknn_path=path, core_mask=mask).close()
    assert sorted(cores.opened) == opened


def test_auto_finds_the_most_faithful_bundle_in_the_cache(
    cores: Cores, models: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    tiny = models / "tiny"
    write_bundle(cache / "a", tiny, fidelity=fidelity(0.995))
    write_bundle(cache / "b", tiny, fidelity=fidelity(0.99995))
    write_bundle(cache / "c", tiny, target="rk3576")
    write_bundle(cache / "d", tiny, model="another")
    with embedder(models, tmp_path) as found:
        assert found.device == "npu"
        assert cores.specs[0].graphs[0].path == str(cache / "b" / "g.rknn")


def test_auto_without_a_bundle_says_how_to_get_one(
    cores: Cores, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with embedder(models, tmp_path) as found:
        assert found.device == "cpu"
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "tars-rag convert tiny" in caplog.text
    with pytest.raises(ModelError, match="RKNN_EMBEDDER_PATH"):
        embedder(models, tmp_path, device="npu")


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (probe.Machine(**{**BOARD.__dict__, "soc": None, "npu_cores": 0}), "no Rockchip NPU"),
        (
            probe.Machine(
                **{
                    **BOARD.__dict__,
                    "findings": (probe.Finding("error", "no driver", "why", "modprobe rknpu"),),
                }
            ),
            "no driver: modprobe rknpu",
        ),
    ],
)
def test_without_a_usable_npu(
    cores: Cores,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    machine: probe.Machine,
    reason: str,
) -> None:
    monkeypatch.setattr(probe, "probe", lambda: machine)
    path = write_bundle(tmp_path / "b", models / "tiny")
    with pytest.raises(DeviceError, match=f"{reason}.*tars-rag doctor"):
        embedder(models, tmp_path, device="npu", rknn_path=path)
    assert not caplog.records
    with embedder(models, tmp_path, rknn_path=path) as found:
        assert found.device == "cpu"
    # A laptop is nothing to warn of; a board that does not work is.
    assert len(caplog.records) == int(machine.has_npu)
    caplog.clear()
    with embedder(models, tmp_path, device="npu", rknn_path=path, fallback_cpu=True) as found:
        assert found.device == "cpu"
    assert len(caplog.records) == 1
    assert reason in caplog.text


@pytest.mark.parametrize("name", [*READY, *NOT, *LAPTOPS])
def test_auto_does_what_doctor_says(
    name: str,
    cores: Cores,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    image = READY.get(name) or LAPTOPS.get(name) or NOT[name][0]
    machine = image.probe(tmp_path / "root")
    monkeypatch.setattr(probe, "probe", lambda: machine)
    bundle = write_bundle(
        tmp_path / "bundle", models / "tiny", target=machine.soc or "rk3588", toolkit="2.3.2"
    )
    with embedder(models, tmp_path, rknn_path=bundle) as auto:
        assert auto.device == ("npu" if name in READY else "cpu")
        assert np.linalg.norm(auto.embed(["the cat"])) == pytest.approx(1, abs=1e-5)
    told = [record.getMessage() for record in caplog.records if record.name == "tars_rag"]
    if name in NOT:
        [warning] = told
        assert machine.reason in warning
    else:
        assert told == []
    used = sorted(cores.opened)
    assert used == (sorted(machine.core_masks("auto")) if name in READY else [])


def test_when_all_cores_fail_the_cpu_goes_on(
    cores: Cores, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_bundle(tmp_path / "b", models / "tiny")
    right = embedder(models, tmp_path, device="cpu").embed(TEXTS[:3])
    with embedder(models, tmp_path, device="npu", rknn_path=path, fallback_cpu=True) as found:
        cores.broken = True
        np.testing.assert_allclose(found.embed(TEXTS[:3]), right, atol=1e-6)
        assert found.device == "cpu"
        np.testing.assert_allclose(found.embed(TEXTS[:3]), right, atol=1e-6)
    assert sum("the CPU takes over" in r.message for r in caplog.records) == 1
    assert {f.reason for f in faults.recent(tmp_path / "faults.jsonl")} == {"rknn_run returned -1"}


def test_when_all_cores_fail_without_fall_back_it_is_an_error(
    cores: Cores, models: Path, tmp_path: Path
) -> None:
    path = write_bundle(tmp_path / "b", models / "tiny")
    with embedder(models, tmp_path, device="npu", rknn_path=path) as found:
        cores.broken = True
        with pytest.raises(DeviceError, match="NPU_FALLBACK_CPU=1"):
            found.embed(TEXTS)


def test_the_cpu_does_not_go_on_with_vectors_of_another_class(
    cores: Cores, models: Path, tmp_path: Path
) -> None:
    path = write_bundle(tmp_path / "b", models / "tiny", fidelity=fidelity(0.996))
    with embedder(models, tmp_path, device="npu", rknn_path=path, fallback_cpu=True) as found:
        assert found.fingerprint.endswith(":int8")
        cores.broken = True
        with pytest.raises(DeviceError, match=r"class exact.*class int8"):
            found.embed(TEXTS)


@pytest.mark.parametrize(
    ("recorded", "gaps", "earned"),
    [
        ({"mean_cosine": 1.0, "min_cosine": 0.99999}, (1e-6, 8e-6), "exact"),
        ({"mean_cosine": 1.0, "min_cosine": 0.99999}, (9e-4, 9e-4), "hq"),
        ({"mean_cosine": 1.0, "min_cosine": 0.99999}, (9e-3, 9e-3), "int8"),
        ({"mean_cosine": 1.0}, (9e-4, 9e-4), "hq"),
        ({"mean_cosine": 0.9989, "min_cosine": 0.993}, (0.006, 0.001), "hq"),
        ({"mean_cosine": 0.9989, "min_cosine": 0.993}, (0.009, 0.004), "int8"),
        ({"mean_cosine": 0.9989, "min_cosine": 0.993}, (), "hq"),
    ],
)
def test_the_class_is_the_lower_of_manifest_and_board(
    cores: Cores,
    models: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recorded: dict[str, float],
    gaps: tuple[float, ...],
    earned: str,
) -> None:
    told = {"texts": 9, "threshold": 0.9, "degraded": False} | recorded
    path = write_bundle(tmp_path / "b", models / "tiny", fidelity=told)
    cores.gaps = {1: (1e-7,) * len(gaps), 2: gaps, 4: ()}  # the worst core decides
    with embedder(models, tmp_path, device="npu", rknn_path=path) as found:
        assert found.fingerprint.split(":")[3] == earned
    as_recorded = precision_class(recorded["mean_cosine"], "")
    assert ("less faithful on this board" in caplog.text) == (earned != as_recorded)


def test_what_was_measured_once_is_known(
    cores: Cores, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then only the shortest length is opened at once, and the class stays what it was."""
    told = {"texts": 9, "threshold": 0.9, "degraded": False, "mean_cosine": 1.0}
    path = write_bundle(tmp_path / "b", models / "tiny", fidelity=told)

    def open_and_look() -> tuple[set[bool], str]:
        cores.specs.clear()
        with embedder(models, tmp_path, device="npu", rknn_path=path) as found:
            return {spec.lazy for spec in cores.specs}, found.fingerprint.split(":")[3]

    cores.gaps = {1: (1e-6, 1e-6), 2: (9e-4, 9e-4), 4: (1e-6, 1e-6)}
    assert open_and_look() == ({False}, "hq")
    cores.gaps = {1: (1e-6,), 2: (1e-6,), 4: (1e-6,)}  # the shortest length has no fault
    assert open_and_look() == ({True}, "hq")
    newer = probe.Machine(**{**BOARD.__dict__, "library_version": "2.5.1"})
    monkeypatch.setattr(probe, "probe", lambda: newer)
    assert open_and_look() == ({False}, "exact")


@pytest.mark.parametrize(("noise", "earned"), [(0.0, "exact"), (0.05, None)])
def test_a_file_without_a_manifest_earns_its_class_here(
    cores: Cores, models: Path, tmp_path: Path, noise: float, earned: str | None
) -> None:
    path = tmp_path / "embedder.rknn"
    path.write_bytes(b"py-tars")
    cores.noise = noise
    with embedder(models, tmp_path, device="npu", rknn_path=path) as found:
        assert found.fingerprint.split(":")[3] == (earned or sha256_of(path)[:16])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "rk3576"}, "converted for rk3576, this board is a rk3588"),
        ({"weights_sha256": "0" * 64}, "made from other weights"),
        ({"kind": "cross-encoder"}, "of kind cross-encoder"),
    ],
)
def test_a_file_of_something_else_is_refused(
    cores: Cores, models: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_bundle(tmp_path / "b", models / "tiny", **changes)
    with pytest.raises(ModelError, match=message):
        embedder(models, tmp_path, device="npu", rknn_path=path)
    assert cores.opened == []


@pytest.mark.parametrize(
    ("library", "toolkit", "fix"),
    [
        (
            "2.3.2",
            "2.5.0",
            "tars-rag convert tiny --target rk3588 --precision fp16 --toolkit 2.3.2",
        ),
        (
            "2.5.0",
            "2.3.2",
            "tars-rag convert tiny --target rk3588 --precision fp16 --toolkit 2.5.0",
        ),
        ("2.3.0", "2.3.2", "sudo curl -fLo /usr/lib/librknnrt.so https://"),
        ("2.3.0", "2.5.0", "--toolkit 2.3.2"),
    ],
)
def test_a_bundle_of_another_toolkit_than_the_library_is_told(
    cores: Cores,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    library: str,
    toolkit: str,
    fix: str,
) -> None:
    board = probe.Machine(**{**BOARD.__dict__, "library_version": library})
    monkeypatch.setattr(probe, "probe", lambda: board)
    path = write_bundle(tmp_path / "b", models / "tiny", toolkit=toolkit)
    with embedder(models, tmp_path, device="npu", rknn_path=path) as found:
        assert found.device == "npu"
    [warning] = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert f"made by toolkit {toolkit}, librknnrt is {library}" in warning
    assert fix in warning

    def refuse(spec: NpuSpec, mask: int) -> Core:
        raise DeviceError("the process died (SIGSEGV)")

    monkeypatch.setattr(npu, "IsolatedSession", refuse)
    with pytest.raises(DeviceError, match=f"SIGSEGV.*made by toolkit {toolkit}.*{fix[:20]}"):
        embedder(models, tmp_path, device="npu", rknn_path=path)


def test_of_several_bundles_the_one_that_the_library_can_run_is_taken(
    cores: Cores, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, tiny = tmp_path / "cache", models / "tiny"
    write_bundle(cache / "better", tiny, toolkit="2.3.2", fidelity=fidelity(0.99999))
    write_bundle(cache / "fitting", tiny, toolkit="2.5.0", fidelity=fidelity(0.99995))
    with embedder(models, tmp_path) as found:
        assert found.device == "npu"
    assert cores.specs[0].graphs[0].path == str(cache / "fitting" / "g.rknn")
    assert not caplog.records


def test_reranker(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: Cores
) -> None:
    ce = Cores(models / "tiny-ce", tmp_path / "cache", "logit")
    monkeypatch.setattr(npu, "IsolatedSession", ce.open)
    changes = {"kind": "cross-encoder", "output": "logit"}
    path = write_bundle(tmp_path / "b", models / "tiny-ce", **changes)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "threads": 1}
    options |= {"device": "npu", "rknn_path": path, "fallback_cpu": True}
    with Reranker(models / "tiny-ce", **options) as found:
        assert (found.device, found.max_length) == ("npu", 64)
        scores = found.score("fan", TEXTS)
        assert np.isfinite(scores).all()
        ce.broken = True
        np.testing.assert_allclose(found.score("fan", TEXTS), scores, atol=1e-6)
        assert found.device == "cpu"


def test_short_texts_go_to_the_cpu_where_that_was_measured_faster(
    cores: Cores, models: Path, tmp_path: Path
) -> None:
    """One embedder, one class, two devices; the fingerprint is that of the NPU alone."""
    cache = tmp_path / "cache"
    write_bundle(cache / "b", models / "tiny")
    plain = embedder(models, tmp_path)
    assert plain.device == "npu"
    on_npu, cpu = Candidate("npu", "rknn", "fp16"), Candidate("cpu", "onnxruntime", "fp32")
    times = {(cpu, 32): 1.0, (cpu, 64): 50.0, (on_npu, 32): 5.0, (on_npu, 64): 9.0}
    rows = tuple(
        Measurement(length, count, candidate, ms * count)
        for (candidate, length), ms in times.items()
        for count in (1, 5)
    )
    local, placement = ModelCache(cache).get(models / "tiny"), Placement(threads=1)
    key = following.current_key(local, "embedder", cache, placement, BOARD)
    assert key["bundle"]
    assert key["soc"] == "rk3588"
    write(cache, [Verdict(local.name, "embedder", key, rows, "2026-01-01T00:00Z")])
    with embedder(models, tmp_path) as followed:
        assert (followed.device, followed.fingerprint) == ("npu", plain.fingerprint)
        cores.lengths_seen.clear()
        np.testing.assert_allclose(followed.embed_query("fan"), plain.embed_query("fan"), atol=1e-6)
        assert cores.lengths_seen == [32], "by the one that follows no verdict"
        assert set(followed._runtime._members) == {on_npu, cpu}
        cores.lengths_seen.clear()
        found = followed.embed(TEXTS)
        assert set(cores.lengths_seen) == {64}
        cores.broken = True
        np.testing.assert_allclose(followed.embed(TEXTS), found, atol=1e-6)
    cores.broken = False
    # Where the NPU could not be measured, that the CPU could is no reason to leave it.
    only = tuple(row for row in rows if row.candidate == cpu)
    write(cache, [Verdict(local.name, "embedder", key, only, "2026-01-01T00:00Z")])
    with embedder(models, tmp_path) as again:
        assert (again.device, again.fingerprint) == ("npu", plain.fingerprint)
    with embedder(models, tmp_path, device="cpu") as on_cpu:
        assert on_cpu.device == "cpu"


def test_from_env(
    cores: Cores, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bundle(tmp_path / "b", models / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBED_MODEL", str(models / "tiny"))
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NPU_EMBEDDER_ENABLED", "1")
    monkeypatch.setenv("RKNN_EMBEDDER_PATH", str(path))
    monkeypatch.setenv("NPU_CORE_MASK", "0_1")
    with Embedder.from_env() as found:
        assert found.device == "npu"
    assert sorted(cores.opened) == [1, 2]
    monkeypatch.setattr(probe, "probe", lambda: probe.Machine(**{**BOARD.__dict__, "npu_cores": 2}))
    monkeypatch.setenv("NPU_CORE_MASK", "0_1_2")
    with pytest.raises(ConfigError, match="NPU_CORE_MASK"):
        Embedder.from_env()


def test_a_file_that_leaves_out_the_modules_of_a_model_is_refused(
    cores: Cores, models: Path, tmp_path: Path
) -> None:
    """It gives tokens, so it ends before the Dense that makes the published vectors."""
    model = tmp_path / "with-modules"
    shutil.copytree(models / "tiny", model)
    kind = "sentence_transformers.models."
    rows = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]
    listed = [{"idx": n, "path": p, "type": kind + t} for n, (t, p) in enumerate(rows)]
    (model / "modules.json").write_text(json.dumps(listed))
    settings = {
        "1_Pooling": {"pooling_mode_mean_tokens": True},
        "2_Dense": {
            "in_features": 32,
            "out_features": 32,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    }
    for name, said in settings.items():
        (model / name).mkdir()
        (model / name / "config.json").write_text(json.dumps(said))
    turned = np.eye(32, dtype=np.float32)[::-1].copy()
    save_file({"linear.weight": turned}, model / "2_Dense" / "model.safetensors")

    def opened(path: Path, device: str) -> Embedder:
        return Embedder(model, cache_dir=tmp_path / "c", device=device, rknn_path=path, threads=1)

    bare = tmp_path / "tiny-rk3588.rknn"
    bare.write_bytes(b"RKNN" + bytes(64))
    digest = ModelCache(tmp_path / "c").get(str(model)).weights_digest
    tokens = write_bundle(tmp_path / "b", models / "tiny", output="tokens", weights_sha256=digest)
    for path in (bare, tokens):
        with pytest.raises(ModelError, match=r"modules.*pooling.*tars-rag convert.*rk3588"):
            opened(path, "npu")
        assert cores.opened == []
    with opened(bare, "cpu") as on_cpu, embedder(models, tmp_path, device="cpu") as without:
        assert on_cpu.device == "cpu"
        np.testing.assert_allclose(
            on_cpu.embed(["the cat"]), without.embed(["the cat"])[:, ::-1], atol=1e-6
        )
