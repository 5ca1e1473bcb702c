"""The passages of a file: chunks that the embedder reads whole, and the rows of JSONL files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tars_rag.errors import ConfigError, InvalidInputError
from tars_rag.ingest.files import MARKDOWN, RECORDS, read_lines, read_text
from tars_rag.ingest.markdown_file import front_matter
from tars_rag.ingest.markdown_file import headings as _headings
from tars_rag.retrieval.indexes.codec import check_passage
from tars_rag.retrieval.passage import Passage

if TYPE_CHECKING:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter
    from tokenizers import Tokenizer

_READER = 2  # what a file is read as; 2: front matter is no text
_SPECIAL_TOKENS = 2  # [CLS] and [SEP]


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


class Splitter:
    """Cuts text at the largest boundary (heading, paragraph, sentence, word) that fits.

    Args:
        tokenizer: The embedder's ``tokenizer.json``.
        max_length: The longest text the embedder reads, in tokens.
        tokens: Tokens in a chunk; None: all that the embedder reads.
        overlap: Tokens a chunk repeats of the one before it, where a paragraph had to be cut.

    Raises:
        ConfigError: `tokens` is more than the embedder reads, or `overlap` is not less than it.
    """

    def __init__(
        self, tokenizer: Path, max_length: int, tokens: int | None = None, overlap: int = 32
    ) -> None:
        room = max_length - _SPECIAL_TOKENS
        tokens = room if tokens is None else tokens
        if not 1 <= tokens <= room:
            msg = f"Chunks of {tokens} tokens are not possible: this embedder reads 1 to {room}."
            raise ConfigError(msg)
        if not 0 <= overlap < tokens:
            msg = f"An overlap of {overlap} tokens is not possible: allowed are 0 to {tokens - 1}."
            raise ConfigError(msg)
        self._file, self._tokens, self._overlap = tokenizer, tokens, overlap

    @property
    def settings(self) -> str:
        """The settings as text; a file that was cut with others is indexed again."""
        return f"tokens={self._tokens} overlap={self._overlap} reader={_READER}"

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._file))
        tokenizer.no_truncation()  # which would make every long text look short
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _text(self) -> TextSplitter:
        from semantic_text_splitter import TextSplitter

        return TextSplitter.from_huggingface_tokenizer(
            self._tokenizer, self._tokens, overlap=self._overlap
        )

    @cached_property
    def _markdown(self) -> MarkdownSplitter:
        from semantic_text_splitter import MarkdownSplitter

        return MarkdownSplitter.from_huggingface_tokenizer(
            self._tokenizer, self._tokens, overlap=self._overlap
        )

    def split(self, text: str, *, markdown: bool = False) -> list[tuple[int, str]]:
        """Cut `text` into (start in characters, chunk)."""
        chunks = (self._markdown if markdown else self._text).chunk_indices(text)
        return [(start, chunk) for start, chunk in chunks if chunk.strip()]  # \x1f alone is none


def pieces(path: Path, splitter: Splitter) -> Iterator[Piece]:
    """The passages of a file in their order, and its problems.

    Text and Markdown give ``<path>#<number>`` with metadata ``source``, ``chunk`` and, in
    Markdown, ``heading`` and what its front matter says. A JSONL row keeps its id (``id``, or
    ``_id`` as in BEIR's files), unless it is too long for the embedder: then its chunks are
    ``<id>#<number>``.
    """
    suffix = path.suffix.lower()
    try:
        yield from _rows(path, splitter) if suffix in RECORDS else _chunks(path, splitter, suffix)
    except InvalidInputError as error:
        yield Piece(0, problem=str(error))


def _chunks(path: Path, splitter: Splitter, suffix: str) -> Iterator[Piece]:
    text = read_text(path)
    markdown = suffix in MARKDOWN
    about, begin = front_matter(text) if markdown else ({}, 0)
    headings = _headings(text) if markdown else []
    trail = ""
    for number, (place, chunk) in enumerate(splitter.split(text[begin:], markdown=markdown)):
        start = begin + place
        while headings and headings[0][0] <= start:
            trail = headings.pop(0)[1]
        metadata: dict[str, Any] = {**about, "source": str(path), "chunk": number}
        if trail:
            metadata["heading"] = trail
        yield Piece(start, check_passage(Passage(f"{path}#{number}", chunk, metadata)))


def _rows(path: Path, splitter: Splitter) -> Iterator[Piece]:
    seen: dict[str, int] = {}
    for number, position, raw in read_lines(path):
        if not raw.strip():
            continue
        try:
            passages = _cut(_row(path, number, raw), splitter)
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


def _cut(row: Passage, splitter: Splitter) -> list[Passage]:
    chunks = splitter.split(row.text)
    if len(chunks) <= 1:
        return [row]
    return [
        Passage(f"{row.id}#{n}", chunk, {"chunk": n, **row.metadata})
        for n, (_, chunk) in enumerate(chunks)
    ]


def _row(path: Path, number: int, raw: bytes) -> Passage:
    row = json.loads(raw, parse_constant=_refuse)
    if not isinstance(row, dict):
        msg = f"a row is an object with id, text and metadata, not {type(row).__name__}"
        raise InvalidInputError(msg)
    other = row.pop("_id", f"{path}:{number}") if "id" not in row else ""  # as BEIR names it
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
    passage = Passage(key, text, {"source": str(path), **row, **metadata})
    try:
        json.dumps([key, text, dict(passage.metadata)], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        msg = "it holds half a surrogate pair, which is not text"
        raise InvalidInputError(msg) from None
    return passage


def _refuse(constant: str) -> None:
    msg = f"{constant} is not JSON"
    raise InvalidInputError(msg)
