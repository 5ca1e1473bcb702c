"""Search and rerank under one deadline, and time each step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import DeviceError, InvalidInputError, shown
from tars_rag.retrieval.indexes.chroma.filters import Where
from tars_rag.retrieval.passage import ScoredPassage
from tars_rag.retrieval.searching import above, check_min_score
from tars_rag.retrieval.store import HybridStore
from tars_rag.retrieval.timing import Step, Stopwatch
from tars_rag.settings import Strategy

__all__ = ["Answer", "PassageScorer", "Pipeline", "Step"]


class PassageScorer(Protocol):
    """What a pipeline needs of a reranker."""

    def score(
        self, query: str, texts: Sequence[str], budget_ms: float | None = None
    ) -> NDArray[np.float32]:
        """Scores [n], larger is better; NaN for texts there was no time for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Ranked passages, best first, and how long each step took."""

    passages: list[ScoredPassage]
    steps: list[Step]

    @property
    def milliseconds(self) -> float:
        """All steps together."""
        return sum(step.milliseconds for step in self.steps)


class Pipeline:
    """Searches a store and reranks what it finds.

    Args:
        store: What is searched.
        reranker: A `Reranker`, or anything with its `score`; None: fusion decides.
        strategy: Of the search.
        candidates: How many passages are reranked (at least k).

    Raises:
        InvalidInputError: `candidates` is not a whole number of at least 1.
    """

    def __init__(
        self,
        store: HybridStore,
        reranker: PassageScorer | None = None,
        *,
        strategy: Strategy = "hybrid",
        candidates: int = 20,
    ) -> None:
        if not isinstance(candidates, int) or isinstance(candidates, bool) or candidates < 1:
            msg = f"candidates must be a whole number of at least 1, got {shown(candidates)}."
            raise InvalidInputError(msg)
        self.store = store
        self.reranker = reranker
        self.strategy: Strategy = strategy
        self.candidates = candidates

    def search(
        self,
        query: str,
        k: int = 5,
        where: Where | None = None,
        strategy: Strategy | None = None,
        rerank: bool = True,
        budget_ms: float | None = None,
        min_score: float | None = None,
        weight: float | None = None,
    ) -> Answer:
        """The best `k` passages, reranked where there is a reranker and time.

        Passages that were not reranked within the budget follow the reranked ones, in the order of
        the search. The step "rerank" says how many were. Retrieval is never cut short.

        Args:
            query: Plain text.
            k: How many passages.
            where: Chroma's filter on the metadata.
            strategy: Instead of the pipeline's own.
            rerank: Whether to use the reranker.
            budget_ms: Milliseconds for everything, from this call on; None: no limit.
            min_score: The least `ScoredPassage.relevance` of a passage, 0 to 1: of those that were
                reranked the reranker's score, of others the search's.
            weight: Share of the vectors in "hybrid", 0 to 1; None: the store's default.

        Raises:
            InvalidInputError: An argument is not usable.
            TarsRagError: Any error of store, embedder or reranker, unchanged.
        """
        if budget_ms is not None and not (isinstance(budget_ms, int | float) and budget_ms > 0):
            msg = (
                f"budget_ms must be a number above 0, or None for no limit, got {shown(budget_ms)}."
            )
            raise InvalidInputError(msg)
        least = check_min_score(min_score)
        start = time.perf_counter()
        watch = Stopwatch()
        reranker = self.reranker if rerank else None
        # An invalid k is passed on: the store refuses it with its own message.
        valid = isinstance(k, int) and not isinstance(k, bool) and k > 0
        wanted = max(k, self.candidates) if reranker is not None and valid else k
        found = self.store.search(
            query, wanted, strategy or self.strategy, where, weight=weight, watch=watch
        )
        if reranker is not None and found:
            left = None if budget_ms is None else budget_ms - (time.perf_counter() - start) * 1e3
            found = _rerank(reranker, query, found, left, watch)
        return Answer(above(found[:k], least), watch.steps)


def _rerank(
    reranker: PassageScorer,
    query: str,
    found: list[ScoredPassage],
    budget_ms: float | None,
    watch: Stopwatch,
) -> list[ScoredPassage]:
    with watch.step("rerank", getattr(reranker, "device", "cpu")) as notes:
        if budget_ms is not None and budget_ms <= 0:
            notes.append(f"0 of {len(found)}: the search took the whole budget")
            return found
        texts = [passage.text for passage in found]
        scores = np.asarray(reranker.score(query, texts, budget_ms=budget_ms), np.float32)
        if scores.shape != (len(found),):
            msg = f"The reranker gave scores of shape {scores.shape} for {len(found)} passages."
            raise InvalidInputError(msg)
        done = np.isfinite(scores)
        if not done.all() and (budget_ms is None or np.isinf(scores).any()):
            msg = (
                f"The reranker gave {int((~done).sum())} of {len(found)} passages a score that is "
                "not a finite number. Rank by fusion (rerank=False), or use another device."
            )
            raise DeviceError(msg)
        late = "" if done.all() else " within the budget"
        notes.append(f"{int(done.sum())} of {len(found)}{late}")
        ranked = [
            passage.reranked(float(score))
            for passage, score in zip(found, scores, strict=True)
            if np.isfinite(score)
        ]
        ranked.sort(key=lambda passage: -passage.score)  # stable: equal scores keep their order
        return ranked + [p for p, is_done in zip(found, done, strict=True) if not is_done]
