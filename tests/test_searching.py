"""Hybrid search against its definition: the best of each side, every one with both true scores."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conftest import HashEmbedder
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore
from tars_rag.retrieval.timing import Stopwatch
from test_bm25 import Oracle

DIMENSION, COUNT, RECENT = 24, 400, 40
STRANGE = [
    "e\u0301te\u0301",
    "\u00e9t\u00e9",
    "naïve",
    "猫",
    "東京都",
    "дом",
    "مرحبا",
    "E-1701",
    "C++",
    "the",
]
WORDS = [*(f"w{n}" for n in range(4)), *STRANGE, *(f"w{n}" for n in range(14, 60))]
WHERE: list[dict[str, Any] | None] = [None, {"n": {"$lt": 3}}, {"n": 0}]
DRAW = np.random.default_rng(3)
TOPICS = DRAW.standard_normal((6, DIMENSION))


class Scaled(HashEmbedder):
    """Its unrelated texts have a cosine of 0.2."""

    unrelated_cosine = 0.2


def made(count: int) -> tuple[list[str], NDArray[np.float32]]:
    """Texts of which few words are frequent, and vectors that say something of other things."""
    texts = [
        " ".join(WORDS[min(int(n), 60) - 1] for n in DRAW.zipf(1.4, 1 + int(DRAW.integers(14))))
        for _ in range(count)
    ]
    vectors = TOPICS[DRAW.integers(6, size=count)] + 0.8 * DRAW.standard_normal((count, DIMENSION))
    vectors[: count // 10] = vectors[0]  # copies
    return texts, vectors.astype(np.float32)


class Filled(NamedTuple):
    """A store, and what it should hold."""

    store: HybridStore
    texts: dict[str, str]
    vectors: dict[str, NDArray[np.float64]]

    def upsert(self, passages: list[Passage], vectors: NDArray[np.float32]) -> None:
        self.store.upsert(passages, vectors)
        for passage, vector in zip(passages, vectors.astype(np.float64), strict=True):
            self.texts[passage.id] = passage.text
            self.vectors[passage.id] = vector / np.linalg.norm(vector)


@pytest.fixture(scope="module", params=["in the indexes", "with a tail"])
def filled(request: pytest.FixtureRequest) -> Iterator[Filled]:
    path = Path(tempfile.mkdtemp(prefix="tars-rag-test-"))
    texts, vectors = made(COUNT)
    passages = [Passage(f"p{n}", text, {"n": n % 7}) for n, text in enumerate(texts)]
    with HybridStore(path / "s", Scaled(DIMENSION)) as store:
        filled = Filled(store, {}, {})
        filled.upsert(passages, vectors)
        store.flush()
        if request.param == "with a tail":
            texts, vectors = made(RECENT)
            recent = [Passage(f"p{11 * n}", text, {"n": n % 7}) for n, text in enumerate(texts)]
            for passage, vector in zip(recent, vectors, strict=True):
                filled.upsert([passage], vector[None])
            gone = [f"p{n}" for n in range(1, 40, 9)]
            store.delete(gone)
            for key in gone:
                del filled.texts[key], filled.vectors[key]
        yield filled
    shutil.rmtree(path)


@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=6),
    seed=st.integers(0, 1 << 16),
    k=st.sampled_from([1, 2, 5, 20, 60]),
    weight=st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.99]),
    where=st.sampled_from(WHERE),
)
@settings(max_examples=120, deadline=None)
def test_the_best_of_both_sides_with_both_true_scores(
    filled: Filled,
    words: list[str],
    seed: int,
    k: int,
    weight: float,
    where: dict[str, Any] | None,
) -> None:
    draw = np.random.default_rng(seed)
    vector = (TOPICS[seed % 6] + draw.standard_normal(DIMENSION)).astype(np.float32)
    query, watch, store = " ".join(words), Stopwatch(), filled.store
    near = store.search(query, 1000, "naive", where, vector=vector)
    found = store.search(query, 1000, "lexical", where)
    cosines = {hit.id: hit.vector_score or 0.0 for hit in near}
    bm25 = {hit.id: hit.lexical_score or 0.0 for hit in found}
    shares = {hit.id: hit.lexical_share or 0.0 for hit in found}
    unit = vector / np.linalg.norm(vector.astype(np.float64))
    assert cosines == pytest.approx({key: filled.vectors[key] @ unit for key in cosines}, abs=1e-6)
    if where is None:
        assert cosines.keys() == filled.texts.keys()
        if len(filled.texts) == COUNT:  # tantivy counts what was replaced or deleted a while longer
            oracle = Oracle(filled.texts)
            scores, reach = oracle.scores(query), oracle.reach(query)
            assert bm25 == pytest.approx(scores, rel=1e-5)
            assert shares == pytest.approx(
                {key: score / reach for key, score in scores.items()}, rel=1e-5
            )
    asked = max(30, 2 * k)
    candidates = {hit.id for hit in near[:asked]} | {hit.id for hit in found[:asked]}

    def fused(key: str) -> float:
        share = shares.get(key, 0.0)
        told = 2 * share**2 / (1 + share**2)
        return weight * max(cosines[key] - 0.2, 0) / 0.8 + (1 - weight) * told

    order = sorted(candidates, key=lambda key: (-fused(key), -cosines[key], key))
    hits = store.search(query, k, "hybrid", where, vector=vector, weight=weight, watch=watch)
    if not found:  # a query none of whose words is there is answered by vectors alone
        assert [hit.id for hit in hits] == [hit.id for hit in near[:k]]
        return
    assert [hit.id for hit in hits] == order[:k]
    for hit in hits:
        assert hit.vector_score == cosines[hit.id]
        assert hit.lexical_score == pytest.approx(bm25.get(hit.id, 0.0), rel=1e-5)
        assert hit.score == pytest.approx(fused(hit.id), rel=1e-5)
    notes = {step.name: step.note for step in watch.steps}
    assert notes["fuse"] == f"{len(candidates)} candidates"
    everyone = store.search(query, k, "hybrid", where, vector=vector, weight=weight, every=True)
    assert [hit.id for hit in everyone] == order
    assert everyone[: len(hits)] == hits
