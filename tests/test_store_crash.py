"""Killed at any moment, the store loses nothing that it acknowledged.

As SQLite's own crash test does it: a child writes and acknowledges, is killed with SIGKILL at a
random moment, and the store it leaves is opened and compared with what was acknowledged.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import time
from pathlib import Path

import psutil
import pytest

import store_child
from store_child import Ledger

pytestmark = [pytest.mark.crash, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("TARS_RAG_KILLS", "25"))


class Crasher:
    """Runs children on one store, kills them, and knows what must be in it."""

    def __init__(
        self,
        path: Path,
        *,
        journal: bool = True,
        ids: int = 60,
        largest: int = 40,
        deletes: float = 0.25,
        threshold: int = 1000,
    ) -> None:
        self.path = path
        self.settings = (journal, ids, largest, deletes, threshold)
        self.ledger = Ledger()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["store_child", "tantivy"])

    def kill_once(
        self, seed: int, delay: float, *, once_open: bool = True, whole: bool = False
    ) -> None:
        """One child, killed `delay` seconds after it began, or after it had opened the store.

        With `whole` the process of its Chroma is killed too; otherwise that ends by itself.
        """
        ours, theirs = self.context.Pipe()
        child = self.context.Process(
            target=store_child.write_until_killed, args=(self.path, seed, theirs, *self.settings)
        )
        child.start()
        theirs.close()
        if once_open:
            ours.poll(30)
        time.sleep(delay)
        chromas = psutil.Process(child.pid).children(recursive=True) if whole else []
        child.kill()
        for chroma in chromas:
            with contextlib.suppress(psutil.NoSuchProcess):
                chroma.kill()
        child.join()
        try:
            while True:
                self.ledger.hear(ours.recv())
        except (EOFError, ConnectionResetError):
            pass
        finally:
            ours.close()

    def check(self) -> None:
        self.ledger.check(self.path)


def crash(crasher: Crasher, kills: int, seed: int = 1) -> None:
    """Most kills hit a write, some the opening and repair of what the last kill left."""
    rng = random.Random(seed)
    for number in range(kills):
        once_open, whole = rng.random() < 0.8, rng.random() < 0.6
        delay = rng.uniform(0, 0.8)
        crasher.kill_once(seed + number, delay, once_open=once_open, whole=whole)
        crasher.check()


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    crasher = Crasher(tmp_path / "store")
    crash(crasher, KILLS)
    assert crasher.ledger.acknowledged > KILLS // 4  # or the test tests nothing


def test_nothing_is_lost_when_chroma_saves_its_vectors_all_the_time(tmp_path: Path) -> None:
    """With a tiny threshold nearly every kill hits Chroma while it rewrites its index files."""
    crasher = Crasher(tmp_path / "store", threshold=10)
    crash(crasher, KILLS, seed=500)


def test_nothing_is_lost_while_a_store_is_being_made(tmp_path: Path) -> None:
    for number in range(max(5, KILLS // 4)):
        crasher = Crasher(tmp_path / f"store{number}")
        crasher.kill_once(900 + number, 0.03 * number % 1.5, once_open=False, whole=number % 2 == 0)
        if (tmp_path / f"store{number}").exists():
            crasher.check()


def test_without_journal_and_states_the_same_test_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proof that the test sees what they prevent: either alone would do, here, too."""
    monkeypatch.setattr("tars_rag.retrieval.storage.halves.right", lambda *_: None)
    with pytest.raises(AssertionError):
        crash(Crasher(tmp_path / "store", journal=False, ids=9, largest=9, deletes=0), 40)
