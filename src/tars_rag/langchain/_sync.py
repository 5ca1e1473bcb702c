"""Writing to and searching a `TarsVectorStore`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from typing_extensions import Self

from tars_rag.adapters.helpers import diverse, refuse
from tars_rag.errors import InvalidInputError
from tars_rag.langchain._open import OpenStore
from tars_rag.retrieval.passage import Passage, ScoredPassage
from tars_rag.retrieval.pipeline import Pipeline
from tars_rag.runtimes.base import FloatArray
from tars_rag.settings import Strategy


class SyncVectorStore(OpenStore):
    """What a `TarsVectorStore` does, each call blocking until it is done."""

    def add_documents(
        self,
        documents: Sequence[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Store documents; one whose id is there already replaces it.

        Args:
            documents: What to store; not changed.
            ids: One for each document; they win over `Document.id`. Where neither is given, a
                new one is made.
            batch_size: Store so many at a time, each batch durably. Default: all at once.
            **kwargs: None.

        Returns:
            The ids, in the order of `documents`.

        Raises:
            InvalidInputError: The numbers differ, or a text, id or metadata cannot be stored.
            StoreError: The store cannot be written.
        """
        refuse(kwargs, allowed="ids, batch_size")
        if ids is not None and len(ids) != len(documents):
            msg = f"{len(ids)} ids for {len(documents)} documents: give one for each, or none."
            raise InvalidInputError(msg)
        if batch_size is not None and batch_size < 1:
            msg = f"batch_size is {batch_size}: it must be 1 or more."
            raise InvalidInputError(msg)
        names = ids or [None] * len(documents)
        passages = [
            Passage(
                name or document.id or str(uuid.uuid4()), document.page_content, document.metadata
            )
            for name, document in zip(names, documents, strict=True)
        ]
        found = [passage.id for passage in passages]
        if batch_size is None or len(set(found)) < len(found):  # upsert refuses an id given twice
            self.store.upsert(passages)
        else:
            for start in range(0, len(passages), batch_size):
                self.store.upsert(passages[start : start + batch_size])
        return found

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_documents`, for texts and their metadata.

        Raises:
            InvalidInputError: The numbers differ, or a text, id or metadata cannot be stored.
            StoreError: The store cannot be written.
        """
        return self.add_documents(_documents(texts, metadatas), ids=ids, **kwargs)

    def delete(
        self,
        ids: list[str] | None = None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangChain's name
        **kwargs: Any,
    ) -> bool:
        """Delete documents; ids that are not there are no error.

        Args:
            ids: Which ones. None, as the interface says: all (or all that match `filter`).
            filter: Delete only documents whose metadata match, in Chroma's filter language.
            **kwargs: None.

        Returns:
            True.

        Raises:
            StoreError: The store cannot be written.
        """
        refuse(kwargs, allowed="ids, filter")
        if ids is None and filter is None:
            self.store.clear()
        else:
            self.store.delete(ids=ids, where=filter)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in their order; missing ones are left out."""
        return [_document(passage) for passage in self.store.get(list(ids))]

    def similarity_search(self, query: str, k: int | None = None, **kwargs: Any) -> list[Document]:
        """The documents that answer the query best, best first.

        Args:
            query: The question.
            k: How many; default: the store's.
            **kwargs: `filter` (Chroma's filter language over metadata), `strategy` (as the
                constructor's), `rerank` (False: leave the reranker out).

        Raises:
            InvalidInputError: An argument is unknown or cannot be used.
        """
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, with the score that ranked each document: larger is better.

        Its scale depends on the strategy: fused score (hybrid), cosine similarity (naive), BM25
        (lexical), 0 to 1 where reranked.
        """
        return [(_document(hit.passage), hit.score) for hit in self._find(query, k, **kwargs)]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        hits = self._find(query, k, **kwargs)
        return [(_document(hit.passage), _relevance(hit)) for hit in hits]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int | None = None, **kwargs: Any
    ) -> list[Document]:
        """The documents nearest to a vector, nearest first.

        Args:
            embedding: Made by the same embeddings as the store's.
            k: How many; default: the store's.
            **kwargs: `filter`.
        """
        refuse(kwargs.keys() - {"filter"}, allowed="k, filter")
        hits = self._nearest(embedding, self.k if k is None else k, kwargs.get("filter"))
        return [_document(hit.passage) for hit in hits]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int | None = None,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """Documents near to the query and far from each other (maximal marginal relevance).

        Args:
            query: The question.
            k: How many; default: the store's.
            fetch_k: How many are found to choose from.
            lambda_mult: From 0 (most diverse) to 1 (most similar).
            **kwargs: `filter`, `strategy` (how the ones to choose from are found).
        """
        refuse(
            kwargs.keys() - {"filter", "strategy"},
            allowed="k, fetch_k, lambda_mult, filter, strategy",
        )
        k = self.k if k is None else k
        hits = self._find(query, max(fetch_k, k), rerank=False, **kwargs)
        return self._diverse(hits, self._embedder.embed_query(query), k, lambda_mult)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int | None = None,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, near to a vector.

        Args:
            embedding: Made by the same embeddings as the store's.
            k: How many; default: the store's.
            fetch_k: How many are found to choose from.
            lambda_mult: From 0 (most diverse) to 1 (most similar).
            **kwargs: `filter`.
        """
        refuse(kwargs.keys() - {"filter"}, allowed="k, fetch_k, lambda_mult, filter")
        k = self.k if k is None else k
        hits = self._nearest(embedding, max(fetch_k, k), kwargs.get("filter"))
        return self._diverse(hits, np.asarray(embedding, np.float32), k, lambda_mult)

    def _find(
        self,
        query: str,
        k: int | None = None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangChain's name
        strategy: Strategy | None = None,
        rerank: bool = True,
        **kwargs: Any,
    ) -> list[ScoredPassage]:
        refuse(kwargs, allowed="k, filter, strategy, rerank")
        reranker = self.rerank.reranker if self.rerank and rerank else None
        pipeline = Pipeline(
            self.store, reranker, strategy=self.strategy, candidates=self.candidates
        )
        answer = pipeline.search(
            query,
            self.k if k is None else k,
            where=filter,
            strategy=strategy,
            budget_ms=self.rerank.budget_ms if self.rerank else None,
        )
        return list(answer.passages)

    def _nearest(
        self, embedding: Sequence[float], k: int, where: dict[str, Any] | None
    ) -> list[ScoredPassage]:
        vector = np.asarray(embedding, np.float32)
        return self.store.search("", k, "naive", where, vector=vector)

    def _diverse(
        self, hits: list[ScoredPassage], query: FloatArray, k: int, lambda_mult: float
    ) -> list[Document]:
        if not hits:
            return []
        stored = self.store.vectors(hit.id for hit in hits)
        hits = [hit for hit in hits if hit.id in stored]  # one may have been deleted meanwhile
        vectors = np.stack([stored[hit.id] for hit in hits])
        rows = diverse(query, vectors, k, lambda_mult)
        return [_document(hits[row].passage) for row in rows]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store that holds these texts.

        Args:
            texts: What to store.
            embedding: As the constructor's.
            metadatas: One for each text.
            ids: One for each text; default: new ones.
            **kwargs: The constructor's `path`, `strategy`, and so on.
        """
        documents = _documents(texts, metadatas)
        store = cls(embedding, **kwargs)
        store.add_documents(documents, ids=ids)
        return store


def _documents(
    texts: Iterable[str], metadatas: Sequence[dict[str, Any] | None] | None
) -> list[Document]:
    if isinstance(texts, str):
        msg = "texts is one string: pass a list of strings."
        raise InvalidInputError(msg)
    texts = list(texts)
    if metadatas and len(metadatas) != len(texts):
        msg = f"{len(metadatas)} metadatas for {len(texts)} texts: give one for each, or none."
        raise InvalidInputError(msg)
    return [
        Document(page_content=text, metadata=metadata or {})
        for text, metadata in zip(texts, metadatas or [None] * len(texts), strict=True)
    ]


def _document(passage: Passage) -> Document:
    return Document(id=passage.id, page_content=passage.text, metadata=dict(passage.metadata))


def _relevance(hit: ScoredPassage) -> float:
    """The reranker's score, else cosine similarity, else s / (1 + s) of BM25's.

    Unlike a fused score, these can be compared between queries, so a threshold means something.
    """
    if hit.rerank_score is not None:
        return hit.rerank_score
    if hit.vector_score is not None:
        return min(max(hit.vector_score, 0.0), 1.0)
    return hit.score / (1 + hit.score)
