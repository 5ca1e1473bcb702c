"""Which neighbouring units of a text become one passage: the cheapest way to cut it all.

A passage costs one, so few are made; a cut costs the more the closer it joins what it parts; and a
heading in the middle costs a little more than a passage, so that sections stay apart unless one is
too small to be found by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NEVER = 1e6
"""Costs more than everything else together, and still allows a text of headings alone."""
_SECTION = 1.1  # a heading inside a passage
_SMALL, _REST = 0.25, 0.5  # of what fits: below it a passage costs up to twice as much, the rest of
# a section sooner, so that its last two passages are about equal
_TINY = 3.0  # too short to say anything
_FEWEST_CHARACTERS = 40


@dataclass(frozen=True)
class Unit:
    """What is not cut.

    Attributes:
        start: In characters.
        end: Where the next one begins.
        tokens: How many the embedder reads in it.
        cut: What a cut before it costs.
        heading: It opens a section, not the text.
        extra: Tokens that a passage which begins here has besides: its headings, what it repeats.
    """

    start: int
    end: int
    tokens: int
    cut: float
    heading: bool = False
    extra: int = 0


def pack(units: Sequence[Unit], room: int) -> list[tuple[int, int]]:
    """Runs of units, each (first, one after the last), of at most `room` tokens where possible.

    Of equally cheap ways the one with the fullest passages at the front, so that a text that grows
    keeps its first passages.
    """
    count = len(units)
    best = [0.0] * (count + 1)
    ends = [count] * (count + 1)
    for first in range(count - 1, -1, -1):
        size, sections, cheapest = units[first].extra, 0.0, float("inf")
        for last in range(first, count):
            unit = units[last]
            size += unit.tokens
            if size > room and last > first:
                break
            if last > first and unit.heading:
                sections += _SECTION
            after = last + 1
            small = _SMALL if units[first].heading or not first else _REST
            cost = _cost(size / room, unit.end - units[first].start, small) + sections + best[after]
            cost += units[after].cut if after < count else 0.0
            if cost <= cheapest + 1e-9:
                cheapest, ends[first] = cost, after
        best[first] = cheapest
    runs, at = [], 0
    while at < count:
        runs.append((at, ends[at]))
        at = ends[at]
    return runs


def _cost(share: float, characters: int, small: float) -> float:
    tiny = _TINY if characters < _FEWEST_CHARACTERS else 0.0
    return 1.0 + max(0.0, 1 - share / small) + tiny
