"""Hybrid search without embedding: this package beside both frameworks' ensembles, LanceDB, Qdrant.

    python benchmarks/peers_search.py [--sizes 1000 10000 100000] [--minutes 5] [--queries 50]
                                      [--programs NAME ...] [--words 6]

The same passages (made-up words of letters by Zipf's law), the same clustered unit vectors of 384
numbers and the same queries for all; every program embeds a query by looking its vector up. Medians
of queries, each asked once of all in turn, another one first in each turn, and each after a pause
in which the threads of the one before come to rest; recall@5 of the vector side is against brute
force. What is too slow to build at a size is left out there (--most-build, seconds, judged by the
size before). Needs benchmarks/peers_requirements.txt.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from common import SETTLED, made_up, rotated
from peers_common import attempted, machine, ms
from tars_rag import HybridStore, Passage
from tars_rag.files import size_of

DIMENSION, K = 384, 5


class Data:
    """Passages, their vectors, and queries, from one seed."""

    def __init__(self, count: int, queries: int, words_asked: int = 6) -> None:
        draw = np.random.default_rng(0)
        words = [made_up(n) for n in range(20_000)]
        self.numbers = {word: n for n, word in enumerate(words)}
        picked = np.minimum(draw.zipf(1.3, (count, 40)), len(words)) - 1
        self.texts = [" ".join(words[n] for n in row) for row in picked]
        centres = draw.standard_normal((max(8, count // 250), DIMENSION), np.float32)
        rows = centres[draw.integers(len(centres), size=count)]
        rows = rows + 0.7 * draw.standard_normal((count, DIMENSION), np.float32)
        self.vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        near = draw.integers(count, size=queries)
        asked = self.vectors[near] + 0.03 * draw.standard_normal((queries, DIMENSION), np.float32)
        self.asked = (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)
        choose = random.Random(0)
        self.queries = [
            f"q{n} " + " ".join(choose.sample(self.texts[row].split(), words_asked))
            for n, row in enumerate(near)
        ]
        self.of = dict(zip(self.queries, self.asked, strict=True))
        best = np.argsort(-(self.asked @ self.vectors.T), axis=1)[:, :K]
        self.best = [{str(n) for n in row} for row in best]

    def recall(self, found: Callable[[str], list[str]]) -> float:
        """Of the nearest five by brute force, those that a program's vector search finds."""
        return float(
            np.mean(
                [
                    len(self.best[n] & set(found(query))) / K
                    for n, query in enumerate(self.queries[:20])
                ]
            )
        )


class Known:
    """An embedder of either framework and of a store that only knows the queries."""

    dimension, fingerprint = DIMENSION, "known:384"

    def __init__(self, data: Data) -> None:
        self.data = data

    def embed(self, texts: list[str]) -> np.ndarray:
        """The vectors of known queries."""
        return np.stack([self.data.of[text] for text in texts])

    def embed_query(self, text: str) -> np.ndarray:
        """The vector of a known query."""
        return self.data.of[text]


Program = tuple[Callable[[str], object], Callable[[str], list[str]]]
"""A hybrid search, and the ids that the vector side finds."""


def tars(data: Data, folder: Path) -> Program:
    store = HybridStore(folder / "tars", Known(data))
    passages = (Passage(str(n), text) for n, text in enumerate(data.texts))
    store.upsert(passages, vectors=iter(data.vectors))
    hybrid = partial(store.search, k=K)
    return hybrid, lambda query: [p.id for p in store.search(query, K, "naive")]


def ensemble(data: Data, folder: Path) -> Program:
    from langchain_chroma import Chroma
    from langchain_classic.retrievers import EnsembleRetriever
    from langchain_community.retrievers import BM25Retriever
    from langchain_core.embeddings import Embeddings

    class Lookup(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            raise NotImplementedError

        def embed_query(self, text: str) -> list[float]:
            return data.of[text].tolist()

    chroma = Chroma("bench", Lookup(), persist_directory=str(folder / "chroma"))
    for start in range(0, len(data.texts), 2000):
        end = start + 2000
        ids = [str(n) for n in range(start, min(end, len(data.texts)))]
        chroma._collection.upsert(
            ids=ids, embeddings=data.vectors[start:end], documents=data.texts[start:end]
        )
    words = BM25Retriever.from_texts(data.texts, k=K)
    both = EnsembleRetriever(
        retrievers=[words, chroma.as_retriever(search_kwargs={"k": K})], weights=[0.5, 0.5]
    )

    def nearest(query: str) -> list[str]:
        found = chroma._collection.query(query_embeddings=[data.of[query]], n_results=K)
        return list(found["ids"][0])

    return both.invoke, nearest


def query_fusion(data: Data, folder: Path) -> Program:
    import chromadb
    from llama_index.core import MockEmbedding, VectorStoreIndex
    from llama_index.core.llms import MockLLM
    from llama_index.core.retrievers import QueryFusionRetriever
    from llama_index.core.schema import TextNode
    from llama_index.retrievers.bm25 import BM25Retriever
    from llama_index.vector_stores.chroma import ChromaVectorStore

    class Lookup(MockEmbedding):
        def _get_query_embedding(self, query: str) -> list[float]:
            return data.of[query].tolist()

    client = chromadb.PersistentClient(str(folder / "llama"))
    collection = client.get_or_create_collection("bench")
    store = ChromaVectorStore(chroma_collection=collection)
    nodes = [
        TextNode(id_=str(n), text=text, embedding=vector.tolist())
        for n, (text, vector) in enumerate(zip(data.texts, data.vectors, strict=True))
    ]
    for start in range(0, len(nodes), 2000):
        store.add(nodes[start : start + 2000])
    index = VectorStoreIndex.from_vector_store(store, embed_model=Lookup(embed_dim=DIMENSION))
    near = index.as_retriever(similarity_top_k=K)
    words = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=K)
    both = QueryFusionRetriever(
        [words, near], num_queries=1, similarity_top_k=K, llm=MockLLM(), use_async=False
    )
    return both.retrieve, lambda query: [n.node.node_id for n in near.retrieve(query)]


def lancedb(data: Data, folder: Path, index: str | None, refine: int | None = None) -> Program:
    """With an index and its default settings, or with candidates that are compared in full."""
    import lancedb as lance
    import pyarrow as pa
    from lancedb.rerankers import RRFReranker

    table = lance.connect(folder / "lance").create_table(
        "bench",
        pa.table(
            {
                "id": [str(n) for n in range(len(data.texts))],
                "text": data.texts,
                "vector": pa.FixedSizeListArray.from_arrays(data.vectors.ravel(), DIMENSION),
            }
        ),
    )
    if index:
        table.create_index(metric="cosine", index_type=index)
    table.create_fts_index("text")
    fuse = RRFReranker()

    def refined(search: Any) -> Any:
        return search.refine_factor(refine) if refine else search

    def hybrid(query: str) -> object:
        search = table.search(query_type="hybrid").vector(data.of[query]).text(query)
        return refined(search.distance_type("cosine")).rerank(fuse).limit(K).to_list()

    def nearest(query: str) -> list[str]:
        found = refined(table.search(data.of[query]).distance_type("cosine")).limit(K).to_list()
        return [row["id"] for row in found]

    return hybrid, nearest


def qdrant(data: Data, folder: Path) -> Program:
    """Local mode: brute force in Python, with BM25 weights as sparse vectors."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder / "qdrant"))
    sparse = {"words": models.SparseVectorParams(modifier=models.Modifier.IDF)}
    dense = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
    client.create_collection("b", {"dense": dense}, sparse_vectors_config=sparse)

    def weights(text: str) -> models.SparseVector:
        counts: dict[int, float] = {}
        for word in text.split():
            number = data.numbers.get(word, len(data.numbers))
            counts[number] = counts.get(number, 0.0) + 1.0
        values = [c * 2.2 / (c + 1.2) for c in counts.values()]  # all texts are of one length
        return models.SparseVector(indices=list(counts), values=values)

    for start in range(0, len(data.texts), 1000):
        rows = range(start, min(start + 1000, len(data.texts)))
        client.upsert(
            "b",
            [
                models.PointStruct(
                    id=n,
                    vector={"dense": data.vectors[n].tolist(), "words": weights(data.texts[n])},
                    payload={"text": data.texts[n]},
                )
                for n in rows
            ],
        )

    def hybrid(query: str) -> object:
        return client.query_points(
            "b",
            prefetch=[
                models.Prefetch(query=data.of[query].tolist(), using="dense", limit=20),
                models.Prefetch(query=weights(query), using="words", limit=20),
            ],
            query=models.FusionQuery(fusion=models.Fusion.RRF),
            limit=K,
        )

    def nearest(query: str) -> list[str]:
        found = client.query_points("b", query=data.of[query].tolist(), using="dense", limit=K)
        return [str(point.id) for point in found.points]

    return hybrid, nearest


PROGRAMS: dict[str, Callable[[Data, Path], Program]] = {
    "tars-rag": tars,
    "LanceDB, flat": partial(lancedb, index=None),
    "LanceDB, IVF_HNSW_SQ": partial(lancedb, index="IVF_HNSW_SQ"),
    "LanceDB, IVF_HNSW_SQ, refined": partial(lancedb, index="IVF_HNSW_SQ", refine=2),
    "LanceDB, IVF_HNSW_FLAT, refined": partial(lancedb, index="IVF_HNSW_FLAT", refine=2),
    "LanceDB, IVF_RQ": partial(lancedb, index="IVF_RQ"),
    "Qdrant, local": qdrant,
    "EnsembleRetriever(BM25Retriever, Chroma)": ensemble,
    "QueryFusionRetriever(BM25Retriever, Chroma)": query_fusion,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5.0, help="for searching, all sizes")
    parser.add_argument("--most-build", type=float, default=150.0, help="seconds for one program")
    parser.add_argument("--words", type=int, default=6, help="in a query")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # of peers among themselves
    asyncio.set_event_loop(asyncio.new_event_loop())
    print(machine("chromadb", "lancedb", "qdrant-client", "rank-bm25", "llama-index-core"))
    builds: dict[str, tuple[int, float]] = {}
    for size in sorted(options.sizes):
        data = Data(size, options.queries, options.words)
        asked = f"{options.queries} queries of {options.words} words"
        print(f"\n{size} passages, k = {K}, {asked} in turn\n")
        print("| program | build s | disk MB | hybrid p50 ms | x tars-rag | vector recall@5 |")
        print("|---|---|---|---|---|---|", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            programs, facts = {}, {}
            for name in options.programs:
                if name in builds:
                    before, seconds = builds[name]
                    expected = seconds * size / before
                    if expected > options.most_build and name != "tars-rag":
                        print(f"left out: {name}: would take {expected:.0f} s to build")
                        continue
                place = Path(folder) / str(len(facts))
                place.mkdir()
                start = time.perf_counter()
                program = attempted(name, partial(PROGRAMS[name], data, place))
                if program is None:
                    continue
                programs[name] = program
                builds[name] = size, time.perf_counter() - start
                facts[name] = builds[name][1], size_of(place) / 1e6
            found: dict[str, list[float]] = {name: [] for name in programs}
            begun, share = time.perf_counter(), options.minutes * 60 / len(options.sizes)
            for number, query in enumerate(data.queries):
                if number >= 10 and time.perf_counter() - begun > share:
                    break
                for name, (hybrid, _) in rotated(programs, number):
                    time.sleep(SETTLED)
                    start = time.perf_counter()
                    hybrid(query)
                    if number >= 3:  # the first ones warm everything up
                        found[name].append(time.perf_counter() - start)
            base = ms(found["tars-rag"])
            for name, (_, nearest) in programs.items():
                print(
                    f"| {name} | {facts[name][0]:.1f} | {facts[name][1]:.0f} "
                    f"| {ms(found[name]):.1f} | {ms(found[name]) / base:.1f} "
                    f"| {data.recall(nearest):.3f} |",
                    flush=True,
                )
            print(f"resident, all programs: {psutil.Process().memory_info().rss >> 20} MB")


if __name__ == "__main__":
    main()
