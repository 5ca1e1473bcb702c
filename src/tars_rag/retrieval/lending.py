"""Models lent with a store: its holder answers whole questions of other processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from tars_rag.retrieval.neighbours import with_neighbours
from tars_rag.retrieval.pipeline import PassageScorer, Pipeline
from tars_rag.retrieval.sharing.warm import OPERATION, Told, opened_as
from tars_rag.retrieval.store import HybridStore
from tars_rag.settings import Strategy


def told(
    store: HybridStore,
    reranker: PassageScorer | None,
    *,
    query: str,
    k: int,
    strategy: Strategy,
    where: Mapping[str, Any] | None,
    min_score: float | None,
    budget_ms: float | None,
    window: int,
) -> Told:
    """Search a store and look at what stands around what was found.

    Args:
        store: What is searched.
        reranker: None: fusion decides.
        query: As `Pipeline.search`'s, and so are those that follow.
        k: See there.
        strategy: See there.
        where: See there.
        min_score: See there.
        budget_ms: See there.
        window: As `with_neighbours`'.

    Raises:
        TarsRagError: Any error of store, embedder or reranker, unchanged.
    """
    answer = Pipeline(store, reranker, strategy=strategy).search(
        query, k, where, budget_ms=budget_ms, min_score=min_score
    )
    around = with_neighbours(store, [hit.id for hit in answer.passages], window)
    return Told(
        passages=answer.passages,
        steps=answer.steps,
        around=around,
        language=store.language,
        count=store.count(),
        reranked=reranker is not None,
    )


def lend(store: HybridStore, reranker: PassageScorer | None) -> None:
    """Answer other processes of this user with the store's embedder and this reranker.

    Only those who would open the same models in the same way are answered; a model that is none of
    this package is lent to nobody.
    """
    embedder = getattr(store.embedder, "asked_for", None)
    if embedder is None:
        return
    known = opened_as(*embedder)
    scorer = getattr(reranker, "asked_for", None)
    store.lend(OPERATION, partial(_answer, store, reranker, known, scorer and opened_as(*scorer)))


def _answer(
    store: HybridStore,
    reranker: PassageScorer | None,
    embedder_as: list[Any],
    reranker_as: list[Any] | None,
    asked: Mapping[str, Any],
) -> Iterator[tuple[Any, None]]:
    search = {key: value for key, value in asked.items() if key not in ("op", *_MODELS)}
    wanted = asked["reranker"]
    if asked["embedder"] != embedder_as or wanted not in (None, reranker_as):
        yield None, None
        return
    yield told(store, None if wanted is None else reranker, **search).row(), None


_MODELS = ("embedder", "reranker")
