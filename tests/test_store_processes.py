"""Other processes, and threads at the edges: locks, forks, closing, a Chroma server."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

import store_child
from conftest import HashEmbedder
from store_child import passage, word
from tars_rag.errors import FingerprintError, StoreError, StoreLockedError
from tars_rag.retrieval.maintenance import reembed
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.storage.readers_writer import ReadWriteLock
from tars_rag.retrieval.store import HybridStore


def test_the_lock_lets_writers_and_readers_through_in_order() -> None:
    lock = ReadWriteLock(2)
    order: list[str] = []
    gate = threading.Event()

    def reader(name: str) -> None:
        with lock.read():
            order.append(name)

    def writer(name: str) -> None:
        with lock.write():
            order.append(name)

    def hold() -> None:
        with lock.write():
            gate.wait()

    threads = [threading.Thread(target=hold)]
    threads[0].start()
    for number, target in enumerate([reader, writer, reader, writer, reader]):
        threads.append(threading.Thread(target=target, args=(str(number),)))
        threads[-1].start()
        while len(lock._queue) <= number:
            time.sleep(0.001)
    gate.set()
    for thread in threads:
        thread.join(5)
    assert order == ["0", "1", "2", "3", "4"]


def test_a_writer_is_not_starved_and_never_beside_a_reader() -> None:
    lock = ReadWriteLock(4)
    inside = [0, 0]
    seen: list[tuple[int, int]] = []
    until = time.monotonic() + 0.5
    wrote = 0

    def reader() -> None:
        while time.monotonic() < until:
            with lock.read():
                inside[0] += 1
                seen.append((inside[0], inside[1]))
                time.sleep(0)
                inside[0] -= 1

    threads = [threading.Thread(target=reader) for _ in range(8)]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        with lock.write():
            inside[1] += 1
            seen.append((inside[0], inside[1]))
            inside[1] -= 1
            wrote += 1
    for thread in threads:
        thread.join()
    assert wrote > 20
    assert max(readers for readers, _ in seen) <= 4
    assert not [pair for pair in seen if pair[0] and pair[1]]


def test_closing_waits_for_what_runs(tmp_path: Path) -> None:
    store = HybridStore(tmp_path / "store", HashEmbedder())
    store.upsert([passage(f"p{n}", 1) for n in range(50)])
    errors: list[str] = []

    def search() -> None:
        try:
            while True:
                assert len(store.search("filler", 50)) == 50
        except StoreError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    store.close()
    store.close()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 4
    assert [error for error in errors if "is closed" not in error] == []


def test_a_store_does_not_survive_a_fork_and_says_so(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                store.count()
            except StoreError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        with os.fdopen(read) as stream:
            assert "spawn" in stream.read()
        assert store.count() == 0


# -- other processes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_readers_in_other_processes_share_and_make_way_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert([passage("a", 1)])
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    children = [
        context.Process(target=store_child.open_and_report, args=(path, theirs, True))
        for _, theirs in pipes
    ]
    for child in children:
        child.start()
    try:
        assert [ours.recv() for ours, _ in pipes] == [("open", 1)] * 2
        with pytest.raises(StoreLockedError, match=r"being read .*chroma_url"):
            HybridStore(path, HashEmbedder(), share=False)
        with HybridStore(path, HashEmbedder(), read_only=True) as reader:
            assert reader.search("filler", 1)[0].id == "a"
        with HybridStore(path, HashEmbedder()) as writer:
            writer.upsert([passage("b", 1)])
            assert writer.count() == 2
    finally:
        for ours, _ in pipes:
            ours.send("go")
        for child in children:
            child.join(10)
    HybridStore(path, HashEmbedder()).close()


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.enable_socket
def test_with_a_server_several_processes_write_one_store(server: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with HybridStore(path, HashEmbedder(), chroma_url=server) as store:
        context = multiprocessing.get_context("spawn")
        children = [
            context.Process(target=store_child.write_some, args=(path, server, name))
            for name in ("x", "y")
        ]
        for child in children:
            child.start()
        for number in range(10):
            store.upsert([passage(f"here{number}", 1), passage("common", number)])
            store.search("filler", 5)
        for child in children:
            child.join(60)
            assert child.exitcode == 0
        assert store.count() == 10 + 2 * 10 + 1
        for key in ("here9", "x9", "y9"):
            assert [hit.id for hit in store.search(word(key, 1), 5, "lexical")] == [key]
            assert store.search(passage(key, 1).text, 1, "naive")[0].id == key
        common = store.get(["common"])[0]
        assert [h.passage for h in store.search(common.text.split()[0], 5, "lexical")] == [common]
        assert store.delete(where={"version": 1}) >= 30
        assert store.search("here9", 50, "lexical") == []
    report = check_store(path)
    assert report.ok, report.problems


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.enable_socket
def test_with_a_server_a_killed_writer_is_mended_by_the_others(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    with (
        HybridStore(path, HashEmbedder(), chroma_url=server) as victim,
        HybridStore(path, HashEmbedder(), chroma_url=server) as other,
    ):
        victim.upsert([passage("a", 1)])
        monkeypatch.setattr(victim._directory._indexes.lexical, "apply", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            victim.upsert([passage("a", 2), passage("b", 2)])
        assert [hit.id for hit in other.search(word("b", 2), 5, "lexical")] == ["b"]
        assert other.search(word("a", 1), 5, "lexical") == []
        assert not (path / "journal").exists()


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.enable_socket
def test_with_a_server_a_change_of_embedder_is_seen_by_the_others(
    server: str, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    with HybridStore(path, HashEmbedder(), chroma_url=server) as store:
        store.upsert([passage("a", 1)])
        assert reembed(path, HashEmbedder(48, "other")) == 1
        with pytest.raises(FingerprintError, match="other:48"):
            store.search("filler")
    with HybridStore(path, HashEmbedder(48, "other"), chroma_url=server) as store:
        assert store.search("filler")[0].id == "a"
