"""Where a sentence ends, and where one that is too long may be divided."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from tars_rag.retrieval.indexes.words.script import CJK

_SPACE = r"[^\S\x0b\x0c\x1c-\x1f\x85]"  # to embedders those are nothing, not even space
_END = re.compile(
    f"[.!?\u2026]+[\"'\u201d\u2019\u00bb)\\]*_]*(?={_SPACE})"
    "|[\u3002\uff01\uff1f\uff61\u0964\u0965\u061f\u06d4][\u300d\u300f\u201d\uff09\"')]*"
)
_GAP = re.compile(f"{_SPACE}*")
_LAST_WORD = re.compile(r"[\w.]+$")
_ABBREVIATIONS = frozenset(
    """
    e.g i.e cf vs etc al fig figs eq eqs no nos vol pp ed eds approx resp incl dept inc ltd co corp
    mr mrs ms dr prof st jr sr jan feb mar apr jun jul aug sep sept oct nov dec
    z.b d.h bzw usw ca nr bd vgl p.ex m.a o.a p.ej sig
    """.split()  # noqa: SIM905
)
_UNSPACED = f"{CJK}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Hangul has spaces
# In the order of preference: a line, a clause, a word.
_BREAK = re.compile(
    f"(?P<line>[ \\t]*\\n{_SPACE}*)|(?<=[,;:]){_SPACE}+|(?<=[\u3001\uff0c\uff1b\uff1a])"
    f"|(?P<word>{_SPACE}+|(?<=[{_UNSPACED}])(?=[{_UNSPACED}]))"
)
_TIED = re.compile(
    "[\u30fc\u30a1\u30a3\u30a5\u30a7\u30a9\u30c3\u30e3\u30e5\u30e7\u3041\u3043\u3045\u3047\u3049\u3063\u3083\u3085\u3087\u3001\u3002]"
)

LINE, CLAUSE, WORD, NONE = range(4)
"""What a sentence may be divided at, the best first; NONE: inside a word that no passage holds."""


def sentence_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Positions after `start` where a new sentence of ``text[start:end]`` begins, and `end`."""
    for found in _END.finditer(text, start, end):
        begin = found.end()
        begin = _GAP.match(text, begin, end).end()  # type: ignore[union-attr]
        if begin < end and not _goes_on(text, start, found, begin):
            yield begin
    yield end


def _goes_on(text: str, start: int, mark: re.Match[str], begin: int) -> bool:
    """Whether what looks like the end of a sentence is an abbreviation, an initial, a number."""
    if not mark[0].startswith("."):
        return False
    if text[begin].islower():
        return True
    word = _LAST_WORD.search(text, max(start, mark.start() - 20), mark.start())
    if word is None:
        return False
    last = word[0].lower()
    before = text[max(start, word.start() - 8) : word.start()].rstrip(" \t")
    listed = last.isdigit() and (not before or before.endswith("\n"))
    return listed or last in _ABBREVIATIONS or (len(last) == 1 and word[0].isupper())


def breaks(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where ``text[start:end]`` may be divided: (position, LINE, CLAUSE or WORD)."""
    for found in _BREAK.finditer(text, start, end):
        at = found.end()
        if not start < at < end or _TIED.match(text, at) or unicodedata.combining(text[at]):
            continue
        yield at, LINE if found["line"] else WORD if found["word"] is not None else CLAUSE
