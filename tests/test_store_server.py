"""A Chroma server that answers late, twice, not at all, or is another one."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chroma_proxy import Proxy
from conftest import HashEmbedder
from store_child import passage, word
from tars_rag.errors import ConfigError, StoreError
from tars_rag.retrieval.indexes.chroma import revisions
from tars_rag.retrieval.indexes.chroma.revisions import Revisions
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.store import HybridStore

pytestmark = [
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.enable_socket,
    pytest.mark.slow,
]


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    with Proxy(server) as proxy:
        yield proxy


def opened(path: Path, url: str) -> HybridStore:
    return HybridStore(path, HashEmbedder(), chroma_url=url)


def only(fate: str, ending: str) -> Any:
    """The fate of requests whose path ends so; the others pass."""
    return lambda _, path: fate if path.endswith(ending) else "pass"


def records(path: Path, url: str) -> list[str]:
    """The ids of all records of the store's collection, whether they count or not."""
    with opened(path, url) as store:
        found: list[str] = store._directory._indexes.vectors._collection._records()
    return found


def assert_holds(path: Path, url: str, versions: dict[str, int]) -> None:
    """What the store, opened again, and its check say."""
    with opened(path, url) as store:
        assert {p.id: p for p in store.get()} == {k: passage(k, v) for k, v in versions.items()}
        assert store.count() == len(versions)
        for key, version in versions.items():
            assert [h.id for h in store.search(word(key, version), 5, "lexical")] == [key]
    report = check_store(path)
    assert report.ok, report.problems
    assert len(records(path, url)) == len(versions)


@pytest.mark.parametrize("fate", ["late", "twice"])
def test_a_late_delete_never_hits_newer_content(proxy: Proxy, tmp_path: Path, fate: str) -> None:
    with opened(tmp_path / "store", proxy.url) as store:
        store.upsert([passage("x", 1), passage("y", 1)])
        proxy.fate = only(fate, "/delete")
        store.upsert([passage("x", 2)])
        store.delete(["y"])
        proxy.fate = only("pass", "")
        store.upsert([passage("x", 3), passage("y", 3)])
        proxy.settle()
        assert {p.id: p for p in store.get()} == {k: passage(k, 3) for k in "xy"}
        assert store.get(["x"], where={"only0": True}) == [passage("x", 3)]
    assert_holds(tmp_path / "store", proxy.url, {"x": 3, "y": 3})


@pytest.mark.parametrize("fate", ["late", "twice"])
def test_a_late_write_brings_nothing_back(proxy: Proxy, tmp_path: Path, fate: str) -> None:
    with opened(tmp_path / "store", proxy.url) as store:
        store.upsert([passage("x", 1), passage("y", 1)])
        proxy.fate = only(fate, "/add")
        for key in "xy":
            if fate == "late":
                with pytest.raises(StoreError, match=rf"{proxy.url}.*cannot be reached"):
                    store.upsert([passage(key, 2)])
            else:
                store.upsert([passage(key, 2)])
        proxy.fate = only("pass", "")
        store.upsert([passage("x", 3)])
        store.delete(["y"])
        proxy.settle()
        assert store.get() == [passage("x", 3)]
        assert store.get(where={"only2": True}) == []  # what version 2 has
        assert store.get(where={"only0": True}, limit=1) == [passage("x", 3)]
        assert store.search("filler", 5, where={"only2": True}) == []
        assert store.count() == 1
    assert_holds(tmp_path / "store", proxy.url, {"x": 3})


def test_a_lost_connection_is_tried_again(proxy: Proxy, tmp_path: Path) -> None:
    with opened(tmp_path / "store", proxy.url) as store:
        fates = iter(["drop", "pass", "cut", "pass", "half", "pass"])
        proxy.fate = lambda _, path: next(fates) if path.endswith("/add") else "pass"
        for version in range(3):
            store.upsert([passage("x", version)])
        assert store.get() == [passage("x", 2)]
    assert_holds(tmp_path / "store", proxy.url, {"x": 2})


@pytest.mark.parametrize("fate", ["stall", "trickle"])
def test_a_stalled_server_holds_nobody_up(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    monkeypatch.setenv("TARS_CHROMA_TIMEOUT", "0.5")
    path = tmp_path / "store"
    told = rf"{proxy.url}.*within 0.5 s.*TARS_CHROMA_TIMEOUT"
    with opened(path, proxy.url) as store:
        store.upsert([passage("x", 1)])
        proxy.fate = lambda *_: fate
        for attempt in (
            lambda: store.upsert([passage("x", 2)]),
            lambda: store.get(["x"]),
            lambda: store.search("filler", where={"only1": True}),
            lambda: opened(path, proxy.url),
            lambda: opened(tmp_path / "another", proxy.url),
        ):
            began = time.monotonic()
            with pytest.raises(StoreError, match=told):
                attempt()
            assert time.monotonic() - began < 3
        began = time.monotonic()
    assert time.monotonic() - began < 1  # close
    proxy.fate = only("pass", "")
    with opened(path, proxy.url) as store:
        assert store.get(["x"])[0].metadata["version"] in (1, 2)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_a_timeout_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TARS_CHROMA_TIMEOUT", value)
    with pytest.raises(ConfigError, match=f"TARS_CHROMA_TIMEOUT={value}"):
        opened(tmp_path / "store", "http://127.0.0.1:9")


def test_another_server_is_called_that(proxy: Proxy, tmp_path: Path) -> None:
    with opened(tmp_path / "store", proxy.url) as store:
        store.upsert([passage("x", 1)])
        chroma = store._directory._indexes.vectors
        chroma.drop(chroma.name)
    with pytest.raises(ConfigError, match=rf"{proxy.url} has no collection .*another data dir"):
        opened(tmp_path / "store", proxy.url)


def test_what_the_server_lost_is_named_and_not_left_out(proxy: Proxy, tmp_path: Path) -> None:
    with opened(tmp_path / "store", proxy.url) as store:
        store.upsert([passage("x", 1), passage("y", 1)])
        collection = store._directory._indexes.vectors._collection
        collection._ask("delete", ids=collection._revisions.record_ids(["x"]))
        with pytest.raises(StoreError, match=r"lost 1 of the store's passages .'x'.*store check"):
            store.get()
        assert store.get(["y"]) == [passage("y", 1)]
    assert not check_store(tmp_path / "store").ok
    assert check_store(tmp_path / "store", repair=True).ok
    assert_holds(tmp_path / "store", proxy.url, {"x": 1, "y": 1})


@pytest.mark.parametrize("lost", [False, True])
def test_a_collection_without_revisions_is_taken_over(
    server: str, tmp_path: Path, lost: bool
) -> None:
    """One that an earlier version wrote, and one of which the file was lost."""
    path = tmp_path / "store"
    with opened(path, server) as store:
        store.upsert([passage(f"p{n}", 1) for n in range(5)])
        collection = store._directory._indexes.vectors._collection
        keys = collection._revisions.page(0, None)
        ids = collection._revisions.record_ids(keys)
        if not lost:
            held = collection._ask("get", ids=ids, include=["metadatas", "embeddings"])
            collection._ask("delete", ids=ids)
            plain = [key.partition("\x1e")[0] for key in held["ids"]]
            collection._ask(
                "add", ids=plain, metadatas=held["metadatas"], embeddings=held["embeddings"]
            )
        file = collection._revisions.path
    file.unlink()
    with pytest.raises(StoreError, match="Open the store once for writing"):
        HybridStore(path, HashEmbedder(), chroma_url=server, read_only=True)
    with opened(path, server) as store:
        store.upsert([passage("p1", 2)])
        store.delete(["p2"])
        with HybridStore(path, HashEmbedder(), chroma_url=server, read_only=True) as reader:
            assert reader.count() == 4
    assert_holds(path, server, {"p0": 1, "p1": 2, "p3": 1, "p4": 1})


def test_the_file_of_revisions_is_read_on_cut_back_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revisions, "_SPARE", 20)
    path = tmp_path / "revisions" / "passages"
    writer = Revisions.create(path, {"a": "", "b": "1"})
    reader = Revisions(path)
    writer.commit({"b": None, "c": "2"})
    reader.refresh()
    assert reader.page(0, None) == ["a", "c"]
    whole = path.read_bytes()
    path.write_bytes(whole + b'12345678 {"d": "3"}')  # its writer was killed
    reader.refresh()
    assert reader.page(0, None) == ["a", "c"]
    reader.commit({"e": "4"})
    assert Revisions(path).page(0, None) == ["a", "c", "e"]
    assert path.read_bytes().startswith(whole)
    for number in range(200):
        reader.commit({"f": str(number)})
    assert path.stat().st_size < 1500
    writer.refresh()
    assert writer.record_ids(["a", "f"]) == reader.record_ids(["a", "f"])
    path.write_bytes(whole.replace(b'"b":"1"', b'"b":"7"'))
    with pytest.raises(StoreError, match="damaged"):
        Revisions(path)


@pytest.mark.crash
@pytest.mark.timeout(3600)
def test_nothing_is_lost_behind_a_proxy_that_does_what_it_likes(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TARS_RAG_PROXY_SECONDS of writes by two openings of one store, and every read compared."""
    monkeypatch.setenv("TARS_CHROMA_TIMEOUT", "1")
    seconds = float(os.environ.get("TARS_RAG_PROXY_SECONDS", "20"))
    rng = random.Random(int(os.environ.get("TARS_RAG_SEED", "1")))
    path = tmp_path / "store"
    known: dict[str, int] = {}
    unsure: dict[str, set[int | None]] = {}  # of writes that failed: any of these versions
    done = {"written": 0, "failed": 0, "read": 0}

    def write(store: HybridStore, versions: dict[str, int | None]) -> None:
        for key, version in versions.items():
            unsure.setdefault(key, {known.get(key)}).add(version)
        try:
            wanted = [passage(key, version) for key, version in versions.items() if version]
            if wanted:
                store.upsert(wanted)
            else:
                store.delete(list(versions))
        except StoreError:
            done["failed"] += 1
            return
        done["written"] += 1
        for key, version in versions.items():
            unsure.pop(key)
            known.pop(key, None)
            if version:
                known[key] = version

    def read(store: HybridStore) -> None:
        kind = rng.randrange(3)
        where = {f"only{kind}": True}
        try:
            everything = {p.id: p for p in store.get()}
            filtered = {p.id for p in store.get(where=where)}
            hits = {h.id: h.passage for h in store.search("filler words", 100, "lexical")}
        except StoreError:
            return
        done["read"] += 1
        for key in known.keys() | unsure.keys() | everything.keys():
            found = everything.get(key)
            version = found.metadata["version"] if found else None
            allowed = unsure.pop(key, {known.get(key)})  # a read settles what is so
            assert version in allowed, f"{key}: {version} is none of {allowed}"
            assert found is None or found == passage(key, version)
            known.pop(key, None)
            if version is not None:
                known[key] = version
        assert hits == everything
        assert filtered == {k for k, p in everything.items() if f"only{kind}" in p.metadata}

    with Proxy(server, delay=3, seed=1) as proxy:
        with opened(path, proxy.url) as one, opened(path, proxy.url) as other:
            fates = ["pass"] * 20 + ["late", "late", "twice", "cut", "drop", "slow", "half"]
            proxy.fate = lambda *_: rng.choice(fates)
            until, version = time.monotonic() + seconds, 0
            while time.monotonic() < until:
                store, version = rng.choice([one, other]), version + 1
                keys = rng.sample([f"p{n}" for n in range(30)], rng.randint(1, 6))
                deletes = rng.random() < 0.3
                write(store, dict.fromkeys(keys, None if deletes else version))
                if rng.random() < 0.5:
                    read(rng.choice([one, other]))
            proxy.fate = lambda *_: "pass"
            proxy.settle()
            read(one)
        print(done, dict(proxy.seen))
        assert min(done.values()) > 1
        assert_holds(path, proxy.url, known)
