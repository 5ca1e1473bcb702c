"""Single writes of several threads, acknowledged by the log alone: killed, none is lost."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import power_cut
import store_child
from store_child import Ledger

pytestmark = [pytest.mark.crash, pytest.mark.timeout(7200)]

KILLS = int(os.environ.get("TARS_RAG_KILLS", "25"))
THREADS = 4


class SingleWrites:
    """Runs children on one store, kills them, and knows what each of their threads wrote."""

    def __init__(self, path: Path, full: int) -> None:
        self.path, self.full = path, full
        self.ledger = Ledger()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["store_child", "tantivy"])

    def kill_once(self, seed: int, delay: float, *, once_open: bool, whole: bool) -> None:
        ours, theirs = self.context.Pipe()
        child = self.context.Process(
            target=store_child.write_singly_until_killed,
            args=(self.path, seed, theirs, THREADS, self.full),
        )
        child.start()
        theirs.close()
        flight: dict[int, tuple[str, int | None]] = {}
        killed_at = None if once_open else time.monotonic() + delay
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                if killed_at is None or ours.poll(max(0.0, killed_at - time.monotonic())):
                    number, what, version = ours.recv()
                    if number == "open":
                        killed_at = killed_at or time.monotonic() + delay
                    elif what == "done":
                        self._acknowledged(*flight.pop(number))
                    else:
                        flight[number] = (what, version)
                if killed_at is not None and time.monotonic() >= killed_at and child.is_alive():
                    self._kill(child, whole)
        child.join()
        ours.close()
        self.ledger.flight = {
            key: (self.ledger.known.get(key), version) for key, version in flight.values()
        }

    @staticmethod
    def _kill(child: multiprocessing.process.BaseProcess, whole: bool) -> None:
        chromas = psutil.Process(child.pid).children(recursive=True) if whole else []
        child.kill()
        for chroma in chromas:
            with contextlib.suppress(psutil.NoSuchProcess):
                chroma.kill()
        child.join()

    def _acknowledged(self, key: str, version: int | None) -> None:
        self.ledger.known.pop(key, None)
        if version is not None:
            self.ledger.known[key] = version
        self.ledger.acknowledged += 1


@pytest.mark.parametrize("full", [256, 15])
def test_no_acknowledged_single_write_is_lost(tmp_path: Path, full: int) -> None:
    """With 15 nearly every kill hits a flush."""
    rng = random.Random(full)
    writes = SingleWrites(tmp_path / "store", full)
    for number in range(KILLS):
        once_open, whole = rng.random() < 0.85, rng.random() < 0.6
        writes.kill_once(
            full * 10_000 + number, rng.uniform(0, 0.8), once_open=once_open, whole=whole
        )
        if not once_open and not (tmp_path / "store" / "store.json").exists():
            continue
        writes.ledger.check(writes.path)
    print(f"{KILLS} kills, {writes.ledger.acknowledged} acknowledged")
    assert writes.ledger.acknowledged > KILLS  # or the test tests nothing


COUNTED = """
import sys
import numpy as np
from conftest import HashEmbedder
from tars_rag import HybridStore, Passage
rng = np.random.default_rng(0)
with HybridStore(sys.argv[1], HashEmbedder()) as store:
    for number in range(int(sys.argv[2])):
        store.upsert([Passage(f"p{number}", f"text {number}")], rng.standard_normal((1, 32)))
"""


@pytest.mark.skipif(not power_cut.can_record(), reason="strace is missing or not allowed")
def test_a_single_write_costs_one_fsync(tmp_path: Path) -> None:
    """The difference between many and few, in all processes, flushes included."""
    counts = {}
    for number in (2, 202):
        trace = tmp_path / f"trace{number}"
        command = ["strace", "-f", "--seccomp-bpf", "-e", "trace=fsync,fdatasync", "-o", str(trace)]
        program = [sys.executable, "-c", COUNTED, str(tmp_path / f"store{number}"), str(number)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([*command, *program], check=True, env=environment)
        counts[number] = sum("sync(" in line for line in trace.read_text().splitlines())
        shutil.rmtree(tmp_path / f"store{number}")
    print(counts)
    assert 200 <= counts[202] - counts[2] <= 220
