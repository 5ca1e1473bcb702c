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

from tars_rag.retrieval.indexes.words.identifiers import (
    bounded,
    compound_terms,
    is_word,
    ordered_pair,
    pieces,
)
from tars_rag.retrieval.indexes.words.languages import LANGUAGES, Language
from tars_rag.retrieval.indexes.words.script import UNSPACED, bigrams, normalised, query_bigrams
from tars_rag.retrieval.indexes.words.word import IsStop, Words

ANALYSER_VERSION: Final = 1
"""Grows with every change of what a text gives: an index of another version is made anew."""

_REMEMBERED: Final = 1 << 17
_REMEMBERED_LENGTH: Final = 64
_SHORT_UNIT: Final = 3
_FAR: Final = 32  # characters before a number
_SENTENCE: Final = 3  # words that say something
_ALONE: Final = 0.25
_NUMBER_ALONE: Final = re.compile(r"=\d+").fullmatch
# Each begins with a space, the rare thing to look for, although it is about what is before it.
_NUMBER_AFTER: Final = re.compile(r" (?<=[A-Z0-9] )(\d+)(?![^\s.,;:!?)])")
_BEFORE_NUMBER: Final = re.compile(r"(?<!\S)(?:[A-Z]{1,5}|\d+)$")
_LONE_CAPITAL: Final = re.compile(r" (?<=\w )([AEOUY])(?![\w'])")
_UNSPACED_STOP: Final = frozenset(
    " ".join(LANGUAGES[code].stop_words for code in ("zh", "ja")).split()
)


@dataclass(frozen=True, slots=True)
class QueryTerm:
    """A term of a query.

    Attributes:
        weight: How often it occurs, or less where it is one of several readings of a word.
        optional: Another reading of the words, which counts only where the index knows it.
        instead_of: Terms that it then takes the place of.
    """

    weight: float = 1
    optional: bool = False
    instead_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A word of a query: its terms, and whether they are left out (None: in a sentence)."""

    terms: list[str]
    silent: bool | None = False
    readings: int = 1


@lru_cache(maxsize=32)
def analyser(code: str) -> Analyser:
    """The analyser of a language, by its code."""
    return Analyser(LANGUAGES[code])


class Analyser:
    """What the texts of one language, with words of others among them, are indexed under."""

    def __init__(self, language: Language) -> None:
        self._words = Words(language)
        self._remembered = _Memory(self._chunk_terms)

    def passage_terms(self, text: str) -> str:
        """The terms of a passage, in its order, with a space between them."""
        text = normalised(text)
        found = [*map(self._remembered.__getitem__, text.split())]
        found.extend(_pairs_across(text))
        found.extend(f"={letter.lower()}" for letter in _LONE_CAPITAL.findall(text))
        return " ".join(found)

    def query_terms(self, text: str) -> dict[str, QueryTerm]:
        """The terms of a query; stop words are among them only where there is nothing else."""
        text = normalised(text)
        asked = list(self._asked(text))
        kept = [word for word in asked if word.silent is False]
        if len(kept) < _SENTENCE:
            kept = [word for word in asked if not word.silent]
        weights: dict[str, float] = {}
        for word in kept or asked:
            for term in dict.fromkeys(word.terms):
                weights[term] = weights.get(term, 0) + word.readings**-0.5
        found = {
            term: QueryTerm(_ALONE, optional=True) if _NUMBER_ALONE(term) else QueryTerm(weight)
            for term, weight in weights.items()
        }
        for term, instead in self._joined(text):
            found.setdefault(term, QueryTerm(1, optional=True, instead_of=instead))
        return found

    def _chunk_terms(self, chunk: str) -> str:
        terms: list[str] = []
        for piece in pieces(chunk):
            for found in self._read(piece):
                terms.extend(found)
        return " ".join(terms)

    # -- queries ----------------------------------------------------------------------------

    def _asked(self, text: str) -> Iterator[_Asked]:
        chunks = [list(pieces(chunk)) for chunk in text.split()]
        is_stop = self._words.is_stop(piece.lower() for chunk in chunks for piece in chunk)
        for number, chunk in enumerate(chunks):
            last = number == len(chunks) - 1
            for piece in chunk:
                small = piece.lower()
                if UNSPACED.search(piece):
                    exact, parts = self._read(piece, asked=True)
                    yield from (_Asked([t], t in _UNSPACED_STOP) for t in (*exact, *parts))
                elif len(piece) == 1 and number and (last or piece not in (small, "I")):
                    # "Vitamin A" is not about an article.
                    yield _Asked([f"={small}"] if is_stop(small) else [small])
                else:
                    exact, parts = self._read(piece, asked=True)
                    silent: bool | None = _says_nothing(small, is_stop)
                    if self._words.is_weak(small):
                        silent = False if number and piece.istitle() else None
                    readings = max(len(exact), 1) if is_word(piece) else 1
                    yield _Asked([*exact, *parts], silent, readings)

    def _joined(self, text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Neighbours that may be one: "e 1701", "x ray", "12 34", "5 kg"; with the lone letter."""
        words = [piece for chunk in text.split() for piece in pieces(chunk)]
        for one, other in pairwise(words):
            lone = (one.lower(), f"={one.lower()}") if len(one) == 1 else ()
            short = one.isalpha() and len(one) <= (5 if other.isdigit() else 1)
            if other.isdigit() and (short or one.isdigit()):
                yield ordered_pair(one, other), lone if short else ()
            elif one.isdigit() and other.isalpha() and len(other) <= _SHORT_UNIT:
                yield ordered_pair(one, other), lone
            elif short and other.isalpha() and one.isascii() and other.isascii():
                for term in self._words.terms(f"{one}{other}"):
                    yield term, lone

    # -- both -------------------------------------------------------------------------------

    def _read(self, piece: str, *, asked: bool = False) -> tuple[list[str], list[str]]:
        """Terms of a piece: (what it is as a whole, its parts)."""
        if not piece.isascii() and UNSPACED.search(piece):
            return self._read_unspaced(piece, asked)
        if "'" in piece:
            if negation := self._words.negation(piece):
                return negation, []
            piece = self._words.without_clitics(piece)
        if is_word(piece):
            if piece[-1] == "s" and piece[:-1].isupper() and len(piece) > 2:
                piece = piece[:-1]  # PDFs
            return [*map(bounded, self._words.terms(piece))], []
        return compound_terms(piece, self._words.terms, asked=asked)

    def _read_unspaced(self, piece: str, asked: bool) -> tuple[list[str], list[str]]:
        exact: list[str] = []
        parts: list[str] = []
        end = 0
        for match in [*UNSPACED.finditer(piece), None]:
            for other in pieces(piece[end : match.start() if match else None]):
                more = self._read(other, asked=asked)
                exact.extend(more[0])
                parts.extend(more[1])
            if match:
                exact.extend(query_bigrams(match[0]) if asked else bigrams(match[0]))
                end = match.end()
        return exact, parts


def _pairs_across(text: str) -> Iterator[str]:
    """Letters and a number, or two numbers, that a reader takes as one: "E 1701", "12 34 56"."""
    for match in _NUMBER_AFTER.finditer(text):
        end = match.start()
        if before := _BEFORE_NUMBER.search(text[max(0, end - _FAR) : end]):
            yield ordered_pair(before[0], match[1])


def _says_nothing(piece: str, is_stop: IsStop) -> bool:
    words = [piece.replace("n't", "nt")] if "n't" in piece else re.split(r"[-'/]", piece)
    return all(is_stop(word) for word in words if word)


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
