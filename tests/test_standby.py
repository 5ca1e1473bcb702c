"""A command that is handed to a process beside the store is the same command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage, start
from tars_rag.retrieval.storage.listener import STANDBY

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with HybridStore(tmp_path / "notes", HashEmbedder()) as made:
        made.upsert([Passage("n#0", "The fän makes 30 dB.", {"source": "n", "chunk": 0})])
    return tmp_path / "notes"


def stand_by(store: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tars_rag.standby", str(store)], stdin=subprocess.PIPE
    )
    limit = time.monotonic() + 60
    while not (store / STANDBY).exists():
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.02)
    return process


@pytest.fixture
def standby(store: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = stand_by(store)
    yield process
    process.kill()
    process.communicate()


def run(*words: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The command, and on stderr whether this process had to import what it needs."""
    code = (
        "import sys, atexit; from tars_rag import start; "
        "atexit.register(lambda: sys.stderr.write(f'\\ncold={\"typer\" in sys.modules}')); "
        "start.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        timeout=120,
    )


COMMANDS = [
    ("show", "n#0", "--store", "notes"),
    ("show", "n#0", "--store=notes", "--json"),
    ("show", "missing", "--store", "notes"),
    ("show", "--store", "notes", "--no-such-option"),
    ("query", "--help", "--store", "notes"),
    ("query", "fan", "--store", "notes", "--where", "{"),
]


def test_it_says_what_the_command_itself_says(
    store: Path, standby: subprocess.Popen[bytes]
) -> None:
    warm = [run(*words, folder=store.parent) for words in COMMANDS]
    standby.kill()
    standby.communicate()
    cold = [run(*words, folder=store.parent) for words in COMMANDS]  # it has left its socket
    for one, other in zip(warm, cold, strict=True):
        assert one.stderr.endswith("cold=False")
        assert other.stderr.endswith("cold=True")
        assert one.stdout == other.stdout
        assert one.stderr.replace("cold=False", "cold=True") == other.stderr
        assert one.returncode == other.returncode
    assert "The fän makes 30 dB." in warm[0].stdout
    assert [one.returncode for one in warm] == [0, 0, 1, 2, 0, 2]


@pytest.mark.usefixtures("standby")
def test_environment_and_output_are_the_clients(store: Path, tmp_path: Path) -> None:
    named = run("show", "n#0", folder=Path("/"), TARS_STORE=str(store))
    assert named.stderr.endswith("cold=False")
    assert "30 dB" in named.stdout
    wide = run("query", "--help", "--store", "notes", folder=store.parent, COLUMNS="60")
    assert max(map(len, wide.stdout.splitlines())) <= 60
    with (tmp_path / "out").open("w") as file:
        code = "from tars_rag import start; start.main()"
        words = [sys.executable, "-c", code, "show", "n#0", "--store", str(store)]
        subprocess.run(words, stdout=file, check=True)
    assert "30 dB" in (tmp_path / "out").read_text()
    closed = subprocess.run([*words, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    assert '"n#0"' in closed.stdout


def test_it_leaves_when_its_server_is_gone(store: Path) -> None:
    process = stand_by(store)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0
    assert not (store / STANDBY).exists()
    HybridStore(store, HashEmbedder()).close()  # nothing is in the way of the next


def test_who_does_not_speak_holds_nobody_up(store: Path, standby: subprocess.Popen[bytes]) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    folder = os.open(store, os.O_PATH)
    for one in silent:
        one.connect(f"/proc/self/fd/{folder}/{STANDBY}")
    silent[0].sendall(b"\0\0\0\5hello")
    assert run("show", "n#0", "--store", "notes", folder=store.parent).returncode == 0
    for one in silent:
        one.close()
    os.close(folder)
    me = psutil.Process(standby.pid)
    limit = time.monotonic() + 30
    while me.children():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_another_python_or_version_is_not_asked(
    store: Path, standby: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.parent)
    line = start.connect(store, STANDBY)
    start.send(line, {**start.describe(), "version": "0.0.1"}, start.FILES)
    assert start.receive(line)[0] == {"process": None}
    line.close()
    assert standby.poll() is None


def test_an_interrupt_and_a_killed_client_reach_the_command(store: Path, tmp_path: Path) -> None:
    """The command is replaced by one that waits, in the process that stands by."""
    code = (
        "import sys, time, types; m = types.ModuleType('tars_rag.cli'); "
        "m.main = lambda: (print('begun', flush=True), time.sleep(60)); "
        "sys.modules['tars_rag.cli'] = m; "
        "from tars_rag import standby; standby.main(sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(store)], stdin=subprocess.PIPE)
    while not (store / STANDBY).exists():
        time.sleep(0.02)
    me = psutil.Process(process.pid)
    words = [sys.executable, "-c", "from tars_rag import start; start.main()", "show", "x"]
    for stop in (signal.SIGINT, signal.SIGKILL):
        client = subprocess.Popen(
            [*words, "--store", str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert client.stdout is not None
        assert client.stdout.readline() == b"begun\n"
        client.send_signal(stop)
        client.communicate(timeout=30)
        assert client.returncode == (1 if stop == signal.SIGINT else -signal.SIGKILL)
        limit = time.monotonic() + 30
        while me.children():
            assert time.monotonic() < limit
            time.sleep(0.05)
    process.communicate(timeout=30)
    assert process.returncode == 0
