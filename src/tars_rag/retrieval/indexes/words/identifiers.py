"""What people write as one: identifiers, versions, addresses, dates, in parts and whole.

A compound is found by its whole form however it is joined (`E-1701` as `E1701`, `foo_bar` as
`fooBar`), by its parts of two characters and more, and by pairs of neighbouring parts, which keep
the order: `2.3.2` shares one of its two pairs with `3.2.2`. A single letter or digit of it finds
nothing, because it would find everything.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Final

from tars_rag.retrieval.indexes.words.stemming import fold

Words = Callable[[str], Iterable[str]]
"""Letters alone to the terms they are indexed under."""

_LONGEST: Final = 64
_MOST_ATOMS: Final = 4
_LEAST_HUMP: Final = 3
_SHORT_WORD: Final = 3
_SHORT_HASHES: Final = (7, 8, 10, 12)

_MARKED: Final = (range(0x300, 0x1D00), range(0x1DC0, 0x1E00), range(0x20D0, 0x2100))
_MARKS: Final = "".join(
    chr(code)
    for codes in (*_MARKED, range(0x302A, 0x3030), range(0x3099, 0x309B), range(0xA600, 0xAC00))
    for code in codes
    if unicodedata.category(chr(code)) in ("Mn", "Mc")
)
_PIECE: Final = re.compile(
    rf"(?:(?<!\w)\.(?=[A-Za-z]{{2}})|(?<![\w)\]])-(?=\d))?"
    rf"[\w{_MARKS}]+(?:(?:[-_.:/\\@&'+#~=?%]|(?<=\d),(?=\d))+[\w{_MARKS}]+)*"
    r"(?:(?<=[^\W\d_])(?:\+\+?|\#)(?!\w))?"
)
_SEGMENT: Final = re.compile(rf"[^\W_](?:[^\W_]|[{_MARKS}])*")
_ATOM: Final = re.compile(
    # Plural of an acronym, acronym, word with or without a capital, any other letters, digits.
    r"[A-Z]{2,}s(?![A-Za-z])|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+"
    rf"|(?:[^\W\d_A-Za-z][{_MARKS}]*)+"
)
_LETTERS: Final = re.compile(rf"(?:[^\W\d_][{_MARKS}]*)+")
_VERSION: Final = frozenset(("v", "ver", "version", "r", "rev", "release"))
_HYPHENATED: Final = re.compile(r"[A-Z]?[a-z]+(?:-[a-z]+)+")
_THOUSANDS: Final = re.compile(r"\d{1,3}(?:,\d{3})+")
_HEXADECIMAL: Final = re.compile(r"[0-9A-Fa-f]{2,}")
_HASH: Final = re.compile(r"(?=.*\d)(?=.*[a-f])(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})")


def pieces(chunk: str) -> Iterator[str]:
    """The words and compounds of a text, without the punctuation around them."""
    for match in _PIECE.finditer(chunk):
        piece = match[0].strip("_")
        if _SEGMENT.search(piece):  # not marks alone
            yield piece


def is_word(piece: str) -> bool:
    """Whether a piece is letters alone, not in humps."""
    if piece.isascii():
        return piece.isalpha() and (
            piece.islower() or piece[1:].islower() or piece.isupper() or piece[:-1].isupper()
        )
    return _LETTERS.fullmatch(piece) is not None


def bounded(term: str) -> str:
    """The term, or its beginning and a digest where it is longer than anyone types."""
    if len(term) <= _LONGEST:
        return term
    digest = hashlib.blake2b(term.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return f"{term[: _LONGEST // 2]}~{digest}"


def compound_terms(piece: str, words: Words, *, asked: bool = False) -> tuple[list[str], list[str]]:
    """The terms of a piece that is not letters alone: (whole forms and pairs, parts).

    Words with hyphens are mostly that, words: where all are long enough to stand alone, they are
    not one word ("boundary-layer"), and a query is not about their short ones ("non-linear").

    Args:
        piece: The compound.
        words: Makes terms of letters alone.
        asked: In a query.
    """
    sign, atoms, between = _taken_apart(piece)
    if len(atoms) == 1:
        return _single(atoms[0], sign, words)
    exact = [_joined(atoms, [] if _are_hexadecimal(atoms) else between)]
    if all(map(_is_letters, atoms)):
        exact = [bounded(term) for term in words("".join(atoms))]
    elif len(atoms) > 2 and atoms[0].lower() in _VERSION and atoms[1].isdigit():
        exact.append(_joined(atoms[1:], between[1:]))
    if _THOUSANDS.fullmatch(piece):
        exact.append("".join(atoms))
    if sign and sign in "-.":
        exact.append(f"{sign}{exact[0]}")
    humps = max(map(len, atoms)) >= _LEAST_HUMP
    for one, other, mark in zip(atoms, atoms[1:], between, strict=False):
        pair = _pair(one, other, mark)
        if pair and (len(atoms) > 2 or "~" in pair):
            exact.append(bounded(pair))
    parts: list[str] = []
    for number, atom in enumerate(atoms):
        if atom[-1] in "+#":
            exact.append(fold(atom.lower()))
            atom = atom.rstrip("+#")
        marks = between[max(number - 1, 0) : number + 1]
        if len(atom) > 1 and (humps or any(marks) or not _is_letters(atom)):
            parts.extend(map(bounded, words(atom) if _is_letters(atom) else [atom.lower()]))
    if _HYPHENATED.fullmatch(piece):
        if min(map(len, atoms)) > _SHORT_WORD:
            return [], parts
        if asked:
            parts = [part for part in parts if len(part) > _SHORT_WORD]
    return exact, parts


def ordered_pair(one: str, other: str) -> str:
    """The term of two numbers, or of letters and a number, that stand one after the other."""
    return _pair(one, other, " ") or f"{one}{other}".lower()


def _single(atom: str, sign: str, words: Words) -> tuple[list[str], list[str]]:
    letters = _is_letters(atom)
    if sign in ("+", "++", "#"):
        plain = list(words(atom)) if len(atom) > 1 else []
        return [bounded(fold(atom.lower()) + sign)], plain
    terms = list(words(atom)) if letters else [bounded(atom.lower())]
    if sign:
        return [f"{sign}{bounded(atom.lower())}"], terms if len(atom) > 1 else []
    if _HASH.fullmatch(atom):
        return terms, [atom[:length] for length in _SHORT_HASHES]
    if atom.isdigit():
        return [*terms, f"={atom}"], []  # a number of its own before the same as a part
    return terms, []


def _taken_apart(piece: str) -> tuple[str, list[str], list[str]]:
    """A sign, the atoms (letters or digits), and what stands between them."""
    sign = ""
    if piece[0] in ".-":
        sign, piece = piece[0], piece[1:]
    elif piece[-1] in "+#":
        bare = piece.rstrip("+#")
        sign, piece = piece[len(bare) :], bare
    segments = list(_SEGMENT.finditer(piece))
    if _are_hexadecimal([match[0] for match in segments]):
        return "", [match[0] for match in segments], ["-"] * (len(segments) - 1)
    atoms: list[str] = []
    between: list[str] = []
    end = 0
    for match in segments:
        mark = piece[end : match.start()]
        if (
            atoms
            and _is_letters(atoms[-1])
            and (mark.startswith("++") or (mark.startswith("#") and len(atoms[-1]) < 3))
        ):
            signs = mark[: len(mark) - len(mark.lstrip("+#"))]
            atoms[-1], mark = atoms[-1] + signs, mark[len(signs) :] or "-"
        found = _ATOM.findall(match[0])
        if len(found) > _MOST_ATOMS and any(map(str.isdigit, found)):
            found = [match[0]]
        between.extend([mark, *[""] * (len(found) - 1)] if atoms else [""] * (len(found) - 1))
        atoms.extend(found)
        end = match.end()
    if sign and len(atoms) > 1 and sign not in "-.":
        atoms[-1], sign = atoms[-1] + sign, ""
    return sign, atoms, between


def _are_hexadecimal(segments: Sequence[str]) -> bool:
    """Whether these are the groups of a hardware address, a UUID or the like."""
    text = "".join(segments)
    return (
        len(segments) > 2
        and all(map(_HEXADECIMAL.fullmatch, segments))
        and not text.isalpha()
        and not text.isdigit()
    )


def _joined(atoms: Sequence[str], between: Sequence[str]) -> str:
    """As one word; a mark stays where digits would run into digits."""
    whole = atoms[0]
    for one, mark, atom in zip_longest(atoms, between, atoms[1:], fillvalue=""):
        whole += (mark[:1] if one[-1:].isdigit() and atom[:1].isdigit() else "") + atom
    return bounded(fold(whole.lower()))


def _pair(one: str, other: str, mark: str) -> str | None:
    if one.isdigit() and other.isdigit():
        return f"{one.lstrip('0') or '0'}~{other.lstrip('0') or '0'}"
    if _is_letters(one) and _is_letters(other):
        least = min(len(one), len(other))
        if least < (2 if mark else _LEAST_HUMP):
            return None
    return fold(f"{one}{other}".lower())


def _is_letters(atom: str) -> bool:
    return not atom[0].isdigit() and (atom.isalpha() or _LETTERS.fullmatch(atom) is not None)
