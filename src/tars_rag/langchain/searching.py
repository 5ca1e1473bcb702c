"""One search of a `TarsVectorStore`, with its settings where the call does not say otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from langchain_core.documents import Document

from tars_rag.adapters.arguments import refuse, require_kind
from tars_rag.adapters.foreign import ForeignEmbedder
from tars_rag.adapters.ordering import diverse
from tars_rag.adapters.shared_store import SharedStore
from tars_rag.errors import InvalidInputError, shown
from tars_rag.langchain.documents import as_document
from tars_rag.langchain.rerank import TarsRerank
from tars_rag.retrieval.neighbours import windows
from tars_rag.retrieval.passage import ScoredPassage
from tars_rag.retrieval.pipeline import Pipeline
from tars_rag.retrieval.store import HybridStore
from tars_rag.runtimes.base import FloatArray
from tars_rag.settings import Strategy

if TYPE_CHECKING:
    from tars_rag.models.embedder import Embedder
    from tars_rag.retrieval.remote.models import RemoteEmbedder

Where = dict[str, Any]
NO_RERANKER = (
    "rerank=True, but this store has no reranker. Make it with one: "
    "TarsVectorStore(..., rerank=TarsRerank())"
)


@dataclass(frozen=True)
class Search:
    """Finds passages in a store.

    Attributes:
        shared: The store.
        embedder: Of the store.
        strategy: Unless a call says otherwise.
        k: How many passages, unless a call says otherwise.
        rerank: Orders what was found; None: fusion decides.
        candidates: How many passages are found for the reranker.
    """

    shared: SharedStore
    embedder: Embedder | RemoteEmbedder | ForeignEmbedder
    strategy: Strategy
    k: int
    rerank: TarsRerank | None
    candidates: int

    def find(
        self,
        query: str,
        k: int | None = None,
        *,
        filter: Where | None = None,
        strategy: Strategy | None = None,
        weight: float | None = None,
        min_score: float | None = None,
        rerank: bool | None = None,
        window: int | None = None,
        **unknown: Any,
    ) -> list[ScoredPassage]:
        """The passages that answer a query best, best first.

        Raises:
            InvalidInputError: An argument is unknown or cannot be used.
        """
        allowed = "k, filter, strategy, weight, min_score, rerank, window"
        refuse(unknown, allowed=allowed, instead=INSTEAD)
        require_kind("rerank", rerank, (bool, type(None)), "True, False or None")
        if rerank and self.rerank is None:
            raise InvalidInputError(NO_RERANKER)
        reranker = None if rerank is False else self.rerank
        with self.shared.using() as store:
            pipeline = Pipeline(
                store,
                reranker.reranker if reranker else None,
                strategy=self.strategy,
                candidates=self.candidates,
            )
            answer = pipeline.search(
                query,
                self.k if k is None else k,
                where=filter,
                strategy=strategy,
                weight=weight,
                min_score=min_score,
                budget_ms=reranker.budget_ms if reranker else None,
            )
            return _within(store, answer.passages, window)

    def relevant(
        self, query: str, k: int | None, score_threshold: float | None = None, **call: Any
    ) -> list[tuple[Document, float]]:
        """What `find` finds with its relevance, from 0 to 1 and comparable across queries."""
        least = -1.0 if score_threshold is None else score_threshold
        hits = [hit for hit in self.find(query, k, **call) if hit.relevance >= least]
        return [(as_document(hit.passage), hit.relevance) for hit in hits]

    def nearest(self, vector: Sequence[float], k: int | None, **call: Any) -> list[ScoredPassage]:
        """The passages nearest to a vector, nearest first; `filter`, `window` as for `find`.

        Raises:
            InvalidInputError: As for `find`.
        """
        refuse(call.keys() - {"filter", "window"}, allowed="k, filter, window", instead=INSTEAD)
        k = self.k if k is None else k
        with self.shared.using() as store:
            hits = store.search("", k, "naive", call.get("filter"), vector=_row(vector))
            return _within(store, hits, call.get("window"))

    def diverse(
        self, query: str, k: int | None, fetch_k: int, nearness: float, **call: Any
    ) -> list[ScoredPassage]:
        """`k` of the `fetch_k` passages that `find` finds, chosen by maximal marginal relevance.

        Raises:
            InvalidInputError: As for `find`.
        """
        allowed = "k, fetch_k, lambda_mult, filter, strategy, weight, window"
        refuse(call.keys() - {"filter", "strategy", "weight", "window"}, allowed=allowed)
        k, window = self.k if k is None else k, call.pop("window", None)
        hits = self.find(query, max(fetch_k, k), rerank=False, **call)
        return self._choose(hits, self.embedder.embed_query(query), k, nearness, window)

    def diverse_nearest(
        self, vector: Sequence[float], k: int | None, fetch_k: int, nearness: float, **call: Any
    ) -> list[ScoredPassage]:
        """As `diverse`, of the passages nearest to a vector."""
        allowed = "k, fetch_k, lambda_mult, filter, window"
        refuse(call.keys() - {"filter", "window"}, allowed=allowed)
        k, window = self.k if k is None else k, call.pop("window", None)
        hits = self.nearest(vector, max(fetch_k, k), **call)
        return self._choose(hits, _row(vector), k, nearness, window)

    def _choose(
        self,
        hits: Sequence[ScoredPassage],
        query: FloatArray,
        k: int,
        nearness: float,
        window: int | None,
    ) -> list[ScoredPassage]:
        with self.shared.using() as store:
            stored = store.vectors(hit.id for hit in hits)
            hits = [hit for hit in hits if hit.id in stored]  # one may be deleted meanwhile
            vectors = [stored[hit.id] for hit in hits]
            rows = diverse(query, np.stack(vectors), k, nearness) if hits else []
            return _within(store, [hits[row] for row in rows], window)


def _within(
    store: HybridStore, hits: list[ScoredPassage], window: int | None
) -> list[ScoredPassage]:
    """What was found, with the text around it in metadata "window" where that was asked for."""
    around = windows(store, [hit.passage for hit in hits], window)
    return [_with_window(hit, around[hit.id]) for hit in hits] if around else hits


def _with_window(hit: ScoredPassage, around: str) -> ScoredPassage:
    metadata = {**hit.metadata, "window": around}
    return replace(hit, passage=replace(hit.passage, metadata=metadata))


def _row(vector: object) -> FloatArray:
    try:
        return np.asarray(vector, np.float32)
    except (TypeError, ValueError) as error:
        msg = f"The embedding is not a list of numbers ({error}): {shown(vector)}"
        raise InvalidInputError(msg) from error


INSTEAD = {
    "where": "Write filter={...}, in the same language.",
    "where_document": "Texts are searched by words: strategy='lexical', or 'hybrid' (the default).",
    "fetch_k": "It belongs to max_marginal_relevance_search, or search_type='mmr'.",
    "lambda_mult": "It belongs to max_marginal_relevance_search, or search_type='mmr'.",
    "score_threshold": "It belongs to search_type='similarity_score_threshold'.",
}
"""What to write in place of arguments that other stores, or other ways to search, know."""
