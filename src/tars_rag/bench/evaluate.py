"""The quality of a search on BEIR collections, in the measures of trec_eval."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from tars_rag.errors import InvalidInputError
from tars_rag.progress import NamedProgress
from tars_rag.retrieval.passage import Passage, ScoredPassage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tars_rag.models.reranker import Reranker
    from tars_rag.retrieval.store import HybridStore
    from tars_rag.settings import Strategy

RERANK: Final = "hybrid+rerank"
STRATEGIES: Final = ("naive", "lexical", "hybrid", RERANK)
_JUDGED: Final = 100  # of a ranking: recall@100
DEPTH: Final = _JUDGED + 1
"""How many passages are asked for: one of them may be the query itself."""


@dataclass(frozen=True)
class Collection:
    """A test collection.

    Attributes:
        passages: The documents; title and text joined by a space.
        queries: Query id -> text, of the judged queries only.
        judgements: Query id -> document id -> grade; above 0 is relevant.
    """

    passages: list[Passage]
    queries: dict[str, str]
    judgements: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Scores:
    """Means over the judged queries, or the values of one of them; 0 to 1."""

    ndcg_10: float
    mrr_10: float
    recall_100: float

    def as_dict(self) -> dict[str, float]:
        """The measures by their usual names, rounded to five digits as BEIR does."""
        values = {"ndcg@10": self.ndcg_10, "mrr@10": self.mrr_10, "recall@100": self.recall_100}
        return {name: round(value, 5) for name, value in values.items()}


def load_texts(directory: Path) -> tuple[list[Passage], dict[str, str]]:
    """Read ``corpus.jsonl`` and ``queries.jsonl``: the documents, and the queries by id.

    Documents without any text are left out, as nothing can find them.

    Raises:
        InvalidInputError: A file is missing or a line of it cannot be used; both are named. Or
            there are no documents.
    """
    queries = dict(_texts(directory / "queries.jsonl"))
    passages = [
        Passage(key, text) for key, text in _texts(directory / "corpus.jsonl") if text.strip()
    ]
    if not passages:
        msg = f"{directory / 'corpus.jsonl'}: there are no documents with a text."
        raise InvalidInputError(msg)
    return passages, queries


def load_collection(directory: Path) -> Collection:
    """Read a collection whose queries are judged in ``qrels/test.tsv``.

    Documents without any text are left out of it; they still count as relevant where they were
    judged so.

    Raises:
        InvalidInputError: A file is missing or a line of it cannot be used; both are named.
    """
    judgements = _judgements(directory / "qrels" / "test.tsv")
    passages, texts = load_texts(directory)
    if unknown := sorted(judgements.keys() - texts.keys()):
        msg = f"{directory}: queries.jsonl lacks judged queries: {', '.join(unknown[:5])}."
        raise InvalidInputError(msg)
    if not judgements:
        msg = f"{directory / 'qrels' / 'test.tsv'}: there are no judgements."
        raise InvalidInputError(msg)
    return Collection(passages, {key: texts[key] for key in judgements}, judgements)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        msg = (
            f"{path} cannot be read ({error}). A collection is a directory with corpus.jsonl and "
            "queries.jsonl and, to measure a search with it, qrels/test.tsv."
        )
        raise InvalidInputError(msg) from error


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            key, title, text = str(row["_id"]), row.get("title") or "", row["text"] or ""
            joined = f"{title} {text}".strip()
            joined.encode()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f'{path}, line {number}: not {{"_id": ..., "text": ...}} ({error!r}).'
            raise InvalidInputError(msg) from error
        if key in seen:
            msg = f"{path}, line {number}: the id {key!r} is there twice."
            raise InvalidInputError(msg)
        seen.add(key)
        yield key, joined


def _judgements(path: Path) -> dict[str, dict[str, int]]:
    judgements: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        cells = line.rstrip("\r\n").split("\t")
        if number == 1 and cells[-1] == "score":
            continue
        try:
            query, document, grade = cells
            judgements.setdefault(query, {})[document] = int(grade)
        except ValueError:
            msg = f"{path}, line {number}: not query-id, corpus-id and a whole score between tabs."
            raise InvalidInputError(msg) from None
    return judgements


def score(ranking: Sequence[str], grades: Mapping[str, int]) -> Scores:
    """Measure one ranking, best document first.

    As trec_eval (and pytrec_eval, which BEIR uses) defines them: nDCG with the grade itself as
    gain, discounted by log2(rank + 1), over the best ranking possible (Järvelin and Kekäläinen,
    2002); grades of 0 and below gain nothing; a query with nothing relevant scores 0.
    """
    gains = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
    if not gains:
        return Scores(0.0, 0.0, 0.0)
    found = [max(grades.get(key, 0), 0) for key in ranking[:_JUDGED]]
    first = next((rank for rank, gain in enumerate(found[:10], 1) if gain), None)
    return Scores(
        ndcg_10=_dcg(found[:10]) / _dcg(gains[:10]),
        mrr_10=1 / first if first else 0.0,
        recall_100=sum(gain > 0 for gain in found) / len(gains),
    )


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def mean(scores: Sequence[Scores]) -> Scores:
    """The mean of each measure over queries."""
    n = len(scores)
    return Scores(
        sum(s.ndcg_10 for s in scores) / n,
        sum(s.mrr_10 for s in scores) / n,
        sum(s.recall_100 for s in scores) / n,
    )


def fill(store: HybridStore, collection: Collection, progress: NamedProgress | None = None) -> int:
    """Put the documents into `store`, except those that are there already; return how many.

    Raises:
        InvalidInputError: The store holds passages that are not of this collection.
    """
    stored = {passage.id: passage.text for passage in store.get()}
    if strange := stored.keys() - {passage.id for passage in collection.passages}:
        msg = (
            f"The store {store.path} holds {len(strange)} passages that are not of this "
            "collection, which would spoil the figures. Give another --store, or none."
        )
        raise InvalidInputError(msg)
    missing = [p for p in collection.passages if stored.get(p.id) != p.text]
    for start in range(0, len(missing), 128):
        store.upsert(missing[start : start + 128])
        if progress:
            progress("embed", min(start + 128, len(missing)), len(missing))
    return len(missing)


def evaluate(
    store: HybridStore,
    collection: Collection,
    reranker: Reranker | None = None,
    *,
    strategies: Sequence[str] = STRATEGIES,
    rerank_depth: int = 20,
    progress: NamedProgress | None = None,
) -> dict[str, Scores]:
    """Ask every judged query with every strategy.

    Args:
        store: Holds the collection's documents (`fill`).
        collection: The queries and judgements.
        reranker: For ``hybrid+rerank``, which is left out where there is none.
        strategies: Some of `STRATEGIES`.
        rerank_depth: How many of the best passages of ``hybrid`` are reranked; the others follow
            in their order.
        progress: Called after each query.

    Returns:
        Strategy -> means over the queries, in the order of `STRATEGIES`.
    """
    rerankers = {"rerank": reranker} if reranker else {}
    found = per_query(
        store,
        collection,
        rerankers,
        strategies=strategies,
        rerank_depth=rerank_depth,
        progress=progress,
    )
    return {strategy: mean(scores) for strategy, scores in found.items()}


def per_query(
    store: HybridStore,
    collection: Collection,
    rerankers: Mapping[str, Reranker] | None = None,
    *,
    strategies: Sequence[str] = STRATEGIES,
    rerank_depth: int = 20,
    vectors: Sequence[NDArray[np.float32]] | None = None,
    progress: NamedProgress | None = None,
) -> dict[str, list[Scores]]:
    """As `evaluate`, for any number of rerankers, and the measures of each query.

    Args:
        store: Holds the collection's documents (`fill`).
        collection: The queries and judgements.
        rerankers: By name; what they make of ``hybrid`` is called ``hybrid+<name>``.
        strategies: Some of `STRATEGIES`.
        rerank_depth: How many of the best passages of ``hybrid`` are reranked.
        vectors: Of the queries (`query_vectors`), where they are there already.
        progress: Called after each query.

    Returns:
        Strategy -> the measures of each query, in the collection's order.
    """
    if vectors is None:
        vectors = query_vectors(store, collection)
    wanted: dict[str, Reranker | None] = {
        s: None for s in STRATEGIES if s in strategies and s != RERANK
    }
    if RERANK in strategies:
        wanted |= {f"hybrid+{name}": one for name, one in (rerankers or {}).items()}
    scores: dict[str, list[Scores]] = {name: [] for name in wanted}
    for n, (key, vector) in enumerate(zip(collection.queries, vectors, strict=True), 1):
        text, grades = collection.queries[key], collection.judgements[key]
        found: dict[Strategy, list[ScoredPassage]] = {}
        for name, reranker in wanted.items():
            plain = cast("Strategy", name.partition("+")[0])
            if plain not in found:
                found[plain] = store.search(text, DEPTH, plain, vector=vector)
            hits = found[plain]
            if reranker:
                hits = _reranked(reranker, text, hits, rerank_depth)
            ranking = [hit.id for hit in hits if not is_query(hit, key, text)]
            scores[name].append(score(ranking, grades))
        if progress:
            progress("search", n, len(collection.queries))
    return scores


def is_query(hit: ScoredPassage, key: str, text: str) -> bool:
    """Whether a hit is the query itself, which BEIR leaves out (ArguAna); ids may coincide."""
    return hit.id == key and text in hit.text


def query_vectors(store: HybridStore, collection: Collection) -> Sequence[NDArray[np.float32]]:
    """As a search makes them: with the prompt for queries, where the model has one."""
    ask = getattr(store.embedder, "embed_query", None)
    texts = list(collection.queries.values())
    return [ask(text) for text in texts] if ask else list(store.embedder.embed(texts))


def _reranked(
    reranker: Reranker, query: str, hits: Sequence[ScoredPassage], depth: int
) -> list[ScoredPassage]:
    scores = reranker.score(query, [hit.text for hit in hits[:depth]])
    order = sorted(range(len(scores)), key=lambda i: -float(scores[i]))  # stable
    return [hits[i] for i in order] + list(hits[depth:])
