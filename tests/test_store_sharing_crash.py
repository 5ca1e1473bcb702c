"""Four processes share a store while its holder is killed: nothing is lost, refused or wrong."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import sharing_child
from store_child import Ledger
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.storage.holder import Holder
from tars_rag.retrieval.storage.layout import LOCK

pytestmark = [pytest.mark.crash, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("TARS_RAG_SHARE_KILLS", "6"))
PROCESSES = 4


class Worker:
    """A process that shares the store, and what it said."""

    def __init__(self, path: Path, target: Callable[..., None], name: str, seed: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["sharing_child", "tantivy"])
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(path, theirs, name, seed))
        self.process.start()
        theirs.close()
        self.ledger = Ledger()
        self.failures: list[str] = []
        self.opened = threading.Event()
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def _listen(self) -> None:
        """Until it ends; a full pipe would stop it."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                message: Any = self.pipe.recv()
                if message == "open":
                    self.opened.set()
                elif message[0] == "failed":
                    self.failures.append(f"{self.name}: {message[1]}")
                else:
                    self.ledger.hear(message)

    def end(self, *, whole: bool = False) -> None:
        """Kill it, with `whole` the process of its Chroma, too; all that it said is heard."""
        chromas = []
        with contextlib.suppress(psutil.NoSuchProcess):
            chromas = psutil.Process(self.process.pid).children(recursive=True) if whole else []
        self.process.kill()
        for chroma in chromas:
            with contextlib.suppress(psutil.NoSuchProcess):
                chroma.kill()
        self.process.join()
        self._listening.join(60)
        self.pipe.close()


def holder_among(working: list[Worker], path: Path) -> Worker:
    """Whoever has the store; waits until one of them has taken it over."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        holder = Holder.of(path / LOCK)
        for worker in working:
            assert not worker.failures, "\n".join(worker.failures)
            if holder is not None and worker.process.pid == holder.pid:
                return worker
        time.sleep(0.01)
    msg = "nobody took the store over"
    raise AssertionError(msg)


def await_progress(working: list[Worker]) -> None:
    """Until something more was acknowledged, however slow the machine is."""

    def acknowledged() -> int:
        return sum(worker.ledger.acknowledged for worker in working)

    before, until = acknowledged(), time.monotonic() + 300
    while acknowledged() == before:
        assert time.monotonic() < until, "nothing is acknowledged any more"
        for worker in working:
            assert not worker.failures, "\n".join(worker.failures)
        time.sleep(0.01)


def test_processes_share_a_store_while_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    rng = random.Random(int(os.environ.get("TARS_RAG_SEED", "1")))
    ended: list[Worker] = []
    working = [Worker(path, sharing_child.work, f"w{n}", n + 1) for n in range(PROCESSES - 1)]
    killed = 0
    try:
        for worker in working:
            assert worker.opened.wait(120)
        working.append(Worker(path, sharing_child.read, "reader", 50))
        while killed < KILLS:
            await_progress(working)
            time.sleep(rng.uniform(0.0, 2.0))
            victim = holder_among(working, path)
            killed += 1
            working.remove(victim)
            victim.end(whole=rng.random() < 0.5)
            ended.append(victim)
            if victim.name == "reader":
                working.append(Worker(path, sharing_child.read, "reader", 100 + killed))
            else:
                working.append(Worker(path, sharing_child.work, f"n{killed}", 100 + killed))
        for worker in working:
            assert worker.opened.wait(120)
    finally:
        for worker in working:
            worker.end(whole=True)
    ended += working
    failures = [line for worker in ended for line in worker.failures]
    assert not failures, "\n".join(failures)
    told = Ledger()
    for worker in ended:
        told.known |= worker.ledger.known
        told.flight |= worker.ledger.flight
        told.acknowledged += worker.ledger.acknowledged
    print(f"{killed} holders killed, {told.acknowledged} operations acknowledged")
    assert told.acknowledged >= KILLS
    told.check(path)
    assert check_store(path).ok
