"""Another Python for the NPU's processes: found, asked, made, used."""

from __future__ import annotations

import json
import os
import shlex
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from npu_double import feed
from tars_rag.cli import app
from tars_rag.errors import DeviceError
from tars_rag.runtimes.npu import interpreter
from tars_rag.runtimes.npu.interpreter import Interpreter, ask, find
from tars_rag.runtimes.npu.isolate import IsolatedSession
from tars_rag.runtimes.npu.pool import NpuPool
from tars_rag.runtimes.npu.spec import NpuSpec, RknnFile
from tars_rag.settings import Placement, Settings

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NPU_PYTHON", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A Python that has numpy, and nothing else of what tars-rag needs."""
    modules = tmp_path / "bare-modules"
    modules.mkdir()
    site = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (site / name).exists():
            (modules / name).symlink_to(site / name)
    (modules / "npu_double.py").symlink_to(Path(__file__).with_name("npu_double.py"))
    run = f'PYTHONPATH={shlex.quote(str(modules))} exec {shlex.quote(sys.executable)} -S "$@"'
    return script(tmp_path / "bare" / "python", run)


# --- used ---------------------------------------------------------------------------------------


def session(python: Path, mask: int = 1, name: str = "good.rknn") -> IsolatedSession:
    spec = NpuSpec((RknnFile(name, (32,)),))
    return IsolatedSession(spec, mask, backend="npu_double:ChildSession", python=python)


def test_it_runs_the_cores_with_numpy_alone(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is meant for this Python must not reach the other one.
    poison = tmp_path / "poison"
    for name in ("json", "numpy", "socket"):
        (poison / name).mkdir(parents=True)
        (poison / name / "__init__.py").write_text("raise SystemExit('poisoned')")
    monkeypatch.setenv("PYTHONPATH", str(poison))
    monkeypatch.setenv("PYTHONHOME", str(poison))
    monkeypatch.chdir(poison)
    pool = NpuPool(lambda mask: session(bare, mask), (1, 2))
    asked = [{n: a for n, a in feed(20 + i).items() if n != "token_type_ids"} for i in range(6)]
    rows = pool.run(asked)
    assert [int(row[0, 0]) for row in rows] == [20 + i for i in range(6)]
    assert os.getpid() not in {int(row[0, 2]) for row in rows}
    pool.close()


def test_its_faults_are_told_as_ever(bare: Path) -> None:
    with pytest.raises(DeviceError, match="core mask refused"):
        session(bare, name="refused.rknn")
    core = session(bare)
    with pytest.raises(DeviceError, match="SIGSEGV"):
        core.run(feed(11))
    core.close()


def test_one_that_does_not_start_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"could not be started.*tars-rag doctor"):
        session(tmp_path / "absent")
    with pytest.raises(DeviceError, match="no numpy here"):
        session(script(tmp_path / "broken", "echo no numpy here >&2; exit 1"))


# --- found and asked ----------------------------------------------------------------------------


def test_without_a_choice_it_is_this_one() -> None:
    assert find() is None


def test_the_variable_the_argument_and_the_one_that_was_made(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = script(interpreter.python_of(interpreter.home()), f'exec {bare} "$@"')
    found = find()
    assert found is not None
    assert found.path == made, "this Python has no wheel"
    monkeypatch.setenv("NPU_PYTHON", str(bare))
    found = find()
    assert found is not None
    assert found.path == bare
    found = find(tmp_path / "named")
    assert found is not None
    assert found.path == tmp_path / "named"
    assert "No such file" in found.problem
    assert Settings.from_env().embedder_placement.npu_python == bare
    assert Placement(npu_python=str(bare)).npu_python == bare


def test_what_it_has_is_asked_of_it(bare: Path, tmp_path: Path) -> None:
    assert ask(Path(sys.executable)) == Interpreter(
        Path(sys.executable), sys.version_info[:2], None, np.__version__
    )
    for number, line in enumerate(["exit 3", "echo hello", "echo '[1, 2]'", "true"]):
        assert ask(script(tmp_path / f"odd-{number}", line)).problem
    assert ask(tmp_path).problem


# --- made ---------------------------------------------------------------------------------------


def answering(version: tuple[int, int], wheel: str | None = "2.3.2") -> str:
    """A shell line that answers what `ask` asks."""
    said = json.dumps([version, wheel, "2.2.0"])
    return f"echo '{said}'"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a tool that is alone on the PATH with the others of this test."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("sh", "mkdir", "cp", "cat", "echo", "chmod", "rm"):
        (folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    return lambda name, *lines: script(folder / name, *lines)


UV = """
    echo "$@" >> LOG
    case "$1" in
    venv) for last; do :; done; mkdir -p "$last/bin" && cp PYTHON "$last/bin/python" ;;
    pip) FAIL ;;
    esac
"""


def uv(tools: Callable[..., Path], tmp_path: Path, fail: str = ":", **made: object) -> Path:
    python = script(tmp_path / "made-by-uv", answering((3, 12), **made))  # type: ignore[arg-type]
    log = tmp_path / "uv.log"
    text = UV.replace("LOG", str(log)).replace("PYTHON", str(python)).replace("FAIL", fail)
    tools("uv", *textwrap.dedent(text).splitlines())
    return log


def test_uv_makes_one(tools: Callable[..., Path], tmp_path: Path) -> None:
    log = uv(tools, tmp_path)
    done = CliRunner().invoke(app, ["npu", "install"])
    assert done.exit_code == 0, done.output
    made = interpreter.python_of(interpreter.home())
    assert done.stdout.strip().endswith(str(made))
    assert find() == Interpreter(made, (3, 12), "2.3.2", "2.2.0")
    venv, pip = log.read_text().splitlines()
    assert "venv" in venv
    assert "--python 3.12" in venv
    assert pip.endswith("rknn-toolkit-lite2==2.3.2 numpy")
    # What is there and fits is left alone, unless it is asked for anew.
    assert CliRunner().invoke(app, ["npu", "install"]).exit_code == 0
    assert len(log.read_text().splitlines()) == 2
    assert CliRunner().invoke(app, ["npu", "install", "--again"]).exit_code == 0
    assert len(log.read_text().splitlines()) == 4


def test_without_uv_a_python_that_fits_makes_one(
    tools: Callable[..., Path], tmp_path: Path
) -> None:
    made = script(tmp_path / "made", 'case "$1" in -m) exit 0 ;; esac', answering((3, 11)))
    tools("python3", answering((3, 13), None))
    tools(
        "python3.11",
        f'case "$*" in "-m venv"*) mkdir -p "$3/bin" && cp {made} "$3/bin/python"; exit ;; esac',
        answering((3, 11), None),
    )
    done = CliRunner().invoke(app, ["npu", "install"])
    assert done.exit_code == 0, done.output
    assert find() == Interpreter(
        interpreter.python_of(interpreter.home()), (3, 11), "2.3.2", "2.2.0"
    )


def test_with_neither_the_error_says_what_to_install(tools: Callable[..., Path]) -> None:
    tools("python3", answering((3, 13), None))
    done = CliRunner().invoke(app, ["npu", "install"])
    assert done.exit_code == 1
    assert "no uv to fetch one" in done.stderr
    assert "astral.sh/uv/install.sh" in done.stderr


def test_a_failed_attempt_leaves_what_was_there(tools: Callable[..., Path], tmp_path: Path) -> None:
    uv(tools, tmp_path)
    assert CliRunner().invoke(app, ["npu", "install"]).exit_code == 0
    before = find()
    uv(tools, tmp_path, fail="echo 'no solution found' >&2; exit 1")
    done = CliRunner().invoke(app, ["npu", "install", "--again"])
    assert done.exit_code == 1
    assert "no solution found" in done.stderr
    assert "NPU_PYTHON" in done.stderr
    assert find() == before
    assert [path.name for path in interpreter.home().parent.iterdir()] == ["npu-python"]


def test_one_without_a_wheel_is_not_kept(tools: Callable[..., Path], tmp_path: Path) -> None:
    uv(tools, tmp_path, wheel=None)
    done = CliRunner().invoke(app, ["npu", "install"])
    assert done.exit_code == 1
    assert "does not work" in done.stderr
    assert find() is None
