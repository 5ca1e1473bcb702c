"""A disk that is full to its last byte: reading goes on, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from conftest import HashEmbedder
from store_child import word
from tars_rag.errors import StoreError
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage import texts
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.storage.texts import WordTexts
from tars_rag.retrieval.store import HybridStore

SIZES = int(os.environ.get("TARS_RAG_DISK_SIZES", "3"))


def passage(key: str, version: int) -> Passage:
    text = f"{word(key, version)} filler words {'and more ' * 100}"
    return Passage(key, text, {"version": version, f"only{version % 3}": True})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, where root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes the last byte."""
    with (disk / "filler").open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"x" * 4096)
    return disk / "filler"


def assert_reads(
    store: HybridStore, known: dict[str, int], flight: Mapping[str, int | None]
) -> None:
    """Every way of reading answers, and with what was acknowledged or was being written."""
    held = {p.id: p for p in store.get()}
    for key in known.keys() | held.keys():
        version = held[key].metadata["version"] if key in held else None
        assert version in (known.get(key), flight.get(key, known.get(key))), key
        assert key not in held or held[key] == passage(key, int(held[key].metadata["version"]))
    assert store.count() == len(held)
    some = list(known)[:5]
    assert store.get(some) == [held[key] for key in some]
    for kind in range(3):
        where = {f"only{kind}": True}
        wanted = {key for key, p in held.items() if f"only{kind}" in p.metadata}
        assert {p.id for p in store.get(where=where)} == wanted
        hits = store.search("filler words", 1000, "hybrid", where)
        assert {hit.id for hit in hits} <= wanted
    for hit in store.search("filler words", 1000):
        assert hit.passage == held[hit.id]
    for key in some:
        version = int(held[key].metadata["version"])
        assert [h.id for h in store.search(word(key, version), 3, "lexical")] == [key]
    assert set(store.vectors(some)) == set(some)


def write_until_full(
    store: HybridStore, known: dict[str, int], rng: random.Random
) -> dict[str, int | None]:
    """What the write was to make that failed; `known` is what the others made."""
    version = 0
    while True:
        version += 1
        keys = {f"p{rng.randrange(300)}" for _ in range(rng.randint(1, 100))}
        deletes = rng.random() < 0.1
        try:
            if deletes:
                store.delete(keys)
            else:
                store.upsert([passage(key, version) for key in keys])
        except StoreError as error:
            if f"{store.path} failed: the disk is full" not in str(error):
                raise
            return dict.fromkeys(keys, None if deletes else version)
        for key in keys:
            known.pop(key, None)
            if not deletes:
                known[key] = version


@pytest.mark.crash
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(SIZES))
def test_a_full_disk_keeps_nobody_from_reading(disk: Path, number: int) -> None:
    """TARS_RAG_DISK_SIZES sizes; at each it is written until it is full, read, and given room."""
    rng = random.Random(number)
    known: dict[str, int] = {}
    with HybridStore(disk / "store", HashEmbedder()) as store:
        used = shutil.disk_usage(disk).used
        resize(disk, used + rng.randrange(300_000, 6_000_000))
        flight = write_until_full(store, known, rng)
        filler = fill(disk)
        for _ in range(3):
            assert_reads(store, known, flight)
        with pytest.raises(StoreError, match=rf"disk is full.*df {disk}"):
            store.upsert([passage(f"new{n}", 1) for n in range(200)])
        flight |= {f"new{n}": 1 for n in range(200)}
        assert_reads(store, known, flight)
        began = time.monotonic()
        store.search("filler")
        assert time.monotonic() - began < 1, "what cannot be mended is not tried at every read"
        filler.unlink()
        resize(disk, 64 << 20)
        assert_reads(store, known, flight)
        store.upsert([passage("after", 1)])
        known["after"] = 1
        assert_reads(store, known, flight)
    report = check_store(disk / "store")
    assert report.ok, report.problems
    with HybridStore(disk / "store", HashEmbedder()) as store:
        assert_reads(store, known, flight)


def test_the_word_index_answers_as_chroma_does(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([passage(f"p{n}", n) for n in range(30)])
        indexes = store._directory._indexes
        words = WordTexts(indexes.exact, indexes.lexical)
        chroma = indexes.vectors
        for where in (
            None,
            {"only1": True},
            {"version": {"$gte": 7}},
            {"version": {"$in": [3, 5]}},
        ):
            assert words.get(None, where) == chroma.get(None, where)
            assert words.get(["p3", "p8", "no"], where) == chroma.get(["p3", "p8", "no"], where)
            assert set(words.matching(None, where)) == set(chroma.matching(None, where))
        assert len(words.get(None, None, 7)) == 7
        assert words.count() == chroma.count() == 30


@pytest.mark.slow
def test_mending_that_fails_is_not_tried_before_every_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as above, on a disk that only says that it is full."""
    known = {f"p{n}": 1 for n in range(30)}
    flight = {"p1": 2, **{f"n{n}": 2 for n in range(70)}}  # too many for the log
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([passage(*item) for item in known.items()])
        store.flush()
        with monkeypatch.context() as patched:
            patched.setattr(store._directory._indexes.lexical, "apply", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                store.upsert([passage(*item) for item in flight.items()])
        with monkeypatch.context() as patched:
            tries: list[int] = []

            def fails(*_: object) -> None:
                tries.append(1)
                raise StoreError("no room")

            patched.setattr(store._directory._recovery, "recover", fails)
            patched.setattr(texts, "writing_problem", lambda *_: "the disk is full")
            assert_reads(store, known, flight)
            assert len(tries) <= 3
            with pytest.raises(
                StoreError, match=r"Writing to the store .* failed: the disk is full"
            ):
                store.upsert([passage(f"m{n}", 1) for n in range(70)])
            assert_reads(store, known, flight)
        store.upsert([passage("p2", 3)])
        store.flush()  # or it would be mended at some moment between two reads
        assert_reads(store, known | {"p2": 3}, flight)
    assert check_store(tmp_path / "store").ok
