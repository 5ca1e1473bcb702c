"""Files as people have them: pipes, marked encodings, front matter, headings of every kind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tars_rag.ingest.chunks import pieces
from tars_rag.ingest.files import find
from tars_rag.ingest.markdown_file import front_matter
from tars_rag.retrieval.passage import CONTEXT
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


@pytest.mark.parametrize(("name", "tool"), [("a.pdf", "pdftotext"), ("b c.html", "pandoc")])
def test_a_document_is_refused_with_the_command_that_makes_text(
    tmp_path: Path, name: str, tool: str
) -> None:
    (tmp_path / name).write_bytes(b"<html>caf\xe9</html>")
    [reason] = find([tmp_path / name]).failures.values()
    assert tool in reason
    assert "ISO" not in reason


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_rows_in_any_marked_encoding(tmp_path: Path, encoding: str, splitter: Splitter) -> None:
    rows = [{"_id": "é1", "text": "ein Text\u2028 weiter"}, {"id": "b", "_id": "c", "text": "two"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines.encode(encoding))
    found = [piece.passage for piece in pieces(path, splitter)]
    assert [passage and passage.id for passage in found] == ["é1", "b"]
    assert found[0] is not None
    assert found[0].text == "ein Text\u2028 weiter"
    assert found[1] is not None
    assert found[1].metadata["_id"] == "c"


def test_a_rows_own_chunk_stays(tmp_path: Path, splitter: Splitter) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "word " * 90, "chunk": "mine"}))
    found = [piece.passage for piece in pieces(path, splitter)]
    assert len(found) > 1
    assert {passage.metadata["chunk"] for passage in found if passage} == {"mine"}


def test_front_matter_becomes_metadata_and_no_text(tmp_path: Path, splitter: Splitter) -> None:
    path = tmp_path / "note.md"
    path.write_text(
        "---\n# by a script\ntitle: The pump\ntags: [heat, 2]\ndate: 2024-05-01\nsource: mine\n"
        "nested: {a: 1}\n---\n\n# Care\n\nOil it.\n"
    )
    [piece] = pieces(path, splitter)
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
