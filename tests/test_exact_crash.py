"""Killed or without power at any moment, an exact index is at the last commit or the one in flight.

The child (`exact_child`) commits for ever and compacts every few commits. What it holds at each
generation follows from its seed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import power_cut
from exact_child import DIM, state
from power_cut import Disk
from tars_rag.retrieval.indexes.exact.index import ExactIndex

pytestmark = [pytest.mark.crash, pytest.mark.timeout(7200)]

KILLS = int(os.environ.get("TARS_RAG_KILLS", "20"))
CUTS = int(os.environ.get("TARS_RAG_CUTS", "20"))
CHILD = Path(__file__).with_name("exact_child.py")
POLICIES = ("nothing", "everything", "names", "bytes", "some", "some", "some")


def acknowledged(log: str) -> tuple[int, int]:
    """The last generation that was acknowledged, and the last one that was begun."""
    words = [line.split() for line in log.splitlines() if line.count(" ") == 1]
    numbers = [(word, int(number)) for word, number in words]
    ended = max((number for word, number in numbers if word == "end"), default=0)
    return ended, max((number for _, number in numbers), default=0)


def check(directory: Path, seed: int, ended: int, begun: int, *, read_only: bool = False) -> None:
    if read_only and not list(directory.glob("rows-*.log")):
        assert ended == 0
        return
    if directory.exists() and list(directory.glob("rows-*.log")):
        assert ExactIndex.damage(directory) is None
    index = ExactIndex(directory, DIM, read_only=read_only)
    assert ended <= index.generation <= begun
    assert index.stamp == (f"stamp {index.generation}" if index.generation else "")
    expected = state(seed, index.generation)
    assert {key: row.tobytes() for key, row in index.vectors(index.ids()).items()} == expected
    for key, row in list(index.vectors(index.ids()[:5]).items()):
        assert index.nearest(row, 1) == [(key, pytest.approx(1))]
    index.close()


def test_kills(tmp_path: Path) -> None:
    rng = random.Random(int(os.environ.get("TARS_RAG_SEED", "0")))
    in_flight = 0
    for kill in range(KILLS):
        directory, log = tmp_path / f"codes {kill}", tmp_path / "log"
        ended = begun = 0
        for _ in range(3):  # the second and third go on from what is there
            arguments = [str(directory), str(log), str(kill), "100000"]
            with subprocess.Popen([sys.executable, str(CHILD), *arguments]) as child:
                while (
                    not log.exists()
                    or not log.read_text()
                    or acknowledged(log.read_text())[1] <= begun
                ):
                    assert child.poll() is None
                    time.sleep(0.005)
                time.sleep(rng.random() * 0.3)
                child.send_signal(signal.SIGKILL)
            ended, begun = acknowledged(log.read_text())
            in_flight += begun > ended
            check(directory, kill, ended, begun, read_only=True)
            log.unlink()
            check(directory, kill, ended, begun)
            index = ExactIndex(directory, DIM)
            ended = begun = index.generation
            index.close()
    assert in_flight > KILLS // 10


@pytest.mark.skipif(not power_cut.can_record(), reason="strace is missing or not allowed")
@pytest.mark.parametrize("kind", ["posix", "ext4"])
def test_power_cuts(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    arguments = [str(CHILD), str(root / "codes"), str(root / "log"), "7", "60"]
    power_cut.record(tmp_path / "trace", arguments)
    calls = list(power_cut.calls(tmp_path / "trace", root))
    rng = random.Random(3)
    steps = sorted(rng.sample(range(len(calls)), min(CUTS, len(calls))))
    disk, place = Disk(root, kind), 0
    for step in steps:
        for call in calls[place:step]:
            disk.play(call)
        place = step
        log = "".join(
            text.decode()
            for call in calls[:step]
            if call.name == "write" and call.path == str(root / "log")
            for _, text in call.strings
        )
        ended, begun = acknowledged(log)
        for policy in POLICIES:
            left = tmp_path / "left"
            disk.write_to(left, rng, policy)
            if ended:
                check(left / "codes", 7, ended, begun, read_only=True)
            if (left / "codes").exists():
                check(left / "codes", 7, ended, begun)
            shutil.rmtree(left)
