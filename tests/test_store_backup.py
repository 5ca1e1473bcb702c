"""Backups: what they hold, that they hold nothing up, and what is refused."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from conftest import HashEmbedder
from store_child import passage
from tars_rag.cli import app
from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.ingest.digests import Claim
from tars_rag.ingest.ledger import Ledger
from tars_rag.retrieval.maintenance import backup, restore
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage import backup as backup_module
from tars_rag.retrieval.storage.backup_file import About, BackupFile, row_digest
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.store import HybridStore

ODD = [
    Passage("\ud800", "a lone \udfff surrogate and \0", {"k": ["a", 1, None], "n": {"f": 1.5}}),
    Passage("tars-b64:x", "", {}),
    Passage("one", "text", {"flag": True, "one": 1, "float": 1.0}),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HybridStore]:
    with HybridStore(tmp_path / "store", HashEmbedder(), language="de") as opened:
        opened.upsert([passage(f"p{n}", 1) for n in range(30)])
        opened.upsert(ODD)
        yield opened


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A backup of a store."""
    base = tmp_path_factory.mktemp("made")
    with HybridStore(base / "store", HashEmbedder()) as store:
        store.upsert([passage(f"p{n}", 1) for n in range(30)])
        store.backup(base / "file")
    return (base / "file").read_bytes()


@pytest.fixture
def file(made: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(made)
    return path


def contents(store: HybridStore) -> tuple[dict[str, Passage], dict[str, bytes]]:
    held = {p.id: p for p in store.get()}
    return held, {key: row.tobytes() for key, row in store.vectors(held).items()}


def assert_restores(file: Path, target: Path, expected: tuple[Any, Any]) -> None:
    assert restore(file, target) == len(expected[0])
    with HybridStore(target, HashEmbedder()) as restored:
        held, vectors = contents(restored)
        assert held == expected[0]
        assert {key: type(held["one"].metadata[key]) for key in held["one"].metadata} == {
            "flag": bool,
            "one": int,
            "float": float,
        }
        assert vectors == expected[1]
        assert restored.language == "de"
        found = restored.search(held["p7"].text, 1)[0]
        assert found.passage == held["p7"]
    report = check_store(target)
    assert report.ok, report.problems
    assert not report.notes


@pytest.mark.slow
def test_a_backup_restores_all_of_a_store_to_the_last_bit(
    store: HybridStore, tmp_path: Path
) -> None:
    store.record_probe(np.arange(32, dtype=np.float32))
    done = store.backup(tmp_path / "file.backup")
    assert (done.passages, done.written, done.removed) == (33, 33, 0)
    assert done.size == (tmp_path / "file.backup").stat().st_size
    expected = contents(store)
    store.upsert([passage("later", 1)])
    assert_restores(tmp_path / "file.backup", tmp_path / "restored", expected)
    with HybridStore(tmp_path / "restored", HashEmbedder()) as restored:
        assert restored.probe is not None
        assert restored.probe.tolist() == list(range(32))
    assert {p.name for p in tmp_path.iterdir()} == {"store", "restored", "file.backup"}


@pytest.mark.slow
def test_the_next_backup_writes_only_what_changed(store: HybridStore, tmp_path: Path) -> None:
    file = tmp_path / "file.backup"
    store.backup(file)
    store.upsert([passage("p1", 2), passage("new", 1)])
    store.upsert([passage("p2", 1)], [np.ones(32)])  # the same text, another vector
    store.delete(["p3", "p4"])
    done = store.backup(file)
    assert (done.passages, done.written, done.removed) == (32, 3, 2)
    assert store.backup(file).written == 0
    assert_restores(file, tmp_path / "restored", contents(store))
    with HybridStore(tmp_path / "restored", HashEmbedder()) as restored:
        restored.upsert([passage("p9", 2)])
        assert restored.backup(file).written == 1  # a restored store is the same one


@pytest.mark.slow
def test_an_empty_store(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        assert store.backup(tmp_path / "file").passages == 0
    assert restore(tmp_path / "file", tmp_path / "restored") == 0
    with HybridStore(tmp_path / "restored", HashEmbedder()) as store:
        store.upsert([passage("p1", 1)])


@pytest.mark.slow
def test_what_is_written_meanwhile_does_not_wait_and_is_not_in_it(
    store: HybridStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(store)
    real, started, go = backup_module._fill, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        started.set()
        assert go.wait(60)
        return real(*arguments)

    monkeypatch.setattr(backup_module, "_fill", slow)
    thread = threading.Thread(target=store.backup, args=(tmp_path / "file",))
    thread.start()
    assert started.wait(60)
    for version in range(2, 6):  # more than one merge, and files that are deleted
        store.upsert([passage(f"p{n}", version) for n in range(30)])
    store.delete(["p5", "one"])
    store._directory._indexes.exact.compact()
    assert store.search("filler", 3)
    go.set()
    thread.join()
    assert_restores(tmp_path / "file", tmp_path / "restored", expected)


@pytest.mark.slow
def test_killed_it_leaves_the_last_backup_and_goes_on(
    store: HybridStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    store.backup(file)
    before = contents(store)
    store.upsert([passage(f"p{n}", 2) for n in range(20)])
    monkeypatch.setattr(backup_module, "_BATCH", 8)
    done = []

    def killed(number: int, total: int) -> None:
        done.append(number)
        if number >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.backup(file, killed)
    assert_restores(file, tmp_path / "restored", before)
    resumed = store.backup(file)
    assert 0 < resumed.written < 20
    assert_restores(file, tmp_path / "again", contents(store))


@pytest.mark.slow
def test_the_record_of_indexed_files_comes_along(store: HybridStore, tmp_path: Path) -> None:
    with Ledger(store.path) as ledger:
        ledger.claim([Claim("p1", "a.txt", "digest")])
        ledger.finish("a.txt", "version")
        store.backup(tmp_path / "file")
        ledger.finish("b.txt", "later")
    restore(tmp_path / "file", tmp_path / "restored")
    with Ledger(tmp_path / "restored") as ledger:
        assert ledger.ids("a.txt") == ["p1"]
        assert ledger.alike(["digest"]) == {"digest": ["p1"]}
        assert ledger.version("a.txt") == "version"
        assert ledger.version("b.txt") is None


@pytest.mark.slow
def test_a_reader_may_back_up(store: HybridStore, tmp_path: Path) -> None:
    expected = contents(store)
    path = store.path
    store.close()
    with HybridStore(path, HashEmbedder(), read_only=True) as reader:
        reader.backup(tmp_path / "file")
    assert_restores(tmp_path / "file", tmp_path / "restored", expected)


@pytest.mark.slow
def test_a_store_that_is_open_elsewhere_is_backed_up_beside_it(
    store: HybridStore, tmp_path: Path
) -> None:
    """`maintenance.backup`, and the command, know no more of it than another process would."""
    store.flush()
    store.upsert([passage("p1", 2)])  # in the log only
    with Ledger(store.path) as ledger:
        ledger.finish("a.txt", "version")
    done = backup(store.path, tmp_path / "file")
    assert (done.passages, done.written) == (33, 33)
    expected = contents(store)
    store.upsert([passage("later", 1)])
    assert_restores(tmp_path / "file", tmp_path / "restored", expected)
    with Ledger(tmp_path / "restored") as ledger:
        assert ledger.version("a.txt") == "version"


# -- what is refused ----------------------------------------------------------------------------
@pytest.mark.slow
def test_no_file_but_a_backup_of_this_store_is_written_over(
    store: HybridStore, tmp_path: Path
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("of value")
    for taken in (notes, tmp_path, store.path / "file"):
        with pytest.raises(InvalidInputError):
            store.backup(taken)
    assert notes.read_text() == "of value"
    with HybridStore(tmp_path / "other", HashEmbedder()) as other:
        other.upsert([passage("p1", 1)])
        other.backup(tmp_path / "file")
    with pytest.raises(InvalidInputError, match="another store"):
        store.backup(tmp_path / "file")


@pytest.mark.slow
def test_a_restore_writes_over_nothing(store: HybridStore, tmp_path: Path) -> None:
    file = tmp_path / "file"
    store.backup(file)
    expected = contents(store)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("of value")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (tmp_path / "full", store.path, file):
        with pytest.raises(InvalidInputError, match="is there already"):
            restore(file, taken)
    (tmp_path / "empty").mkdir()
    assert_restores(file, tmp_path / "empty", expected)


@pytest.mark.parametrize("harm", ["flipped", "cut"])
def test_a_damaged_backup_is_refused_or_is_whole(file: Path, made: bytes, harm: str) -> None:
    """`restore` begins with these two steps."""
    with BackupFile(file) as backup:
        whole = list(backup.passages(1000))
    refused = 0
    for place in range(0, len(made), 997):
        data = bytearray(made[:place] if harm == "cut" else made)
        if harm == "flipped":
            data[place] ^= 0x10
        file.write_bytes(data)
        try:
            with BackupFile(file) as backup:
                backup.verify()
                held = list(backup.passages(1000))
        except StoreError:
            refused += 1
        else:  # the bit is of no page that is used
            assert held[0][0] == whole[0][0]
            assert (held[0][1] == whole[0][1]).all()
    assert refused > (5 if harm == "flipped" else len(made) // 1000)


def _sql(text: str) -> Any:
    def change(file: Path) -> None:
        with closing(sqlite3.connect(file)) as database:
            database.executescript(text)

    return change


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _sparse(file: Path) -> None:
    os.truncate(file, 1 << 40)


HOSTILE = {
    "a trigger": _sql("CREATE TRIGGER t AFTER DELETE ON passages BEGIN SELECT 1; END"),
    "a view": _sql("DROP TABLE records; CREATE VIEW records AS SELECT 'a' name, x'00' data"),
    "another table": _sql("CREATE TABLE more(x)"),
    "a passage more": _sql("INSERT INTO passages VALUES ('x', x'00', x'00', x'00')"),
    "a passage less": _sql("DELETE FROM passages WHERE id = 'p1'"),
    "a huge passage": _sql("UPDATE passages SET content = zeroblob(300000000) WHERE id = 'p1'"),
    "a text for a vector": _sql("UPDATE passages SET vector = 'abc' WHERE id = 'p1'"),
    "another dimension": _sql(
        "UPDATE about SET value = replace(value, '\"dimension\": 32', '\"dimension\": 31')"
    ),
    "a path": _sql("INSERT INTO records VALUES ('../../escaped', x'00')"),
    "no description": _sql("DELETE FROM about"),
    "a deep description": _sql(
        "UPDATE about SET value = replace(hex(zeroblob(50000)), '00', '[') WHERE name = 'store'"
    ),
    "a later version": _sql("PRAGMA user_version = 9"),
    "a pipe": _pipe,
    "a terabyte of nothing": _sparse,
    "a text": lambda file: file.write_text("no backup at all"),
    "nothing": lambda file: file.write_bytes(b""),
    "another database": lambda file: (file.unlink(), _sql("CREATE TABLE t(x)")(file)),
}


@pytest.mark.parametrize(
    "what",
    [pytest.param(w, marks=pytest.mark.slow) if "huge" in w else w for w in HOSTILE],
)
def test_a_hostile_backup_is_refused(file: Path, tmp_path: Path, what: str) -> None:
    HOSTILE[what](file)
    began = time.monotonic()
    with pytest.raises(StoreError, match="cannot be"):
        restore(file, tmp_path / "restored")
    assert time.monotonic() - began < 20
    assert {p.name for p in tmp_path.iterdir()} == {"file"}


@pytest.mark.parametrize(
    ("content", "vector"),
    [
        (b'{"text":1,"metadata":{}}', np.ones(32, "<f4")),
        (b"[" * 100_000, np.ones(32, "<f4")),
        (b'{"text":"a","metadata":{}}', np.zeros(32, "<f4")),
        (b'{"text":"a","metadata":{}}', np.full(32, np.nan, "<f4")),
    ],
)
def test_rows_with_right_checksums_are_still_checked(
    file: Path, tmp_path: Path, content: bytes, vector: Any
) -> None:
    """Whoever makes a backup can make its checksums."""
    digest = row_digest("p1", content, vector.tobytes())
    with closing(sqlite3.connect(file)) as database:
        database.execute(
            "UPDATE passages SET content = ?, vector = ?, digest = ? WHERE id = 'p1'",
            (content, vector.tobytes(), digest),
        )
        database.commit()
        rows = database.execute("SELECT id, digest FROM passages ORDER BY id")
        with BackupFile(file) as backup:
            about: About = backup.about.of(iter(rows.fetchall()), {})
        database.execute("UPDATE about SET value = ? WHERE name = 'digest'", (f'"{about.digest}"',))
        database.commit()
    with pytest.raises((StoreError, InvalidInputError)):
        restore(file, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@pytest.mark.slow
def test_a_record_that_would_run_by_itself_is_refused(store: HybridStore, tmp_path: Path) -> None:
    Ledger(store.path).close()
    _sql("CREATE TRIGGER t AFTER INSERT ON sources BEGIN DELETE FROM passages; END")(
        store.path / "sources.sqlite3"
    )
    store.backup(tmp_path / "file")
    with pytest.raises(StoreError, match="record of indexed files"):
        restore(tmp_path / "file", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


# -- the command line -----------------------------------------------------------------------------


def test_the_commands(store: HybridStore, tmp_path: Path) -> None:
    path, file = store.path, str(tmp_path / "file")
    expected = contents(store)
    store.close()
    run = CliRunner().invoke
    done = run(app, ["store", "backup", str(path), file])
    assert done.exit_code == 0, done.output
    assert "33 passages" in done.output
    assert '"written": 0' in run(app, ["store", "backup", str(path), file, "--json"]).output
    shutil.rmtree(path)
    done = run(app, ["store", "restore", file, str(path)])
    assert done.exit_code == 0, done.output
    with HybridStore(path, HashEmbedder()) as restored:
        assert contents(restored) == expected
    refused = run(app, ["store", "restore", file, str(path)])
    assert refused.exit_code != 0
