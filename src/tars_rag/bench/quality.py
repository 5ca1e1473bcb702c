"""What each reranker does to the order of a judged collection, at each length; none included."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tars_rag.bench.evaluate import RERANK, Collection, evaluate, fill
from tars_rag.bench.rows import QualityRow
from tars_rag.errors import TarsRagError
from tars_rag.retrieval.store import HybridStore

if TYPE_CHECKING:
    from tars_rag.models.reranker import Reranker


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """A reranker to be judged.

    Attributes:
        name: Model and place, in words.
        max_length: Tokens that it is to read.
        open: Opens it.
        random: Random weights.
    """

    name: str
    max_length: int
    open: Callable[[], Reranker]
    random: bool = False


def measure_quality(
    store: HybridStore,
    collection: Collection,
    rerankers: Sequence[Judged],
    *,
    queries: int,
    depth: int = 20,
    keep: Callable[[QualityRow], object],
    progress: Callable[[str], object] = lambda what: None,
) -> None:
    """nDCG@10 of the hybrid search, and of each reranker over its best `depth` passages.

    Args:
        store: Filled with the collection's documents here, where they are not yet in it.
        collection: Queries and judgements.
        rerankers: Opened one after the other.
        queries: So many of the judged ones are asked, evenly over them.
        depth: Passages that are reranked.
        keep: Given each row.
        progress: Told what is measured next.
    """

    def filling(what: str, done: int, total: int | None) -> None:
        progress(f"{what} {done} of {total}")

    fill(store, collection, filling)
    asked = some_queries(collection, queries)
    count = len(asked.queries)
    plain = evaluate(store, asked, strategies=("hybrid",))["hybrid"].ndcg_10
    keep(QualityRow("none", queries=count, ndcg_10=plain, gain=0.0))
    for judged in rerankers:
        progress(f"nDCG@10 of {judged.name} at {judged.max_length} tokens")
        row = QualityRow(judged.name, judged.max_length, random=judged.random)
        try:
            with _opened(judged) as reranker:
                scores = evaluate(store, asked, reranker, strategies=(RERANK,), rerank_depth=depth)
        except TarsRagError as error:
            keep(dataclasses.replace(row, absent=str(error)))
            continue
        found = scores[RERANK].ndcg_10
        keep(dataclasses.replace(row, queries=count, ndcg_10=found, gain=found - plain))


def some_queries(collection: Collection, most: int) -> Collection:
    """The collection with at most so many of its judged queries, evenly over them."""
    names = list(collection.queries)
    step = max(1, len(names) / most)
    kept = [names[int(n * step)] for n in range(min(most, len(names)))]
    return Collection(
        collection.passages,
        {name: collection.queries[name] for name in kept},
        {name: collection.judgements[name] for name in kept},
    )


@contextmanager
def _opened(judged: Judged) -> Iterator[Reranker]:
    with judged.open() as reranker:
        yield reranker
