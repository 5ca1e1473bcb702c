"""The toolkit's own Python environment: made once in the user's cache, apart from the user's.

rknn-toolkit2 asks for torch, opencv and years-old pins of numpy, onnx and protobuf. For ONNX in
and .rknn out it needs far less: the wheel itself, the pins below, and importable modules named
torch and cv2 of which it touches two names. So the environment has a few hundred megabytes
instead of gigabytes, and nothing in the user's own environment is changed or looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from filelock import FileLock
from platformdirs import user_cache_path

from tars_rag.convert.process import run_to_end
from tars_rag.errors import ConversionError
from tars_rag.files import publishing
from tars_rag.progress import NamedProgress
from tars_rag.runtimes.npu.library import PUBLIC_VERSION

DEFAULT_TOOLKIT: Final = PUBLIC_VERSION
"""A model runs on the librknnrt of the same version only, and this one is what boards can have."""

PYTHONS: Final = ((3, 11), (3, 10), (3, 12))
"""Versions the toolkit has wheels for, the one its INT8 figures were measured with first."""

_PINS: Final = {
    "numpy": "1.26.4",  # with numpy 2 the INT8 models come out different
    "onnx": "1.18.0",
    "onnxruntime": "1.22.1",
    "protobuf": "4.25.4",
    "ruamel.yaml": "0.18.10",
    "scipy": "1.15.3",
    "setuptools": "75.8.0",
    "tqdm": "4.67.1",
    "typing_extensions": "4.12.2",
}
_TORCH: Final = "from torch import nn\n\n\ndef no_grad():\n    return lambda f: f\n"
# 2.3.2 names more of torch when it is imported, and calls none of it.
_ANY_CLASS: Final = """

class Tensor:
    pass


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
"""
_STAND_INS: Final = {
    "torch/nn.py": "class Module:\n    pass\n",
    "cv2/__init__.py": "",
}
_NOT_NEEDED: Final = ("onnx/backend/test/data", "pip")
_STAMP: Final = "tars-rag.json"
_ROOM_NEEDED: Final = 1_000_000_000
DOWNLOAD_MB: Final = 200
SIZE_MB: Final = 367
# What pip and TLS need to reach an index through a proxy or a mirror; nothing else is passed on.
_PASSED: Final = {
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "PATH", "TMPDIR", "USER", "NETRC",
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_TRUSTED_HOST",
    "PIP_CERT", "PIP_CLIENT_CERT", "PIP_PROXY", "PIP_TIMEOUT", "PIP_DEFAULT_TIMEOUT",
    "PIP_RETRIES", "PIP_CACHE_DIR", "PIP_NO_CACHE_DIR", "PIP_CONFIG_FILE", "PIP_KEYRING_PROVIDER",
}  # fmt: skip
# Prints nothing unless the interpreter can make environments with pip.
_PROBE_PYTHON: Final = "import ensurepip, sys, venv; print(*sys.version_info[:2])"
_PROBE_TOOLKIT: Final = """
import json, sys
from importlib.metadata import version
import google.protobuf, numpy, onnx, onnxruntime, ruamel.yaml, scipy, tqdm
from rknn.api import RKNN
import rknn.api.rknn_base
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def pins(toolkit: str) -> dict[str, str]:
    """What is installed, and in which version."""
    return {"rknn-toolkit2": toolkit, **_PINS}


def _stand_ins(toolkit: str) -> dict[str, str]:
    torch = _TORCH if toolkit == "2.5.0" else _TORCH + _ANY_CLASS
    return {"torch/__init__.py": torch, **_STAND_INS}


def clean_environment() -> dict[str, str]:
    """What a child process gets of the user's environment: the way to the package index only."""
    return {name: value for name, value in os.environ.items() if name.upper() in _PASSED}


def toolkit_python(
    cache_dir: Path | None = None,
    progress: NamedProgress = lambda *_: None,
    before_making: Callable[[Path], None] = lambda _: None,
    *,
    toolkit: str = DEFAULT_TOOLKIT,
) -> Path:
    """The interpreter of the toolkit's environment, which is made, or made again, if need be.

    Args:
        cache_dir: Where the environment is kept; default: the user's cache directory.
        progress: Told what is going on.
        before_making: Called with the directory before anything of it is made or downloaded; what
            it raises is raised here.
        toolkit: Version of rknn-toolkit2, one of `library.TOOLKITS`.

    Raises:
        ConversionError: No Python 3.10 to 3.12 on Linux, no room on the disk, or the package
            index cannot be reached.
    """
    if not sys.platform.startswith("linux"):
        msg = (
            f"The NPU toolkit has wheels for Linux only, this is {sys.platform}. Convert on a "
            "Linux machine (a container or WSL will do) and copy the bundle."
        )
        raise ConversionError(msg)
    root = cache_dir or user_cache_path("tars-rag")
    recipe = json.dumps([pins(toolkit), _stand_ins(toolkit), _NOT_NEEDED], sort_keys=True)
    home = root / f"toolkit-{toolkit}-{sha256(recipe.encode()).hexdigest()[:8]}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{home}.lock"):
            if not _works(home, toolkit):
                before_making(home)
                _make(home, toolkit, progress)
    except OSError as error:
        msg = (
            f"The conversion environment cannot be made in {root}: {error}. Free some space "
            "(about 1 GB while it is made), or set XDG_CACHE_HOME to a directory that has it."
        )
        raise ConversionError(msg) from error
    return _python_of(home)


def _python_of(home: Path) -> Path:
    return home / "bin" / "python"


def _works(home: Path, toolkit: str) -> bool:
    """Whether the environment was finished and still imports at the pinned versions."""
    if not (home / _STAMP).is_file():
        return False
    probe = _ask(_python_of(home), _PROBE_TOOLKIT, *pins(toolkit))
    with suppress(ValueError):
        return bool(json.loads(probe.splitlines()[-1] if probe else "null") == pins(toolkit))
    return False


def _ask(python: Path | str, program: str, *arguments: str) -> str:
    """What `program` prints under `python`; empty if it cannot be run or fails."""
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", program, *arguments],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def find_python() -> Path:
    """A Python the toolkit has wheels for, which can also make virtual environments.

    Raises:
        ConversionError: None is found.
    """
    wanted = {f"{major} {minor}" for major, minor in PYTHONS}
    for candidate in _candidates():
        if _ask(candidate, _PROBE_PYTHON) in wanted:
            return Path(candidate)
    msg = (
        "Converting needs Python 3.10, 3.11 or 3.12 with the venv module; none was found (this "
        f"is {sys.version_info.major}.{sys.version_info.minor}). Install one, for example: "
        "apt install python3.11-venv, pyenv install 3.11, or uv python install 3.11"
    )
    raise ConversionError(msg)


def _candidates() -> Iterator[str]:
    yield sys.executable
    names = [f"{major}.{minor}" for major, minor in PYTHONS]
    for name in names:
        if found := shutil.which(f"python{name}"):
            yield found
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for name in names:
        yield from (str(path) for path in sorted(pyenv.glob(f"{name}*/bin/python"), reverse=True))
    if uv := shutil.which("uv"):
        for name in names:
            done = subprocess.run(
                [uv, "python", "find", name], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                yield done.stdout.strip()


def _make(home: Path, toolkit: str, progress: NamedProgress) -> None:
    """Build beside the final name and rename: a killed attempt leaves nothing that looks done."""
    python = find_python()
    free = shutil.disk_usage(home.parent).free
    if free < _ROOM_NEEDED:
        msg = (
            f"{home.parent} has {free // 1_000_000} MB free, the conversion environment needs "
            f"{_ROOM_NEEDED // 1_000_000} MB while it is made. Free some space, or set "
            "XDG_CACHE_HOME to a directory that has it."
        )
        raise ConversionError(msg)
    shutil.rmtree(home, ignore_errors=True)
    with publishing(home) as partial:
        progress(f"making the conversion environment with {python}", 0, None)
        _run([str(python), "-I", "-m", "venv", str(partial)], "making a virtual environment failed")
        progress(f"installing rknn-toolkit2 {toolkit} ({DOWNLOAD_MB} MB, once)", 0, None)
        requirements = [f"{name}=={version}" for name, version in pins(toolkit).items()]
        pip = [str(_python_of(partial)), "-I", "-m", "pip", "install", "--no-deps", "--no-compile"]
        _run(
            [*pip, "--only-binary=:all:", *requirements],
            "installing the toolkit failed",
            requirements,
        )
        site = next(partial.glob("lib/python3.*/site-packages"))
        for name, text in _stand_ins(toolkit).items():
            (site / name).parent.mkdir(exist_ok=True)
            (site / name).write_text(text, encoding="utf-8")
        for name in _NOT_NEEDED:
            shutil.rmtree(site / name)
        (partial / _STAMP).write_text(json.dumps(pins(toolkit)), encoding="utf-8")
        if not _works(partial, toolkit):
            msg = (
                f"The toolkit was installed with {python} but cannot be imported there. Needed: "
                "glibc 2.17 or newer and libgomp (apt install libgomp1)."
            )
            raise ConversionError(msg)


def _run(command: list[str], problem: str, requirements: Sequence[str] = ()) -> None:
    environment = {**clean_environment(), "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    code, output = run_to_end(command, env=environment)
    if code == 0:
        return
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith(("ERROR", "OSError"))] or lines[-2:]
    msg = (
        f"{problem} (exit code {code}): {' '.join(reasons[-2:])[:600]}. If the package index "
        "cannot be reached from here, set https_proxy or PIP_INDEX_URL, or fetch the wheels "
        "elsewhere (pip download --no-deps) and set PIP_NO_INDEX=1 and PIP_FIND_LINKS: "
        + " ".join(requirements)
    )
    raise ConversionError(msg)
