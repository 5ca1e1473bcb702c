"""Maximal marginal relevance and the fusion's weight, in both frameworks and the pipeline."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from numpy.typing import NDArray

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage, Pipeline
from tars_rag.errors import InvalidInputError
from tars_rag.langchain import TarsVectorStore as LangChainStore
from tars_rag.llama_index import TarsVectorStore as LlamaIndexStore

WIDTH, COUNT = 8, 60
ROWS = np.random.default_rng(5).standard_normal((COUNT, WIDTH)).astype(np.float32)
ROWS[20:40] = ROWS[0] + 0.01 * ROWS[20:40]  # near-copies: what diversity is for
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)
QUERY = (ROWS[0] + 0.1 * ROWS[1]) * 3


def brute_force(vectors: NDArray[np.float32], k: int, fetch: int, nearness: float) -> list[int]:
    """The definition, one candidate at a time."""
    near = vectors @ (QUERY / np.linalg.norm(QUERY))
    left = sorted(range(len(vectors)), key=lambda row: -near[row])[:fetch]
    chosen = [left.pop(0)]
    while left and len(chosen) < k:
        chosen.append(left.pop(int(np.argmax(_gains(vectors, near, left, chosen, nearness)))))
    return chosen


def _gains(
    vectors: NDArray[np.float32],
    near: NDArray[np.float32],
    left: list[int],
    chosen: list[int],
    nearness: float,
) -> list[float]:
    return [
        nearness * near[row] - (1 - nearness) * max(vectors[row] @ vectors[c] for c in chosen)
        for row in left
    ]


def assert_chosen(
    found: list[int], vectors: NDArray[np.float32], k: int, fetch: int, nearness: float
) -> None:
    """Each is the best of those left, or within rounding of it: sums differ in their last bits."""
    near = vectors @ (QUERY / np.linalg.norm(QUERY))
    left = sorted(range(len(vectors)), key=lambda row: -near[row])[:fetch]
    assert found[0] == left.pop(0)
    for number, row in enumerate(found[1:], 1):
        gains = _gains(vectors, near, left, found[:number], nearness)
        assert gains[left.index(row)] >= max(gains) - 1e-5
        left.remove(row)
    assert len(found) == min(k, fetch, len(vectors))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaIndexStore]:
    store = LlamaIndexStore(tmp_path_factory.mktemp("nodes") / "store", fingerprint="by hand")
    store.add(
        [
            TextNode(id_=str(n), text=f"node {n}", embedding=row.tolist(), metadata={"even": n % 2})
            for n, row in enumerate(ROWS)
        ]
    )
    yield store
    store.close()


def mmr(store: LlamaIndexStore, k: int = 5, **kwargs: Any) -> list[int]:
    query = VectorStoreQuery(
        query_embedding=QUERY.tolist(), similarity_top_k=k, mode=VectorStoreQueryMode.MMR
    )
    return [int(name) for name in store.query(query, **kwargs).ids or []]


@pytest.mark.parametrize("nearness", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("k", "fetch"), [(1, 1), (5, 20), (5, 60), (30, 60), (100, 60)])
def test_llama_index_chooses_what_is_near_and_differs(
    nodes: LlamaIndexStore, nearness: float, k: int, fetch: int
) -> None:
    found = mmr(nodes, k, mmr_threshold=nearness, mmr_prefetch_k=fetch)
    assert_chosen(found, ROWS, k, max(fetch, k), nearness)


def test_llama_index_takes_four_times_as_many_and_a_half_by_default(nodes: LlamaIndexStore) -> None:
    assert mmr(nodes) == brute_force(ROWS, 5, 20, 0.5) != brute_force(ROWS, 5, 20, 1.0)
    assert mmr(nodes, mmr_prefetch_factor=2) == brute_force(ROWS, 5, 10, 0.5)
    assert mmr(nodes, mmr_prefetch_factor=float("inf")) == brute_force(ROWS, 5, COUNT, 0.5)
    assert mmr(nodes, mmr_prefetch_k=sys.maxsize) == brute_force(ROWS, 5, COUNT, 0.5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"mmr_threshold": 1.5},
        {"mmr_threshold": "much"},
        {"mmr_prefetch_k": 0},
        {"mmr_prefetch_k": 2.5},
        {"mmr_prefetch_factor": float("nan")},
        {"lambda_mult": 0.5},
        {"k": 0},
    ],
)
def test_what_llama_index_cannot_use_is_named(nodes: LlamaIndexStore, kwargs: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"lambda_mult|mmr_|k must"):
        mmr(nodes, **kwargs)
    plain = VectorStoreQuery(query_embedding=QUERY.tolist(), similarity_top_k=2)
    with pytest.raises(InvalidInputError, match=r"'mmr_threshold'.*mode 'mmr'"):
        nodes.query(plain, mmr_threshold=0.5)


class Fixed(Embeddings):
    """LangChain's side of the same hash embedder."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return HashEmbedder(WIDTH).embed(texts).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@pytest.fixture(scope="module")
def documents() -> Iterator[LangChainStore]:
    with LangChainStore(Fixed()) as store:
        texts = ["the cat sleeps", "a dog barks", "the engine runs", "rain falls", "cat cat dog"]
        store.add_documents([Document(text, id=text) for text in texts])
        yield store


@pytest.mark.slow
def test_langchain_weighs_vectors_and_words(documents: LangChainStore) -> None:
    for weight in (0.0, 0.3, 0.5, 1.0):
        expected = [hit.id for hit in documents.store.search("cat", 5, weight=weight)]
        assert [d.id for d in documents.similarity_search("cat", 5, weight=weight)] == expected
        retriever = documents.as_retriever(k=5, weight=weight)
        assert [d.id for d in retriever.invoke("cat")] == expected
        assert [d.id for d in documents.as_retriever(k=5).invoke("cat", weight=weight)] == expected
    scores = [documents.store.search("cat", 5, weight=weight)[0].score for weight in (0.0, 1.0)]
    assert scores[0] != scores[1]
    for bad in (1.5, -0.1, "half"):
        with pytest.raises(InvalidInputError, match="weight"):
            documents.similarity_search("cat", weight=bad)


def test_langchain_fetches_no_more_than_there_are(documents: LangChainStore) -> None:
    for many in (10**10, sys.maxsize):
        found = documents.max_marginal_relevance_search("cat", 2, fetch_k=many, weight=0.4)
        assert len(found) == 2
        vector = Fixed().embed_query("cat")
        near = documents.max_marginal_relevance_search_by_vector(vector, 2, fetch_k=many)
        assert len(near) == 2


class Count:
    """A reranker that says how much it was given."""

    given = 0

    def score(self, query: str, texts: Any, budget_ms: float | None = None) -> Any:
        self.given = len(texts)
        return np.linspace(1, 0, len(texts), dtype=np.float32)


@pytest.mark.slow
def test_a_pipeline_reranks_no_more_than_there_are(tmp_path: Any) -> None:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([Passage(str(n), f"word{n} alpha", {}) for n in range(9)])
        reranker = Count()
        for many in (10**10, sys.maxsize):
            pipeline = Pipeline(store, reranker, candidates=many)
            assert len(pipeline.search("alpha", 3).passages) == 3
            assert reranker.given == 9
        weighed = Pipeline(store).search("word3", 9, weight=1.0).passages
        assert [p.id for p in weighed] == [p.id for p in store.search("word3", 9, weight=1.0)]
