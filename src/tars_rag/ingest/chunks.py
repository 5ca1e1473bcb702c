"""The passages of a file: chunks that the embedder reads whole, and the rows of JSONL files."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tars_rag.errors import InvalidInputError
from tars_rag.ingest.documents import Document, DocumentReader
from tars_rag.ingest.files import read_lines, read_text
from tars_rag.ingest.formats import format_of
from tars_rag.ingest.markdown_file import front_matter
from tars_rag.retrieval.indexes.codec import check_passage
from tars_rag.retrieval.passage import CONTEXT, Passage
from tars_rag.splitting.blocks import markdown_blocks
from tars_rag.splitting.splitter import Chunk, Splitter


@dataclass(frozen=True)
class Piece:
    """A passage of a file, or a problem with a row of it.

    Attributes:
        position: Where in the file it is, in bytes or characters (only used to show progress).
        passage: The passage; None where `problem` says why there is none.
        problem: What is wrong, with the line number.
    """

    position: int
    passage: Passage | None = None
    problem: str | None = None


def pieces(
    path: Path, splitter: Splitter, reader: DocumentReader, name: str | None = None
) -> Iterator[Piece]:
    """The passages of a file in their order, and its problems.

    A file of text and a document give ``<name>#<number>`` with metadata ``source``, ``chunk``,
    ``start`` and ``end`` (characters in the text), ``modified`` and, where there is one,
    ``title``, ``heading``, ``page`` and what front matter or document say of themselves. A JSONL
    row keeps its id (``id``, or ``_id`` as in BEIR's files), unless it is too long for the
    embedder: then its chunks are ``<id>#<number>``. The name is the path where none is given.
    """
    name = str(path) if name is None else name
    try:
        if format_of(path).kind == "records":
            yield from _rows(path, name, splitter)
        else:
            yield from _chunks(path, name, splitter, reader)
    except InvalidInputError as error:
        yield Piece(0, problem=str(error))


def _chunks(path: Path, name: str, splitter: Splitter, reader: DocumentReader) -> Iterator[Piece]:
    form, begin = format_of(path), 0
    if form.kind == "document":
        document = reader.read(path, form)
    else:
        document = Document(read_text(path))
        if form.form == "markdown":
            about, begin = front_matter(document.text)
            title = about.get("title")
            document = Document(document.text, title if isinstance(title, str) else "", about)
    chunks = splitter.split(document.text, form.form, title=document.title, begin=begin)
    about = dict(document.about)
    if "title" not in about and (document.title or (chunks and chunks[0].heading)):
        about["title"] = document.title or chunks[0].heading.split(" > ")[0]
    about |= {"source": name, "modified": _modified(path)}
    starts = [start for start, _ in document.pages]
    for number, chunk in enumerate(chunks):
        metadata = {**about, "chunk": number, **_place(chunk)}
        if starts:
            metadata["page"] = document.pages[max(0, bisect_right(starts, chunk.start) - 1)][1]
        yield Piece(chunk.start, check_passage(Passage(f"{name}#{number}", chunk.text, metadata)))


def _place(chunk: Chunk) -> dict[str, Any]:
    """What the metadata says of where a chunk stands."""
    place: dict[str, Any] = {"start": chunk.start, "end": chunk.end}
    if chunk.heading:
        place["heading"] = chunk.heading
    if chunk.context:
        place[CONTEXT] = chunk.context
    return place


def _modified(path: Path) -> str:
    """When a file was changed: UTC, ISO 8601, in seconds."""
    try:
        seconds = int(path.stat().st_mtime)
    except OSError:
        seconds = 0
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def _rows(path: Path, name: str, splitter: Splitter) -> Iterator[Piece]:
    seen: dict[str, int] = {}
    for number, position, raw in read_lines(path):
        if not raw.strip():
            continue
        try:
            passages = cut(_row(name, number, raw), splitter)
            for passage in passages:
                check_passage(passage)
                if passage.id in seen:
                    msg = f"the id {passage.id!r} was already given in line {seen[passage.id]}"
                    raise InvalidInputError(msg)
        except (ValueError, RecursionError) as error:
            yield Piece(position, problem=f"line {number}: {error}")
            continue
        for passage in passages:
            seen[passage.id] = number
            yield Piece(position, passage)


def cut(row: Passage, splitter: Splitter) -> list[Passage]:
    """A row as passages that the embedder reads whole: itself, or its chunks ``<id>#<number>``."""
    title = row.metadata.get("title")
    title = title if isinstance(title, str) else ""
    chunks = splitter.split(row.text, title=title)
    if len(chunks) <= 1:
        return [replace(row, metadata={**row.metadata, CONTEXT: title}) if title else row]
    return [
        Passage(f"{row.id}#{n}", chunk.text, {"chunk": n, **_place(chunk), **row.metadata})
        for n, chunk in enumerate(chunks)
    ]


def _row(name: str, number: int, raw: bytes) -> Passage:
    row = json.loads(raw, parse_constant=_refuse)
    if not isinstance(row, dict):
        msg = f"a row is an object with id, text and metadata, not {type(row).__name__}"
        raise InvalidInputError(msg)
    other = row.pop("_id", f"{name}:{number}") if "id" not in row else ""  # as BEIR names it
    key = row.pop("id", other)
    text, metadata = row.pop("text", None), row.pop("metadata", None) or {}
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if not isinstance(key, str) or not key:
        msg = f"'id' is a string, not {key!r}"
        raise InvalidInputError(msg)
    if not isinstance(text, str):
        msg = f"'text' is a string, not {text!r}" if text is not None else "'text' is missing"
        raise InvalidInputError(msg)
    if not isinstance(metadata, dict):
        msg = f"'metadata' is an object, not {metadata!r}"
        raise InvalidInputError(msg)
    if doubled := row.keys() & metadata.keys():
        msg = f"{', '.join(sorted(doubled))} is given both beside 'metadata' and in it"
        raise InvalidInputError(msg)
    passage = Passage(key, text, {"source": name, **row, **metadata})
    try:
        json.dumps([key, text, dict(passage.metadata)], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        msg = "it holds half a surrogate pair, which is not text"
        raise InvalidInputError(msg) from None
    return passage


def _refuse(constant: str) -> None:
    msg = f"{constant} is not JSON"
    raise InvalidInputError(msg)


def _headings(text: str) -> list[tuple[int, str]]:
    """Where each heading of a Markdown file begins, in characters, and its path."""
    _, begin = front_matter(text)
    blocks = [block for block in markdown_blocks(text, begin) if block.kind == "heading"]
    return [(block.start, " > ".join((*block.path, block.title))) for block in blocks]
