"""What the children of the crash tests do; a file of its own, for the fork server to load."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from conftest import HashEmbedder
from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.chroma import vectors as vectors_module
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage import passages as passages_module
from tars_rag.retrieval.storage import recent as recent_module
from tars_rag.retrieval.storage.journal import Journal
from tars_rag.retrieval.store import HybridStore

Operation = tuple[str, dict[str, int]]
"""("upsert", {id: version}) or ("delete", {id: 0})."""


def passage(passage_id: str, version: int) -> Passage:
    """The one content that this id has in this version; `word` occurs nowhere else."""
    text = (
        f"{word(passage_id, version)} filler words about number {version} and passage {passage_id}"
    )
    return Passage(passage_id, text, {"version": version, f"only{version % 3}": True})


SMALL = 10
"""In crash tests, writes of so many passages go through the log, the others to the indexes."""
_LETTERS = str.maketrans("0123456789", "bcdfghjklm")


def word(passage_id: str, version: int) -> str:
    """A word that no other passage or version has, nor a part of it: letters only."""
    return f"q{passage_id}x{version}z".translate(_LETTERS)


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


@dataclass
class Ledger:
    """What a store must hold, by what its children announced and acknowledged.

    Attributes:
        known: {id: version} of what was acknowledged.
        flight: {id: (old version, new version)} of what was announced and not yet acknowledged.
        acknowledged: How many operations were.
    """

    known: dict[str, int] = field(default_factory=dict)
    flight: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    acknowledged: int = 0

    def hear(self, message: Any) -> None:
        """One message of a child: an `Operation` that it begins, "done", or "open"."""
        if message == "done":
            self._settle({key: new for key, (_, new) in self.flight.items()})
            self.acknowledged += 1
        elif message != "open":
            kind, versions = message
            self.flight = {
                key: (self.known.get(key), version if kind == "upsert" else None)
                for key, version in versions.items()
            }

    def check(self, path: Path, after: Passage | None = None) -> int:
        """Acknowledged content is there, deleted content is gone, ids in flight are old or new.

        Args:
            path: The store.
            after: Written when all else is checked: the store must be of use, too.

        Returns:
            How many vectors were made anew.
        """
        embedder = HashEmbedder()
        with HybridStore(path, embedder) as store:
            held = {p.id: p for p in store.get()}
            flight, found = self.flight, {}
            for key, (old, new) in flight.items():
                found[key] = held[key].metadata["version"] if key in held else None
                assert found[key] in (old, new), f"{key}: {found[key]} is neither {old} nor {new}"
            self._settle(found)
            assert held == {key: passage(key, version) for key, version in self.known.items()}
            assert store.count() == len(self.known)
            for key, version in self.known.items():
                expected = passage(key, version)
                by_word = store.search(word(key, version), 5, "lexical")
                assert [hit.passage for hit in by_word] == [expected], f"lexical index: {key}"
                vector = embedder.embed_query(expected.text)
                nearest = store.search(None, 1, "naive", vector=vector)[0]
                assert nearest.passage == expected, f"vectors: {key}"
                assert nearest.score > 0.9999
            for key, versions in flight.items():
                for version in {*versions} - {self.known.get(key), None}:
                    assert store.search(word(key, version), 5, "lexical") == []
            filtered = store.get(where={"only1": True})
            wanted = {key for key, version in self.known.items() if version % 3 == 1}
            assert {p.id for p in filtered} == wanted
            if after is not None:
                store.upsert([after])
                for strategy in ("naive", "lexical"):
                    assert store.search(after.text, 1, strategy)[0].passage == after
            return store._directory.embedded

    def _settle(self, versions: dict[str, int | None]) -> None:
        for key, version in versions.items():
            self.known.pop(key, None)
            if version is not None:
                self.known[key] = version
        self.flight = {}


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
    passages_module._SMALL = SMALL if journal else 0
    if not journal:
        Journal.begin = lambda self, ids, redo=(), before=None: None  # type: ignore[method-assign]
    store = HybridStore(path, HashEmbedder())
    pipe.send("open")
    for kind, versions in operations(seed, ids, largest, deletes):
        _announced(pipe, store, kind, versions)


def write_singly_until_killed(
    path: Path, seed: int, pipe: Connection, threads: int, full: int
) -> None:
    """Single writes of several threads, each with ids of its own; flushed at `full` passages."""
    recent_module._FULL = full
    store = HybridStore(path, HashEmbedder())
    pipe.send(("open", None, None))
    speaking = threading.Lock()

    def say(number: int, what: Any, version: int | None) -> None:
        with speaking:
            pipe.send((number, what, version))

    def write(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        version = seed * 1_000_000
        while True:
            version += 1
            passage_id = f"p{number}{rng.randint(0, 9)}"
            gone = rng.random() < 0.2
            say(number, passage_id, None if gone else version)
            if gone:
                store.delete([passage_id])
            else:
                store.upsert([passage(passage_id, version)])
            say(number, "done", None)

    others = [threading.Thread(target=write, args=(n,), daemon=True) for n in range(threads)]
    for other in others:
        other.start()
    others[0].join()


def open_and_report(path: Path, pipe: Connection, read_only: bool) -> None:
    """Open the store, say how it went, and hold it until told to go."""
    try:
        with HybridStore(path, HashEmbedder(), read_only=read_only) as store:
            pipe.send(("open", store.count()))
            pipe.recv()
    except Exception as error:
        pipe.send((type(error).__name__, str(error)))


def largest_file(path: Path) -> int:
    """In bytes; what the word index removes meanwhile counts nothing."""
    sizes = [0]
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(file.stat().st_size)
    return max(sizes)


def limit_files(size: int) -> None:
    """Let no file grow beyond `size` bytes, here and in the process of Chroma."""
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def write_until_full(path: Path, pipe: Connection, room: int) -> None:
    """Write with no file allowed to grow more than `room` bytes past the largest; then search."""
    with HybridStore(path, HashEmbedder()) as store:
        limit_files(largest_file(path) + room)
        version = 1
        try:
            for version in range(1, 400):
                batch = [passage(f"p{n}", version) for n in range(version % 7, 60, 2)]
                pipe.send({p.id: version for p in batch})
                store.upsert(batch)
                pipe.send("done")
            pipe.send("never full")
        except StoreError as error:
            pipe.send(str(error))
        try:
            hits = store.search("filler passage", 100)
            pipe.send({hit.id: hit.passage.metadata["version"] for hit in hits})
        except StoreError:
            pipe.send("refused")
        limit_files(resource.RLIM_INFINITY)
        pipe.send({p.id: p.metadata["version"] for p in store.get()})
        pipe.send(len(store.search("filler passage", 100, "lexical")))


def open_as_nobody(path: Path, pipe: Connection, read_only: bool) -> None:
    """Open a store without the right to write in its directory."""
    with HybridStore(path, HashEmbedder()) as store:  # everything is imported while we may read it
        store.search("filler", 1)
    if os.getuid() == 0:
        for directory in [path, *path.rglob("*")]:
            directory.chmod(0o555 if directory.is_dir() else 0o444)
        os.setgid(65534)
        os.setuid(65534)
    try:
        with HybridStore(path, HashEmbedder(), read_only=read_only) as store:
            pipe.send(("open", [hit.id for hit in store.search("filler", 5)]))
            if not read_only:
                store.upsert([passage("new", 1)])
                pipe.send(("written", store.count()))
    except Exception as error:
        pipe.send((type(error).__name__, str(error)))


def write_some(path: Path, url: str, name: str) -> None:
    """Ten passages through a Chroma server, and one that all processes write."""
    with HybridStore(path, HashEmbedder(), chroma_url=url) as store:
        for number in range(10):
            store.upsert([passage(f"{name}{number}", 1), passage("common", 100 + number)])
            assert store.search(word(f"{name}{number}", 1), 1)[0].id == f"{name}{number}"


def write_on(path: Path, pipe: Connection, stop: threading.Event | None = None) -> None:
    """Small writes and large ones, deletions and flushes, announced and acknowledged, for ever."""
    rng = random.Random(7)
    with HybridStore(path, HashEmbedder()) as store:
        version = 1
        _announced(pipe, store, "upsert", {f"p{n}": version for n in range(300)})
        pipe.send("open")
        while stop is None or not stop.is_set():
            version += 1
            size = rng.choice([1, 1, 1, 1, 3, 30, 300])
            chosen = rng.sample([f"p{n}" for n in range(400)], size)
            kind = "delete" if size < 30 and rng.random() < 0.3 else "upsert"
            _announced(pipe, store, kind, dict.fromkeys(chosen, version))
            if rng.random() < 0.05:
                store.flush()


def write_and_back_up(path: Path, pipe: Connection, file: Path, number: int) -> None:
    """The same in a thread, with a backup whenever the parent says so."""
    stop = threading.Event()
    notes = _Notes(pipe)
    thread = threading.Thread(target=write_on, args=(path, notes, stop), daemon=True)
    thread.start()
    notes.opened.wait()
    for _ in range(number):
        notes.send("backup")
        if pipe.recv() == "go":
            notes.store.backup(file)
        notes.send("taken")
    stop.set()
    thread.join()


class _Notes:
    """A pipe that two threads write to; the store that one of them has is for both."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self.opened = threading.Event()
        self.store: Any = None

    def send(self, message: Any) -> None:
        with self._lock:
            if message != "open":
                self._pipe.send(message)
        if message == "open":
            self.opened.set()


def _announced(pipe: Any, store: HybridStore, kind: str, versions: dict[str, int]) -> None:
    if isinstance(pipe, _Notes):
        pipe.store = store
    pipe.send((kind, versions))
    if kind == "upsert":
        store.upsert([passage(*item) for item in versions.items()])
    else:
        store.delete(list(versions))
    pipe.send("done")
