"""Splitter: cuts a text into passages that the embedder reads whole and a person can read."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tars_rag.errors import ConfigError
from tars_rag.splitting.blocks import Block, code_blocks, markdown_blocks, plain_blocks
from tars_rag.splitting.packing import NEVER, Unit, pack
from tars_rag.splitting.sentences import CLAUSE, LINE, NONE, WORD, breaks, sentence_ends

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Form = Literal["plain", "markdown", "code"]
"""How a text is written."""
_VERSION = 3  # of the way to cut: files that were cut another way are indexed again
_SPECIAL_TOKENS = 2  # [CLS] and [SEP]
_CONTEXT_SHARE = 4  # headings take at most one token in so many
_LONG_WORD = 100  # characters: what a tokenizer gives up on counts as a token for each
_GRAINS = 8  # a sentence that does not fit is divided into about so many pieces a passage
_PARAGRAPH, _ITEM, _SENTENCE, _TOGETHER, _APART = 0.1, 0.2, 0.35, 1.5, 0.5
_INSIDE = {LINE: 0.5, CLAUSE: 0.9, WORD: 1.2, NONE: 2.0}


@dataclass(frozen=True)
class Chunk:
    """A passage of a text, before it has an id.

    Attributes:
        start: Where in the text it begins, in characters.
        end: Where it ends; what it repeats of the chunk before is within.
        text: The author's own words, ``text[start:end]``; below a repeated header in a cut table.
        heading: The headings it stands below, for example ``Boards > Cooling``.
        context: What is to be embedded and indexed above the text: its title and those headings
            that the text does not show.
    """

    start: int
    end: int
    text: str
    heading: str = ""
    context: str = ""


class Splitter:
    """Cuts text where it parts by itself: sections, paragraphs, list items, sentences, words.

    A sentence, a list item, a table, a piece of code stays whole where it fits; a heading is never
    alone; no cut is inside a word that fits.

    Args:
        tokenizer: The embedder's ``tokenizer.json``.
        max_length: The longest text the embedder reads, in tokens.
        tokens: Tokens in a chunk, its headings included; None: all that the embedder reads.
        overlap: The most tokens of whole sentences that a chunk repeats of the one before it, where
            a paragraph had to be cut.

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
        return f"tokens={self._tokens} overlap={self._overlap} splitter={_VERSION}"

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._file))
        tokenizer.no_truncation()  # which would make every long text look short
        tokenizer.no_padding()
        return tokenizer

    def count(self, text: str) -> int:
        """How many tokens the embedder reads in a text, without those that it adds."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def split(
        self,
        text: str,
        form: Form = "plain",
        *,
        title: str = "",
        begin: int = 0,
        beside: int = 0,
    ) -> list[Chunk]:
        """Cut a text.

        Args:
            text: All of it.
            form: How it is written.
            title: What it is called; goes into the context of each chunk.
            begin: Where to begin, for example after front matter.
            beside: Tokens that the caller puts beside each chunk; room is left for them.

        Returns:
            In the order of the text; none of white space alone.
        """
        room = max(self._tokens - beside, self._tokens // 4, 1)
        return _Cutting(self, text, form, title, begin, room).chunks()


class _Cutting:
    """One text being cut."""

    def __init__(
        self, by: Splitter, text: str, form: Form, title: str, begin: int, room: int
    ) -> None:
        self._by, self._text, self._title = by, text, " ".join(title.split())
        if form == "markdown":
            self._blocks = markdown_blocks(text, begin)
        else:
            self._blocks = code_blocks(text) if form == "code" else plain_blocks(text, begin)
        self._room, self._overlap = room, min(by._overlap, room // 2)
        self._places = self._token_places()
        self._contexts: dict[tuple[str, ...], tuple[str, int]] = {}

    def chunks(self) -> list[Chunk]:
        units, of_block = self._units()
        made: list[Chunk] = []
        for first, last in pack(units, self._room):
            chunk = self._chunk(units, of_block, first, last)
            if chunk.text.strip():
                made.append(chunk)
        return made

    def _token_places(self) -> list[int]:
        """Where each token begins. What the tokenizer gave up on counts as several."""
        places: list[int] = []
        texts = [self._text[block.start : block.end] for block in self._blocks]
        step = 256
        for at in range(0, len(texts), step):
            found = self._by._tokenizer.encode_batch(
                texts[at : at + step], add_special_tokens=False
            )
            for block, encoding in zip(self._blocks[at : at + step], found, strict=True):
                for start, end in encoding.offsets:
                    if end - start > _LONG_WORD:
                        places += range(block.start + start, block.start + end)
                    else:
                        places.append(block.start + start)
        return sorted(places)

    def _size(self, start: int, end: int) -> int:
        return bisect.bisect_left(self._places, end) - bisect.bisect_left(self._places, start)

    def _context_of(self, block: Block) -> tuple[str, int]:
        """What goes above a chunk that begins with this block; and how many tokens that is.

        A chunk that shows a heading of its own does not need the one that all the text stands
        below as well: with it, the vectors of a long text are too much alike.
        """
        path = block.path
        if block.kind == "heading" and path and path[0] == self._cover:
            path = path[1:]
        return self._context(path)

    @cached_property
    def _cover(self) -> str:
        """The heading that all others stand below; empty if there is none."""
        tops = [block for block in self._blocks if block.kind == "heading" and not block.path]
        return tops[0].title if len(tops) == 1 else ""

    def _context(self, path: tuple[str, ...]) -> tuple[str, int]:
        """Title and headings, cut from above to what they may take; and how many tokens that is."""
        if path not in self._contexts:
            parts = list(dict.fromkeys([self._title, *path] if self._title else path))
            while parts and self._by.count(" > ".join(parts)) > self._room // _CONTEXT_SHARE:
                parts.pop(0)
            shown = " > ".join(parts)
            self._contexts[path] = shown, self._by.count(shown) if shown else 0
        return self._contexts[path]

    def _units(self) -> tuple[list[Unit], list[Block]]:
        units: list[Unit] = []
        of_block: list[Block] = []
        above = 0  # tokens of the headings that go with what comes next
        for n, block in enumerate(self._blocks):
            before = self._blocks[n - 1] if n else None
            context = self._context_of(block)[1]
            header = self._header_size(block)
            limit = max(1, self._room - context - min(max(above, header), self._room // 2))
            parts = list(self._parts(block, limit))
            cut = self._cut_before(block, before)
            for number, (start, end, inside) in enumerate(parts):
                repeated = self._repeated(block, parts, number) if number else start
                size = self._size(start, end)
                extra = header + self._size(repeated, start)
                if context + extra + size > self._room:
                    extra = 0
                extra += context
                opens = block.kind == "heading" and number == 0 and n > 0
                units.append(Unit(start, end, size, inside if number else cut, opens, extra))
                of_block.append(block)
            above = above + self._size(block.start, block.end) if block.kind == "heading" else 0
        if units and of_block[-1].kind == "heading":  # with nothing below it
            units[-1] = replace(units[-1], cut=NEVER)
        return units, of_block

    def _cut_before(self, block: Block, before: Block | None) -> float:
        if before is None:
            return 0.0
        if before.kind == "heading" or block.kind == "rule":
            return NEVER
        if block.kind == "heading":
            return 0.0
        if block.group != before.group:
            introduced = block.kind != "text" and self._text[: before.end].rstrip().endswith(":")
            return _SENTENCE if introduced else _PARAGRAPH
        if block.kind == "item":
            return _ITEM
        if block.header is not None and before.start == block.header[0]:
            return NEVER  # a header without rows
        return self._line_cut(block.group, block.kind)

    def _line_cut(self, group: int, kind: str) -> float:
        """Between two lines of a piece of code, two rows of a table."""
        if group not in self._groups:
            return _APART
        return _TOGETHER if self._groups[group] <= self._room * 3 // 4 else _APART

    @cached_property
    def _groups(self) -> dict[int, int]:
        sizes: dict[int, int] = {}
        for block in self._blocks:
            if block.kind in ("code", "row"):
                size = self._size(block.start, block.end)
                sizes[block.group] = sizes.get(block.group, 0) + size
        return sizes

    def _parts(self, block: Block, limit: int) -> list[tuple[int, int, float]]:
        """A block as pieces that fit: (start, end, what a cut before it costs)."""
        whole = self._size(block.start, block.end)
        if block.kind in ("heading", "code", "row", "rule"):
            ends = [block.end]
        else:
            ends = list(sentence_ends(self._text, block.start, block.end))
        cut = _TOGETHER if block.kind == "item" and whole <= limit else _SENTENCE
        parts: list[tuple[int, int, float]] = []
        start = block.start
        for end in ends:
            if self._size(start, end) <= limit:
                parts.append((start, end, cut))
            else:
                parts += self._divided(start, end, limit, cut)
            start = end
        return parts

    def _divided(
        self, start: int, end: int, limit: int, cut: float
    ) -> list[tuple[int, int, float]]:
        """A sentence that does not fit, in pieces: at lines, else clauses, else words."""
        grain = max(1, limit // _GRAINS)
        parts: list[tuple[int, int, float]] = []
        cost, last = cut, (0, WORD)
        places = [*breaks(self._text, start, end), (end, WORD)]
        for at, kind in places:
            if self._size(start, at) > grain and last[0] > start:
                parts.append((start, last[0], cost))
                start, cost = last[0], _INSIDE[last[1]]
                index = bisect.bisect_left(self._places, start)
                if index < len(self._places) and self._places[index] != start:
                    self._places.insert(index, start)  # a token cut in two, in an unspaced script
            if self._size(start, at) > limit:  # one word
                self._spell(start, at)
                for stop in range(start + limit, at, limit):
                    parts.append((start, stop, cost))
                    start, cost = stop, _INSIDE[NONE]
            last = (at, kind)
        parts.append((start, end, cost))
        return [part for part in parts if part[0] < part[1]]

    def _spell(self, start: int, end: int) -> None:
        """Count each character as a token: cut in two, a word can be more tokens than it was."""
        places = self._places
        first, last = bisect.bisect_left(places, start), bisect.bisect_left(places, end)
        places[first:last] = range(start, end)

    def _repeated(self, block: Block, parts: Sequence[tuple[int, int, float]], number: int) -> int:
        """Where a chunk begins whose first new piece is this one: sentences before it, as fit."""
        begin = parts[number][0]
        if block.kind not in ("text", "item"):
            return begin
        within = parts[number][2] != parts[0][2]  # one sentence, divided: then any piece of it
        for start, _, cost in reversed(parts[:number]):
            if self._size(start, parts[number][0]) > self._overlap:
                break
            if within or cost == parts[0][2]:
                begin = start
            within = within and cost != parts[0][2]
        return begin

    def _header_size(self, block: Block) -> int:
        """Tokens of the header that is repeated above a row; 0 where none is, or it is too long."""
        if block.header is None or block.start == block.header[0]:
            return 0
        size = self._size(*block.header)
        return size if size <= self._room // 2 else 0

    def _chunk(
        self, units: Sequence[Unit], blocks: Sequence[Block], first: int, last: int
    ) -> Chunk:
        block, text = blocks[first], self._text
        context, tokens = self._context_of(block)
        start, end = units[first].start, units[last - 1].end
        own = units[first].extra - tokens
        header = ""
        if own > 0 and block.header is not None:
            header = text[slice(*block.header)]
        elif own > 0:
            start = self._places[bisect.bisect_left(self._places, start) - own]
        kept = text[start:end].rstrip()
        bare = kept.lstrip("\r\n\f") if block.kind in ("code", "item") else kept.lstrip()
        start += len(kept) - len(bare)
        path = block.path
        for one in blocks[first:last]:
            if one.kind != "heading":
                path = one.path or path
                break
            path = (*one.path, one.title) if one.title else one.path
        return Chunk(start, start + len(bare), header + bare, " > ".join(path), context)
