"""Texts to the terms of the word index: one reading for passages and for queries.

A passage gives its terms as one string for a tokenizer that splits at spaces. Words repeat, so what
a piece of text between spaces gives is remembered; that is what makes this as fast as an analyser
inside tantivy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

from tars_rag.retrieval.indexes.identifiers import (
    bounded,
    compound_terms,
    is_word,
    ordered_pair,
    pieces,
)
from tars_rag.retrieval.indexes.languages import LANGUAGES, MULTI, NONE, Language
from tars_rag.retrieval.indexes.script import UNSPACED, bigrams, normalised, query_bigrams
from tars_rag.retrieval.indexes.stemming import fold, listed_stop_words, stemmer

ANALYSER_VERSION: Final = 1
"""Grows with every change of what a text gives: an index of another version is made anew."""

_REMEMBERED: Final = 1 << 17
_REMEMBERED_LENGTH: Final = 64
_ALONE: Final = 0.25
_NUMBER_ALONE: Final = re.compile(r"=\d+").fullmatch
_SENTENCE: Final = 3  # words that say something
_NEGATIONS: Final = {"ca": "can", "wo": "will", "sha": "shall"}
_CLITIC: Final = re.compile(r"(.+?)'(?:s|ll|re|ve|d|m)$", re.IGNORECASE)
_NEGATION: Final = re.compile(r"([a-z]+)n't$", re.IGNORECASE)
# Letters and a number, or two numbers, that a reader takes as one: "E 1701", "12 34 56".
_ONE_IN_TWO: Final = re.compile(r"(?<!\S)([A-Z]{1,5}|\d+)[ \u00a0](?=(\d+)(?![^\s.,;:!?)]))")
_LONE_CAPITAL: Final = re.compile(r"(?<=\w )([AEOUY])(?![\w'])")


@dataclass(frozen=True, slots=True)
class QueryTerm:
    """A term of a query.

    Attributes:
        weight: How often it occurs, or less where it only decides between equals.
        optional: Another reading of the words, which counts only where the index knows it.
        instead_of: Terms that it then takes the place of.
    """

    weight: float = 1
    optional: bool = False
    instead_of: tuple[str, ...] = ()


@lru_cache(maxsize=32)
def analyser(code: str) -> Analyser:
    """The analyser of a language, by its code."""
    return Analyser(LANGUAGES[code])


class Analyser:
    """What the texts of one language, with words of others among them, are indexed under."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._by_script = dict(_SCRIPTS) if language.code != NONE else {}
        own = _OWN_SCRIPT.get(language.code, "latin")
        self._words: Callable[[str], list[str]] = self._plain
        if language.code == MULTI:
            self._latin = [stemmer(name) for name in _LATIN_STEMMERS]
            self._words = self._multilingual
        elif language.stemmer or language.code != NONE:
            self._by_script[own] = language.name if language.stemmer else "english"
            self._by_script.setdefault("latin", "english")
            self._words = self._stemmed
        self._elisions = frozenset(language.elisions.split())
        self._stop = frozenset(fold(normalised(word)) for word in language.stop_words.split())
        self._weak = frozenset(language.weak_stop_words.split())
        self._listed = listed_stop_words(language.name) if language.listed else _never
        self._remembered = _Memory(self._chunk_terms)

    def passage_terms(self, text: str) -> str:
        """The terms of a passage, in its order, with a space between them."""
        text = normalised(text)
        found = [*map(self._remembered.__getitem__, text.split())]
        found.extend(self._across(text))
        return " ".join(found)

    def query_terms(self, text: str) -> dict[str, QueryTerm]:
        """The terms of a query; stop words are among them only where there is nothing else."""
        text = normalised(text)
        words = list(self._query_words(text))
        kept = [terms for terms, stop in words if stop is False]
        if len(kept) < _SENTENCE:
            kept = [terms for terms, stop in words if stop is not True]
        kept = kept or [terms for terms, _ in words]
        counts: dict[str, int] = {}
        for terms in kept:
            for term in dict.fromkeys(terms):
                counts[term] = counts.get(term, 0) + 1
        found = {
            term: QueryTerm(_ALONE, optional=True) if _NUMBER_ALONE(term) else QueryTerm(count)
            for term, count in counts.items()
        }
        for term, instead in self._joined_in_query(text):
            found.setdefault(term, QueryTerm(1, optional=True, instead_of=instead))
        return found

    # -- passages ---------------------------------------------------------------------------

    def _chunk_terms(self, chunk: str) -> str:
        terms: list[str] = []
        for piece in pieces(chunk):
            exact, parts = self._piece(piece)
            terms.extend(exact)
            terms.extend(parts)
        return " ".join(terms)

    @staticmethod
    def _across(text: str) -> Iterator[str]:
        for one, other in _ONE_IN_TWO.findall(text):
            yield ordered_pair(one, other)
        for letter in _LONE_CAPITAL.findall(text):
            yield f"={letter.lower()}"

    # -- queries ----------------------------------------------------------------------------

    def _query_words(self, text: str) -> Iterator[tuple[list[str], bool | None]]:
        """For each word of a query its terms, and whether it says nothing; None: in a sentence."""
        chunks = text.split()
        for number, chunk in enumerate(chunks):
            for piece in pieces(chunk):
                lone = len(piece) == 1 and self._is_stop(piece.lower())
                last = number == len(chunks) - 1
                if lone and number and (last or (piece.isupper() and piece != "I")):
                    yield [f"={piece.lower()}"], False
                    continue
                exact, parts = self._piece(piece, asked=True)
                if UNSPACED.search(piece):
                    yield from (([term], term in _UNSPACED_STOP) for term in (*exact, *parts))
                elif piece.lower() in self._weak and not (number and piece.istitle()):
                    yield [*exact, *parts], None
                else:
                    yield [*exact, *parts], self._says_nothing(piece)

    def _joined_in_query(self, text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Neighbours that may be one: "e 1701", "x ray", "12 34"; each with its lone letter."""
        words = [piece for chunk in text.split() for piece in pieces(chunk)]
        for one, other in pairwise(words):
            short = one.isalpha() and len(one) <= (5 if other.isdigit() else 1)
            if other.isdigit() and (short or one.isdigit()):
                lone = (one.lower(), f"={one.lower()}") if len(one) == 1 else ()
                yield ordered_pair(one, other), lone
            elif short and other.isalpha() and one.isascii() and other.isascii():
                for term in self._words(f"{one}{other}"):
                    yield term, (one.lower(), f"={one.lower()}")

    def _says_nothing(self, piece: str) -> bool:
        words = re.split(r"[-'/]", piece.lower())
        if "'" in piece and (match := _NEGATION.match(piece)):
            return self._is_stop(f"{match[1]}nt".lower())
        return all(self._is_stop(word) for word in words if word)

    def _is_stop(self, word: str) -> bool:
        return self._listed(word) or fold(word) in self._stop

    # -- both -------------------------------------------------------------------------------

    def _piece(self, piece: str, *, asked: bool = False) -> tuple[list[str], list[str]]:
        """Terms of a piece: (what it is as a whole, its parts)."""
        if not piece.isascii() and UNSPACED.search(piece):
            return self._unspaced(piece, asked)
        if "'" in piece:
            stem, more = self._without_clitics(piece)
            if more:
                return more, []
            piece = stem
        if is_word(piece):
            if piece[-1] == "s" and piece[:-1].isupper() and len(piece) > 2:
                piece = piece[:-1]  # PDFs
            return [*map(bounded, self._words(piece))], []
        return compound_terms(piece, self._words, asked=asked)

    def _unspaced(self, piece: str, asked: bool) -> tuple[list[str], list[str]]:
        exact: list[str] = []
        parts: list[str] = []
        end = 0
        for match in [*UNSPACED.finditer(piece), None]:
            for other in pieces(piece[end : match.start() if match else None]):
                more = self._piece(other, asked=asked)
                exact.extend(more[0])
                parts.extend(more[1])
            if match:
                exact.extend(query_bigrams(match[0]) if asked else bigrams(match[0]))
                end = match.end()
        return exact, parts

    def _without_clitics(self, piece: str) -> tuple[str, list[str]]:
        """The piece without what an apostrophe ties to it; or all its terms, where it is "n't"."""
        if match := _NEGATION.fullmatch(piece):
            verb = match[1].lower()
            whole = f"{verb}nt"
            return piece, [whole, *self._words(_NEGATIONS.get(verb, verb)), *self._words("not")]
        before, _, after = piece.partition("'")
        if self._elisions and before.lower() in self._elisions and after:
            return after, []
        if self.language.suffix_apostrophe and before:
            return before, []
        if match := _CLITIC.fullmatch(piece):
            return match[1], []
        return piece, []

    # -- words ------------------------------------------------------------------------------

    def _lower(self, word: str) -> str:
        if self.language.code == "tr":
            word = word.replace("I", "ı").replace("İ", "i")
        return word.lower()

    def _plain(self, word: str) -> list[str]:
        return [fold(word.lower())]

    def _stemmed(self, word: str) -> list[str]:
        word = self._lower(word)
        if len(word) < 3:
            return [fold(word)]
        name = self._by_script.get(_script(word))
        if name is None:
            return [fold(word)]
        folded = fold(word)
        if name == "english":
            return [stemmer(name)(folded)]
        term = fold(stemmer(name)(word))
        if folded == word:
            return [term]
        # Typed without its accents, the word may have another stem: it is found by that too.
        return [*dict.fromkeys([term, fold(stemmer(name)(folded))])]

    def _multilingual(self, word: str) -> list[str]:
        word = word.lower()
        folded = fold(word)
        if len(word) < 3:
            return [folded]
        script = _script(word)
        if script == "latin":
            stems = [stem(folded) for stem in self._latin]
            return [*dict.fromkeys(stems)]
        return self._stemmed(word)


_UNSPACED_STOP: Final = frozenset(
    " ".join(LANGUAGES[code].stop_words for code in ("zh", "ja")).split()
)
_SCRIPTS: Final = {
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
_LATIN_STEMMERS: Final = (
    "english",
    "german",
    "french",
    "spanish",
    "italian",
    "portuguese",
    "dutch",
    "swedish",
    "norwegian",
    "danish",
    "finnish",
    "hungarian",
    "romanian",
    "turkish",
)


def _script(word: str) -> str:
    first = word[0]
    if first < "\u0370" or "\u1e00" <= first <= "\u1eff":
        return "latin"
    if first <= "\u03ff" or "\u1f00" <= first <= "\u1fff":
        return "greek"
    if first <= "\u052f":
        return "cyrillic"
    if "\u0600" <= first <= "\u08ff":
        return "arabic"
    if "\u0900" <= first <= "\u097f":
        return "devanagari"
    return "tamil" if "\u0b80" <= first <= "\u0bff" else "other"


def _never(_: str) -> bool:
    return False


class _Memory(dict[str, str]):
    """Pieces of text and their terms; forgotten all at once when there are too many."""

    def __init__(self, make: Callable[[str], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, chunk: str) -> str:
        made = self._make(chunk)
        if len(chunk) <= _REMEMBERED_LENGTH:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[chunk] = made
        return made
