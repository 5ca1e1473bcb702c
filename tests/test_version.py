"""The version is written once, and ``python -m tars_rag`` is the command."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import tars_rag

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tars_rag", *arguments]
    width = os.environ | {"COLUMNS": "100"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=width, timeout=60
    )


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"tars-rag {tars_rag.__version__}\n")
    done = run("query", "--store", "nowhere", "x", cwd=tmp_path)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("no-such-command", cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage: tars-rag" in done.stderr


def test_the_version_is_written_once() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project]")[2]
    project = project.partition("\n[")[0]
    assert 'dynamic = ["version", ' in project
    assert "\nversion" not in project
    assert f"## {tars_rag.__version__} " in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"\nversion: {tars_rag.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_what_is_installed_is_this_version() -> None:
    try:
        installed = metadata.version("tars-rag")
    except metadata.PackageNotFoundError:
        pytest.skip("runs from the source tree")
    fix = f"{sys.executable} -m pip install -e {ROOT}"
    assert installed == tars_rag.__version__, f"the installation is older than the source: {fix}"
