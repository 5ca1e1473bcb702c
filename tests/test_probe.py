"""Machines, as their file systems describe them, and what doctor says about each."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tars_rag
from tars_rag import advice
from tars_rag.cli import app
from tars_rag.errors import ConfigError
from tars_rag.runtimes.npu import faults, library, probe
from tars_rag.runtimes.npu.manifest import load_manifest
from test_bundle import bundle

LIBRARY = b"\x7fELF....librknnrt version: 2.5.0 (0ab1c2d@2025-09-01T00:00:00)...."
BOARD = {
    "proc/device-tree/model": b"Orange Pi 5 Max\0",
    "proc/device-tree/compatible": b"rockchip,rk3588-orangepi-5-max\0rockchip,rk3588\0",
    "sys/kernel/debug/rknpu/version": b"RKNPU driver: v0.9.8\n",
    "sys/class/drm/renderD129/device/uevent": b"DRIVER=RKNPU\nOF_NAME=npu\n",
    "sys/class/drm/renderD128/device/uevent": b"DRIVER=panthor\n",
    "dev/dri/renderD128": b"",
    "dev/dri/renderD129": b"",
    "usr/lib/librknnrt.so": LIBRARY,
    "sys/class/devfreq/fdab0000.npu/governor": b"rknpu_ondemand\n",
    "sys/class/devfreq/fdab0000.npu/cur_freq": b"1000000000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": b"ondemand\n",
    "proc/meminfo": b"MemTotal:       16384000 kB\nMemAvailable:   8192000 kB\n",
}


def machine(
    root: Path,
    without: tuple[str, ...] = (),
    wheel: str | None = "2.5.0",
    python: tuple[int, int] = (3, 11),
    allowed: bool = True,
    **files: bytes,
) -> probe.Machine:
    extra = {name.replace("__", "/"): data for name, data in files.items()}
    for name, data in (BOARD | extra).items():
        if name not in without:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
    return probe.probe(root, wheel=wheel, python=python, may_use=lambda node: allowed)


def test_a_board_in_order(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert (found.model, found.soc, found.npu_cores) == ("Orange Pi 5 Max", "rk3588", 3)
    assert (found.driver, found.device_nodes) == ("0.9.8", ("/dev/dri/renderD129",))
    assert (found.library, found.library_version) == ("/usr/lib/librknnrt.so", "2.5.0")
    assert (found.npu_governor, found.npu_frequency_mhz) == ("rknpu_ondemand", 1000)
    assert (found.memory_mb, found.memory_available_mb) == (16000, 8000)
    assert found.governors == ("ondemand",)
    assert found.findings == ()
    assert found.reason == ""


@pytest.mark.parametrize(
    ("compatible", "soc", "cores"),
    [
        (b"radxa,rock-5a\0rockchip,rk3588s\0", "rk3588", 3),
        (b"friendlyarm,nanopi-m5\0rockchip,rk3576\0", "rk3576", 2),
        (b"radxa,rock3a\0rockchip,rk3568\0", "rk3568", 1),
        (b"pine64,quartz64-a\0rockchip,rk3566\0", "rk3566", 1),
        (b"rockchip,rk3399\0", "rk3399", 0),
        (b"raspberrypi,5-model-b\0brcm,bcm2712\0", None, 0),
    ],
)
def test_socs(tmp_path: Path, compatible: bytes, soc: str | None, cores: int) -> None:
    found = machine(tmp_path, **{"proc__device-tree__compatible": compatible})
    assert (found.soc, found.npu_cores) == (soc, cores)
    assert found.has_npu == (cores > 0)


@pytest.mark.parametrize(
    ("changes", "level", "what", "fix"),
    [
        (
            {"without": ("dev/dri/renderD129",)},
            "error",
            "no device node",
            "modprobe rknpu",
        ),
        (
            {"without": ("dev/dri/renderD129",), ".dockerenv": b""},
            "error",
            "no device node",
            "docker run --device /dev/dri",
        ),
        (
            {"allowed": False},
            "error",
            "no permission for /dev/dri/renderD129",
            "usermod -aG render",
        ),
        ({"allowed": False, ".dockerenv": b""}, "error", "no permission", "--group-add"),
        (
            {"without": ("usr/lib/librknnrt.so",)},
            "error",
            "not in /usr/lib",
            r"sudo curl -fLo /usr/lib/librknnrt\.so .* pip install rknn-toolkit-lite2==2\.3\.2",
        ),
        ({"usr__lib__librknnrt.so": b"<html>"}, "error", "is not a library", "sudo curl"),
        ({"wheel": None}, "error", "is not installed", re.escape(advice.install("npu"))),
        ({"wheel": None, "python": (3, 13)}, "error", "is not installed", "^tars-rag npu install"),
        ({"wheel": "2.3.2"}, "warning", "librknnrt 2.5.0 does not match", "lite2==2.5.0"),
        ({"wheel": "2.5.1"}, "warning", "not a tested version", "lite2>=2.3.2,<=2.5.0"),
        (
            {"sys__kernel__debug__rknpu__version": b"RKNPU driver: v0.8.2"},
            "warning",
            "0.8.2 is older than 0.9.6",
            "apt-get",
        ),
        (
            {"sys__devices__system__cpu__cpufreq__policy0__scaling_governor": b"powersave\n"},
            "warning",
            r"powersave \(policy0\)",
            "echo performance",
        ),
    ],
)
def test_each_fault_has_a_cause_and_a_command(
    tmp_path: Path, changes: dict[str, Any], level: str, what: str, fix: str
) -> None:
    found = machine(tmp_path, **changes)
    (finding,) = found.findings
    assert finding.level == level
    assert finding.why
    assert re.search(what, finding.what), finding
    assert re.search(fix, finding.fix), finding
    assert bool(found.reason) == (level == "error")
    if level == "error":
        assert finding.fix in found.reason


def test_an_unreadable_driver_version_is_no_fault(tmp_path: Path) -> None:
    found = machine(tmp_path, without=("sys/kernel/debug/rknpu/version",))
    assert found.driver is None
    assert not found.findings


@pytest.mark.parametrize(
    ("soc", "mask", "expected"),
    [
        (b"rk3588", "auto", (1, 2, 4)),
        (b"rk3588", "all", (1, 2, 4)),
        (b"rk3588", "0_1_2", (1, 2, 4)),
        (b"rk3588", "0_1", (1, 2)),
        (b"rk3588", "2", (4,)),
        (b"rk3576", "auto", (1, 2)),
        (b"rk3576", "0_1", (1, 2)),
        (b"rk3568", "auto", (0,)),
        (b"rk3568", "0", (0,)),
    ],
)
def test_one_worker_a_core(
    tmp_path: Path, soc: bytes, mask: str, expected: tuple[int, ...]
) -> None:
    found = machine(tmp_path, **{"proc__device-tree__compatible": b"rockchip," + soc})
    assert found.core_masks(mask) == expected


def test_a_core_that_is_not_there(tmp_path: Path) -> None:
    found = machine(tmp_path, **{"proc__device-tree__compatible": b"rockchip,rk3576\0"})
    with pytest.raises(ConfigError, match=r"NPU_CORE_MASK=2.*has 2"):
        found.core_masks("2")


def test_a_laptop(tmp_path: Path) -> None:
    found = probe.probe(tmp_path)
    assert not found.has_npu
    assert "everything runs on the CPU" in found.reason
    assert found.findings == ()


# --- doctor -------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RKNN_EMBEDDER_PATH", "RKNN_RERANKER_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def doctor(monkeypatch: pytest.MonkeyPatch, found: probe.Machine, *options: str) -> str:
    monkeypatch.setattr(probe, "probe", lambda: found)
    result = CliRunner().invoke(app, ["doctor", *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_doctor_on_a_laptop(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = doctor(monkeypatch, probe.probe(home / "root"))
    assert "There is no NPU on this machine. Everything runs on the CPU." in said
    assert "librknnrt" not in said
    assert "fix:" not in said


def test_doctor_on_a_board(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = doctor(monkeypatch, machine(home / "root"))
    assert "Orange Pi 5 Max (rk3588)" in said
    assert "NPU: ready, 3 core(s)." in said


def test_doctor_names_the_command_that_mends(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = doctor(monkeypatch, machine(home / "root", allowed=False))
    assert "error: no permission for /dev/dri/renderD129" in said
    assert "fix: sudo usermod -aG render,video" in said
    assert "NPU: not usable" in said


def test_doctor_looks_at_the_models(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle(home / "models" / "mini", target="rk3576", toolkit="2.5.0")
    monkeypatch.setenv("RKNN_RERANKER_PATH", str(home / "absent.rknn"))
    found = machine(home / "root", wheel="2.3.2", **{"usr__lib__librknnrt.so": b"\x7fELF"})
    said = json.loads(doctor(monkeypatch, found, "--json"))
    assert said["npu_usable"] is True
    assert said["machine"]["soc"] == "rk3588"
    problems = " ".join(f["what"] for f in said["findings"])
    assert "mini was converted for rk3576" in problems
    assert "absent.rknn does not exist" in problems
    assert all(f["why"] and f["fix"] for f in said["findings"])


@pytest.mark.parametrize(("board", "made"), [("2.3.2", "2.5.0"), ("2.5.0", "2.3.2")])
def test_doctor_compares_bundles_with_the_library(
    home: Path, monkeypatch: pytest.MonkeyPatch, board: str, made: str
) -> None:
    bundle(home / "models" / "mini", target="rk3588", toolkit=made)
    installed = LIBRARY.replace(b"2.5.0", board.encode())
    found = machine(home / "root", wheel=board, **{"usr__lib__librknnrt.so": installed})
    [finding] = json.loads(doctor(monkeypatch, found, "--json"))["findings"]
    assert finding["what"] == f"mini was made by toolkit {made}, librknnrt is {board}"
    command = "tars-rag convert all-MiniLM-L6-v2 --target rk3588 --precision fp16-host"
    assert finding["fix"] == f"{command} --toolkit {board}"
    shutil.rmtree(home / "models" / "mini")
    bundle(home / "models" / "mini", target="rk3588", toolkit=board)
    assert json.loads(doctor(monkeypatch, found, "--json"))["findings"] == []


def test_doctor_tells_what_a_bundle_was_compiled_to(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle(home / "models" / "mini", target="rk3588", precision="hq", toolkit="2.3.2")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["graphs"][1]["operators"] = {
        "counts": {"Gather": 1, "exNorm": 12},
        "on_cpu": ["Gather (INT8)"],
        "not_fused": ["layer norm (12 of 13)"],
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    found = machine(
        home / "root",
        wheel="2.3.2",
        **{"usr__lib__librknnrt.so": LIBRARY.replace(b"2.5.0", b"2.3.2")},
    )
    cpu, parts = json.loads(doctor(monkeypatch, found, "--json"))["findings"]
    assert cpu["level"] == parts["level"] == "warning"
    assert cpu["what"] == "mini: length 64, 256: run by the CPU inside the runtime: Gather (INT8)"
    assert cpu["fix"] == "tars-rag convert all-MiniLM-L6-v2 --target rk3588 --precision hq-host"
    assert parts["what"] == "mini: length 64, 256: not fused: layer norm (12 of 13)"


def test_integers_on_an_rk3576_are_told(tmp_path: Path) -> None:
    old = bundle(tmp_path / "old", target="rk3576")
    [remark] = load_manifest(old).remarks
    assert "attention_mask are integers" in remark
    floats = ["word_embeddings", "additive_mask", "pooling_weights"]
    assert load_manifest(bundle(tmp_path / "new", target="rk3576", inputs=floats)).remarks == ()
    assert load_manifest(bundle(tmp_path / "other")).remarks == ()


def test_doctor_json_is_enough_for_a_bug_report(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HTTPS_PROXY", "http://jane:pass word@proxy.example:3128")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    monkeypatch.setenv("EMBED_MODEL", "https://jane:pass@models.example/m")
    monkeypatch.setenv("RAG_STRATEGY", "naive")
    bundle(home / "models" / "mini")
    text = doctor(monkeypatch, machine(home / "root"), "--json")
    said = json.loads(text)
    assert said["tars_rag"] == tars_rag.__version__
    assert said["python"]["version"] == platform.python_version()
    assert said["platform"]["machine"] == platform.machine()
    assert said["packages"]["numpy"] == np.__version__
    assert {guest["name"]: guest["is_tested"] for guest in said["guests"]} == {
        "chromadb": True,
        "tantivy": True,
        "rknn-toolkit-lite2": False,
    }
    assert said["settings"]["values"]["rag_strategy"] == "naive"
    assert "rag_strategy" in said["settings"]["set"]
    assert "npu_core_mask" not in said["settings"]["set"]
    assert said["model_cache"]["path"] == "~/models"
    assert said["model_cache"]["bytes"] > 0
    assert [model["name"] for model in said["models"]] == ["mini"]
    for secret in ("pass word", "pass@", "jane", "hf_abcdef", str(home)):
        assert secret not in text


def test_doctor_works_where_a_setting_is_wrong(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_CORE_MASK", "nine")
    found = machine(home / "root")
    assert "error: NPU_CORE_MASK='nine' is not valid" in doctor(monkeypatch, found)
    said = json.loads(doctor(monkeypatch, found, "--json"))
    assert "NPU_CORE_MASK" in said["findings"][0]["what"]
    assert said["settings"]["values"] == {}


@pytest.mark.parametrize("name", ["chromadb", "tantivy"])
def test_doctor_names_an_untested_guest(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda wanted: "9.9.0" if wanted == name else real(wanted)
    )
    found = machine(home / "root")
    said = doctor(monkeypatch, found)
    assert f"warning: {name} 9.9.0 is not a tested version" in said
    assert f"fix: pip install '{name}>=" in said
    report = json.loads(doctor(monkeypatch, found, "--json"))
    [row] = [guest for guest in report["guests"] if guest["name"] == name]
    assert (row["installed"], row["is_tested"]) == ("9.9.0", False)


def test_one_bad_bundle_does_not_hide_the_others(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle(home / "models" / "good")
    bundle(home / "models" / "bad")
    (home / "models" / "bad" / "manifest.json").write_text("{")
    said = json.loads(doctor(monkeypatch, machine(home / "root"), "--json"))
    assert {model["name"]: "problem" in model for model in said["models"]} == {
        "bad": True,
        "good": False,
    }
    [finding] = said["findings"]
    assert finding["level"] == "error"
    assert "rm -r" in finding["fix"]


def test_doctor_remembers_faults(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        faults.record("all-MiniLM-L6-v2", 4, f"fault {number}")
    assert len(faults.recent()) == 50
    said = doctor(monkeypatch, machine(home / "root"))
    assert "NPU core mask 4 was retired: fault 59" in said
    assert "fault 54" not in said


def test_a_state_directory_that_cannot_be_written_does_not_stop_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    faults.record("m", 1, "r", tmp_path / "file" / "faults.jsonl")
    assert "could not be recorded" in caplog.text
    assert faults.recent(tmp_path / "file" / "faults.jsonl") == []


def line(**changes: Any) -> bytes:
    whole = {"time": 1.7e9, "model": "m", "core_mask": 1, "reason": "r"}
    return json.dumps(whole | changes).encode()


DAMAGED = {
    "not UTF-8": b"\xff\xfe\x00broken\n" + line(),
    "UTF-16": line().decode().encode("utf-16"),
    "binary": bytes(range(256)) * 40,
    "zeros": bytes(5000),
    "cut off": line()[:-9],
    "deeply nested": b"[" * 200_000,
    "another shape": b"[1, 2]\nnull\n7\n{}\n",
    "more keys": line(colour="red"),
    "wrong types": line(reason=[1]) + b"\n" + line(time="noon") + b"\n" + line(core_mask=None),
    "no time": line(time=float("nan")) + b"\n" + line(time=1e300) + b"\n" + line(time=-1e18),
    "a number without end": b'{"time": ' + b"9" * 5000 + b"}",
    "half a letter": rb'{"time": 1, "model": "m", "core_mask": 1, "reason": "\ud800 \u001b[2J"}',
    "one long line": b"x" * 3_000_000,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_log_of_faults_never_stands_in_the_way(
    home: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    path = faults.default_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    found = machine(home / "root")
    assert "NPU: ready" in doctor(monkeypatch, found)
    json.loads(doctor(monkeypatch, found, "--json"))
    faults.record("model", 2, "failed to submit \ud800")
    assert faults.recent()[-1].reason == "failed to submit  "
    assert "failed to submit" in doctor(monkeypatch, found)
    json.loads(doctor(monkeypatch, found, "--json"))


def in_place_of_the_log(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True)
    if kind == "directory":
        (path / "inside").mkdir(parents=True)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop of links":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(line())


@pytest.mark.parametrize("kind", ["directory", "pipe", "loop of links", "device", "not allowed"])
@pytest.mark.timeout(20)
def test_whatever_lies_where_the_log_of_faults_should_be(
    home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    in_place_of_the_log(faults.default_path(), kind)
    if kind == "not allowed":  # root may read anything: the refusal is made here

        def refuse(*_: Any, **__: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    found = machine(home / "root")
    assert "NPU: ready" in doctor(monkeypatch, found)
    faults.record("model", 2, "failed to submit")
    assert "NPU: ready" in doctor(monkeypatch, found)


# --- librknnrt ----------------------------------------------------------------------------------


def test_the_library_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or real(path))
    for _ in range(3):
        assert machine_again(tmp_path).library_version == "2.5.0"
    assert [path.name for path in read].count("librknnrt.so") == 1
    newer = LIBRARY.replace(b"2.5.0", b"2.3.10")
    assert machine_again(tmp_path, newer).library_version == "2.3.10"


def machine_again(root: Path, library: bytes | None = None) -> probe.Machine:
    """The same files, only what changed written anew."""
    path = root / "usr/lib/librknnrt.so"
    if not path.exists():
        return machine(root)
    if library:
        path.write_bytes(library)
    return probe.probe(root, wheel="2.5.0", python=(3, 11), may_use=lambda node: True)


@pytest.mark.parametrize("where", ["the file", "its directory", "the disk"])
def test_a_library_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    machine(tmp_path)
    real_stat, real_read = Path.stat, Path.read_bytes

    def refuse(path: Path, **options: Any) -> Any:
        if path.name == "librknnrt.so":
            number = errno.EIO if where == "the disk" else errno.EACCES
            raise OSError(number, os.strerror(number), str(path))
        return (real_stat if options or where == "its directory" else real_read)(path, **options)

    # Root may read anything: the refusal is made here.
    monkeypatch.setattr(Path, "stat" if where == "its directory" else "read_bytes", refuse)
    library._read.cache_clear()
    found = probe.probe(tmp_path, wheel="2.5.0", python=(3, 11), may_use=lambda node: True)
    (finding,) = found.findings
    assert finding.level == "error"
    assert "cannot be read" in finding.what
    assert "chmod a+r" in finding.fix
    assert "cannot be read" in found.reason
