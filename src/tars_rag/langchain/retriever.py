"""`TarsRetriever`: LangChain's retriever over a `TarsVectorStore`."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStoreRetriever
from pydantic import ConfigDict, Field

from tars_rag.settings import Strategy


class TarsRetriever(VectorStoreRetriever):
    """A retriever over a `TarsVectorStore`; what is None here is as the store says."""

    model_config = ConfigDict(extra="forbid")  # the base leaves it open

    k: int | None = Field(None, description="How many documents to return.")
    filter: dict[str, Any] | None = Field(None, description="Chroma's filter over metadata.")
    strategy: Strategy | None = Field(None, description="'hybrid', 'naive' or 'lexical'.")
    weight: float | None = Field(
        None, description="Share of the vectors in 'hybrid', 0 (only words) to 1 (only vectors)."
    )
    min_score: float | None = Field(
        None, description="The least relevance of a document, 0 to 1; where none fits, none comes."
    )
    rerank: bool | None = Field(
        None, description="False: leave the store's reranker out. True: the store must have one."
    )
    window: int | None = Field(
        None, description="Metadata 'window': the text with so many neighbours on each side."
    )

    def _arguments(self, call: dict[str, Any]) -> dict[str, Any]:
        names = ("k", "filter", "strategy", "weight", "min_score", "rerank", "window")
        mine = {name: value for name in names if (value := getattr(self, name)) is not None}
        if call.get("window", 0) is None:  # says nothing; 0 is the way to have none this once
            del call["window"]
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


# Pickles and serialised chains find the class where it always was.
TarsRetriever.__module__ = "tars_rag.langchain.vectorstore"
