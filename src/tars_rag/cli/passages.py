"""Ranked passages for people: the best part of each, wrapped, with the found words highlighted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from rich.text import Text

from tars_rag.cli.console import out, show
from tars_rag.cli.markdown import readable

if TYPE_CHECKING:
    from tars_rag.retrieval.passage import Passage, ScoredPassage

_LENGTH = 320  # of what is shown of a passage, in characters
_LONGEST_WORD = 80  # what is longer is of a script without spaces, or no word
_INDENT = "   "
_TOLD = 3  # copies that are named
_CHUNK = re.compile(r"\S+")
_WORD_ENDS = re.compile(r"\w(?:.*\w)?(?:\+\+|#)?")
_SENTENCE_END = re.compile("(?<=[.!?:;])\\s+|(?<=[\u3002\uff01\uff1f\uff1b])")


class Question:
    """Finds the words of a question in texts, in the forms that the word index treats as equal."""

    def __init__(self, text: str, language: str = "en") -> None:
        from tars_rag.retrieval.indexes.words.analysers import analyser

        self._analyser = analyser(language)
        self._terms = set(self._analyser.query_terms(text))

    def terms_in(self, text: str) -> set[str]:
        """The index terms that question and text have in common."""
        return self._terms & set(self._analyser.passage_terms(text).split())

    def words_in(self, text: str) -> Iterator[tuple[int, int]]:
        """Positions of the question's words in a text: (start, end) in characters."""
        from tars_rag.retrieval.indexes.words.script import UNSPACED

        for chunk in _CHUNK.finditer(text):
            terms = self.terms_in(chunk[0])
            if terms and UNSPACED.search(chunk[0]):
                for term in sorted(terms):
                    for found in re.finditer(re.escape(term), chunk[0]):
                        yield chunk.start() + found.start(), chunk.start() + found.end()
            elif terms and (word := _WORD_ENDS.search(chunk[0])):
                yield chunk.start() + word.start(), chunk.start() + word.end()


def place_of(passage: Passage | ScoredPassage) -> str:
    """Where it stands: page and heading, or title."""
    metadata = passage.metadata
    page = metadata.get("page")
    heading = metadata.get("heading") or metadata.get("title")
    parts = [f"p. {page}" if page is not None else "", str(heading) if heading else ""]
    return "  ".join(part for part in parts if part)


def _linked(passage: ScoredPassage, root: Path | None) -> Text:
    """The id; on a terminal a link to the file, at the page where there are pages."""
    text = Text(passage.id)
    source = passage.metadata.get("source")
    source = root / source if root is not None and isinstance(source, str) else source
    if out.is_terminal and isinstance(source, str | Path) and PurePath(source).is_absolute():
        page = passage.metadata.get("page")
        text.stylize(f"link {PurePath(source).as_uri()}{f'#page={page}' if page else ''}")
    return text


def show_passages(
    passages: Sequence[ScoredPassage],
    query: str,
    language: str,
    around: Mapping[str, Sequence[Passage]] | None = None,
    root: Path | None = None,
    copies: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Print rank, score, id, heading, and the part of the text with most words of the query.

    On a terminal these words are highlighted.

    Args:
        passages: Best first.
        query: What was asked.
        language: Of the store.
        around: Id -> a passage with its neighbours, which are then shown whole.
        root: From where their sources are named, if not by whole paths.
        copies: Id -> ids of passages with the same text, which are named below it.
    """
    if not passages:
        show("Nothing was found.")
    question = Question(query, language)
    for rank, passage in enumerate(passages, 1):
        score = (f"{passage.score:.3f}  ", "cyan")
        head = Text.assemble((f"{rank}. ", "bold"), score, _linked(passage, root))
        heading = passage.metadata.get("heading") or passage.metadata.get("title")
        if place := place_of(passage):
            head.append(f"  {place}", style="italic")
        out.print(head, soft_wrap=True)
        blocks = readable(passage.text, markdown=_is_markdown(passage))
        if len(blocks) > 1 and str(heading).endswith(blocks[0]):
            del blocks[0]  # it stands in the line above
        lines = list(excerpt(blocks, question))
        if around:
            markdown = _is_markdown(passage)
            near = around.get(passage.id, [])
            lines = [line for one in near for line in readable(one.text, markdown=markdown)]
        for line in lines:
            _show_wrapped(line, question)
        if copies and (same := copies.get(passage.id)):
            more = f" and {len(same) - _TOLD} more" if len(same) > _TOLD else ""
            told = f"{_INDENT}the same text: {', '.join(same[:_TOLD])}{more}"
            out.print(Text(told, "dim"), soft_wrap=True)


def excerpt(blocks: Sequence[str], question: Question, length: int = _LENGTH) -> list[str]:
    """The stretch of about `length` characters that has most of the question's words.

    Args:
        blocks: Paragraphs, list items and the like; each starts on a new line.
        question: The question.
        length: In characters.

    Returns:
        Lines of whole words; "..." stands where something was left out.
    """
    parts = [(n, part) for n, block in enumerate(blocks) for part in _sentences(block)]
    start = _best_start([part for _, part in parts], question, length)
    lines: list[str] = []
    room, last = length, -1
    for number, part in parts[start:]:
        fits = len(part.rstrip()) <= room
        if not fits and lines and room < length // 3:
            lines[-1] = f"{lines[-1].rstrip()} ..."
            break
        shown = part if fits else _beginning(part, room)
        if number == last:
            lines[-1] += shown
        else:
            lines.append(shown)
        if not fits:
            break
        room, last = room - len(part), number
    if start and lines:
        lines[0] = f"... {lines[0]}"
    return [line.rstrip() for line in lines]


def _sentences(block: str) -> list[str]:
    """The sentences of a block, each with the white space that follows it."""
    ends = [0, *(end.end() for end in _SENTENCE_END.finditer(block)), len(block)]
    return [block[a:b] for a, b in pairwise(ends) if a < b]


def _best_start(parts: Sequence[str], question: Question, length: int) -> int:
    """The first part of the stretch of `length` characters with most of the question's words."""
    if sum(map(len, parts)) <= length:
        return 0
    found = [question.terms_in(part) for part in parts]
    best, most = 0, 0
    for start in range(len(parts)):
        words: set[str] = set()
        room = length
        for at in range(start, len(parts)):
            if at > start and len(parts[at]) > room:
                break
            words |= found[at]
            room -= len(parts[at])
        if len(words) > most:
            best, most = start, len(words)
    return best


def _beginning(text: str, length: int) -> str:
    """As many whole words as fit; in a script without spaces, as many characters."""
    words, _, rest = text[: length + 1].rpartition(" ")
    return (text[:length] if len(rest) > min(length, _LONGEST_WORD) else words) + " ..."


def _show_wrapped(line: str, question: Question) -> None:
    text = Text(line)
    for start, end in question.words_in(line):
        text.stylize("bold yellow", start, end)
    for row in text.wrap(out, max(out.width - len(_INDENT), 20)):
        row.rstrip()
        out.print(Text.assemble(_INDENT, row), soft_wrap=True)


def _is_markdown(passage: ScoredPassage) -> bool:
    from tars_rag.ingest.formats import format_of

    source = passage.metadata.get("source")
    name = source if isinstance(source, str) else passage.id.partition("#")[0]
    return format_of(PurePath(name)).form == "markdown"
