"""Files lost, cut, altered, full or read-only: repaired, or an error that says what to do."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import store_child
from conftest import HashEmbedder
from store_child import passage, word
from tars_rag import Passage
from tars_rag.errors import FingerprintError, StoreError
from tars_rag.retrieval.indexes.chroma import vectors as vectors_module
from tars_rag.retrieval.indexes.exact.index import ExactIndex
from tars_rag.retrieval.indexes.words import files as tantivy_files
from tars_rag.retrieval.maintenance import reembed
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.storage.directory import StoreDirectory
from tars_rag.retrieval.storage.journal import Journal
from tars_rag.retrieval.store import HybridStore

COUNT = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store of 60 passages whose vectors Chroma has saved to files."""
    path = tmp_path_factory.mktemp("made") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vectors_module._HNSW, "sync_threshold", 10)
        with HybridStore(path, HashEmbedder()) as store:
            store.upsert([passage(f"p{n}", 1) for n in range(COUNT)])
            store.upsert([passage(f"p{n}", 2) for n in range(5)])
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "store")


def assert_whole(path: Path) -> None:
    """Everything is found, by id, by word and by vector, and the check is content."""
    embedder = HashEmbedder()
    with HybridStore(path, embedder) as store:
        expected = {f"p{n}": passage(f"p{n}", 2 if n < 5 else 1) for n in range(COUNT)}
        assert {p.id: p for p in store.get()} == expected
        for p in expected.values():
            version = p.metadata["version"]
            assert [h.passage for h in store.search(word(p.id, version), 5, "lexical")] == [p]
            vector = embedder.embed_query(p.text)
            assert store.search(None, 1, "naive", vector=vector)[0].passage == p
        assert store.search(word("p1", 1), 5, "lexical") == []
    report = check_store(path)
    assert report.ok, report.problems
    assert (report.passages, report.lexical_passages) == (COUNT, COUNT)


def test_a_sound_store_is_found_sound(path: Path) -> None:
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    report = check_store(path)
    assert report.ok
    assert report.fingerprint == HashEmbedder().fingerprint
    assert report.dimension == 32
    assert_whole(path)
    del before


# -- the lexical index --------------------------------------------------------------------------


def flip(file: Path, where: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(where * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


def cut(file: Path, share: float) -> None:
    os.truncate(file, int(share * file.stat().st_size))


def lexical_files(path: Path, pattern: str) -> list[Path]:
    files = sorted((path / "lexical").glob(pattern))
    assert files, pattern
    return files


SEGMENT_FILES = ["*.idx", "*.term", "*.store", "*.fieldnorm", "*.pos", "*.fast", "*.del"]


@pytest.mark.parametrize("pattern", [*SEGMENT_FILES, "meta.json"])
@pytest.mark.parametrize("harm", ["cut", "emptied", "flipped first", "flipped middle", "gone"])
def test_a_damaged_lexical_file_is_seen_and_mended(path: Path, pattern: str, harm: str) -> None:
    for file in lexical_files(path, pattern):
        match harm:
            case "cut":
                cut(file, 0.5)
            case "emptied":
                cut(file, 0)
            case "flipped first":
                flip(file, 0)
            case "flipped middle":
                flip(file, 0.5)
            case "gone":
                file.unlink()
    if not check_store(path).ok:
        with pytest.raises(StoreError, match="--repair"):
            HybridStore(path, HashEmbedder(), read_only=True)
    else:
        assert pattern == "meta.json"  # a flipped bit in a part of it that nothing depends on
    assert_whole(path)


@pytest.mark.slow
def test_every_flipped_bit_of_a_segment_is_seen(path: Path) -> None:
    file = max(lexical_files(path, "*.idx"), key=lambda file: file.stat().st_size)
    whole = file.read_bytes()
    for where in range(0, len(whole), max(1, len(whole) // 40)):
        data = bytearray(whole)
        data[where] ^= 1 << where % 8
        file.write_bytes(data)
        assert not check_store(path).ok, f"byte {where} of {len(whole)}"


def test_every_altered_letter_of_a_footer_is_seen(path: Path) -> None:
    """No checksum covers a footer, and tantivy 0.26 reads only parts of it."""
    file = lexical_files(path, "*.pos")[0]
    whole = file.read_bytes()
    start = whole.index(b'{"version"')
    letters = [start + n for n, byte in enumerate(whole[start:-8]) if not chr(byte).isdigit()]
    for where in letters:
        data = bytearray(whole)
        data[where] ^= 0x10
        file.write_bytes(data)
        assert tantivy_files.damage(path / "lexical"), f"byte {where} of {len(whole)}"
    file.write_bytes(whole)
    assert tantivy_files.damage(path / "lexical") is None


@pytest.mark.parametrize("what", ["lexical", "lexical/*"])
def test_a_lost_lexical_index_is_made_anew_with_progress(path: Path, what: str) -> None:
    for lost in path.glob(what):
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    told: list[tuple[int, int | None]] = []
    HybridStore(path, HashEmbedder(), progress=lambda *n: told.append(n)).close()
    assert told[-1] == (COUNT, COUNT)
    assert_whole(path)


def test_an_older_copy_of_the_lexical_index_is_noticed(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path / "lexical", tmp_path / "older")
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert([passage("new", 1)])
    shutil.rmtree(path / "lexical")
    shutil.copytree(tmp_path / "older", path / "lexical")
    with HybridStore(path, HashEmbedder()) as store:
        assert [hit.id for hit in store.search(word("new", 1), 5, "lexical")] == ["new"]
        store.delete(["new"])
    assert_whole(path)


def test_check_finds_what_counting_cannot_and_repairs_it(path: Path) -> None:
    with HybridStore(path, HashEmbedder()) as store:
        store._directory._indexes.lexical.apply(["p7"], [Passage("stranger", "of the same number")])
    report = check_store(path)
    assert "2 passages" in report.problems[0]
    assert "'p7'" in report.problems[0]
    assert "'stranger'" in report.problems[0]
    refused = check_store(path, repair=True)  # the stranger has no vector
    assert not refused.ok
    assert "tars-rag store reembed" in refused.problems[-1]
    with HybridStore(path, HashEmbedder()) as store:  # the word index was written last
        assert store.get(["p7", "stranger"]) == [Passage("stranger", "of the same number")]
        assert store.search("same number", 1, "naive")[0].id == "stranger"
    assert check_store(path).ok


def test_check_repairs_the_vectors_that_differ(path: Path) -> None:
    with HybridStore(path, HashEmbedder()) as store:
        exact = store._directory._indexes.exact
        exact.add(["p7"], exact.vectors(["p8"])["p8"][None])
        exact.commit()
    report = check_store(path)
    assert "1 passages" in report.problems[0]
    mended = check_store(path, repair=True)
    assert mended.ok, mended.problems
    assert mended.repaired == report.problems
    assert_whole(path)


# -- the journal --------------------------------------------------------------------------------


def crash_between_the_indexes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill after Chroma's commit and before tantivy's, for the passages p10 to p19."""
    store = HybridStore(path, HashEmbedder())
    monkeypatch.setattr(store._directory._indexes.lexical, "apply", lambda *_: 1 / 0)
    same = [passage(f"p{n}", 1) for n in range(10, 20)]
    with pytest.raises(ZeroDivisionError), store._directory.writing() as indexes:
        indexes.upsert(same, HashEmbedder().embed([p.text for p in same]))
    monkeypatch.setattr(store._directory._recovery, "recover", lambda _: None)
    store.close()


def test_an_interrupted_write_is_finished_at_the_next_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_between_the_indexes(path, monkeypatch)
    assert (path / "journal").exists()
    assert "10 ids" in check_store(path).problems[0]
    with pytest.raises(StoreError, match="--repair"):
        HybridStore(path, HashEmbedder(), read_only=True)
    assert_whole(path)
    assert not (path / "journal").exists()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_journal_cut_short_means_that_everything_is_compared(
    path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    with HybridStore(path, HashEmbedder()) as store:
        exact = store._directory._indexes.exact  # out of step, and no stamp says so
        exact.remove(["p7"])
        exact.add(["p8", "stranger"], exact.vectors(["p9", "p10"])["p9"][None].repeat(2, 0))
        exact.commit()
    crash_between_the_indexes(path, monkeypatch)
    cut(path / "journal", share)
    assert Journal(path / "journal").pending() is not None
    assert "torn" in check_store(path).problems[0]
    assert_whole(path)


def test_a_journal_with_a_flipped_bit_is_torn_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_between_the_indexes(path, monkeypatch)
    flip(path / "journal", 0.7)
    pending = Journal(path / "journal").pending()
    assert pending is not None
    assert pending.ids is None
    assert_whole(path)


def test_a_replacement_is_redone_where_only_its_deletion_got_through(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma replaces in two steps; between them only the journal has the content."""
    store = HybridStore(path, HashEmbedder())
    delete = store._directory._indexes.vectors.delete
    monkeypatch.setattr(
        store._directory._indexes.vectors, "write", lambda _, ids: delete(list(ids))
    )
    monkeypatch.setattr(store._directory._indexes.lexical, "apply", lambda *_: 1 / 0)
    written = [passage(f"p{n}", 3) for n in range(10)] + [passage("fresh", 3)]
    with pytest.raises(ZeroDivisionError), store._directory.writing() as indexes:
        indexes.upsert(written, HashEmbedder().embed([p.text for p in written]))
    assert store._directory._indexes.vectors.get(["p1"]) == {}
    monkeypatch.setattr(store._directory._recovery, "recover", lambda _: None)
    store.close()
    with HybridStore(path, HashEmbedder()) as store:
        assert store.get([f"p{n}" for n in range(10)]) == [passage(f"p{n}", 3) for n in range(10)]
        assert store.get(["fresh"]) == []
        assert [hit.id for hit in store.search(word("p1", 3), 5, "lexical")] == ["p1"]
        store.upsert([passage(f"p{n}", 2 if n < 5 else 1) for n in range(10)])
    assert_whole(path)


def test_a_failed_write_is_mended_before_the_next_call_of_the_same_object(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HybridStore(path, HashEmbedder())
    with monkeypatch.context() as patch:
        patch.setattr(store._directory._indexes.lexical, "apply", lambda *_: 1 / 0)
        written = [passage("new", 1), passage("p9", 1)]
        with pytest.raises(ZeroDivisionError), store._directory.writing() as indexes:
            indexes.upsert(written, HashEmbedder().embed([p.text for p in written]))
    assert [hit.id for hit in store.search(word("new", 1), 5, "lexical")] == ["new"]
    assert not (path / "journal").exists()
    store.delete(["new"])
    store.close()
    assert_whole(path)


# -- Chroma -------------------------------------------------------------------------------------

HARMS: dict[str, Callable[[Path], Any]] = {
    "data cut (Chroma alone: segmentation fault)": lambda d: cut(d / "data_level0.bin", 0.3),
    "data flipped (Chroma alone: unnoticed)": lambda d: flip(d / "data_level0.bin", 0.5),
    "ids emptied": lambda d: cut(d / "index_metadata.pickle", 0),
    "ids cut": lambda d: cut(d / "index_metadata.pickle", 0.5),
    "header emptied": lambda d: cut(d / "header.bin", 0),
    "links flipped": lambda d: flip(d / "link_lists.bin", 0.5),
    "lengths gone": lambda d: (d / "length.bin").unlink(),
    "all gone": shutil.rmtree,
}


@pytest.mark.parametrize("harm", HARMS)
def test_damaged_vector_files_are_seen_before_chroma_loads_them_and_made_anew(
    path: Path, harm: str
) -> None:
    shutil.rmtree(path / "exact")
    for directory in (path / "chroma").iterdir():
        if directory.is_dir():
            HARMS[harm](directory)
    report = check_store(path)
    assert "tars-rag store reembed" in report.problems[0]
    for refused in (
        lambda: HybridStore(path, HashEmbedder(), read_only=True),
        lambda: StoreDirectory(path, None),  # nobody there to embed
    ):
        with pytest.raises(StoreError, match=r"vectors .* damaged"):
            refused()
    with HybridStore(path, HashEmbedder()) as store:
        assert store._directory.embedded == COUNT
    assert_whole(path)
    assert not list((path / "chroma").glob("damaged-*"))


@pytest.mark.parametrize("harm", HARMS)
def test_damaged_vector_files_are_mended_from_the_exact_index_without_embedding(
    path: Path, harm: str
) -> None:
    for directory in (path / "chroma").iterdir():
        if directory.is_dir():
            HARMS[harm](directory)
    report = check_store(path)
    assert "--repair" in report.problems[0]
    assert "reembed" not in report.problems[0]
    with pytest.raises(StoreError, match=r"vectors .* damaged"):
        HybridStore(path, HashEmbedder(), read_only=True)
    assert check_store(path, repair=True).ok  # no embedder there at all
    with HybridStore(path, HashEmbedder()) as store:
        assert store._directory.embedded == 0
    assert_whole(path)
    assert not list((path / "chroma").glob("damaged-*"))


def test_what_the_exact_index_has_of_other_texts_is_embedded(path: Path) -> None:
    with contextlib.closing(
        ExactIndex(path / "exact")
    ) as exact:  # as if it were older than the texts
        exact.add(["p7"], HashEmbedder().embed(["something else"]))
        exact.remove(["p8"])
        exact.commit()
    for directory in (path / "chroma").iterdir():
        if directory.is_dir():
            cut(directory / "data_level0.bin", 0.3)
    with HybridStore(path, HashEmbedder()) as store:
        assert store._directory.embedded == 2
    assert_whole(path)


def test_a_power_cut_that_takes_the_first_vector_files_is_noticed(path: Path) -> None:
    """SQLite, which is fsync'd, says that the vectors are in files; those are not there yet."""
    for saved in path.glob("chroma/*/index_metadata.pickle"):
        shutil.rmtree(saved.parent)
    (path / "seal.json").write_text(json.dumps({"boot": "before", "saves": {}, "files": {}}))
    assert_whole(path)


def test_making_vectors_anew_survives_being_cut_short(path: Path) -> None:
    shutil.rmtree(path / "exact")
    for directory in (path / "chroma").iterdir():
        if directory.is_dir():
            cut(directory / "data_level0.bin", 0.3)

    class Failing(HashEmbedder):
        def embed(self, texts: Any) -> Any:
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            HybridStore(path, Failing())
    assert_whole(path)


@pytest.mark.parametrize("harm", ["cut", "emptied", "garbage", "gone"])
def test_a_damaged_database_is_a_clear_verdict(path: Path, harm: str) -> None:
    database = path / "chroma" / "chroma.sqlite3"
    match harm:
        case "cut":
            cut(database, 0.4)
        case "emptied":
            cut(database, 0)
        case "garbage":
            database.write_bytes(b"not a database " * 1000)
        case "gone":
            database.unlink()
    with pytest.raises(StoreError, match="backup"):
        HybridStore(path, HashEmbedder())
    report = check_store(path, repair=True)
    assert not report.ok
    assert not report.repaired


def test_a_page_of_the_database_gone_bad_is_found_by_the_check(path: Path) -> None:
    database = path / "chroma" / "chroma.sqlite3"
    with sqlite3.connect(database) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'embedding_metadata'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with database.open("r+b") as stream:
        stream.seek((root - 1) * size)
        stream.write(b"\xff" * 200)
    report = check_store(path)
    assert "texts are damaged" in report.problems[0]
    assert "backup" in report.problems[0]


def test_vectors_exchanged_between_passages_are_found(path: Path) -> None:
    with HybridStore(path, HashEmbedder()) as store:
        collection = store._directory._indexes.vectors._collection
        with collection.asking("get", ids=["p20", "p21"], include=["embeddings"]) as answer:
            rows = answer()
        swapped = rows["embeddings"][::-1]
        with collection.asking("upsert", ids=rows["ids"], embeddings=swapped) as answer:
            answer()
        store._directory._indexes.seal_vectors()
    report = check_store(path)
    assert "2 vectors" in report.problems[0]


# -- the embedder is changed --------------------------------------------------------------------


def test_reembed_changes_the_embedder_in_place(path: Path) -> None:
    other = HashEmbedder(48, "other")
    told: list[tuple[int, int | None]] = []
    assert reembed(path, other, lambda *n: told.append(n)) == COUNT
    assert told[-1] == (COUNT, COUNT)
    with pytest.raises(FingerprintError, match="hash:32"):
        HybridStore(path, HashEmbedder())
    with HybridStore(path, other) as store:
        assert store.dimension == 48
        assert store.count() == COUNT
        vector = other.embed_query(passage("p9", 1).text)
        assert store.search(None, 1, "naive", vector=vector)[0].id == "p9"
    assert check_store(path).ok
    assert reembed(path, other) == 0
    assert reembed(path, HashEmbedder()) == COUNT
    assert_whole(path)


def test_reembed_cut_short_leaves_the_old_vectors_valid_and_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tars_rag.retrieval.storage.rebuild._BATCH", 10)

    class Failing(HashEmbedder):
        left = 3

        def embed(self, texts: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise ZeroDivisionError
            return super().embed(texts)

    with pytest.raises(ZeroDivisionError):
        reembed(path, Failing(48, "other"))
    assert "begun" in check_store(path).notes[0]
    with HybridStore(path, HashEmbedder()) as store:  # the old one works on, and is written to
        assert store.search(word("p9", 1), 1)[0].id == "p9"
        store.upsert([passage("p0", 9), passage("late", 9)])
        store.delete(["p1"])
    embedded = reembed(path, HashEmbedder(48, "other"))
    assert COUNT - 30 <= embedded <= COUNT - 28
    with HybridStore(path, HashEmbedder(48, "other")) as store:
        assert {p.id for p in store.get()} == {f"p{n}" for n in range(COUNT) if n != 1} | {"late"}
        assert store.get(["p0"]) == [passage("p0", 9)]
        for p in store.get():
            vector = HashEmbedder(48, "other").embed_query(p.text)
            assert store.search(None, 1, "naive", vector=vector)[0].passage == p
    assert check_store(path).ok


def test_reembed_of_no_store_and_of_an_open_one(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a store"):
        reembed(tmp_path, HashEmbedder())
    with HybridStore(path, HashEmbedder()), pytest.raises(StoreError, match=f"pid {os.getpid()}"):
        reembed(path, HashEmbedder(48, "other"))


# -- creation -----------------------------------------------------------------------------------


def test_a_store_that_was_never_finished_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tars_rag.retrieval.storage.index_set.LexicalIndex", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            HybridStore(tmp_path / "store", HashEmbedder())
    assert "never finished" in check_store(tmp_path / "store").problems[0]
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([passage("a", 1)])
    assert check_store(tmp_path / "store").ok


def test_a_lost_manifest_is_not_taken_for_an_empty_directory(path: Path) -> None:
    (path / "store.json").unlink()
    with pytest.raises(StoreError, match=r"has lost its store\.json"):
        HybridStore(path, HashEmbedder())
    assert (path / "chroma" / "chroma.sqlite3").exists()


# -- no room, no right ----------------------------------------------------------------------------


@pytest.fixture
def children() -> Callable[..., list[Any]]:
    """Run a function of store_child in a process of its own; what it sent."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["store_child", "tantivy"])

    def run(target: Callable[..., None], path: Path, *arguments: Any) -> list[Any]:
        ours, theirs = context.Pipe()
        child = context.Process(target=target, args=(path, theirs, *arguments))
        child.start()
        theirs.close()
        messages = []
        try:
            while True:
                messages.append(ours.recv())
        except EOFError:
            pass
        child.join(60)
        assert child.exitcode == 0, f"exit {child.exitcode}: {messages[-1:]}"
        return messages

    return run


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 30_000, 60_000])
def test_a_full_disk_is_an_error_and_loses_nothing(
    path: Path, children: Callable[..., list[Any]], room: int
) -> None:
    messages = children(store_child.write_until_full, path, room)
    *written, error, searched, held, found = messages
    assert "Check" in error or "disk is full" in error or "full" in error, error
    known = {p: 2 if int(p[1:]) < 5 else 1 for p in (f"p{n}" for n in range(COUNT))}
    flight: dict[str, int] = {}
    for message in written:
        if message == "done":
            known |= flight
            flight = {}
        else:
            flight = message

    def right(versions: dict[str, int]) -> bool:
        return versions.keys() == known.keys() and all(
            version in (known[key], flight.get(key)) for key, version in versions.items()
        )

    assert searched != "refused", "a full disk does not keep from reading"
    assert right(searched)
    assert right(held), "with room again the same object is right"
    assert found == COUNT
    with HybridStore(path, HashEmbedder()) as store:
        assert right({p.id: p.metadata["version"] for p in store.get()})
    assert check_store(path).ok


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
@pytest.mark.parametrize("read_only", [True, False])
def test_a_read_only_directory_is_refused(
    made: Path, children: Callable[..., list[Any]], read_only: bool
) -> None:
    with tempfile.TemporaryDirectory() as directory:  # pytest's own is closed to others
        Path(directory).chmod(0o755)
        path = shutil.copytree(made, Path(directory) / "store")
        kind, what = children(store_child.open_as_nobody, path, read_only)[0]
        assert kind == "StoreError", what  # Chroma writes even to be read
        assert "ermission" in what or "readonly" in what
        assert str(path) in what
        assert_whole(path)


@pytest.mark.slow
def test_a_writer_killed_leaves_no_lock(path: Path) -> None:
    """The kernel releases it; the pid that is left in the file locks nobody out."""
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from conftest import HashEmbedder\n"
        "from tars_rag import HybridStore\n"
        f"store = HybridStore({str(path)!r}, HashEmbedder())\n"
        "print('open', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    for read_only in (False, True):
        with pytest.raises(StoreError, match=f"pid {child.pid}"):
            HybridStore(path, HashEmbedder(), read_only=read_only, share=False)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert_whole(path)


# -- bulk ingest that was cut short ---------------------------------------------------------------


def test_a_long_upsert_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """Repeated, it embeds only what is not there yet, or not the same."""

    class Counting(HashEmbedder):
        embedded = 0
        most = 600

        def embed(self, texts: Any) -> Any:
            self.embedded += len(texts)
            if self.embedded > self.most:
                raise KeyboardInterrupt
            return super().embed(texts)

    def passages() -> Any:
        return (passage(f"p{n}", 1) for n in range(1000))

    with HybridStore(tmp_path, Counting()) as store, pytest.raises(KeyboardInterrupt):
        store.upsert(passages())
    again = Counting()
    with HybridStore(tmp_path, again) as store:
        assert store.count() == 512
        assert store.upsert(passages()) == 1000
        assert again.embedded == 1000 - 512
        again.embedded = 0
        one = passage("p7", 1)
        for metadata in ({**one.metadata, "version": 1.0}, {**one.metadata, "version": True}, {}):
            changed = type(one)(one.id, one.text, metadata)
            store.upsert([changed, passage("p8", 1)])
            held = store.get(["p7"])[0].metadata
            assert repr(held) == repr(metadata)
        assert again.embedded == 3
        assert store.count() == 1000
    assert check_store(tmp_path).ok
