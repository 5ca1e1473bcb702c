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


def test_processes_share_a_store_while_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    rng = random.Random(int(os.environ.get("TARS_RAG_SEED", "1")))
    ended: list[Worker] = []
    working = [Worker(path, sharing_child.work, f"w{n}", n + 1) for n in range(PROCESSES)]
    killed = 0
    try:
        for worker in working:
            assert worker.opened.wait(120)
        while killed < KILLS:
            time.sleep(rng.uniform(0.3, 3.0))
            assert not [line for worker in working for line in worker.failures]
            holder = Holder.of(path / LOCK)
            found = [w for w in working if holder is not None and w.process.pid == holder.pid]
            if not found:
                continue  # between two holders
            killed += 1
            working.remove(found[0])
            found[0].end(whole=rng.random() < 0.5)
            ended.append(found[0])
            name = f"n{killed}"
            working.append(Worker(path, sharing_child.work, name, 100 + killed))
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
    assert told.acknowledged > KILLS
    told.check(path)
    assert check_store(path).ok
