"""Hybrid search against its definition: the best of each side, every one with both true scores."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conftest import HashEmbedder
from tars_rag.retrieval.fusion import evidence, nearness
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore
from tars_rag.retrieval.timing import Stopwatch

DIMENSION, COUNT, RECENT = 24, 400, 40
WORDS = [f"w{n}" for n in range(60)]
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


@pytest.fixture(scope="module", params=["in the indexes", "with a tail"])
def store(request: pytest.FixtureRequest) -> Iterator[HybridStore]:
    path = Path(tempfile.mkdtemp(prefix="tars-rag-test-"))
    texts, vectors = made(COUNT)
    passages = [Passage(f"p{n}", text, {"n": n % 7}) for n, text in enumerate(texts)]
    with HybridStore(path / "s", Scaled(DIMENSION)) as opened:
        opened.upsert(passages, vectors)
        opened.flush()
        if request.param == "with a tail":
            texts, vectors = made(RECENT)
            recent = [Passage(f"p{11 * n}", text, {"n": n % 7}) for n, text in enumerate(texts)]
            for passage, vector in zip(recent, vectors, strict=True):
                opened.upsert([passage], vector[None])
            opened.delete([f"p{n}" for n in range(1, 40, 9)])
        yield opened
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
    store: HybridStore,
    words: list[str],
    seed: int,
    k: int,
    weight: float,
    where: dict[str, Any] | None,
) -> None:
    draw = np.random.default_rng(seed)
    vector = (TOPICS[seed % 6] + draw.standard_normal(DIMENSION)).astype(np.float32)
    query, watch = " ".join(words), Stopwatch()
    near = store.search(query, 1000, "naive", where, vector=vector)
    found = store.search(query, 1000, "lexical", where)
    cosines = {hit.id: hit.vector_score or 0.0 for hit in near}
    bm25 = {hit.id: hit.lexical_score or 0.0 for hit in found}
    shares = {hit.id: hit.lexical_share or 0.0 for hit in found}
    asked = max(30, 2 * k)
    candidates = {hit.id for hit in near[:asked]} | {hit.id for hit in found[:asked]}

    def fused(key: str) -> float:
        words_say = evidence(shares.get(key, 0.0))
        return weight * nearness(cosines[key], 0.2) + (1 - weight) * words_say

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
