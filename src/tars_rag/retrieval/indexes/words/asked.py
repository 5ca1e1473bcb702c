"""The terms of a query beside what an index holds: which count, and what they could come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from tars_rag.retrieval.indexes.words.analysers import QueryTerm
from tars_rag.retrieval.indexes.words.bm25 import K1, Term, idf

MOST_TERMS: Final = 1024
"""Of a query are looked up."""


def counting(
    terms: Mapping[str, QueryTerm], held: Mapping[str, int], here: Mapping[str, int]
) -> list[Term]:
    """The terms of a query that count.

    Args:
        terms: What the analyser made of the query.
        held: How many passages hold a term, of the first `MOST_TERMS`.
        here: How many of them are in the index.
    """
    replaced = {gone for term, how in terms.items() if held.get(term) for gone in how.instead_of}
    return [
        Term(term, how.weight, held[term], here[term])
        for term, how in terms.items()
        if term in held and term not in replaced and (held[term] or not how.optional)
    ]


def reach(terms: Iterable[Term], documents: int) -> float:
    """What BM25 of a query could come to at most; 0 where the query has no word.

    The sum over its terms of idf x (k1 + 1), which a passage comes near that holds each of them
    often. A term that no passage holds weighs as much as one that a single passage holds. So a
    passage's share of it, score / reach, says how much of the query it matched, in any query and in
    a store of any size.
    """
    return sum(found.weight * (K1 + 1) * idf(documents, max(found.held, 1)) for found in terms)
