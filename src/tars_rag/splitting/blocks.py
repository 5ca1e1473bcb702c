"""What a text is made of: headings, paragraphs, list items, table rows, lines of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

Kind = Literal["heading", "text", "item", "code", "row", "rule"]
_LINE = re.compile(r"\r\n?|\n")  # as the parser counts lines
_BLANK = re.compile(r"(?:[ \t]*(?:\r\n?|\n))+")
_PARAGRAPH = re.compile(r"(?:\r\n?|\n)[ \t]*(?:(?:\r\n?|\n)[ \t]*)+")


@dataclass(frozen=True)
class Block:
    """A piece of a text that is better not cut.

    Attributes:
        start: In characters; the white space after a block belongs to it.
        end: Where the next one begins.
        kind: What it is.
        group: Blocks of one list, table or piece of code have one number, others one each.
        path: The headings it stands below, its own not among them.
        title: Of a heading: its text.
        header: Of a row of a table: where the table's header is.
    """

    start: int
    end: int
    kind: Kind
    group: int
    path: tuple[str, ...] = ()
    title: str = ""
    header: tuple[int, int] | None = None


def plain_blocks(text: str, begin: int = 0) -> list[Block]:
    """The paragraphs of a text, which blank lines separate."""
    ends = [begin, *(found.end() for found in _PARAGRAPH.finditer(text, begin)), len(text)]
    ends = sorted(set(ends))
    return [Block(a, b, "text", n) for n, (a, b) in enumerate(pairwise(ends))]


def code_blocks(text: str) -> list[Block]:
    """The lines of source code, each with the blank lines that follow it."""
    return [Block(a, b, "code", 0) for a, b in _lines_of(text, 0, len(text))]


def markdown_blocks(text: str, begin: int = 0) -> list[Block]:
    """The blocks of a CommonMark text with tables, from `begin` on.

    A `#` in a fence, a comment or a quotation is no heading; an underlined line is one.
    """
    lines = [begin, *(found.end() for found in _LINE.finditer(text, begin)), len(text) + 1]
    found = list(_blocks(text, _parser().parse(text[begin:]), lines))
    return list(_without_gaps(text, found, begin))


def _blocks(text: str, tokens: list[Token], lines: list[int]) -> Iterator[Block]:
    trail: dict[int, str] = {}
    group = 0

    def place(token: Token) -> tuple[int, int]:
        first, last = token.map or [0, 0]
        return lines[first], min(lines[min(last, len(lines) - 1)], len(text))

    at = 0
    while at < len(tokens):
        token = tokens[at]
        close = at
        if token.nesting == 1:
            close = next(
                n
                for n in range(at + 1, len(tokens))
                if tokens[n].level == 0 and tokens[n].nesting == -1
            )
        inside = tokens[at : close + 1]
        at = close + 1
        if token.map is None:
            continue
        group += 1
        path = tuple(trail.values())
        start, end = place(token)
        if token.type == "heading_open":
            title, level = " ".join(inside[1].content.split()), int(token.tag[1])
            above = {n: one for n, one in trail.items() if n < level}
            yield Block(start, end, "heading", group, tuple(above.values()), title)
            if title:
                trail = above | {level: title}
        elif token.type in ("bullet_list_open", "ordered_list_open"):
            starts = sorted({place(t)[0] for t in inside if t.type == "list_item_open"} | {start})
            for a, b in zip(starts, [*starts[1:], end], strict=True):
                yield Block(a, b, "item", group, path)
        elif token.type == "table_open":
            yield from _rows(
                text, [place(t) for t in inside if t.type == "tr_open"], end, group, path
            )
        elif token.type in ("fence", "code_block"):
            for a, b in _lines_of(text, start, end):
                yield Block(a, b, "code", group, path)
        else:
            yield Block(start, end, "rule" if token.type == "hr" else "text", group, path)


def _rows(
    text: str, rows: list[tuple[int, int]], end: int, group: int, path: tuple[str, ...]
) -> Iterator[Block]:
    """The header with the line below it, and each row."""
    start = rows[0][0]
    first = rows[1][0] if len(rows) > 1 else end
    header = (start, first)
    yield Block(start, first, "row", group, path, header=header)
    starts = [row for row, _ in rows[1:]]
    for a, b in zip(starts, [*starts[1:], end], strict=False):
        yield Block(a, b, "row", group, path, header=header)


def _lines_of(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Lines, each with the blank ones after it."""
    begin = start
    for found in _LINE.finditer(text, start, end):
        after = _BLANK.match(text, found.end(), end)
        stop = after.end() if after else found.end()
        if stop > begin and text[begin:stop].strip():
            yield begin, stop
            begin = stop
    if begin < end:
        yield begin, end


def _without_gaps(text: str, blocks: list[Block], begin: int) -> Iterator[Block]:
    """What is in no block (a definition of a link) becomes one; white space ends a block."""
    at, path = begin, ()
    group = -1
    for n, block in enumerate([*blocks, Block(len(text), len(text), "text", 0)]):
        if block.start > at and text[at : block.start].strip():
            yield Block(at, block.start, "text", group, blocks[n - 1].path if n else path)
            group -= 1
        if n == len(blocks):
            return
        nearest = blocks[n + 1].start if n + 1 < len(blocks) else len(text)
        start, end = max(block.start, at), max(block.end, at)
        if not text[end:nearest].strip():
            end = nearest
        at = end
        if start < end:
            yield Block(start, end, block.kind, block.group, block.path, block.title, block.header)


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])  # what is in a line does not matter
    return parser
