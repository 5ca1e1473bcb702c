"""Many processes have one store in LanceDB: nothing acknowledged is lost, no search is mixed."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import lance_child as child
from conftest import HashEmbedder
from tars_rag import HybridStore

pytestmark = pytest.mark.lance
pytest.importorskip("lancedb")

SECONDS = float(os.environ.get("TARS_RAG_SECONDS", "4"))
KILLS = int(os.environ.get("TARS_RAG_KILLS", "4"))
_NEW = multiprocessing.get_context("spawn")  # LanceDB has threads, which a fork would not have


def started(do: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    ours, theirs = _NEW.Pipe()
    process = _NEW.Process(target=do, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def together(address: str, *what: tuple[Callable[..., None], tuple[Any, ...]]) -> list[Any]:
    """Run each in a process; what each told last."""
    running = [started(do, address, *arguments) for do, arguments in what]
    answers = []
    for _, pipe in running:
        assert pipe.recv() == "ready"
    for process, pipe in running:
        answers.append(pipe.recv())
        process.join(30)
        assert process.exitcode == 0
    return answers


def settled(address: str, last: dict[str, int], folder: Path) -> None:
    """The store holds the last versions of these, and finds and scores them as a copy does."""
    with HybridStore(address, HashEmbedder()) as store:
        held = {one.id: child.check(one) for one in store.get()}
        assert {key: held[key] for key in last} == last
        assert store.count() == len(held)
        # Its index has all of them, and none twice, or what it has not is scanned.
        found = store.search("common", 2 * len(held), "lexical")
        assert sorted(hit.id for hit in found) == sorted(held)
        each = {round(hit.lexical_share or 0, 6) for hit in found}
        with HybridStore(f"lance://{folder}/copy", HashEmbedder()) as copy:
            copy.upsert(store.get())
            again = copy.search("common", 2 * len(held), "lexical")
            assert each == {round(hit.lexical_share or 0, 6) for hit in again}
        for key, version in list(last.items())[::5]:
            assert store.search(child.word(key, version), 1, "lexical")[0].id == key
        store.compact()
        assert {one.id: child.check(one) for one in store.get()} == held


def two_write_and_two_read(address: str, folder: Path) -> None:
    with HybridStore(address, HashEmbedder()):
        pass
    one, two, *searches = together(
        address,
        (child.write, ("a", SECONDS)),
        (child.write, ("b", SECONDS)),
        (child.read, (SECONDS,)),
        (child.read, (SECONDS,)),
    )
    assert min(*searches, one[0], two[0]) >= 2
    settled(address, one[1] | two[1], folder)


def test_two_write_and_two_read(tmp_path: Path) -> None:
    two_write_and_two_read(f"lance://{tmp_path}/store", tmp_path)


def test_who_makes_the_store_at_once_has_the_same(tmp_path: Path) -> None:
    for attempt in range(2):
        address = f"lance://{tmp_path}/store{attempt}"
        running = [started(child.open_at_once, address, name) for name in ("a", "b", "c")]
        for _, pipe in running:
            assert pipe.recv() == "ready"
        for _, pipe in running:
            pipe.send("go")
        for process, pipe in running:
            assert pipe.recv() >= 2
            process.join(30)
            assert process.exitcode == 0
        with HybridStore(address, HashEmbedder()) as store:
            assert sorted(one.id for one in store.get()) == ["a", "b", "c", "same"]


def test_a_new_id_that_several_write_at_once_is_there_once(tmp_path: Path) -> None:
    address = f"lance://{tmp_path}/store"
    with HybridStore(address, HashEmbedder()):
        pass
    running = [started(child.hammer, address, name) for name in ("a", "b", "c")]
    for _, pipe in running:
        assert pipe.recv() == "ready"
    for _, pipe in running:
        pipe.send(25)
    for process, pipe in running:
        assert pipe.recv() == "done"
        process.join(30)
    with HybridStore(address, HashEmbedder()) as store:
        ids = [one.id for one in store.get()]
    assert len(ids) == len(set(ids)) == 100


def kill_writers(address: str) -> None:
    last = 0
    rng = random.Random(KILLS)
    acknowledged: dict[str, int] = {}
    for _ in range(KILLS):
        process, pipe = started(child.write_groups, address, last)
        assert pipe.recv() == 0
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.join(30)
        try:
            while True:
                last = pipe.recv()
                acknowledged[f"g{last % 7}"] = last
        except EOFError:
            pass
        with HybridStore(address, HashEmbedder()) as store:
            groups: dict[str, set[int]] = {}
            for one in store.get():
                groups.setdefault(one.id.partition("m")[0], set()).add(child.check(one))
            assert all(len(versions) == 1 for versions in groups.values()), groups
            for group, version in acknowledged.items():
                [held] = groups[group]
                assert held in (version, last + 1)  # the one that was under way
                acknowledged[group] = held  # seen once, it stays
                assert len(store.get([f"{group}m{n}" for n in range(child.GROUP)])) == child.GROUP
                assert store.search(child.word(f"{group}m0", held), 1)[0].id == f"{group}m0"
        last += 1
    assert acknowledged


def test_a_writer_that_is_killed_loses_nothing_acknowledged(tmp_path: Path) -> None:
    kill_writers(f"lance://{tmp_path}/store")
