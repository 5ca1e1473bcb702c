"""The whole query: the pipeline's own steps, for each place of the embedder and the reranker."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tars_rag.bench.conditions import Watch
from tars_rag.bench.rows import QueryRow
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.pipeline import Answer, PassageScorer, Pipeline
from tars_rag.retrieval.store import HybridStore

STEPS: Final = ("embed", "vectors", "lexical", "fuse", "rerank")
RERANKED: Final = 5
"""As many as the published query reranked."""
DOCUMENTS: Final = 742
"""As many as the published store held."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One pair of places.

    Attributes:
        embedder: Its words in the table.
        reranker: Its words; ``none``.
        pipeline: The open store with both.
        random: One of the models has random weights.
    """

    embedder: str
    reranker: str
    pipeline: Pipeline
    random: bool = False


def measure_queries(
    asked: Sequence[Asked],
    queries: Sequence[str],
    *,
    rounds: int,
    watch: Watch,
    keep: Callable[[QueryRow], object],
    progress: Callable[[str], object] = lambda what: None,
) -> None:
    """Ask every query of every pair, in turn, and keep the medians of the steps.

    Args:
        asked: The pairs.
        queries: At least one.
        rounds: How often each query is asked; once more at first, uncounted.
        watch: What clocks and governors are read with.
        keep: Given each row.
        progress: Told what is measured next.
    """
    answers: dict[int, list[Answer]] = {number: [] for number in range(len(asked))}
    with watch.during() as seen:
        for counted in (False, *[True] * rounds):
            for place, query in enumerate(queries, 1):
                if counted:
                    progress(f"query {place} of {len(queries)}")
                for number, pair in enumerate(asked):
                    answer = pair.pipeline.search(query, RERANKED)
                    if counted:
                        answers[number].append(answer)
    for number, pair in enumerate(asked):
        steps = {
            name: [
                step.milliseconds
                for answer in answers[number]
                for step in answer.steps
                if step.name == name
            ]
            for name in STEPS
        }
        medians = {name: statistics.median(ms) for name, ms in steps.items() if ms}
        totals = [answer.milliseconds for answer in answers[number]]
        keep(
            QueryRow(
                pair.embedder,
                pair.reranker,
                passages=pair.pipeline.store.count(),
                candidates=pair.pipeline.candidates if pair.pipeline.reranker else None,
                embed=medians.get("embed"),
                vectors=medians.get("vectors"),
                lexical=medians.get("lexical"),
                fuse=medians.get("fuse"),
                rerank=medians.get("rerank"),
                total_ms=statistics.median(totals),
                spread_ms=statistics.stdev(totals) if len(totals) > 1 else 0.0,
                runs=len(totals),
                random=pair.random,
                note=f"throttled: {seen.throttled}" if seen.throttled else "",
            )
        )


def pipeline(store: HybridStore, reranker: PassageScorer | None) -> Pipeline:
    """As many passages are reranked as the published query had."""
    return Pipeline(store, reranker, candidates=RERANKED)


def fill(store: HybridStore, texts: Sequence[str], progress: Callable[[str], object]) -> None:
    """Put texts into a store, a few at a time."""
    passages = [Passage(f"{n}", text) for n, text in enumerate(texts)]
    for start in range(0, len(passages), 64):
        progress(f"a store of {len(passages)} passages: {start} done")
        store.upsert(passages[start : start + 64])
