"""Files as people have them: pipes, marked encodings, front matter, headings of every kind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from conftest import HashEmbedder
from tars_rag.ingest.chunks import pieces
from tars_rag.ingest.documents import DocumentReader
from tars_rag.ingest.files import find, read_text
from tars_rag.ingest.markdown_file import front_matter
from tars_rag.ingest.run import ingest
from tars_rag.retrieval.passage import CONTEXT
from tars_rag.retrieval.store import HybridStore
from tars_rag.splitting.splitter import Splitter
from tiny_models import write_model


@pytest.fixture(scope="module")
def splitter(tmp_path_factory: pytest.TempPathFactory) -> Splitter:
    model = write_model(tmp_path_factory.mktemp("t") / "tiny", head=False, seed=5)
    return Splitter(model / "tokenizer.json", max_length=34, overlap=8)


def test_what_never_ends_is_named_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.md").symlink_to("/dev/zero")
    (tmp_path / "good.txt").write_text("a text")
    found = find([tmp_path])
    assert found.files == [(tmp_path / "good.txt").resolve()]
    assert {Path(name).name for name in found.failures} == {"pipe.txt", "zero.md"}
    assert all("not a regular file" in reason for reason in found.failures.values())
    assert (
        "not a regular file" in find([tmp_path / "pipe.txt"]).failures[str(tmp_path / "pipe.txt")]
    )


def test_a_linked_folder_is_counted(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "back").symlink_to(tmp_path)
    assert find([tmp_path / "notes"]).ignored == {"linked folder": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_rows_in_any_marked_encoding(tmp_path: Path, encoding: str, splitter: Splitter) -> None:
    rows = [{"_id": "é1", "text": "ein Text\u2028 weiter"}, {"id": "b", "_id": "c", "text": "two"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines.encode(encoding))
    found = [piece.passage for piece in pieces(path, splitter, DocumentReader())]
    assert [passage and passage.id for passage in found] == ["é1", "b"]
    assert found[0] is not None
    assert found[0].text == "ein Text\u2028 weiter"
    assert found[1] is not None
    assert found[1].metadata["_id"] == "c"


def test_a_rows_own_chunk_stays(tmp_path: Path, splitter: Splitter) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "word " * 90, "chunk": "mine"}))
    found = [piece.passage for piece in pieces(path, splitter, DocumentReader())]
    assert len(found) > 1
    assert {passage.metadata["chunk"] for passage in found if passage} == {"mine"}


def test_front_matter_becomes_metadata_and_no_text(tmp_path: Path, splitter: Splitter) -> None:
    path = tmp_path / "note.md"
    path.write_text(
        "---\n# by a script\ntitle: The pump\ntags: [heat, 2]\ndate: 2024-05-01\nsource: mine\n"
        "nested: {a: 1}\n---\n\n# Care\n\nOil it.\n"
    )
    [piece] = pieces(path, splitter, DocumentReader())
    assert piece.passage is not None
    assert piece.passage.text == "# Care\n\nOil it."
    metadata = dict(piece.passage.metadata)
    assert metadata.pop("modified")[10] == "T"
    assert metadata == {
        "title": "The pump",
        "tags": ["heat", 2],
        "date": "2024-05-01",
        "source": str(path),
        "chunk": 0,
        "heading": "Care",
        "start": 100,
        "end": 115,
        CONTEXT: "The pump",
    }


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nA rule above.\n\n---\n",
        "---\nnot: [closed\n---\n",
        "---\njust words\n---\n",
        "---\na: &x [1]\nb: *x\n---\ntext",
        "text\n---\ntitle: late\n---\n",
    ],
)
def test_what_is_no_front_matter_stays_text(text: str) -> None:
    assert front_matter(text)[0] == {}


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "Die Brücke über den Fluss ist größer, als man denkt. Müller wohnt dort.\n"),
        ("cp1252", "Il a dit “déjà vu” – ça coûte 3 € à l’entrée du café, près du château.\n"),
        ("koi8-r", "Насос нужно смазывать каждое утро, и вентилятор тоже проверяют.\n"),
        ("shift_jis", "東京は日本の首都です。水のポンプは毎朝油をさします。大切な機械です。\n"),
        ("utf-16-le", "A text of Windows, without a mark.\r\n"),
        ("utf-16-be", "Text ohne Marke: Größe und Maß.\n"),
    ],
)
def test_encodings_are_told_by_their_bytes(tmp_path: Path, encoding: str, text: str) -> None:
    pytest.importorskip("charset_normalizer")
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    assert read_text(path) == text


def test_a_gitignore_and_patterns_leave_out(tmp_path: Path) -> None:
    files = ["a.md", "b.md", "sub/a.md", "sub/keep.md", "sub/deep/x.txt", "build/y.txt", "z.txt"]
    for name in files:
        path = tmp_path / "repo" / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    docs = tmp_path / "repo" / "docs"
    (tmp_path / "repo" / ".git").mkdir()
    (tmp_path / "repo" / ".gitignore").write_text("z.txt\n/docs/b.md\n")
    (docs / ".gitignore").write_text("build/\n*.md\n!/a.md\n")
    (docs / "sub" / ".gitignore").write_text("!keep.md\n")
    found = find([docs], ["deep/"])
    names = [path.relative_to(docs).as_posix() for path in found.files]
    assert names == ["a.md", "sub/keep.md"]
    assert found.excluded == 5
    assert find([docs / "b.md"]).files == [docs / "b.md"]  # it was named


def test_source_code_is_indexed_by_lines(tmp_path: Path, splitter: Splitter) -> None:
    path = tmp_path / "pump.py"
    path.write_text(
        "".join(f"def pump_{n}():\n    # not a heading\n    go({n})\n\n" for n in range(9))
    )
    found = [piece.passage for piece in pieces(path, splitter, DocumentReader())]
    assert len(found) > 2
    assert all(one and "heading" not in one.metadata for one in found)


def test_what_moved_or_is_there_twice_is_embedded_once(tmp_path: Path, splitter: Splitter) -> None:
    embedder = CountingEmbedder()
    notes = tmp_path / "notes"
    notes.mkdir()
    text = "# Pumps\n\n" + "\n\n".join(
        f"Pump {n} needs oil and a fan of its own." for n in range(9)
    )
    (notes / "a.md").write_text(text)
    with HybridStore(tmp_path / "store", embedder) as store:
        ingest(store, [notes], splitter)
        embedded = embedder.texts
        (notes / "a.md").rename(notes / "b.md")
        report = ingest(store, [notes], splitter, prune=True)
        assert report.reused == report.written == report.deleted == store.count()
        assert embedder.texts == embedded
        (notes / "copy.md").write_text(text)
        (notes / "b.md").write_text(f"A new start.\n\n{text}")
        report = ingest(store, [notes], splitter)
        assert embedder.texts <= embedded + 2
        assert report.copies == []
        (notes / "b.md").write_text(text)
        assert ingest(store, [notes], splitter).copies == [
            [str(notes / "b.md"), str(notes / "copy.md")]
        ]
        found = store.search("Which pump needs a fan of its own?", k=store.count())
        names = {passage.metadata["source"] for passage in found}
        assert names == {str(notes / "b.md"), str(notes / "copy.md")}
        for passage in store.get():
            vector = store.vectors([passage.id])[passage.id]
            assert vector == pytest.approx(embedder.embed([passage.indexed])[0], abs=1e-6)


class CountingEmbedder(HashEmbedder):
    """Counts what it embeds."""

    texts = 0

    def embed(self, texts: Any) -> Any:
        self.texts += len(texts)
        return super().embed(texts)
