"""What the processes of the LanceDB tests do; a file of its own, for new interpreters to load."""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage
from tars_rag.ingest import run
from tars_rag.ingest.run import ingest
from tars_rag.retrieval.lance import upkeep
from tars_rag.retrieval.lance.files import FileRow, Files
from tars_rag.splitting.splitter import Splitter

GROUP = 5
_LETTERS = str.maketrans("0123456789", "bcdfghjklm")


def word(key: str, version: int) -> str:
    return f"q{key}x{version}z".translate(_LETTERS)


def passage(key: str, version: int) -> Passage:
    return Passage(key, f"{word(key, version)} common words", {"version": version, "key": key})


def check(found: Passage) -> int:
    """A passage is one version, whole; which."""
    version = int(found.metadata["version"])
    assert found == passage(found.id, version), found
    return version


def often() -> None:
    """Bring the indexes up to date all the time, so that it meets the writes of others."""
    upkeep._LOOK_AFTER, upkeep._MOST_ROWS, upkeep._MOST_FILES = 2, 8, 4  # type: ignore[misc]


def write(address: str, name: str, seconds: float, pipe: Connection) -> None:
    """Write own and shared passages; tells the last version of each own one."""
    often()
    rng, last, version = random.Random(name), dict[str, int](), 0
    with HybridStore(address, HashEmbedder()) as store:
        pipe.send("ready")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            version += 1
            own = [f"{name}{n}" for n in rng.sample(range(30), rng.randint(1, 6))]
            shared = [f"s{n}" for n in rng.sample(range(10), 2)]
            store.upsert([passage(key, version) for key in (*own, *shared)])
            last.update(dict.fromkeys(own, version))
            if rng.random() < 0.2:
                gone = own[0]
                assert store.delete([gone]) == 1
                del last[gone]
    pipe.send((version, last))


def read(address: str, seconds: float, pipe: Connection) -> None:
    """Search all the time; tells how often."""
    rng, searches, newest = random.Random(0), 0, dict[str, int]()
    with HybridStore(address, HashEmbedder(), read_only=True) as store:
        pipe.send("ready")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            strategy = rng.choice(["hybrid", "naive", "lexical"])
            where = rng.choice([None, {"version": {"$gte": 2}}, {"key": {"$ne": "s1"}}])
            hits = store.search("common words", 20, strategy, where)  # type: ignore[arg-type]
            assert len({hit.id for hit in hits}) == len(hits)
            for hit in hits:
                seen = check(hit.passage)
                if not hit.id.startswith("s"):  # two write the shared ones
                    assert seen >= newest.get(hit.id, 0), "an older version came back"
                    newest[hit.id] = seen
            everything = [one.id for one in store.get()]
            assert len(everything) == len(set(everything))
            searches += 1
    pipe.send(searches)


def write_groups(address: str, first: int, pipe: Connection) -> None:
    """Write groups, each in one batch, until killed; tells what was acknowledged."""
    often()
    store = HybridStore(address, HashEmbedder())
    pipe.send(0)
    version = first
    while True:
        version += 1
        group = version % 7
        store.upsert([passage(f"g{group}m{n}", version) for n in range(GROUP)])
        pipe.send(version)


def open_at_once(address: str, name: str, pipe: Connection) -> None:
    """Wait for the word, then make the store and write."""
    pipe.send("ready")
    pipe.recv()
    with HybridStore(address, HashEmbedder()) as store:
        store.upsert([passage("same", 1), passage(name, 1)])
        pipe.send(store.count())


def hammer(address: str, name: str, pipe: Connection) -> None:
    """Write the same new ids as the others, each at the same moment."""
    with HybridStore(address, HashEmbedder()) as store:
        pipe.send("ready")
        for number in range(int(pipe.recv())):
            store.upsert([passage(f"k{number}", 1), passage(f"{name}{number}", 1)])
    pipe.send("done")


def index(address: str, folder: Path, tokenizer: Path, steps: int | None = None) -> None:
    """Index a folder; die after it was kept so many times which files are done."""
    finish, done = Files.finish, iter(range(1000))

    def finish_or_die(files: Files, rows: dict[str, FileRow]) -> None:
        if next(done) == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        finish(files, rows)

    Files.finish = finish_or_die  # type: ignore[method-assign]
    run._BATCH = 32
    with HybridStore(address, HashEmbedder()) as store:
        ingest(store, [folder], Splitter(tokenizer, 66, overlap=8))
