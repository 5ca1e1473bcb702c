"""What the children of the crash tests do; a file of its own, for the fork server to load."""

from __future__ import annotations

import random
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from conftest import HashEmbedder
from tars_rag.retrieval import vectors as vectors_module
from tars_rag.retrieval.journal import Journal
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore

Operation = tuple[str, dict[str, int]]
"""("upsert", {id: version}) or ("delete", {id: 0})."""


def passage(passage_id: str, version: int) -> Passage:
    """The one content that this id has in this version; `word` occurs nowhere else."""
    text = (
        f"{word(passage_id, version)} filler words about number {version} and passage {passage_id}"
    )
    return Passage(passage_id, text, {"version": version, f"only{version % 3}": True})


def word(passage_id: str, version: int) -> str:
    return f"q{passage_id}x{version}z"


def operations(seed: int, ids: int, largest: int, deletes: float) -> Iterator[Operation]:
    rng = random.Random(seed)
    version = seed * 1_000_000
    if not deletes:  # counts never change: only contents can tell
        yield "upsert", {f"p{n}": version for n in range(ids)}
    while True:
        version += 1
        chosen = rng.sample([f"p{n}" for n in range(ids)], rng.randint(1, largest))
        if rng.random() < deletes:
            yield "delete", dict.fromkeys(chosen, 0)
        else:
            yield "upsert", dict.fromkeys(chosen, version)


def write_until_killed(
    path: Path,
    seed: int,
    pipe: Connection,
    journal: bool,
    ids: int,
    largest: int,
    deletes: float,
    threshold: int,
) -> None:
    """Announce each operation, do it, acknowledge it, for ever."""
    vectors_module._HNSW["sync_threshold"] = threshold
    if not journal:
        Journal.begin = lambda self, ids, redo=(): None  # type: ignore[method-assign]
    store = HybridStore(path, HashEmbedder())
    pipe.send("open")
    for kind, versions in operations(seed, ids, largest, deletes):
        pipe.send((kind, versions))
        if kind == "upsert":
            store.upsert([passage(*item) for item in versions.items()])
        else:
            store.delete(list(versions))
        pipe.send("done")


def open_and_report(path: Path, pipe: Connection, read_only: bool) -> None:
    """Open the store, say how it went, and hold it until told to go."""
    try:
        with HybridStore(path, HashEmbedder(), read_only=read_only) as store:
            pipe.send(("open", store.count()))
            pipe.recv()
    except Exception as error:
        pipe.send((type(error).__name__, str(error)))
