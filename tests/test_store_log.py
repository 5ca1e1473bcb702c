"""Small writes: durable in the log at once, in the indexes later, whatever happens in between."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import HashEmbedder
from store_child import passage, word
from tars_rag.errors import StoreError
from tars_rag.retrieval.maintenance import reembed, relex
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage import recent
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.store import HybridStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([passage(f"p{n}", 1) for n in range(5)])
    return tmp_path / "store"


def tail_of(store: HybridStore) -> set[str]:
    """Ids that the log has and the indexes have not."""
    assert store._directory.recent is not None
    return set(store._directory.recent.tail.held)


def leave(store: HybridStore) -> None:
    """End with it as a killed process does: what is in the log stays there."""
    store._directory.close(flush=False)


def assert_holds(store: HybridStore, versions: dict[str, int]) -> None:
    assert {p.id: p for p in store.get()} == {k: passage(k, v) for k, v in versions.items()}
    assert store.count() == len(versions)
    assert store.vectors(versions).keys() == versions.keys()
    for key, version in versions.items():
        assert [hit.id for hit in store.search(word(key, version), 9, "lexical")] == [key]
        assert store.search(passage(key, version).text, 1)[0].id == key


OLD = {f"p{n}": 1 for n in range(5)}
NEW = {"p0": 1, "p2": 7, "p3": 1, "p4": 1, "new": 7}


def write_new(store: HybridStore) -> None:
    """From OLD to NEW."""
    store.upsert([passage("p2", 7), passage("new", 7), passage("gone", 7)])
    assert store.delete(["p1", "gone", "unknown"]) == 2


def test_small_writes_wait_in_the_log_and_are_seen(path: Path) -> None:
    with HybridStore(path, HashEmbedder()) as store:
        write_new(store)
        assert tail_of(store) == {"p2", "new", "gone", "p1"}
        assert_holds(store, NEW)
        assert store.search(word("p2", 1), 9, "lexical") == []
        assert store.delete(["p1", "gone"]) == 0
        store.flush()
        assert tail_of(store) == set()
        assert_holds(store, NEW)
        store.upsert([passage("p1", 2)])
    with HybridStore(path, HashEmbedder()) as store:
        assert tail_of(store) == set()
        assert_holds(store, NEW | {"p1": 2})
    assert check_store(path).ok


def test_a_larger_write_comes_after_what_is_in_the_log(path: Path) -> None:
    with HybridStore(path, HashEmbedder()) as store:
        write_new(store)
        store.upsert([passage(f"p{n}", 8) for n in range(100)])
        assert tail_of(store) == set()
        assert_holds(store, {"new": 7} | {f"p{n}": 8 for n in range(100)})
        store.upsert([passage("p2", 9)])
        assert store.clear() == 101
        assert store.get() == []
    assert check_store(path).ok


def test_what_a_killed_process_left_in_the_log_is_seen_by_all(path: Path) -> None:
    store = HybridStore(path, HashEmbedder())
    write_new(store)
    leave(store)
    report = check_store(path)
    assert report.ok, report.problems
    assert "4 passages" in report.notes[0]
    with HybridStore(path, HashEmbedder(), read_only=True) as store:
        assert_holds(store, NEW)
    with HybridStore(path, HashEmbedder()) as store:
        assert_holds(store, NEW)
        leave(store)
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert([passage("p1", 3)])
        assert_holds(store, NEW | {"p1": 3})
    report = check_store(path)
    assert report.ok
    assert report.notes == []


def test_reembed_and_relex_take_what_is_in_the_log(path: Path) -> None:
    store = HybridStore(path, HashEmbedder())
    write_new(store)
    leave(store)
    relex(path, "de")
    with HybridStore(path, HashEmbedder()) as store:
        assert_holds(store, NEW)
        store.upsert([passage("p1", 3)])
        leave(store)
    other = HashEmbedder(name="other", dimension=16)
    assert reembed(path, other) == 6
    with HybridStore(path, other) as store:
        assert_holds(store, NEW | {"p1": 3})
        store.upsert([passage("p1", 4)])
        leave(store)
    with HybridStore(path, other) as store:
        assert_holds(store, NEW | {"p1": 4})


def test_a_damaged_log_is_refused_and_repaired_by_name(path: Path) -> None:
    store = HybridStore(path, HashEmbedder())
    for version in (2, 3, 4):
        store.upsert([passage(f"p{version}", version)])
    leave(store)
    log = path / "write-ahead.log"
    data = bytearray(log.read_bytes())
    data[data.index(b"passage p3")] ^= 1
    log.write_bytes(data)
    assert "1 acknowledged writes cannot be read" in check_store(path).problems[0]
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"is damaged: 1 acknow.* --repair"):
            HybridStore(path, HashEmbedder(), read_only=read_only)
    report = check_store(path, repair=True)
    assert report.ok
    assert "log of small writes" in report.repaired[0]
    assert (path / "write-ahead.log.damaged").read_bytes() == data
    with HybridStore(path, HashEmbedder()) as store:
        assert_holds(store, OLD | {"p2": 2, "p4": 4})


def test_writes_at_once_share_their_fsyncs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fdatasync = [], os.fdatasync

    def slow(descriptor: int) -> None:
        synced.append(descriptor)
        threading.Event().wait(0.01)  # as a memory card
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    vectors = HashEmbedder().embed([str(n) for n in range(80)])
    with HybridStore(path, HashEmbedder()) as store:
        with ThreadPoolExecutor(8) as pool:
            calls = [
                pool.submit(store.upsert, [Passage(f"t{n}", str(n))], vectors[n : n + 1])
                for n in range(80)
            ]
        assert [call.result() for call in calls] == [1] * 80
        assert len(synced) < 40
        assert store.count() == 85
        leave(store)
    with HybridStore(path, HashEmbedder()) as store:
        assert {p.id for p in store.get()} == OLD.keys() | {f"t{n}" for n in range(80)}


@pytest.mark.slow
def test_a_full_tail_is_flushed_in_the_background_and_held_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "_FULL", 8)
    monkeypatch.setattr(recent, "_MOST", 20)
    monkeypatch.setattr(recent, "_LONGEST_LOG", 4000)
    with HybridStore(path, HashEmbedder()) as store:
        for number in range(120):
            store.upsert([passage(f"q{number % 50}", number)])
            assert len(tail_of(store)) <= 20
        expected = {f"q{number % 50}": number for number in range(120)}
        assert_holds(store, OLD | expected)
    assert check_store(path).ok


# -- indexes that cannot be written ---------------------------------------------------------------


def test_a_flush_that_fails_loses_nothing_and_stops_no_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    store = HybridStore(path, HashEmbedder())
    write_new(store)
    monkeypatch.setattr(store._directory._indexes.lexical, "apply", full)
    with pytest.raises(StoreError, match="the disk is full"):
        store.flush()
    assert (path / "journal").exists()
    assert_holds(store, NEW)
    store.upsert([passage("p1", 9)])  # the log has room
    assert_holds(store, NEW | {"p1": 9})
    monkeypatch.setattr(recent, "_MOST", 3)
    with pytest.raises(StoreError, match="the disk is full"):
        store.upsert([passage("p1", 10)])
    with pytest.raises(StoreError, match="the disk is full"):
        store.upsert([passage(f"q{n}", 1) for n in range(100)])
    monkeypatch.setattr(recent, "_FULL", 1)
    with caplog.at_level(logging.WARNING):
        store._directory.recent.flush_if_due()  # type: ignore[union-attr]
    assert "the disk is full" in caplog.text
    with pytest.raises(StoreError, match="kept in its log"):
        store.close()
    store.close()
    monkeypatch.undo()
    with HybridStore(path, HashEmbedder()) as store:
        assert_holds(store, NEW | {"p1": 9})
    assert check_store(path).ok


def test_a_log_that_cannot_be_written_refuses_and_says_why(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with HybridStore(path, HashEmbedder()) as store:
        store.upsert([passage("p0", 2)])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", full)
            with pytest.raises(StoreError, match=r"No space left.*Nothing that was acknowledged"):
                store.upsert([passage("p0", 3)])
            with pytest.raises(StoreError, match="No space left"):
                store.delete(["p1"])
        assert_holds(store, OLD | {"p0": 2})
        store.upsert([passage("p1", 4)])
        leave(store)
    with HybridStore(path, HashEmbedder()) as store:
        assert_holds(store, OLD | {"p0": 2, "p1": 4})


# -- the end of the program -----------------------------------------------------------------------

NEVER_CLOSED = """
import sys, threading
from conftest import HashEmbedder
from store_child import passage
from tars_rag.retrieval.storage import recent
from tars_rag.retrieval.store import HybridStore
recent._FULL = int(sys.argv[2])
store = HybridStore(sys.argv[1], HashEmbedder())
for number in range(60):
    store.upsert([passage(f"q{number}", number)])
if sys.argv[3] == "cycle":
    class Owner: pass
    owner = Owner()
    owner.store, owner.self = store, owner
    del owner, store
print("written")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("full", "how"), [(1000, "held"), (10, "cycle")])
def test_a_program_that_never_closes_its_store_ends_and_loses_nothing(
    path: Path, full: int, how: str
) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", NEVER_CLOSED, str(path), str(full), how]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "written\n"
    assert ended.stderr == ""
    with HybridStore(path, HashEmbedder()) as store:
        assert_holds(store, OLD | {f"q{number}": number for number in range(60)})


def test_a_store_that_is_let_go_of_keeps_what_is_in_its_log(path: Path) -> None:
    store = HybridStore(path, HashEmbedder())
    write_new(store)
    before = threading.active_count()
    del store
    gc.collect()
    assert threading.active_count() < before
    with HybridStore(path, HashEmbedder()) as store:
        assert_holds(store, NEW)


def test_indexes_made_anew_are_not_older_than_the_log(path: Path) -> None:
    with HybridStore(path, HashEmbedder()) as store:
        for version in range(5):
            store.upsert([passage("p0", version)])
            store.flush()
        store.upsert([passage("p0", 9)])
        leave(store)
    for part in ("lexical", "exact"):
        shutil.rmtree(path / part)
        with HybridStore(path, HashEmbedder()) as store:
            assert_holds(store, OLD | {"p0": 9})
            leave(store)
        with HybridStore(path, HashEmbedder()) as store:
            assert_holds(store, OLD | {"p0": 9})
            leave(store)
    relex(path, "de")
    with HybridStore(path, HashEmbedder()) as store:
        assert_holds(store, OLD | {"p0": 9})
