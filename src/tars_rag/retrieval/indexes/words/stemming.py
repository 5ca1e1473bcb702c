"""Words to their stems, and without accents: one function for each way of writing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Final

Stem = Callable[[str], str]

# Letters that no decomposition takes apart, as in "Łódź".
_LATIN = str.maketrans(
    {
        "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i",
        "ħ": "h", "ŧ": "t", "ŋ": "n", "ß": "ss", "ĸ": "k", "ſ": "s", "ə": "e", "ƒ": "f",
    }
)  # fmt: skip
_MARKS = re.compile("[\u0300-\u036f]")
_CYRILLIC = str.maketrans({"ё": "е", "ґ": "г", "\u0301": None, "\u0300": None})
_ARABIC = str.maketrans(
    {
        "أ": "ا",
        "إ": "ا",
        "آ": "ا",
        "ٱ": "ا",
        "ى": "ي",
        "ة": "ه",
        "ؤ": "و",
        "ئ": "ي",
        "ک": "ك",
        "ی": "ي",
    }
    | {chr(mark): None for mark in (*range(0x64B, 0x660), 0x670, 0x640)}
)
_HEBREW = re.compile("[\u0591-\u05c7]")
_DEVANAGARI = str.maketrans({"\u093c": None, "ँ": "ं"})

# Endings of Hindi nouns, adjectives and verbs, longest first (A. Ramanathan and D. Rao, "A
# Lightweight Stemmer for Hindi", EACL 2003 workshop); a stem keeps two characters at least.
_HINDI_ENDINGS: Final = (
    ("ाएंगी", "ाएंगे", "ाऊंगी", "ाऊंगा", "ाइयाँ", "ाइयों", "ाइयां"),
    ("ाएगी", "ाएगा", "ाओगी", "ाओगे", "एंगी", "ेंगी", "एंगे", "ेंगे", "ूंगी", "ूंगा", "ातीं", "नाओं", "नाएं",
     "ताओं", "ताएं", "ियाँ", "ियों", "ियां"),
    ("ाकर", "ाइए", "ाईं", "ाया", "ेगी", "ेगा", "ोगी", "ोगे", "ाने", "ाना", "ाते", "ाती", "ाता", "तीं",
     "ाओं", "ाएं", "ुओं", "ुएं", "ुआं"),
    ("कर", "ाओ", "िए", "ाई", "ाए", "ने", "नी", "ना", "ते", "ीं", "ती", "ता", "ाँ", "ां", "ों", "ें"),
    ("ो", "े", "ू", "ु", "ी", "ि", "ा"),
)  # fmt: skip


def fold(word: str) -> str:
    """A word in small letters without what is often left out in writing: accents, vowel points.

    Letters of their own stay (й), so that each script's stemmer still knows them.
    """
    if word.isascii():
        return word
    first = word[0]
    if "Ѐ" <= first <= "ԯ":
        return word.translate(_CYRILLIC)
    if "؀" <= first <= "ۿ":
        return word.translate(_ARABIC)
    if "\u0590" <= first <= "\u05ff":
        return _HEBREW.sub("", word)
    if "\u0900" <= first <= "\u097f":
        return word.translate(_DEVANAGARI)
    decomposed = _MARKS.sub("", unicodedata.normalize("NFD", word))
    return unicodedata.normalize("NFC", decomposed).translate(_LATIN).replace("ς", "σ")


@lru_cache(maxsize=32)
def stemmer(name: str) -> Stem:
    """The stemmer of a language by its English name; it takes a word in small letters."""
    if name == "hindi":
        return _hindi
    from tantivy import Filter, TextAnalyzerBuilder, Tokenizer

    analyser = TextAnalyzerBuilder(Tokenizer.raw()).filter(Filter.stemmer(name)).build()

    def stem(word: str) -> str:
        return analyser.analyze(word)[0] if word else word

    return stem


@lru_cache(maxsize=32)
def listed_stop_words(name: str) -> Callable[[str], bool]:
    """Whether a word in small letters is on tantivy's list of a language."""
    from tantivy import Filter, TextAnalyzerBuilder, Tokenizer

    analyser = TextAnalyzerBuilder(Tokenizer.raw()).filter(Filter.stopword(name)).build()

    def listed(word: str) -> bool:
        return not analyser.analyze(word)

    return listed


def _hindi(word: str) -> str:
    for endings in _HINDI_ENDINGS:
        for ending in endings:
            if word.endswith(ending) and len(word) >= len(ending) + 2:
                return word[: -len(ending)]
    return word
