"""`TarsVectorStore`: LangChain's `VectorStore` over vectors and BM25, fused, reranked on demand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStoreRetriever
from pydantic import ConfigDict, Field
from typing_extensions import Self

from tars_rag.adapters.threads import in_thread
from tars_rag.langchain._sync import SyncVectorStore
from tars_rag.settings import Strategy


class TarsRetriever(VectorStoreRetriever):
    """A retriever over a `TarsVectorStore`; what is None here is as the store says."""

    model_config = ConfigDict(extra="forbid")  # the base leaves it open

    k: int | None = Field(None, description="How many documents to return.")
    filter: dict[str, Any] | None = Field(None, description="Chroma's filter over metadata.")
    strategy: Strategy | None = Field(None, description="'hybrid', 'naive' or 'lexical'.")
    rerank: bool | None = Field(None, description="False: leave the store's reranker out.")

    def _arguments(self, call: dict[str, Any]) -> dict[str, Any]:
        names = ("k", "filter", "strategy", "rerank")
        mine = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {**mine, **self.search_kwargs, **call}

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return super()._get_relevant_documents(
            query, run_manager=run_manager, **self._arguments(kwargs)
        )

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return await super()._aget_relevant_documents(
            query, run_manager=run_manager, **self._arguments(kwargs)
        )


class TarsVectorStore(SyncVectorStore):
    """A store of documents that is searched by meaning and by words at once.

    ```python
    store = TarsVectorStore(TarsEmbeddings(), "my-store")
    store.add_documents(documents)
    store.similarity_search("why does the board throttle?", k=3)
    ```

    One process writes to a directory at a time. Objects, copies and pickles with the same path
    share one open store within a process; `close` (or ``with``) lets go of it.
    """

    def as_retriever(self, **kwargs: Any) -> TarsRetriever:
        """A retriever over this store.

        Args:
            **kwargs: `k`, `filter`, `strategy`, `rerank`, or LangChain's own `search_type` and
                `search_kwargs`. Each call can set them anew:
                ``retriever.invoke(query, k=3, strategy="lexical")``.
        """
        tags = kwargs.pop("tags", None) or self._get_retriever_tags()
        return TarsRetriever(vectorstore=self, tags=tags, **kwargs)

    async def aadd_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[str]:
        """As `add_documents`, without blocking the event loop."""
        return await in_thread("bulk", self.add_documents, documents, **kwargs)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_texts`, without blocking the event loop."""
        return await in_thread("bulk", self.add_texts, texts, metadatas, ids=ids, **kwargs)

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """As `delete`, without blocking the event loop."""
        return await in_thread("bulk", self.delete, ids, **kwargs)

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """As `get_by_ids`, without blocking the event loop."""
        return await in_thread("query", self.get_by_ids, ids)

    async def asimilarity_search(
        self, query: str, k: int | None = None, **kwargs: Any
    ) -> list[Document]:
        """As `similarity_search`, without blocking the event loop."""
        return await in_thread("query", self.similarity_search, query, k, **kwargs)

    async def asimilarity_search_with_score(
        self, query: str, k: int | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`, without blocking the event loop."""
        return await in_thread("query", self.similarity_search_with_score, query, k, **kwargs)

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return await in_thread(
            "query", self._similarity_search_with_relevance_scores, query, k, **kwargs
        )

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int | None = None, **kwargs: Any
    ) -> list[Document]:
        """As `similarity_search_by_vector`, without blocking the event loop."""
        return await in_thread("query", self.similarity_search_by_vector, embedding, k, **kwargs)

    async def amax_marginal_relevance_search(
        self, query: str, k: int | None = None, *args: Any, **kwargs: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, without blocking the event loop."""
        search = self.max_marginal_relevance_search
        return await in_thread("query", search, query, k, *args, **kwargs)

    async def amax_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int | None = None, *args: Any, **kwargs: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search_by_vector`, without blocking the event loop."""
        search = self.max_marginal_relevance_search_by_vector
        return await in_thread("query", search, embedding, k, *args, **kwargs)

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """As `from_texts`, without blocking the event loop."""
        return await in_thread(
            "bulk", cls.from_texts, texts, embedding, metadatas, ids=ids, **kwargs
        )
