"""Files into a store: cut well, nothing twice, nothing lost, whatever the files are."""

from __future__ import annotations

import codecs
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from conftest import HashEmbedder
from tars_rag.errors import ConfigError, InvalidInputError, StoreError
from tars_rag.ingest import run, stamps
from tars_rag.ingest.chunks import pieces
from tars_rag.ingest.documents import DocumentReader
from tars_rag.ingest.files import find, read_text
from tars_rag.ingest.run import Report, ingest, nothing_to_ingest
from tars_rag.retrieval.storage.layout import SOURCES as NAME
from tars_rag.retrieval.store import HybridStore
from tars_rag.splitting.splitter import Splitter
from tiny_models import write_model

WORDS = "board cooling fan music piano river mountain kitchen garden sleep"
_WORDS = WORDS.split()


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = write_model(tmp_path_factory.mktemp("t") / "tiny", head=False, seed=5)
    return model / "tokenizer.json"


@pytest.fixture(scope="session")
def splitter(tokenizer_file: Path) -> Splitter:
    return Splitter(tokenizer_file, max_length=34, overlap=8)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HybridStore]:
    with HybridStore(tmp_path / "store", HashEmbedder()) as opened:
        yield opened


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    directory = tmp_path / "notes"
    directory.mkdir()
    return directory


def prose(n: int, seed: int = 0) -> str:
    return " ".join(_WORDS[(i * (seed + 3) + i // 7) % len(_WORDS)] for i in range(n))


def texts(store: HybridStore) -> dict[str, str]:
    return {passage.id: passage.text for passage in store.get()}


def counts(report: Report) -> tuple[int, int, int, int, int]:
    return (report.indexed, report.unchanged, report.written, report.kept, report.deleted)


# --- reading ---


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
    ],
)
def test_unicode_in_any_marked_encoding(tmp_path: Path, encoding: str, mark: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(mark + "smörgås 🚢".encode(encoding))
    assert read_text(path) == "smörgås 🚢"


def test_another_encoding_is_named_with_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)  # as without the extra
    path = tmp_path / "latin.txt"
    path.write_bytes("smörgås".encode("latin-1"))
    with pytest.raises(InvalidInputError, match=r"latin\.txt is not UTF-8 text \(byte 2: 0xf6\)"):
        read_text(path)


def test_a_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "picture.txt"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(InvalidInputError, match=r"picture\.txt is a binary file"):
        read_text(path)


def test_directories_are_searched_for_text_only(notes: Path) -> None:
    for name in ("b.md", "a.txt", "c.JSONL", "photo.png", "Makefile", ".hidden.md"):
        (notes / name).write_text("x")
    (notes / ".git").mkdir()
    (notes / ".git" / "x.md").write_text("x")
    (notes / "sub").mkdir()
    (notes / "sub" / "d.md").write_text("x")
    found = find([notes, notes / "a.txt", notes / "Makefile"])
    assert [path.name for path in found.files] == ["a.txt", "b.md", "c.JSONL", "d.md", "Makefile"]
    assert found.ignored == {".png": 1, "no suffix": 1}
    assert not found.failures


# --- cutting ---


def test_chunks_fit_the_model_and_cover_the_text(
    tmp_path: Path, splitter: Splitter, tokenizer_file: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_text(prose(300))
    passages = [piece.passage for piece in pieces(path, splitter, DocumentReader())]
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    assert len(passages) > 5
    for n, passage in enumerate(passages):
        assert passage is not None
        assert passage.id == f"{path}#{n}"
        start, end = passage.metadata["start"], passage.metadata["end"]
        assert path.read_text()[start:end] == passage.text
        assert (passage.metadata["source"], passage.metadata["chunk"]) == (str(path), n)
        assert len(tokenizer.encode(passage.text).ids) <= 34
    # Each chunk starts within the one before: nothing is skipped, and some of it is repeated.
    at = end = 0
    for passage in passages:
        assert passage is not None
        start = path.read_text().index(passage.text, at)
        assert start <= end + 1
        at, end = start + 1, start + len(passage.text)
    assert end == len(path.read_text())


def test_headings_say_where_a_chunk_is_from(tmp_path: Path, splitter: Splitter) -> None:
    path = tmp_path / "a.md"
    body = prose(24)
    path.write_text(
        f"{body}\n\n# Boards\n\n{body}\n\n## Cooling ##\n\n{body}\n\n"
        f"```sh\n# not a heading\n```\n\n# Music\n\n{body}\n"
    )
    found = [p.passage for p in pieces(path, splitter, DocumentReader())]
    headings = [p.metadata.get("heading") for p in found if p and "board" in p.text]
    assert headings[0] is None
    assert [h for n, h in enumerate(headings) if h and h not in headings[:n]] == [
        "Boards",
        "Boards > Cooling",
        "Music",
    ]


@pytest.mark.parametrize(("tokens", "overlap"), [(0, 0), (33, 0), (8, 8), (8, -1)])
def test_impossible_sizes_are_refused(tokenizer_file: Path, tokens: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match="not possible"):
        Splitter(tokenizer_file, 34, tokens, overlap)


# --- whether there is anything to index ---


def test_nothing_to_ingest(notes: Path, splitter: Splitter, store: HybridStore) -> None:
    (notes / "photo.png").write_bytes(b"x")
    (notes / "blank.txt").write_text(" \n")
    (notes / "binary.txt").write_bytes(b"x\0")
    rows(notes / "bad.jsonl", {"id": "a"}, "{broken\n")
    Path(os.fsdecode(os.fsencode(str(notes)) + b"/f\xff.txt")).write_text("board")
    paths = [notes, notes / "missing"]
    nothing = nothing_to_ingest(paths, splitter)
    assert nothing is not None
    report = ingest(store, paths, splitter)
    assert store.count() == 0
    assert sorted(nothing.failures) == sorted(report.failures)
    assert nothing.ignored == report.ignored == {".png": 1}
    rows(notes / "bad.jsonl", {"id": "a"}, {"id": "b", "text": "board"})
    assert nothing_to_ingest(paths, splitter) is None


# --- indexing ---


def test_a_second_run_does_nothing(store: HybridStore, notes: Path, splitter: Splitter) -> None:
    (notes / "a.md").write_text(f"# Title\n\n{prose(100)}")
    (notes / "b.txt").write_text(prose(10, seed=1))
    first = ingest(store, [notes], splitter)
    assert first.indexed == 2
    assert first.written == store.count() > 3
    assert counts(ingest(store, [notes], splitter)) == (0, 2, 0, 0, 0)


def dated(path: Path, seconds: float) -> None:
    """Let a file's content be of that time."""
    os.utime(path, (seconds, seconds))


def test_a_file_that_rests_is_not_read_again(
    store: HybridStore, notes: Path, splitter: Splitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    (notes / "a.txt").write_text(prose(60))
    ingest(store, [notes], splitter)
    monkeypatch.setattr(stamps, "_SETTLED", -3600.0)  # as if all that were long ago
    assert ingest(store, [notes], splitter).unchanged == 1  # read once more, for it was new then
    read: list[Path] = []

    def hashed(path: Path) -> str:
        read.append(path)
        return "another"

    monkeypatch.setattr(run, "sha256_of", hashed)
    assert ingest(store, [notes], splitter).unchanged == 1
    assert read == []
    dated(notes / "a.txt", 1_000_000_000)
    assert ingest(store, [notes], splitter).indexed == 1
    assert read == [notes / "a.txt"]


def test_a_file_that_was_just_changed_is_read_again(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    """Two contents of one length and one time, as a fast editor and a coarse clock make them."""
    path = notes / "a.txt"
    for text in ("a fan", "a cat"):
        path.write_text(text)
        dated(path, 1_000_000_000)
        assert ingest(store, [notes], splitter).indexed == 1
    assert [passage.text for passage in store.get()] == ["a cat"]


def test_the_date_of_a_file_that_was_only_touched_is_right(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    path = notes / "a.txt"
    path.write_text("a fan")
    ingest(store, [notes], splitter)
    dated(path, 1_000_000_000)
    report = ingest(store, [notes], splitter)
    assert (report.indexed, report.reused, report.written) == (1, 1, 1)
    assert store.get()[0].metadata["modified"] == "2001-09-09T01:46:40Z"
    assert ingest(store, [notes], splitter).unchanged == 1


def test_a_changed_file_leaves_no_stale_chunk(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    path = notes / "a.txt"
    path.write_text(prose(200))
    before = ingest(store, [notes], splitter)
    start = prose(200)[:300]
    path.write_text(start)
    after = ingest(store, [notes], splitter)
    assert after.indexed == 1
    assert store.count() == before.written - after.deleted
    assert after.kept + after.reused > 0  # those before the change; a later second is written anew
    held = sorted(store.get(), key=lambda passage: passage.metadata["start"])
    assert "".join(passage.text for passage in held).startswith(start[:100])
    assert all(text in start for text in texts(store).values())


def test_an_emptied_file_has_no_passages(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    (notes / "a.txt").write_text(prose(50))
    ingest(store, [notes], splitter)
    (notes / "a.txt").write_text(" \n")
    assert ingest(store, [notes], splitter).deleted > 0
    assert store.count() == 0


def test_another_chunk_size_cuts_again(
    store: HybridStore, notes: Path, splitter: Splitter, tokenizer_file: Path
) -> None:
    (notes / "a.txt").write_text(prose(100))
    many = ingest(store, [notes], Splitter(tokenizer_file, 34, 10, 0)).written
    assert ingest(store, [notes], splitter).indexed == 1
    assert store.count() < many


def test_vanished_files_are_told_and_pruned_on_request(
    store: HybridStore, notes: Path, splitter: Splitter, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere.txt"
    for path in (notes / "a.txt", notes / "b.txt", elsewhere):
        path.write_text(prose(10) + path.stem)
    ingest(store, [notes, elsewhere], splitter)
    (notes / "a.txt").unlink()
    elsewhere.unlink()
    report = ingest(store, [notes], splitter)
    assert report.vanished == [str(notes / "a.txt")]
    assert store.count() == 3
    report = ingest(store, [notes], splitter, prune=True)
    assert (report.deleted, store.count()) == (1, 2)
    assert ingest(store, [notes], splitter, prune=True).vanished == []
    assert any("elsewhere" in text for text in texts(store).values())


def test_a_drive_that_is_not_mounted_is_not_pruned(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    (notes / "a.txt").write_text(prose(10))
    ingest(store, [notes], splitter)
    notes.rename(notes.with_name("unmounted"))
    report = ingest(store, [notes], splitter, prune=True)
    assert (report.vanished, report.deleted, store.count()) == ([], 0, 1)
    assert report.failures == [(str(notes), "No such file or directory")]
    assert ingest(store, [notes.parent], splitter, prune=True).deleted == 1


def test_passages_deleted_behind_its_back_come_back(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    (notes / "a.txt").write_text(prose(100))
    ingest(store, [notes], splitter)
    before = texts(store)
    store.delete(ids=[f"{notes / 'a.txt'}#1"])
    report = ingest(store, [notes], splitter)
    assert (report.indexed, report.written, report.kept) == (1, 1, len(before) - 1)
    assert texts(store) == before


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(
    store: HybridStore, notes: Path, splitter: Splitter, tmp_path: Path
) -> None:
    (notes / "a.txt").write_bytes(b"\xff\xfe\x00")
    (notes / "b.txt").write_bytes(b"binary\0")
    (notes / "c.txt").symlink_to(tmp_path / "nowhere")
    (notes / "d.txt").write_text("board")
    (notes / "e.jsonl").write_bytes(b'{"id": "\0"}')
    bad_name = os.fsdecode(os.fsencode(str(notes)) + b"/f\xff.txt")
    Path(bad_name).write_text("board")
    report = ingest(store, [notes, tmp_path / "missing"], splitter)
    assert report.indexed == 1
    assert store.count() == 1
    problems = dict(report.failures)
    assert set(problems) == {
        str(tmp_path / "missing"),
        *(str(notes / name) for name in ("a.txt", "b.txt", "c.txt", "e.jsonl")),
        bad_name,
    }
    assert "is not UTF-16" in problems[str(notes / "a.txt")]
    assert "binary" in problems[str(notes / "b.txt")]
    assert "cannot be read" in problems[str(notes / "c.txt")]
    assert "not UTF-8" in problems[bad_name]
    # and told again the next time
    assert dict(ingest(store, [notes, tmp_path / "missing"], splitter).failures) == problems


def rows(path: Path, *values: Any) -> Path:
    path.write_text("".join(v if isinstance(v, str) else json.dumps(v) + "\n" for v in values))
    return path


def test_rows_keep_their_id_text_and_metadata(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    path = rows(
        notes / "r.jsonl",
        {"id": "x", "text": "a board", "metadata": {"n": 1, "tags": ["a"]}},
        "\n",
        {"id": 7, "text": "a river", "title": "beside metadata"},
        {"text": "no id"},
        {"id": "long", "text": prose(100), "metadata": {"source": "their own"}},
    )
    report = ingest(store, [path], splitter)
    assert report.failures == []
    stored = {passage.id: passage for passage in store.get()}
    assert stored["x"].text == "a board"
    assert stored["x"].metadata == {"source": str(path), "n": 1, "tags": ["a"]}
    assert stored["7"].metadata["title"] == "beside metadata"
    assert stored[f"{path}:4"].text == "no id"
    chunks = [p for key, p in stored.items() if key.startswith("long#")]
    assert len(chunks) > 2
    metadata = dict(stored["long#1"].metadata)
    start, end = metadata.pop("start"), metadata.pop("end")
    assert metadata == {"source": "their own", "chunk": 1}
    assert stored["long#1"].text == prose(100)[start:end]


def test_a_row_changed_only_in_the_kind_of_a_value_is_stored(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    """To Python 1 == True == 1.0; to JSON, to a filter and to the reader they are not the same."""
    path = notes / "r.jsonl"
    for value in (1, True, 1.0, 0, False, [1], [True], {"deep": [1]}, {"deep": [True]}):
        rows(path, {"id": "a", "text": "board", "metadata": {"v": value}})
        report = ingest(store, [path], splitter)
        assert (report.written, report.kept) == (1, 0)
        [stored] = store.get()
        assert json.dumps(stored.metadata["v"]) == json.dumps(value)
    assert counts(ingest(store, [path], splitter)) == (0, 1, 0, 0, 0)


def test_each_bad_row_is_told_with_its_line(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    path = rows(
        notes / "r.jsonl",
        {"id": "a", "text": "fine"},
        "{broken\n",
        [1, 2],
        {"id": "b"},
        {"id": "c", "text": 5},
        {"id": "", "text": "x"},
        {"id": "d", "text": "x", "metadata": "y"},
        {"id": "a", "text": "again"},
        {"id": "e", "text": "x", "n": 1, "metadata": {"n": 2}},
        '{"id": "f", "text": "x", "metadata": {"v": NaN}}\n',
        '{"id": "g", "text": "half \\ud800"}\n',
        "[" * 100_000 + "\n",
        {"id": "i" * 5000, "text": "x"},
        {"id": "h", "text": "fine too"},
    )
    report = ingest(store, [path], splitter)
    lines = [int(problem.split(":")[0].removeprefix("line ")) for _, problem in report.failures]
    assert lines == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert set(texts(store)) == {"a", "h"}
    assert texts(store)["a"] == "fine"


def test_a_slip_in_a_row_does_not_delete_what_it_held(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    path = rows(notes / "r.jsonl", {"id": "a", "text": "one"}, {"id": "b", "text": "two"})
    ingest(store, [path], splitter)
    rows(path, {"id": "a", "text": "one"}, '{"id": "b", "text": "two"')
    report = ingest(store, [path], splitter)
    assert len(report.failures) == 1
    assert set(texts(store)) == {"a", "b"}
    rows(path, {"id": "a", "text": "one"})
    assert ingest(store, [path], splitter).deleted == 1
    assert set(texts(store)) == {"a"}


def test_an_id_belongs_to_one_file_and_moves_with_it(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    old = rows(notes / "a.jsonl", {"id": "x", "text": "first"})
    rows(notes / "b.jsonl", {"id": "x", "text": "second"})
    report = ingest(store, [notes], splitter)
    assert report.failures == [(str(notes / "b.jsonl"), f"the id 'x' is already used by {old}")]
    assert texts(store) == {"x": "first"}
    old.unlink()
    report = ingest(store, [notes], splitter, prune=True)
    assert report.failures == []
    assert texts(store) == {"x": "second"}


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.slow
@pytest.mark.parametrize("write", [1, 3])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_run_that_was_killed_goes_on_where_it_stopped(
    store: HybridStore,
    notes: Path,
    splitter: Splitter,
    monkeypatch: pytest.MonkeyPatch,
    write: int,
    before: bool,
) -> None:
    """Killed just before or after any write; meanwhile a file shrinks; nothing stale remains."""
    monkeypatch.setattr(run, "_BATCH", 2)
    (notes / "a.txt").write_text(prose(200))
    (notes / "b.txt").write_text(prose(60, seed=1))
    upsert, calls = store.upsert, 0

    def dying(*args: Any, **kwargs: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == write and before:
            raise Killed
        done = upsert(*args, **kwargs)
        if calls == write:
            raise Killed
        return done

    monkeypatch.setattr(store, "upsert", dying)
    with pytest.raises(Killed):
        ingest(store, [notes], splitter)
    monkeypatch.setattr(store, "upsert", upsert)
    written = store.count()
    (notes / "b.txt").write_text("short")
    report = ingest(store, [notes], splitter)
    assert report.failures == []
    assert report.kept + report.deleted >= min(written, 1)

    with HybridStore(notes.parent / "fresh", HashEmbedder()) as fresh:
        ingest(fresh, [notes], splitter)
        assert texts(store) == texts(fresh)
    assert counts(ingest(store, [notes], splitter))[:3] == (0, 2, 0)


def test_progress_ends_at_the_total(store: HybridStore, notes: Path, splitter: Splitter) -> None:
    (notes / "a.txt").write_text(prose(50))
    (notes / "b.txt").write_text(prose(50, seed=1))
    seen: list[tuple[int, int]] = []
    ingest(store, [notes], splitter, progress=lambda _, done, total: seen.append((done, total)))
    size = sum(path.stat().st_size for path in notes.iterdir())
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_damaged_record_says_what_to_do(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    (notes / "a.txt").write_text("board")
    ingest(store, [notes], splitter)
    (store.path / NAME).write_bytes(b"not a database, and long enough to be taken for one" * 20)
    with pytest.raises(StoreError, match=rf"{NAME}.*Delete it and run"):
        ingest(store, [notes], splitter)
    (store.path / NAME).unlink()
    assert ingest(store, [notes], splitter).kept == 1


def test_a_record_that_cannot_be_written_says_so(
    store: HybridStore, notes: Path, splitter: Splitter
) -> None:
    (notes / "a.txt").write_text("board")
    ingest(store, [notes], splitter)
    (notes / "a.txt").write_text("a river")
    with sqlite3.connect(store.path / NAME) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE INSERT ON passages "
            "BEGIN SELECT RAISE(FAIL, 'disk is full'); END"
        )
    other.close()
    with pytest.raises(StoreError, match="disk is full"):
        ingest(store, [notes], splitter)
