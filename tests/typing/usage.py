"""The public API's types, read by the type checker in CI and never run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from numpy.typing import NDArray
from typing_extensions import assert_type

from tars_rag import (
    Embedder,
    HybridStore,
    Passage,
    Pipeline,
    Reranker,
    ScoredPassage,
    Settings,
    index,
)
from tars_rag import langchain as lc
from tars_rag import llama_index as li
from tars_rag.ingest.run import Report
from tars_rag.retrieval.pipeline import Answer
from tars_rag.settings import Device, Placement, Strategy

Vectors = NDArray[np.float32]


def without_a_framework(settings: Settings) -> None:
    embedder = Embedder("all-MiniLM-L6-v2", device="auto", precision="int8", threads=2)
    assert_type(embedder.embed(["a", "b"]), Vectors)
    assert_type(embedder.embed_query("a"), Vectors)
    assert_type(embedder.fingerprint, str)
    assert_type(embedder.dimension, int)
    assert_type(Embedder.from_settings(settings), Embedder)
    Embedder(device="gpu")  # type: ignore[arg-type]
    Embedder(prompts={"query": "query: "})
    placement = Placement(device="cpu", cache_dir="/tmp", threads=2)
    assert_type(Embedder.placed("all-MiniLM-L6-v2", placement), Embedder)
    assert_type(settings.embedder_placement, Placement)
    placement.device = "npu"  # type: ignore[misc]
    embedder.embed_query(3)  # type: ignore[arg-type]

    reranker = Reranker("ms-marco-MiniLM-L-12-v2", cache_dir="/tmp")
    assert_type(reranker.score("q", ["a"], budget_ms=20), Vectors)
    assert_type(Reranker.from_env(), Reranker | None)

    passage = Passage("id", "text", {"page": 3})
    assert_type(passage.metadata, Mapping[str, Any])
    passage.text = "other"  # type: ignore[misc]

    with HybridStore("store", embedder) as store:
        assert_type(store.upsert([passage]), int)
        assert_type(store.delete(["id"], where={"page": 3}), int)
        assert_type(store.get(["id"]), list[Passage])
        assert_type(store.search("q", k=3, strategy="lexical"), list[ScoredPassage])
        store.search("q", strategy="magic")  # type: ignore[arg-type]
        assert_type(store.count(), int)
        answer = Pipeline(store, reranker).search("q", budget_ms=100)
        assert_type(answer, Answer)
        assert_type(answer.passages[0].score, float)
        assert_type(answer.passages[0].rerank_score, float | None)
    assert_type(settings.rag_strategy, Strategy)
    assert_type(settings.embed_device, Device)


async def with_langchain() -> None:
    embeddings = lc.TarsEmbeddings(model="all-MiniLM-L6-v2", device="cpu")
    lc.TarsEmbeddings(model_name="all-MiniLM-L6-v2", cache_dir=Path("/tmp"))
    lc.TarsEmbeddings(prompts={"query": "query: "})
    lc.TarsEmbeddings(modle="x")  # type: ignore[call-arg]
    lc.TarsRerank(device="gpu")  # type: ignore[arg-type]
    assert_type(lc.TarsEmbeddings.from_env(), lc.TarsEmbeddings)
    assert_type(embeddings.embed_documents(["a"]), list[list[float]])
    assert_type(await embeddings.aembed_query("a"), list[float])
    any_embeddings: Embeddings = embeddings

    rerank = lc.TarsRerank(top_n=3)
    assert_type(rerank.compress_documents([Document("a")], "q"), Sequence[Document])
    compressor: BaseDocumentCompressor = rerank
    encoder: BaseCrossEncoder = lc.TarsCrossEncoder()
    assert_type(encoder.score([("q", "a")]), list[float])

    store = lc.TarsVectorStore(any_embeddings, "store", strategy="hybrid", k=4, rerank=rerank)
    lc.TarsVectorStore(strategy="magic")  # type: ignore[arg-type]
    assert_type(store.add_documents([Document("a")], ids=["1"]), list[str])
    assert_type(store.similarity_search("q"), list[Document])
    assert_type(await store.asimilarity_search_with_score("q", 3), list[tuple[Document, float]])
    assert_type(store.delete(filter={"page": 3}), bool)
    assert_type(store.store, HybridStore)
    assert_type(store.as_retriever(k=3), lc.TarsRetriever)
    assert_type(store.get(where={"n": 1})["ids"], list[str])
    assert_type(store.store, HybridStore)
    assert_type(store.client, HybridStore)
    store.update_document("id", Document("text"))
    assert_type(await store.aadd_documents([Document("text")], batch_size=3), list[str])
    assert_type(await store.asimilarity_search("question", k=3), list[Document])
    await store.asimilarity_search(3)  # type: ignore[arg-type]
    await store.aadd_documents("text")  # type: ignore[arg-type]
    assert_type(lc.TarsVectorStore.from_texts(["a"], embeddings), lc.TarsVectorStore)
    with store as opened:
        assert_type(opened, lc.TarsVectorStore)
    any_store: VectorStore = store
    retriever: BaseRetriever = store.as_retriever()
    del compressor, any_store, retriever


async def with_llama_index(nodes: list[NodeWithScore]) -> None:
    embedding = li.TarsEmbedding(model="all-MiniLM-L6-v2", embed_batch_size=256)
    assert_type(li.TarsEmbedding.from_env(), li.TarsEmbedding)
    assert_type(embedding.fingerprint, str)
    any_embedding: BaseEmbedding = embedding

    rerank: BaseNodePostprocessor = li.TarsRerank(top_n=3, keep_retrieval_score=True)
    assert_type(rerank.postprocess_nodes(nodes, query_str="q"), list[NodeWithScore])

    store = li.TarsVectorStore("store", any_embedding)
    assert_type(store.store, HybridStore)
    assert_type(index("notes", store), Report)
    assert_type(index(["notes", Path("more")], "my-store", chunk_tokens=100), Report)
    index("notes", 3)  # type: ignore[arg-type]
    assert_type(store.add([scored.node for scored in nodes]), list[str])
    assert_type(store.get_nodes(["id"]), list[BaseNode])
    assert_type(await store.aquery(VectorStoreQuery()), VectorStoreQueryResult)
    assert_type(store.client, HybridStore)
    any_store: BasePydanticVectorStore = store
    del any_store
