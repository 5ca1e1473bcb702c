"""BM25 as tantivy reckons, for passages that are not in its index (yet).

Robertson and Zaragoza (2009), as Lucene and tantivy have it: of each term of the query idf x (k1 +
1) x tf / (tf + k1 (1 - b + b length / mean)), with idf = ln(1 + (N - n + 0.5) / (n + 0.5)). The
length is kept in one byte.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

K1, B = 1.2, 0.75
_FREE = 24  # lengths that the byte holds beside three bits and an exponent (Lucene's SmallFloat)


class Term(NamedTuple):
    """A term of a query.

    Attributes:
        term: As it is indexed.
        weight: How near it is to what was asked.
        held: How many passages hold it.
        here: How many of them are in the index.
    """

    term: str
    weight: float
    held: int
    here: int


class Terms(NamedTuple):
    """The terms of a passage: how often it has each, and how many they are."""

    counts: Counter[str]
    length: int

    @classmethod
    def of(cls, terms: Sequence[str]) -> Terms:
        """Counted."""
        return cls(Counter(terms), len(terms))


class Beside(Protocol):
    """Passages that count as if they were in the index, and what of it they replace."""

    @property
    def documents(self) -> int:
        """How many they are."""

    @property
    def replaces(self) -> Collection[str]:
        """Ids in the index that are not to be found there."""

    def held(self, term: str) -> int:
        """How many of them hold a term."""


class _Nothing:
    documents = 0
    replaces: Collection[str] = ()

    def held(self, term: str) -> int:
        del term
        return 0


NOTHING: Beside = _Nothing()
"""No passage beside the index."""


def idf(documents: int, held: int) -> float:
    """What a term weighs that `held` of `documents` passages hold."""
    return math.log(1 + (max(documents - held, 0) + 0.5) / (held + 0.5))


def kept_length(length: int) -> int:
    """A number of terms as one byte can hold it, rounded down: exact below 40."""
    if length < 2 * _FREE - 8:
        return length
    rest = length - _FREE
    shift = rest.bit_length() - 4
    return _FREE + ((rest >> shift) << shift)


def score(
    terms: Iterable[Term], documents: int, counts: Mapping[str, int], length: int, mean: float
) -> float:
    """BM25 of one passage; 0 where it shares no term with the query.

    Args:
        terms: Of the query.
        documents: How many passages there are.
        counts: How often the passage holds a term.
        length: How many terms it has.
        mean: How many all have on average.
    """
    if not mean:
        return 0.0
    norm = K1 * (1 - B + B * kept_length(length) / mean)
    return sum(
        found.weight * idf(documents, found.held) * (K1 + 1) * count / (count + norm)
        for found in terms
        if (count := counts.get(found.term, 0))
    )


def explained_mean(
    searcher: Any, query: Any, schema: Any, terms_of: Callable[[Any], Sequence[str]]
) -> float:
    """The average length that tantivy reckons with; 0 in an index without a term.

    It tells it only where it explains a score, so a passage is searched for by its first term.

    Args:
        searcher: Of the index.
        query: tantivy's `Query`.
        schema: Of the index.
        terms_of: The terms of a stored document.
    """
    step = 32
    for offset in range(0, searcher.num_docs, step):
        found = searcher.search(query.all_query(), step, count=False, offset=offset).hits
        for _, address in found:
            for term in terms_of(searcher.doc(address))[:1]:
                asked = query.term_query(schema, "text", term, index_option="freq")
                return _average(json.loads(asked.explain(searcher, address).to_json()))
    return 0.0


def _average(explanation: Any) -> float:
    if str(explanation.get("description", "")).startswith("avgdl"):
        return float(explanation["value"])
    return max(map(_average, explanation.get("details", ())), default=0.0)
