"""The real aarch64 wheels, under user-mode emulation, over a library that lies on demand.

What runs inside is tests/device/contract.py; what it runs over is tests/device/standin.c.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tars_rag.runtimes.npu import interpreter
from tars_rag.runtimes.npu.core import Recovery
from tars_rag.runtimes.npu.isolate import IsolatedSession
from tars_rag.runtimes.npu.pool import NpuPool

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(2000)]

HERE = Path(__file__).parent / "device"
SOURCE = Path(__file__).parents[1] / "src"


@pytest.fixture(scope="session")
def device_dir() -> Path:
    for tool in ("mmdebstrap", "qemu-aarch64-static", "aarch64-linux-gnu-gcc"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed (Debian: see tests/device/setup.sh)")
    made = subprocess.run(
        ["sh", str(HERE / "setup.sh")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.split()[-1])


@pytest.mark.parametrize("version", ["2.3.2", "2.5.0"])
def test_another_python_drives_the_npu(
    device_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """This Python, whichever it is and of whatever processor, over the wheel of another one."""
    monkeypatch.syspath_prepend(str(HERE))
    standin = importlib.import_module("standin")
    board = tmp_path / "npu-python"
    board.write_text(
        f'#!/bin/sh\nPYTHONPATH={device_dir}/site-{version} exec {device_dir}/python-rk3588 "$@"\n'
    )
    board.chmod(0o755)
    found = interpreter.ask(board)
    assert (found.version, found.wheel, found.problem) == ((3, 11), version, "")
    assert found.numpy

    monkeypatch.setenv("STANDIN_LOG", "")
    monkeypatch.setenv("STANDIN_SCRIPT", "")
    bench = standin.Bench(tmp_path)
    spec = bench.spec(lengths=(32, 64))
    pool = NpuPool(
        lambda mask: IsolatedSession(spec, mask, python=board),
        (1, 2),
        timeout=20,
        recovery=Recovery(pause=0.1, limit=90),
    )
    feeds = [standin.feed(2, 100 + i, 7, 3, length=(32, 64)[i % 2]) for i in range(8)]
    for asked in (feeds, feeds[:4]):
        for row, text in zip(pool.run(asked), asked, strict=True):
            want = standin.expected(text, "pooled", 8, standin.TWO)
            np.testing.assert_allclose(row, want, rtol=1e-5, atol=1e-6)
        bench.script("* once run")  # and what fails there is told and made good here
    assert "0.9.8" in pool.versions
    assert {core.reason for core in pool.status().cores} == {""}
    pool.close()


@pytest.mark.parametrize("version", ["2.3.2", "2.5.0"])
@pytest.mark.parametrize(
    ("board", "at_least"), [("rk3588", 50), ("nolib", 1), ("junk", 1), ("laptop", 1), ("docker", 1)]
)
def test_contract(
    device_dir: Path, tmp_path: Path, version: str, board: str, at_least: int
) -> None:
    python = device_dir / f"python-{board}"
    options = f"-q -rA --noconftest -p no:cacheprovider -c {os.devnull} --timeout 120 --durations 5"
    ran = subprocess.run(
        [
            *(python, "-m", "pytest", *options.split(), "--rootdir", HERE),
            *("--basetemp", tmp_path / "inner", HERE / "contract.py"),
        ],
        capture_output=True,
        text=True,
        timeout=1900,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": f"{device_dir}/site-{version}:{SOURCE}:{HERE}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DEVICE_BOARD": board,
            "DEVICE_PYTHON": str(python),
        },
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert ran.stdout.count("\nPASSED ") >= at_least, ran.stdout[-3000:]
    print(ran.stdout[-1500:])
