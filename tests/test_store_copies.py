"""What a copy of a store gives that was taken while the store was open and written.

A child writes and acknowledges; meanwhile its directory is copied in all the ways in which people
do that. Each copy must open with everything that was acknowledged before the copying began, each
passage as it was then or became until the copying ended, or be refused by name.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import store_child
from conftest import HashEmbedder
from store_child import passage
from tars_rag.errors import StoreError
from tars_rag.retrieval.maintenance import backup, restore
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.store import HybridStore

pytestmark = [pytest.mark.crash, pytest.mark.timeout(3600)]

COPIES = int(os.environ.get("TARS_RAG_COPIES", "8"))
BACKUPS = int(os.environ.get("TARS_RAG_BACKUPS", "4"))


class Writer:
    """A child that writes to a store, and what it may hold."""

    def __init__(self, path: Path, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["store_child", "tantivy"])
        self.pipe, theirs = context.Pipe()
        self.child = context.Process(target=target, args=(path, theirs, *arguments))
        self.child.start()
        theirs.close()
        self.state: dict[str, int | None] = {}
        self._flight: dict[str, int | None] = {}
        self._words: list[Any] = []
        self._messages: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.since: dict[str, set[int | None]] = {}

    def hear(self) -> None:
        """Take note of all that it said."""
        while not self._messages.empty():
            message = self._messages.get()
            if message == "done":
                self.state |= self._flight
                self._flight = {}
            elif isinstance(message, tuple) and message[0] in ("upsert", "delete"):
                kind, versions = message
                self._flight = {k: v if kind == "upsert" else None for k, v in versions.items()}
                for key, version in self._flight.items():
                    before = self.state.get(key)  # None, too: it may not have been there yet
                    self.since.setdefault(key, {before}).add(version)
            else:
                self._words.append(message)

    def _listen(self) -> None:
        """A full pipe would stop the child."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._messages.put(self.pipe.recv())

    def await_word(self, word: str) -> None:
        while word not in self._words:
            assert self.child.is_alive()
            time.sleep(0.001)
            self.hear()
        self._words.remove(word)

    def mark(self) -> None:
        """Forget what might have been before now."""
        self.hear()
        self.since = {}
        for key in {*self.state, *self._flight}:
            self.since[key] = {self.state.get(key)}
            if key in self._flight:
                self.since[key].add(self._flight[key])

    def problems(self, held: dict[str, Any]) -> list[str]:
        """What of a store's passages cannot be."""
        found = []
        for key in {*held, *self.since}:
            version = held[key].metadata["version"] if key in held else None
            if version not in self.since.get(key, {None}):
                found.append(f"{key}: {version}, not of {self.since.get(key)}")
            elif version is not None and held[key] != passage(key, version):
                found.append(f"{key}: altered")
        return found

    def end(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.child.pid)
            for each in [*process.children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        self.child.join()
        self.pipe.close()


def by_command(*command: str) -> Callable[[Path, Path, random.Random], None]:
    def copy(source: Path, target: Path, _: random.Random) -> None:
        words = [word.format(source=source, target=target) for word in command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        # Files that went away meanwhile, or changed: cp and tar say 1, rsync 24 or 23.
        assert done.returncode in (0, 1, 23, 24), done.stderr

    return copy


def by_files(order: Callable[[list[Path], random.Random], list[Path]], pause: float) -> Any:
    def copy(source: Path, target: Path, rng: random.Random) -> None:
        target.mkdir()
        for file in order([p for p in source.rglob("*") if p.is_file()], rng):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(file, place)
            time.sleep(rng.uniform(0, pause))

    return copy


def tarred(source: Path, target: Path, _: random.Random) -> None:
    archive = target.with_suffix(".tar")
    by_command("tar", "-cf", str(archive), "-C", str(source), ".")(source, target, _)
    target.mkdir()
    by_command("tar", "-xf", str(archive), "-C", str(target))(source, target, _)


def in_turn(*halves: str) -> Any:
    def order(files: list[Path], rng: random.Random) -> list[Path]:
        place = {name: number for number, name in enumerate(halves)}
        return sorted(files, key=lambda f: min(place.get(part, 99) for part in f.parts))

    return order


WAYS: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "cp": by_command("cp", "-r", "{source}", "{target}"),
    "cp -a": by_command("cp", "-a", "{source}", "{target}"),
    "tar": tarred,
    "sorted": by_files(lambda files, _: sorted(files), 0.02),
    "reversed": by_files(lambda files, _: sorted(files, reverse=True), 0.02),
    "shuffled": by_files(lambda files, rng: rng.sample(files, len(files)), 0.05),
    "log last": by_files(in_turn("exact", "lexical", "chroma", "journal"), 0.05),
    "log first": by_files(in_turn("write-ahead.log", "lexical", "chroma", "exact"), 0.05),
}
if shutil.which("rsync"):
    WAYS["rsync"] = by_command("rsync", "-r", "{source}/", "{target}")
    WAYS["rsync -a"] = by_command("rsync", "-a", "{source}/", "{target}")


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    made = Writer(tmp_path / "store", store_child.write_on)
    made.await_word("open")
    yield made
    made.end()


def test_a_copy_of_an_open_store_is_whole_or_refused(writer: Writer, tmp_path: Path) -> None:
    rng = random.Random(int(os.environ.get("TARS_RAG_SEED", "1")))
    outcomes: Counter[str] = Counter()
    failures = []
    names = list(WAYS)
    for number in range(COPIES):
        way = names[number % len(names)]
        time.sleep(rng.uniform(0.1, 1.5))
        writer.mark()
        target = tmp_path / f"copy{number}"
        WAYS[way](tmp_path / "store", target, rng)
        writer.hear()
        assert writer.child.is_alive()
        assert writer.since
        try:
            with HybridStore(target, HashEmbedder()) as store:
                held = {p.id: p for p in store.get()}
                found = writer.problems(held)
                for p in list(held.values())[:20]:
                    vector = HashEmbedder().embed_query(p.text)
                    nearest = store.search(None, 1, "naive", vector=vector)[0]
                    words = [hit.passage for hit in store.search(p.text.split()[0], 2, "lexical")]
                    if nearest.passage != p or words != [p]:
                        found.append(f"{p.id} is not found")
            report = check_store(target)
            found += report.problems
            outcomes[f"{way}: {'wrong' if found else 'whole'}"] += 1
            failures += [f"{way} {number}: {problem}" for problem in found[:5]]
        except StoreError as error:
            outcomes[f"{way}: refused"] += 1
            print(way, number, error)
            if str(target) not in str(error):
                failures.append(f"{way} {number}: {error}")
        shutil.rmtree(target)
    print(sorted(outcomes.items()))
    assert not failures, failures


def test_backups_under_load_restore_to_what_was_acknowledged(tmp_path: Path) -> None:
    """The child backs up in a thread while it writes, or this process beside it."""
    writer = Writer(tmp_path / "store", store_child.write_and_back_up, tmp_path / "file", BACKUPS)
    try:
        for number in range(BACKUPS):
            writer.await_word("backup")
            writer.mark()
            if number % 2:
                backup(tmp_path / "store", tmp_path / "file")  # beside the child
            writer.pipe.send("go" if number % 2 == 0 else "pass")
            writer.await_word("taken")
            target = tmp_path / f"restored{number}"
            restore(tmp_path / "file", target)
            with HybridStore(target, HashEmbedder()) as store:
                assert not writer.problems({p.id: p for p in store.get()})
            assert check_store(target).ok
            shutil.rmtree(target)
    finally:
        writer.end()
