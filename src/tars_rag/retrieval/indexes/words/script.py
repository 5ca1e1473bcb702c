"""Characters: one reading of a text, and the scripts that do not put spaces between words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

# What is there for the layout only, and splits no word: soft hyphen, zero-width characters,
# directional marks, byte order mark, variation selectors, Hangul fillers. Format characters (Cf)
# are among them, as BERT's normaliser drops those too.
_INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u06dd\u070f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb"
    "\U000110bd\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
# One way to write an apostrophe, a hyphen and a slash.
_ALIKE: Final = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u05f3\u05f4\u2032\uff07\ua78c", "'")
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\u05be\ufe58\ufe63\uff0d", "-")
    | dict.fromkeys("\u2044\u2215", "/")
    | {"\u30fb": " ", "\u00b7": "."}
)
_DIGITS: Final = re.compile(r"(?![0-9])\d")

CJK: Final = (
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303b\u303c\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
HANGUL: Final = "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb"
_THAI_LAO: Final = "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf"
_KHMER_BURMESE: Final = (
    "\u1000-\u103f\u104c-\u108f\u109a-\u109f\u1780-\u17d3\u17d7\u17dc\u17dd"
    "\ua9e0-\ua9ef\uaa60-\uaa7f"
)
UNSPACED: Final = re.compile(f"[{CJK}]+|[{HANGUL}]+|[{_THAI_LAO}]+|[{_KHMER_BURMESE}]+")
"""Runs of scripts without spaces, and Hangul, whose endings are tied to the word."""

_HAN: Final = re.compile(
    "[\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Where one Japanese word ends: an ending or particle before a word, a particle or copula after it.
_BETWEEN_WORDS: Final = re.compile(
    "[\u3041-\u3096][^\u3041-\u3096]|[\u30a1-\u30ff][\u3041-\u3096]|[^\u3041-\u30ff][はがをのにでともへや]"
)
# A consonant with what is written around it: Thai and Lao vowels before it, and marks after it;
# a Khmer or Burmese sign that stacks the next consonant under it.
_CLUSTER: Final = re.compile(
    "[\u0e40-\u0e44\u0ec0-\u0ec4]?[\u0e01-\u0e2e\u0e81-\u0eae\u0edc-\u0edf]"
    "[\u0e2f-\u0e3a\u0e45-\u0e4e\u0eaf-\u0ebd\u0ec6-\u0ece]*"
    "|[\u1000-\u102a\u103f\u1780-\u17b3\uaa60-\uaa7f]"
    "(?:[\u102b-\u1038\u103a-\u103e\u17b6-\u17d1\u17d3]|[\u1039\u17d2].)*"
    "|."
)
# What Korean ties to a noun.
_PARTICLES = """
    은 는 이 가 을 를 의 에 에서 에게 에게서 께 께서 한테 으로 로 으로서 로서 으로써 로써 와 과
    이랑 랑 하고 도 만 까지 부터 마저 조차 처럼 보다 이나 나 든지 이든지 라도 이라도 에는 에도
    에서는 에서도 으로는 로는 이란 란 이며 이고 이다 입니다 인가요 인가 이에요 예요 였다 이었다
    들 들이 들은 들을 들의 들에게
"""
_LONGEST_FIRST: Final = tuple(sorted(_PARTICLES.split(), key=len, reverse=True))


def normalised(text: str) -> str:
    """The text as both passages and queries are compared; what is stored is never this.

    Invisible characters are dropped, then Unicode's NFKC; digits of any script are ASCII ones.
    Case is left, as it tells where the parts of an identifier are.
    """
    if text.isascii():
        return text
    text = _INVISIBLE.sub("", _SURROGATES.sub(" ", text)).replace("\u00b4", "'")
    text = unicodedata.normalize("NFKC", text).translate(_ALIKE)
    return _DIGITS.sub(lambda match: str(unicodedata.decimal(match[0])), text)


def bigrams(run: str) -> Iterator[str]:
    """The terms of a passage for a run of an unspaced script.

    Pairs of neighbours (of syllables, where a syllable is several characters), and each
    Chinese character alone, so that a query of one finds it.
    """
    units = _units(run)
    if len(units) == 1:
        yield units[0]
        return
    for one, two in pairwise(units):
        yield one + two
    if "\uac00" <= run[0] <= "\ud7fb":
        stem = _without_particle(run)
        if len(stem) == 1:
            yield stem
        return
    for unit in units:
        if _HAN.match(unit):
            yield unit


def query_bigrams(run: str) -> Iterator[str]:
    """The terms of a query for a run of an unspaced script: those of `bigrams` that tell most."""
    if "\uac00" <= run[0] <= "\ud7fb":
        stem = _without_particle(run)
        if len(stem) > 1:
            run = stem
        elif stem != run:
            yield stem
    units = _units(run)
    if len(units) == 1:
        yield units[0]
        return
    pairs = [one + two for one, two in pairwise(units)]
    yield from [pair for pair in pairs if not _BETWEEN_WORDS.fullmatch(pair)] or pairs


def _units(run: str) -> list[str]:
    if run[0] < "\u0e00" or run[0] > "\u17ff" or "\u1100" <= run[0] <= "\u11ff":
        return list(run)
    return _CLUSTER.findall(run)


def _without_particle(word: str) -> str:
    for particle in _LONGEST_FIRST:
        if len(word) > len(particle) and word.endswith(particle):
            return word[: -len(particle)]
    return word
