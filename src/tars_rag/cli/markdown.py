"""Markdown, whole pages or pieces of them, as plain lines to read in a terminal."""

from __future__ import annotations

import re

_MOST = 20_000  # characters that are looked at; no more is ever shown
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FENCE = re.compile(r"\s*(```|~~~)")
_RULE = re.compile(r"\s*([-*_=])(?:\s*\1){2,}\s*$")  # a line across the page, or below a heading
_TABLE_RULE = re.compile(r"\s*\|?(?:\s*:?-+:?\s*\|)+[\s:-]*$")
_LINE_MARKS = re.compile(r"\s*(?:>\s?)*(?:#{1,6}\s+)?")
_HEADING_END = re.compile(r"\s+#+\s*$")
_BULLET = re.compile(r"\s*(?:[-*+]|\d+[.)])\s")
_CODE = re.compile(r"(`{1,3})(.{1,300}?)\1")
# Each with what is kept of it. Bounded, so that no text takes long.
_ANYWHERE = (
    (re.compile(r"!?\[([^\]\[]{0,300})\]\([^()\s]{1,300}(?:\s+\"[^\"]{0,300}\")?\)"), r"\1"),
    (re.compile(r"<(https?://[^>\s]{1,300})>"), r"\1"),
    (re.compile(r"\*\*(?=\S)(.{1,300}?)(?<=\S)\*\*"), r"\1"),
)
_IN_MARKDOWN = (
    (re.compile(r"</?[A-Za-z][^<>]{0,300}>"), ""),
    (re.compile(r"(?<!\w)__(?=\S)(.{1,300}?)(?<=\S)__(?!\w)"), r"\1"),
    (re.compile(r"(?<![\w*\\])\*(?=[^\s*])(.{1,300}?)(?<=[^\s*\\])\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w\\])_(?=[^\s_])(.{1,300}?)(?<=[^\s_\\])_(?!\w)"), r"\1"),
    (re.compile(r"\\([\\`*_{}\[\]()#+.!|>~-])"), r"\1"),
)


def readable(text: str, *, markdown: bool = True) -> list[str]:
    """Paragraphs, list items, table rows and lines of code, each on one line, without markup.

    Args:
        text: Any text.
        markdown: Whether it is known to be Markdown. If not, only what is unlikely to be anything
            else is treated as markup: ``__init__`` and ``a * b`` stay as they are.
    """
    blocks: list[list[str]] = []
    in_code = apart = False
    for line in _COMMENT.sub("", text[:_MOST]).splitlines():
        if _FENCE.match(line):
            in_code, apart = not in_code, True
        elif in_code:
            blocks.append([line])
        elif not line.strip() or _RULE.match(line) or _TABLE_RULE.match(line):
            apart = True
        else:
            bare = _LINE_MARKS.sub("", line, count=1)
            alone = "#" in line.removesuffix(bare) or bare.startswith("|")
            if bare.startswith("|"):
                bare = ", ".join(cell.strip() for cell in bare.strip().strip("|").split("|"))
            bare = _without_marks(_HEADING_END.sub("", bare) if alone else bare, markdown)
            if alone or apart or not blocks or _BULLET.match(bare):
                blocks.append([bare])
            else:
                blocks[-1].append(bare)
            apart = alone
    joined = (" ".join(" ".join(block).split()) for block in blocks)
    return [block for block in joined if block]


def _without_marks(line: str, markdown: bool) -> str:
    """Remove the markup inside a line; code spans lose only their backticks."""
    kept, at = [], 0
    for code in _CODE.finditer(line):
        kept += [_plain(line[at : code.start()], markdown), code[2]]
        at = code.end()
    return "".join([*kept, _plain(line[at:], markdown)])


def _plain(text: str, markdown: bool) -> str:
    for pattern, replacement in (*_ANYWHERE, *(_IN_MARKDOWN if markdown else ())):
        text = pattern.sub(replacement, text)
    return text
