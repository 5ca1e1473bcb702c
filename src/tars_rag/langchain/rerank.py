"""`TarsRerank` and `TarsCrossEncoder`: LangChain's reranking interfaces over one `Reranker`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.load.serializable import Serializable
from pydantic import ConfigDict, Field
from typing_extensions import Self, Unpack

from tars_rag.adapters.arguments import require_all
from tars_rag.adapters.model_fields import RerankerArguments, RerankerFields
from tars_rag.adapters.ordering import ranked
from tars_rag.adapters.threads import in_thread
from tars_rag.errors import InvalidInputError, shown
from tars_rag.retrieval.address import API_KEY
from tars_rag.settings import Settings


class _Serializable(RerankerFields, Serializable):
    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: the settings are plain values; the key of a server is named, not written."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Which variable has the server's key when serialised settings are loaded."""
        return {"api_key": API_KEY}

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where serialised settings are loaded from, whatever file the class moves to."""
        return ["tars_rag", "langchain"]


class _RerankArguments(RerankerArguments, total=False):
    top_n: int | None
    budget_ms: float | None


class TarsRerank(_Serializable, BaseDocumentCompressor):
    """Orders documents by a cross-encoder's score, in FlashRank's scale of 0 to 1.

    The documents that come back are new ones: same id, same content, the same metadata with
    ``relevance_score`` set to a Python float. The ones passed in are not touched.

    Example:
        ```python
        retriever = ContextualCompressionRetriever(
            base_compressor=TarsRerank(top_n=3),
            base_retriever=store.as_retriever(k=20),
        )
        ```
    """

    model_config = ConfigDict(extra="forbid")  # the bases leave it open

    top_n: int | None = Field(3, ge=1, description="Documents to return; None: all.")
    budget_ms: float | None = Field(
        None,
        gt=0,
        description="Time allowed for scoring, in milliseconds. Documents it had no time for "
        "follow the scored ones in the order they came, with a relevance_score of None.",
    )

    if TYPE_CHECKING:

        def __init__(self, **settings: Unpack[_RerankArguments]) -> None: ...

    @classmethod
    def from_env(cls, **overrides: Any) -> Self:
        """As `TarsCrossEncoder.from_env`, and MEMORY_TOP_K as `top_n`.

        Args:
            **overrides: Fields that win over the environment.

        Raises:
            ConfigError: A variable has a value that is not allowed, or RERANK_MODEL is empty.
        """
        return super().from_env(**{"top_n": Settings.from_env().memory_top_k, **overrides})

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Score the documents against the query and return the best `top_n`, best first.

        Args:
            documents: Best first, as a retriever returns them.
            query: The question.
            callbacks: Taken for the interface; scoring emits no events of its own.

        Returns:
            New documents; none for none. Equal scores keep their order.

        Raises:
            InvalidInputError: The query is not a string.
            ModelError: The model is unknown, missing or damaged.
            DeviceError: The device gave no answer that can be trusted.
        """
        texts = _texts(documents)
        scores = self.reranker.score(query, texts, budget_ms=self.budget_ms) if texts else _NONE
        return [_scored(documents[row], score) for row, score in ranked(scores, self.top_n)]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """As `compress_documents`, without blocking the event loop."""
        if self.base_url is not None and (texts := _texts(documents)):
            reranker = await self._remote_reranker()
            scores = await reranker.ascore(query, texts, self.budget_ms)
            return [_scored(documents[row], score) for row, score in ranked(scores, self.top_n)]
        return await in_thread("query", self.compress_documents, documents, query, callbacks)


_NONE: Final = np.empty(0, np.float32)


def _texts(documents: Sequence[Document]) -> list[str]:
    require_all("documents", documents, Document, "a Document")
    return [document.page_content for document in documents]


def _scored(document: Document, score: float | None) -> Document:
    metadata = {**document.metadata, "relevance_score": score}
    return document.model_copy(update={"metadata": metadata})


class TarsCrossEncoder(_Serializable, BaseCrossEncoder):
    """Scores pairs of query and text; goes into LangChain's ``CrossEncoderReranker``.

    Example:
        ```python
        compressor = CrossEncoderReranker(model=TarsCrossEncoder(), top_n=3)
        ```
    """

    model_config = ConfigDict(extra="forbid")

    if TYPE_CHECKING:

        def __init__(self, **settings: Unpack[RerankerArguments]) -> None: ...

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Score pairs; the pairs of one query are run together.

        Args:
            text_pairs: ``(query, text)`` pairs, of any number of queries.

        Returns:
            One Python float from 0 to 1 for each pair, in the same order.

        Raises:
            InvalidInputError: A pair is not two strings.
            ModelError: The model is unknown, missing or damaged.
            DeviceError: The device gave no answer that can be trusted.
        """
        require_all("text_pairs", text_pairs, object, "a (query, text) tuple")
        rows: dict[str, list[int]] = {}
        for row, pair in enumerate(text_pairs):
            if not isinstance(pair, tuple | list) or [type(text) for text in pair] != [str, str]:
                msg = f"Pair {row} is {shown(pair)}, not a (query, text) tuple of two strings."
                raise InvalidInputError(msg)
            rows.setdefault(pair[0], []).append(row)
        scores = np.empty(len(text_pairs), np.float32)
        for query, members in rows.items():
            scores[members] = self.reranker.score(query, [text_pairs[row][1] for row in members])
        result: list[float] = scores.tolist()
        return result
