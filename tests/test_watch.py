"""Files that change are indexed soon after, and a drive that is away costs nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tars_rag.ingest.sources import sources_of
from tars_rag.ingest.watch import Mounts, changes

pytest.importorskip("watchfiles")
pytest_plugins = ["tiny_models"]


_BURST = int(os.environ.get("TARS_RAG_BURST", "300"))


class Watching:
    """Counts the runs that are due, in a thread."""

    def __init__(self, paths: list[Path]) -> None:
        self.runs = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count, args=(paths,))

    def _count(self, paths: list[Path]) -> None:
        for _ in changes(paths, self._stop):
            self.runs += 1

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def has(self, runs: int, seconds: float = 10) -> bool:
        """Whether there are that many before long."""
        end = time.monotonic() + seconds
        while self.runs < runs and time.monotonic() < end:
            time.sleep(0.05)
        return self.runs >= runs


@pytest.mark.slow
def test_a_burst_is_one_run(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    with Watching([notes]) as watching:
        assert watching.has(2)  # at once, and when watching has begun
        for n in range(_BURST):
            (notes / f"{n}.txt").write_text("x")
        assert watching.has(3)
        time.sleep(1.5)
        assert watching.runs <= 4
        before = watching.runs
        (notes / "sub").mkdir()
        (notes / "0.txt").rename(notes / "sub" / "0.txt")
        assert watching.has(before + 1)


@pytest.mark.slow
def test_a_path_that_goes_and_comes_back_is_watched_again(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with Watching([notes]) as watching:
        assert watching.has(1)
        notes.mkdir()
        assert watching.has(2)
        notes.rename(tmp_path / "away")
        time.sleep(3)
        before = watching.runs
        (tmp_path / "away").rename(notes)
        assert watching.has(before + 1)


def test_what_lies_on_another_device_is_not_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = Mounts([tmp_path])
    assert mounts.are_as_before()
    mounts._devices[tmp_path] += 1  # stands for a drive that was unmounted
    assert not mounts.are_as_before()
    assert not Mounts([tmp_path / "gone"]).are_as_before()


@pytest.mark.slow
def test_the_command_follows_a_folder(
    tmp_path: Path, embedder_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    notes, store = tmp_path / "notes", tmp_path / "store"
    notes.mkdir()
    (notes / "a.txt").write_text("A board with a fan.")
    command = [sys.executable, "-m", "tars_rag", "index", str(notes), "--store", str(store)]
    following = subprocess.Popen([*command, "--watch"], stdout=subprocess.DEVNULL)

    def holds(*names: str) -> bool:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if sorted(Path(one).name for one in sources_of(store)) == sorted(names):
                return True
            time.sleep(0.2)
        return False

    try:
        assert holds("a.txt")
        (notes / "b.txt").write_text("A piano at the river.")
        assert holds("a.txt", "b.txt")
        (notes / "a.txt").rename(notes / "c.txt")
        (notes / "b.txt").unlink()
        assert holds("c.txt")
    finally:
        following.send_signal(signal.SIGINT)
        assert following.wait(20) == 0
