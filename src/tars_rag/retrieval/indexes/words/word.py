"""One word of a language: its terms, whether it says nothing, and what is tied to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from tars_rag.retrieval.indexes.words.languages import LANGUAGES, MULTI, NONE, Language
from tars_rag.retrieval.indexes.words.script import normalised
from tars_rag.retrieval.indexes.words.stemming import fold, listed_stop_words, stemmer

IsStop = Callable[[str], bool]

_CLITIC: Final = re.compile(r"(.+?)'(?:s|ll|re|ve|d|m)$", re.IGNORECASE)
_NEGATION: Final = re.compile(r"([a-z]+)n't$", re.IGNORECASE)
_NEGATED: Final = {"ca": "can", "wo": "will", "sha": "shall"}
_SHORTEST: Final = 3  # what has an ending to cut
_BY_SCRIPT: Final = {
    "greek": "greek",
    "cyrillic": "russian",
    "arabic": "arabic",
    "devanagari": "hindi",
    "tamil": "tamil",
}
_OWN_SCRIPT: Final = {
    "el": "greek",
    "ru": "cyrillic",
    "ar": "arabic",
    "hi": "devanagari",
    "ta": "tamil",
}
# Hebrew writes "and", "the", "in", "to" and the like as letters before the word.
_HEBREW_PREFIX: Final = re.compile("[ובכלמשה]{1,2}(?=..{2})")


class Words:
    """How the words of one language are read, and those of other languages among them."""

    def __init__(self, language: Language) -> None:
        self._language = language
        self._stemmers: dict[str, str] = {}
        self.terms: Callable[[str], list[str]] = self._plain
        if language.code == MULTI:
            self._stemmers = dict(_BY_SCRIPT)
            self._every = [stemmer(row.name) for row in _latin_rows()]
            self.terms = self._multilingual
        elif language.code != NONE:
            own = _OWN_SCRIPT.get(language.code, "latin")
            self._stemmers = {"latin": "english"} | _BY_SCRIPT
            if language.stemmer:
                self._stemmers[own] = language.name
            self.terms = self._stemmed
        self._elisions = frozenset(language.elisions.split())
        self._weak = frozenset(language.weak_stop_words.split())
        self._stop = _stop_words(language)

    def is_stop(self, words: Iterable[str]) -> IsStop:
        """Which words, in small letters, say nothing among `words`.

        Where the language is not known, it is one of those that list most of them; what all of
        these list says nothing. Two words are too few to know by one.
        """
        if self._language.code != MULTI:
            return self._stop
        found = set(words)
        lists = [_stop_words(row) for row in LANGUAGES.values()]
        counts = [sum(map(stop, found)) for stop in lists]
        most = max(counts)
        if most < (1 if len(found) > 2 else 2):
            return _never
        best = [stop for stop, count in zip(lists, counts, strict=True) if count == most]
        return lambda word: all(stop(word) for stop in best)

    def is_weak(self, word: str) -> bool:
        """Whether a word, in small letters, says nothing in a sentence ("will")."""
        return word in self._weak

    def negation(self, piece: str) -> list[str]:
        """The terms of "don't" ("dont", "do", "not"); none if it is no negation."""
        match = _NEGATION.fullmatch(piece)
        if match is None:
            return []
        verb = match[1].lower()
        return [f"{verb}nt", *self.terms(_NEGATED.get(verb, verb)), *self.terms("not")]

    def without_clitics(self, piece: str) -> str:
        """The piece without what an apostrophe ties to it."""
        before, _, after = piece.partition("'")
        if after and before.lower() in self._elisions:
            return after
        if before and self._language.suffix_apostrophe:
            return before
        match = _CLITIC.fullmatch(piece)
        return match[1] if match else piece

    def _plain(self, word: str) -> list[str]:
        return [fold(word.lower())]

    def _stemmed(self, word: str) -> list[str]:
        if self._language.code == "tr":
            word = word.replace("I", "ı").replace("İ", "i")
        word = word.lower()
        folded = fold(word)
        script = _script(word)
        if script == "hebrew":
            return _hebrew(folded)
        name = self._stemmers.get(script)
        if name is None or len(word) < _SHORTEST:
            return [folded]
        if folded == word or name == "english":
            return [fold(stemmer(name)(folded))]
        # Typed without its accents, the word may have another stem: it is found by that too.
        return [*dict.fromkeys(fold(stemmer(name)(form)) for form in (word, folded))]

    def _multilingual(self, word: str) -> list[str]:
        """Whatever any language that is written in these letters makes of the word."""
        if _script(word) != "latin" or len(word) < _SHORTEST:
            return self._stemmed(word)
        folded = fold(word.lower())
        return [*dict.fromkeys(stem(folded) for stem in self._every)]


def _latin_rows() -> list[Language]:
    return [row for row in LANGUAGES.values() if row.stemmer and row.code not in _OWN_SCRIPT]


@lru_cache(maxsize=64)
def _stop_words(language: Language) -> IsStop:
    own = frozenset(fold(normalised(word)) for word in language.stop_words.split())
    listed = listed_stop_words(language.name) if language.listed else _never

    @lru_cache(maxsize=1 << 13)
    def is_stop(word: str) -> bool:
        return fold(word) in own or listed(word)

    return is_stop


def _never(_: str) -> bool:
    return False


def _hebrew(word: str) -> list[str]:
    match = _HEBREW_PREFIX.match(word)
    if match is None:
        return [word]
    return [word, *(word[end:] for end in range(1, match.end() + 1) if len(word) - end > 2)]


def _script(word: str) -> str:
    first = word[0]
    if first < "\u0370" or "\u1e00" <= first <= "\u1eff":
        return "latin"
    for name, low, high in _SCRIPTS:
        if low <= first <= high:
            return name
    return "other"


_SCRIPTS: Final = (
    ("greek", "\u0370", "\u03ff"),
    ("greek", "\u1f00", "\u1fff"),
    ("cyrillic", "\u0400", "\u052f"),
    ("hebrew", "\u0590", "\u05ff"),
    ("arabic", "\u0600", "\u08ff"),
    ("devanagari", "\u0900", "\u097f"),
    ("tamil", "\u0b80", "\u0bff"),
)
