"""The Python that the NPU's processes run: this one, or another that has the vendor's wheel.

The wheel exists for CPython 3.10 to 3.12 only. A core is driven by a child process anyway, so the
child may be of another version: it needs numpy and the wheel, and gets this package's source.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from tars_rag.child import foreign_environment
from tars_rag.errors import DeviceError
from tars_rag.files import replace_directory
from tars_rag.guests import RKNN
from tars_rag.progress import NamedProgress

VARIABLE: Final = "NPU_PYTHON"
INSTALL: Final = "tars-rag npu install"
VERSIONS: Final = ((3, 12), (3, 11), (3, 10))
"""For which there is a wheel, the newest first."""

_ASK: Final = """
import sys
sys.path[:] = [p for p in sys.path if p]
import json
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
print(json.dumps([list(sys.version_info[:2]), of("rknn-toolkit-lite2"), of("numpy")]))
"""
_ASK_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Interpreter:
    """Another Python, and what it has of what the NPU needs.

    Attributes:
        path: The executable.
        version: Major and minor.
        wheel: Version of rknn-toolkit-lite2; None: not installed.
        numpy: The same of numpy.
        problem: Why it cannot be run at all; empty: it can.
    """

    path: Path
    version: tuple[int, ...] = ()
    wheel: str | None = None
    numpy: str | None = None
    problem: str = ""


def home() -> Path:
    """Where `install` makes an environment."""
    import platformdirs

    return Path(platformdirs.user_data_dir("tars-rag", appauthor=False)) / "npu-python"


def find(chosen: Path | None = None) -> Interpreter | None:
    """The other Python that is to run the NPU; None: this one.

    Args:
        chosen: The one that was named; None: NPU_PYTHON, and where that is not set, the one that
            `install` made, if this Python has no wheel itself.
    """
    named = chosen or os.environ.get(VARIABLE, "").strip()
    if named:
        return ask(Path(named).expanduser())
    made = python_of(home())
    return ask(made) if made.exists() and RKNN.installed is None else None


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / "bin" / "python"


def ask(path: Path) -> Interpreter:
    """What a Python is and has; asked once, until something is installed into it."""
    try:
        stamps = [path.stat().st_mtime_ns]
        stamps += [s.stat().st_mtime_ns for s in path.parent.parent.glob("lib/python3*/site-*")]
    except OSError as error:
        return Interpreter(path, problem=error.strerror or str(error))
    return _ask(path, tuple(stamps))


@lru_cache(maxsize=8)
def _ask(path: Path, stamps: tuple[int, ...]) -> Interpreter:
    try:
        done = _finished([str(path), "-c", _ASK], _ASK_SECONDS)
        done.check_returncode()
        version, wheel, numpy = json.loads(done.stdout.splitlines()[-1])
        return Interpreter(path, tuple(map(int, version)), wheel, numpy)
    except subprocess.CalledProcessError as error:
        said = " ".join((error.stderr or "").split())[-200:]
        return Interpreter(path, problem=f"exit code {error.returncode}: {said}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Interpreter(path, problem=str(error))
    except (ValueError, IndexError, TypeError):
        return Interpreter(path, problem="it does not answer as a Python does")


def install(
    wheel: str, progress: NamedProgress, *, again: bool = False, python: str | None = None
) -> Interpreter:
    """Make an environment with the vendor's wheel, by uv, or by a Python of a version that fits.

    Args:
        wheel: Version of rknn-toolkit-lite2, that of the board's librknnrt.
        progress: Told the steps.
        again: Make it anew where there is one that works.
        python: Which Python, as uv takes it (3.12, or a path); None: the newest that fits.

    Raises:
        DeviceError: No Python that fits, or the packages cannot be had.
        OSError: The directory cannot be written.
    """
    place = home()
    there = ask(python_of(place)) if place.exists() else None
    if there and there.wheel == wheel and there.numpy and not again:
        return there
    needed = [f"{RKNN.name}=={wheel}", "numpy"]
    part = place.with_name(f"{place.name}.new")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if uv := shutil.which("uv"):
            progress("making an environment with uv", 0, None)
            _run([uv, "venv", "--quiet", "--python", python or "3.12", "--clear", str(part)])
            progress(f"installing {RKNN.name} {wheel}", 0, None)
            _run([uv, "pip", "install", "--quiet", "--python", str(python_of(part)), *needed])
        else:
            base = python or _local_python()
            progress(f"making an environment with {base}", 0, None)
            _run([base, "-m", "venv", str(part)])
            progress(f"installing {RKNN.name} {wheel}", 0, None)
            _run([str(python_of(part)), "-m", "pip", "install", "--quiet", *needed])
        made = ask(python_of(part))
        if made.problem or not (made.wheel and made.numpy):
            msg = f"The environment in {part} was made but does not work: {made}. {_BY_HAND}"
            raise DeviceError(msg)
        replace_directory(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return ask(python_of(place))


_BY_HAND: Final = (
    "By hand: make a virtual environment of Python 3.10 to 3.12, install "
    f"'{RKNN.pin}' and numpy into it, and set {VARIABLE} to its bin/python"
)


def _local_python() -> str:
    """A Python on this machine for which there is a wheel, and which can make environments.

    Raises:
        DeviceError: None is found.
    """
    for candidate in _candidates():
        if ask(candidate).version in VERSIONS:
            try:
                _run([str(candidate), "-c", "import ensurepip, venv"])
            except DeviceError:
                continue
            return str(candidate)
    msg = (
        "There is no Python 3.10 to 3.12 with the venv module on this machine, and no uv to fetch "
        f"one. Install uv, then: {INSTALL}  (curl -LsSf https://astral.sh/uv/install.sh | sh)"
    )
    raise DeviceError(msg)


def _candidates() -> Iterator[Path]:
    for major, minor in VERSIONS:
        if found := shutil.which(f"python{major}.{minor}"):
            yield Path(found)
    if found := shutil.which("python3"):
        yield Path(found)


def _run(command: list[str]) -> None:
    done = _finished(command)
    if done.returncode == 0:
        return
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    said = re.sub(r"\s+", " ", " ".join(lines[-3:]))[-400:]
    msg = f"{shlex.join(command)} failed: {said}. {_BY_HAND}"
    raise DeviceError(msg)


def _finished(command: list[str], seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """What a command of another Python said, and how it ended.

    Raises:
        OSError: It cannot be started.
        subprocess.TimeoutExpired: It took longer than that.
    """
    return subprocess.run(
        command,
        env=foreign_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )
