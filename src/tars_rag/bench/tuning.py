"""The weight of vectors and words, fitted on one half of the queries and judged on the other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tars_rag.bench.evaluate import DEPTH, Collection, is_query, query_vectors, score
from tars_rag.bench.significance import Difference, paired_bootstrap
from tars_rag.errors import InvalidInputError
from tars_rag.progress import NamedProgress
from tars_rag.retrieval.fusion import convex
from tars_rag.retrieval.searching import DEFAULT_WEIGHT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tars_rag.retrieval.store import HybridStore

WEIGHTS: Final = tuple(round(step / 10, 1) for step in range(1, 10))
_FEWEST: Final = 4


@dataclass(frozen=True, slots=True)
class Tuned:
    """A fitted weight, and what it is worth on queries that it was not fitted on.

    Attributes:
        weight: Share of the vectors that was best on the first half.
        fitted_on: Queries of that half.
        judged_on: Queries of the other half.
        ndcg_10: Of the other half, with this weight.
        default_ndcg_10: The same with the weight that is used where none is given.
        difference: The former less the latter.
    """

    weight: float
    fitted_on: int
    judged_on: int
    ndcg_10: float
    default_ndcg_10: float
    difference: Difference


def tune(
    store: HybridStore,
    collection: Collection,
    *,
    weights: Sequence[float] = WEIGHTS,
    vectors: Sequence[NDArray[np.float32]] | None = None,
    progress: NamedProgress | None = None,
) -> Tuned:
    """Fit the weight of ``hybrid``.

    Each query is searched once. What the two sides found does not depend on the weight (within 0
    and 1), so that is weighed anew for each, as the search itself does it. The halves are drawn
    once and for all (by a fixed seed), so two runs say the same. Of weights that are equally good
    the one nearest to the default is taken.

    Args:
        store: Holds the collection's documents.
        collection: The queries and judgements; all of them are judged with every weight.
        weights: Those to choose from, above 0 and below 1; the default is always among them.
        vectors: Of the queries (`evaluate.query_vectors`), where they are there already.
        progress: Called after each query.

    Raises:
        InvalidInputError: There are too few queries to divide.
    """
    keys = list(collection.queries)
    if len(keys) < _FEWEST:
        msg = f"--tune needs {_FEWEST} judged queries or more; the collection has {len(keys)}."
        raise InvalidInputError(msg)
    order = random.Random(0).sample(range(len(keys)), len(keys))
    fitted, judged = order[: len(keys) // 2], order[len(keys) // 2 :]
    found = ndcg_by_weight(
        store,
        collection,
        sorted({*weights, DEFAULT_WEIGHT}, key=lambda weight: abs(weight - DEFAULT_WEIGHT)),
        query_vectors(store, collection) if vectors is None else vectors,
        progress,
    )

    def mean(weight: float, rows: Sequence[int]) -> float:
        return sum(found[weight][row] for row in rows) / len(rows)

    best = max(found, key=lambda weight: mean(weight, fitted))  # the first of equals
    return Tuned(
        weight=best,
        fitted_on=len(fitted),
        judged_on=len(judged),
        ndcg_10=mean(best, judged),
        default_ndcg_10=mean(DEFAULT_WEIGHT, judged),
        difference=paired_bootstrap(
            [found[best][row] for row in judged],
            [found[DEFAULT_WEIGHT][row] for row in judged],
        ),
    )


def ndcg_by_weight(
    store: HybridStore,
    collection: Collection,
    weights: Sequence[float],
    vectors: Sequence[NDArray[np.float32]],
    progress: NamedProgress | None = None,
) -> dict[float, list[float]]:
    """By weight: nDCG@10 of each query, in the collection's order; one search a query."""
    found: dict[float, list[float]] = {weight: [] for weight in weights}
    floor = getattr(store.embedder, "unrelated_cosine", 0.0)
    asked = zip(collection.queries.items(), vectors, strict=True)
    for n, ((key, text), vector) in enumerate(asked, 1):
        hits = store.search(text, DEPTH, vector=vector, every=True)
        hits = [hit for hit in hits if not is_query(hit, key, text)]
        cosines = {hit.id: hit.vector_score or 0.0 for hit in hits}
        shares = {hit.id: hit.lexical_share or 0.0 for hit in hits}
        for weight in weights:
            ranking = [one for one, _ in convex(cosines, shares, weight=weight, floor=floor)]
            found[weight].append(score(ranking, collection.judgements[key]).ndcg_10)
        if progress:
            progress("weigh", n, len(collection.queries))
    return found
