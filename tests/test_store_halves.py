"""Halves of different moments are told apart, and made to agree without a loss that is not told."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import HashEmbedder
from store_child import passage
from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.chroma import vectors as vectors_module
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.storage.state import Mark, Moment, State
from tars_rag.retrieval.store import HybridStore

COUNT = 20
HALVES = ("chroma", "exact", "lexical")


class Refusing(HashEmbedder):
    """Embeds queries only."""

    def embed(self, texts: object) -> np.ndarray:
        msg = f"embedded {texts}"
        raise AssertionError(msg)


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`store`, and `older`: the same before five were replaced, two deleted and two added."""
    base = tmp_path_factory.mktemp("moments")
    with HybridStore(base / "store", HashEmbedder()) as store:
        store.upsert([passage(f"p{n}", 1) for n in range(COUNT)])
    shutil.copytree(base / "store", base / "older")
    with HybridStore(base / "store", HashEmbedder()) as store:
        store.upsert([passage(f"p{n}", 2) for n in range(5)])
        store.delete(["p18", "p19"])
        store.upsert([passage("p20", 1), passage("p21", 1)])
    return base


OLD = {f"p{n}": passage(f"p{n}", 1) for n in range(COUNT)}
NEW = {f"p{n}": passage(f"p{n}", 2 if n < 5 else 1) for n in [*range(18), 20, 21]}


def assembled(moments: Path, target: Path, older: str, *, in_place: bool = False) -> Path:
    """The store as it is now, with one half of before."""
    shutil.copytree(moments / "store", target)
    if in_place:  # the directories keep their inodes, and so does what they are compared with
        HybridStore(target, HashEmbedder()).close()
        for file in (target / older).rglob("*"):
            if file.is_file() and file.name != "chroma.sqlite3":
                file.unlink()
        for file in (moments / "older" / older).rglob("*"):
            if file.is_file():
                (target / older / file.relative_to(moments / "older" / older)).write_bytes(
                    file.read_bytes()
                )
    else:
        shutil.rmtree(target / older)
        shutil.copytree(moments / "older" / older, target / older)
        if older == "chroma":
            shutil.copy(moments / "older" / "seal.json", target / "seal.json")
    return target


def assert_holds(path: Path, expected: dict[str, Passage], embedder: HashEmbedder) -> None:
    with HybridStore(path, embedder) as store:
        assert {p.id: p for p in store.get()} == expected
        for p in expected.values():
            vector = HashEmbedder().embed_query(p.text)
            assert store.search(None, 1, "naive", vector=vector)[0].passage == p
            assert store.search(p.text.split()[0], 5, "lexical")[0].passage == p
    report = check_store(path)
    assert report.ok, report.problems
    assert not report.notes


@pytest.mark.parametrize("in_place", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("older", HALVES)
def test_an_older_half_of_the_same_number_is_brought_up_to_date(
    moments: Path, tmp_path: Path, older: str, in_place: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = assembled(moments, tmp_path / "store", older, in_place=in_place)
    report = check_store(path)
    assert not report.ok
    assert "disagree about" in report.problems[0]
    assert "'p0'" in report.problems[0]
    with pytest.raises(StoreError, match="--repair"):
        HybridStore(path, HashEmbedder(), read_only=True)
    with caplog.at_level(logging.WARNING):
        assert_holds(path, NEW, Refusing())
    assert "'p18'" in caplog.text
    assert "'p0'" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("older", HALVES)
def test_check_repairs_an_older_half_and_says_what_was_done(
    moments: Path, tmp_path: Path, older: str
) -> None:
    path = assembled(moments, tmp_path / "store", older)
    report = check_store(path, repair=True)
    assert report.ok, report.problems
    assert "'p0'" in report.repaired[0]
    assert_holds(path, NEW, Refusing())


@pytest.mark.slow
@pytest.mark.parametrize("newer", HALVES)
def test_a_newer_half_is_right(moments: Path, tmp_path: Path, newer: str) -> None:
    """All but one half is of before, and so is what the store says of itself."""
    path = tmp_path / "store"
    shutil.copytree(moments / "older", path)
    shutil.rmtree(path / newer)
    shutil.copytree(moments / "store" / newer, path / newer)
    if newer == "chroma":
        shutil.copy(moments / "store" / "seal.json", path / "seal.json")
    with HybridStore(path, HashEmbedder()) as store:
        held = {p.id: p for p in store.get()}
    assert check_store(path).ok
    # Its session is not in the line of the older state.json: nothing is taken away.
    assert held.keys() >= OLD.keys() - {"p18", "p19"}
    if newer != "exact":  # vectors alone are no passages
        assert held.keys() >= NEW.keys()


@pytest.mark.slow
def test_a_copy_is_opened_by_whoever_reads_it_only(moments: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(moments / "store", path)
    with HybridStore(path, HashEmbedder(), read_only=True) as store:
        assert {p.id: p for p in store.get()} == NEW
    assert check_store(path).ok
    assert "a copy?" in check_store(path).notes[0]
    assert_holds(path, NEW, Refusing())


@pytest.mark.slow
def test_halves_of_two_copies_that_went_on_apart_lose_nothing(
    moments: Path, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path, name in ((one, "a"), (other, "b")):
        shutil.copytree(moments / "store", path)
        with HybridStore(path, HashEmbedder()) as store:
            store.upsert([Passage("same", f"a text of its own {name}"), passage(name, 1)])
    shutil.rmtree(one / "lexical")
    shutil.copytree(other / "lexical", one / "lexical")
    both = NEW | {"same": Passage("same", "a text of its own a")}
    assert_holds(one, both | {name: passage(name, 1) for name in "ab"}, HashEmbedder())


@pytest.mark.slow
def test_without_the_embedder_what_cannot_be_made_is_an_error_that_names_the_command(
    moments: Path, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    shutil.copytree(moments / "older", path)
    shutil.rmtree(path / "lexical")
    shutil.copytree(moments / "store" / "lexical", path / "lexical")
    before = {f: f.read_bytes() for f in (path / "exact").rglob("*.log")}
    report = check_store(path, repair=True)
    assert not report.ok
    assert "2 of its passages" in report.problems[-1]
    assert "tars-rag store reembed" in report.problems[-1]
    assert {f: f.read_bytes() for f in (path / "exact").rglob("*.log")} == before


@pytest.mark.slow
def test_mending_that_was_cut_short_goes_on_with_the_same_decisions(
    moments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = assembled(moments, tmp_path / "store", "chroma")
    with monkeypatch.context() as patch:
        patch.setattr("tars_rag.retrieval.storage.halves.reconcile", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            HybridStore(path, HashEmbedder())
    assert json.loads((path / "state.json").read_bytes())["mending"] == "words"
    assert_holds(path, NEW, HashEmbedder())


@pytest.mark.slow
def test_a_store_of_before_there_were_states_opens_whole(moments: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(moments / "store", path)
    with HybridStore(path, HashEmbedder()) as store:
        indexes = store._directory._indexes
        indexes.exact.commit(indexes.store_json.collection)  # as it was
    (path / "state.json").unlink()
    (path / "lexical" / "session").unlink()
    with HybridStore(path, HashEmbedder(), read_only=True) as store:
        assert store.count() == len(NEW)
    assert_holds(path, NEW, Refusing())


@pytest.mark.slow
@pytest.mark.parametrize("hurt", ["", *HALVES])
@pytest.mark.parametrize("newer", ["", "lexical", "chroma"])
def test_a_log_that_is_newer_than_the_indexes_is_no_whole_store(
    tmp_path: Path, newer: str, hurt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied last: by then the indexes had what it held when the copying began.

    An index that was damaged on the way is made anew, and is no newer for that.
    """
    monkeypatch.setitem(vectors_module._HNSW, "sync_threshold", 10)
    path, copy = tmp_path / "store", tmp_path / "copy"
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert([passage(f"p{n}", 1) for n in range(COUNT)])
        store.flush()
        store.upsert([passage("small", 1), passage("p0", 2)])
        store.delete(["p1"])
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns("write-ahead.log", "*.sock"))
        store.flush()
        shutil.copy(path / "write-ahead.log", copy)
        if newer:
            shutil.rmtree(copy / newer)
            shutil.copytree(path / newer, copy / newer)
            shutil.copy(path / "seal.json", copy)
    damage(copy, hurt)
    old = {f"p{n}": passage(f"p{n}", 1) for n in range(COUNT)}
    new = {**old, "small": passage("small", 1), "p0": passage("p0", 2)}
    del new["p1"]
    if (newer and newer != hurt) or (newer, hurt) == ("chroma", "chroma"):  # its texts are whole
        assert_holds(copy, new, HashEmbedder())
        return
    for _ in range(2):
        with pytest.raises(StoreError, match="newer than its indexes"):
            HybridStore(copy, HashEmbedder())
    report = check_store(copy)
    assert any("newer than its indexes" in problem for problem in report.problems)
    assert check_store(copy, repair=True).ok
    assert_holds(copy, old, HashEmbedder())


def damage(path: Path, half: str) -> None:
    """As a copy does it that took a file in the middle of a write."""
    patterns = {"": [], "chroma": ["*/length.bin"], "exact": ["*.log"], "lexical": ["*.store"]}
    for pattern in patterns[half]:
        files = list((path / half).rglob(pattern))
        assert files
        for file in files:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)


def test_moments_are_ordered_by_session_and_then_by_number() -> None:
    state = State(line=("new", "old"))
    assert state.order(Moment("old", 9), Moment("new", 3)) == -1
    assert state.order(Moment("new", 3), Moment("old", 9)) == 1
    assert state.order(Moment("new", 3), Moment("new", 4)) == -1
    assert state.order(Moment("new", 3), Moment("new", 3)) == 0
    assert state.order(Moment("other", 3), Moment("new", 3)) is None
    assert state.order(Moment(), Moment()) is None


@pytest.mark.parametrize("stamp", ["passages", "passages 0a1b 5 7", "passages-0f 0a1b -1 7"])
def test_stamps_are_read_as_they_were_written(stamp: str) -> None:
    assert Mark.of(stamp).stamp == stamp
