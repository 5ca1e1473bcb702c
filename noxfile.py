"""What a change must pass, each under one name: `nox -l` lists them, `.ci/run` runs them all.

Sessions without a version use the environment that nox is installed in (`pip install -e '.[test]'`)
and start in a second; `fast` and `lowest` make environments of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nox
import nox.command

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
BIN = Path(sys.executable).parent
COVERAGE = {"COVERAGE_PROCESS_START": "pyproject.toml", "COVERAGE_FILE": ".coverage"}

nox.options.sessions = ["lint", "types", "rooms", "pages", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False

if "PYENV_VERSION" not in os.environ and shutil.which("pyenv"):
    # pyenv's python3.10, python3.12, ... start only the versions that are chosen by this.
    bare = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True)
    chosen = [v for v in bare.stdout.split() if re.fullmatch(r"3\.1[0-3]\.\d+", v)]
    chosen.sort(key=lambda v: v.startswith(f"3.{sys.version_info.minor}."), reverse=True)
    os.environ["PYENV_VERSION"] = ":".join(chosen)


def here(session: nox.Session, tool: str, *arguments: str, **env: str) -> None:
    """Run a tool of nox's own environment."""
    session.run(str(BIN / tool), *arguments, env=env, external=True)


def measured(
    session: nox.Session, *arguments: str, tool: str = str(BIN / "pytest"), **env: str
) -> None:
    """Run pytest and, if `--cover` is among the arguments, measure it and all its children.

    `tool` is that of nox's own environment, or of the session's.
    """
    posargs = [word for word in session.posargs if word != "--cover"]
    cover = {name: str(Path(value).resolve()) for name, value in COVERAGE.items()}
    env |= cover if len(posargs) < len(session.posargs) else {}
    tried(session, tool, *arguments, *posargs, env=env)


def naming(session: nox.Session, *markers: str) -> list[str]:
    """The test files that name a marker, unless others are asked for.

    To import all of them takes a process half a minute of a core, some ten times in CI.
    """
    if any(Path(word.partition("::")[0]).exists() for word in session.posargs):
        return []
    named = re.compile(rf"mark\.({'|'.join(markers)})\b")
    files = sorted(Path("tests").glob("test_*.py"))
    return [str(file) for file in files if named.search(file.read_text("utf-8"))]


def tried(session: nox.Session, *pytest: str, env: dict[str, str] | None = None) -> None:
    """Run pytest; in CI what failed is run once more, alone. Both runs stay in the log.

    A machine that others use, too, may stall a test for seconds. What fails twice is a failure, and
    so is whatever fails among the crash tests: they look for what happens once in a thousand times.
    """
    try:
        session.run(*pytest, env=env, external=True)
    except nox.command.CommandFailed:
        if "CI" not in os.environ or "crash" in pytest:
            raise
        session.warn("What failed is run again. If it passes now, it depends on the machine.")
        again = ("-n", "0", "--last-failed", "--last-failed-no-failures", "none")
        session.run(*pytest, *again, env=env, external=True)


def install(session: nox.Session, *resolution: str, extra: str = "test") -> None:
    """Install the source and what an extra needs into the session's environment, by uv."""
    session.install("uv")  # pip has no lowest versions, and takes a minute longer
    python = str(Path(session.virtualenv.location) / "bin" / "python")
    what = (*resolution, "-e", f".[{extra}]")
    session.run_install("uv", "pip", "install", "-q", "--python", python, *what)


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Style: ruff check and ruff format."""
    here(session, "ruff", "check")
    here(session, "ruff", "format", "--check")


@nox.session(python=False)
def types(session: nox.Session) -> None:
    """Types: mypy, strict."""
    here(session, "mypy")


@nox.session(python=False)
def rooms(session: nox.Session) -> None:
    """Which room may import which: import-linter, by the contracts of pyproject.toml."""
    here(session, "lint-imports")


@nox.session(python=False)
def pages(session: nox.Session) -> None:
    """Pages and pictures that are made by a script are current; `-- --write` makes them so."""
    for name in ("cli_reference", "configuration_table", "filters_table", "pictures"):
        script = f"docs/{name}.py"
        here(session, "python", script, *(session.posargs or ["--check"]))


@nox.session(python=False)
def tests(session: nox.Session) -> None:
    """The fast tests, on this interpreter; `-- tests/test_fusion.py` for one file."""
    measured(session, *([] if session.posargs else ["-n", "2"]))


@nox.session(python=PYTHONS, venv_backend="venv")
def fast(session: nox.Session) -> None:
    """The fast tests in an environment of each interpreter (`-p 3.12` for one)."""
    install(session)
    tried(session, "pytest", "-n", "2", *session.posargs)


@nox.session(python=PYTHONS[0], venv_backend="venv")
def lowest(session: nox.Session) -> None:
    """The fast tests with the lowest version of every dependency that pyproject.toml allows."""
    install(session, "--resolution", "lowest-direct")
    session.run("python", "tests/floors.py")
    tried(session, "pytest", "-n", "2", *session.posargs)


@nox.session(python=False)
def slow(session: nox.Session) -> None:
    """Tests that take seconds each and do not depend on the interpreter."""
    measured(session, "-n", "2", "-m", "slow and not crash")


@nox.session(python=False)
def weights(session: nox.Session) -> None:
    """Tests that need the published weights (`tars-rag models pull`) and ../shared."""
    files = naming(session, "weights", "data")
    measured(session, "-n", "2", "-m", "weights or data", "--force-enable-socket", *files)


@nox.session(python=False)
def crash(session: nox.Session) -> None:
    """Kills, power cuts, long runs; needs strace. The environment sets other counts and seconds."""
    counts = {"TARS_RAG_KILLS": "25", "TARS_RAG_SECONDS": "15", "TARS_RAG_SOAK": "25"}
    counts |= {name: os.environ[name] for name in counts if name in os.environ}
    measured(session, "-n", "2", "-m", "crash", *naming(session, "crash"), **counts)


@nox.session(python=False)
def emulator(session: nox.Session) -> None:
    """The real aarch64 wheel; needs qemu-user-static, mmdebstrap, gcc-aarch64-linux-gnu."""
    alone = ("-o", "cache_dir=.pytest_cache/emulator")  # CI runs it beside `convert`
    files = naming(session, "emulator")
    measured(session, "-m", "emulator", "--force-enable-socket", *alone, *files)


@nox.session(python=False)
def convert(session: nox.Session) -> None:
    """Bundles made by the real toolkit, in the environment that `tars-rag convert` makes."""
    measured(session, "-m", "convert", "--force-enable-socket", *naming(session, "convert"))


@nox.session(venv_backend="venv")
def parity(session: nox.Session) -> None:
    """Every architecture against transformers, in an environment with torch (900 MB)."""
    # The build for the CPU, where the index has it; its own list of needs would bring CUDA.
    session.install("torch==2.13.0", "--no-deps")
    session.install("sympy", "networkx", "jinja2", "fsspec", "filelock", "typing-extensions")
    session.install("transformers>=5.20,<6", "sentence-transformers>=6,<7")
    session.install("-e", ".", "pytest", "pytest-timeout")
    files = ("--noconftest", "-o", "addopts=", "-m", "parity", "tests/test_parity.py")
    session.run("pytest", *files, *session.posargs)


@nox.session(venv_backend="venv")
def notebooks(session: nox.Session) -> None:
    """The notebooks, from clean kernels; `-- 06` for one, `-- --write` keeps what they print."""
    install(session, extra="notebooks")
    session.run("python", "notebooks/run.py", "-n", "2", *session.posargs)


@nox.session(venv_backend="venv")
def ray(session: nox.Session) -> None:
    """Embedding on a Ray cluster: two nodes on this machine, workers and nodes that die."""
    install(session, extra="test,ray")
    session.run("pytest", "-m", "ray", "--force-enable-socket", *session.posargs)


@nox.session(venv_backend="venv")
def lance(session: nox.Session) -> None:
    """Stores in LanceDB: beside embedded ones, written by several processes, killed, on S3."""
    install(session, extra="test,lance")
    session.install("moto[server]>=5.1")
    files = naming(session, "lance")
    measured(session, "-n", "2", "-m", "lance", "--force-enable-socket", *files, tool="pytest")


@nox.session(venv_backend="venv")
def docs(session: nox.Session) -> None:
    """The pages as a site in build/site, strictly: a link that leads nowhere is an error."""
    session.install("uv")
    wanted = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "docs")
    python = str(Path(session.virtualenv.location) / "bin" / "python")
    session.run_install("uv", "pip", "install", "-q", "--python", python, *wanted)
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session(python=False)
def coverage(session: nox.Session) -> None:
    """What the sessions with `-- --cover` ran, together, against the share of pyproject.toml."""
    here(session, "coverage", "combine")
    here(session, "coverage", "report")


@nox.session(python=False)
def wheel(session: nox.Session) -> None:
    """The wheel alone, without the source: an index would take it, it imports and answers."""
    shutil.rmtree("dist", ignore_errors=True)
    here(session, "python", "-m", "build")
    [built] = Path("dist").resolve().glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:
        here(session, "python", "-m", "venv", f"{folder}/venv")
        alone = f"{folder}/venv/bin"
        session.run(f"{alone}/pip", "install", "-q", "twine", external=True)
        built_files = map(str, Path("dist").resolve().iterdir())
        session.run(f"{alone}/twine", "check", "--strict", *built_files, external=True)
        session.run(f"{alone}/pip", "install", "-q", str(built), external=True)
        with session.chdir(folder):
            names = "Embedder, HybridStore, Passage, Reranker, Settings, __version__"
            code = f"from tars_rag import {names}; print('imports', __version__)"
            session.run(f"{alone}/python", "-c", code, external=True)
            session.run(f"{alone}/tars-rag", "--help", external=True, silent=True)
            session.run(f"{alone}/python", "-m", "tars_rag", "doctor", external=True)
