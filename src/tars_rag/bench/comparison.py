"""Embedders, rerankers and languages side by side on one collection, and what is chance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tars_rag.bench.evaluate import STRATEGIES, Collection, Scores, mean, per_query
from tars_rag.bench.significance import Difference, paired_bootstrap
from tars_rag.progress import NamedProgress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tars_rag.models.reranker import Reranker
    from tars_rag.retrieval.store import HybridStore


@dataclass(frozen=True, slots=True)
class Row:
    """One way to search, measured.

    Attributes:
        model: The embedder; None where no vectors are used.
        language: Of the word index; None where no words are used.
        strategy: ``naive``, ``lexical`` or ``hybrid``.
        reranker: What put the best passages in another order; None: nothing.
        scores: Of each query, in the collection's order.
    """

    model: str | None
    language: str | None
    strategy: str
    reranker: str | None
    scores: Sequence[Scores]

    @property
    def mean(self) -> Scores:
        """The means over the queries."""
        return mean(self.scores)

    def over(self, other: Row) -> Difference:
        """How much better its nDCG@10 is than another row's."""
        return paired_bootstrap(
            [one.ndcg_10 for one in self.scores], [one.ndcg_10 for one in other.scores]
        )


def rows_of(
    store: HybridStore,
    collection: Collection,
    rerankers: Mapping[str, Reranker],
    *,
    strategies: Sequence[str] = STRATEGIES,
    rerank_depth: int = 20,
    vectors: Sequence[NDArray[np.float32]] | None = None,
    progress: NamedProgress | None = None,
) -> list[Row]:
    """Measure one store: each strategy, and ``hybrid`` in the order of each reranker.

    Args:
        store: Holds the collection's documents (`evaluate.fill`).
        collection: The queries and judgements.
        rerankers: By the name they are called in the rows.
        strategies: Some of `STRATEGIES`.
        rerank_depth: How many of the best passages are reranked.
        vectors: Of the queries, where they are there already.
        progress: Called after each query.
    """
    found = per_query(
        store,
        collection,
        rerankers,
        strategies=strategies,
        rerank_depth=rerank_depth,
        vectors=vectors,
        progress=progress,
    )
    rows = []
    embedder = getattr(store.embedder, "model", store.embedder.fingerprint)
    for name, scores in found.items():
        strategy, _, reranker = name.partition("+")
        model = None if strategy == "lexical" else embedder
        language = None if strategy == "naive" else store.language
        rows.append(Row(model, language, strategy, reranker or None, scores))
    return rows


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Without those that were measured before: words with another embedder are the same words."""
    seen: dict[tuple[str | None, ...], Row] = {}
    for row in rows:
        seen.setdefault((row.model, row.language, row.strategy, row.reranker), row)
    return list(seen.values())


def reference(row: Row, rows: Sequence[Row]) -> Row | None:
    """What a row is to be compared with; None for the first of its kind.

    A reranked one with the same search before it; others with the same strategy of the first
    embedder and language.
    """
    same = [one for one in rows if one.strategy == row.strategy and one.reranker is None]
    if row.reranker is not None:
        same = [one for one in same if (one.model, one.language) == (row.model, row.language)]
    return same[0] if same and same[0] is not row else None


def differences(rows: Sequence[Row]) -> list[tuple[int, int, Difference]]:
    """Of every two rows, the later less the earlier: (later, earlier, difference)."""
    pairs = itertools.combinations(range(len(rows)), 2)
    return [(later, earlier, rows[later].over(rows[earlier])) for earlier, later in pairs]
