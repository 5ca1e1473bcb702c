"""Models that a server has open: its embedder and its reranker, as this package's own."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from tars_rag.errors import ConfigError, StoreError
from tars_rag.models.reranker import check_budget
from tars_rag.models.tokenizer import clean, require_text, require_texts
from tars_rag.retrieval import http_contract as said
from tars_rag.retrieval.address import DEFAULT_MODEL
from tars_rag.retrieval.remote.client import Ask, Client, Talk, TooLargeError

Rows = NDArray[np.float32]
_TEXTS: Final = 256  # in one request: the server begins with them while the next are on their way


class EmbedBody(said.Said):
    """What the client of this package sends to ``/v1/embeddings``."""

    input: list[str]
    model: str
    input_type: str
    encoding_format: str = "base64"


class EmbeddedRow(BaseModel):
    """One vector, packed."""

    index: int
    embedding: str


class EmbeddedAnswer(BaseModel):
    """Vectors, in any order."""

    data: list[EmbeddedRow]


class RerankBody(said.Said):
    """What the client of this package sends to ``/v1/rerank``."""

    query: str
    documents: list[str]
    model: str
    budget_ms: float | None = None


class RerankedRow(BaseModel):
    """The score of one document."""

    index: int
    relevance_score: float


class RerankedAnswer(BaseModel):
    """Scores, in any order."""

    results: list[RerankedRow]


class NoSuchModelError(ConfigError):
    """The server has no model of this kind."""


class _Remote:
    """A model of a server, found among those that it names."""

    def __init__(
        self,
        kind: str,
        base_url: str,
        api_key: str | None,
        model: str,
        client: Client | None,
        transport: httpx.BaseTransport | None,
    ) -> None:
        self._client = client or Client(base_url, api_key, transport=transport)
        self.base_url = self._client.base_url
        models = self._client.get("/v1/models", said.ModelsAnswer).data
        about = next((one for one in models if one.kind == kind), None)
        if about is None:
            msg = f"The server {self.base_url} has no {kind}: it was started without one."
            raise NoSuchModelError(msg)
        if not said.names(model, about.id):
            msg = (
                f"The {kind} of the server {self.base_url} is {about.id!r} and not {model!r:.80}. "
                "Name that one, or leave the model out."
            )
            raise ConfigError(msg)
        self._about = about
        self.model = about.id

    @property
    def device(self) -> str:
        """Where the server runs it: ``cpu`` or ``npu``."""
        return self._about.device or "cpu"

    def close(self) -> None:
        """Close the connections. May be called twice."""
        self._client.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r}, model={self.model!r})"


class RemoteEmbedder(_Remote):
    """The embedder of a server. Safe to call from any number of threads and event loops.

    Args:
        base_url: ``http://host:port`` of `tars-rag serve`.
        api_key: Its key; None: TARS_API_KEY, or none.
        model: What it has to be: its name, or ``default`` for whichever the server has.
        client: Instead of a new one.
        transport: How to reach it; None: by the network.

    Raises:
        ConfigError: The address is none, the key is wrong, or it has another model.
        StoreError: The server cannot be reached.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        model: str = DEFAULT_MODEL,
        client: Client | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__("embedder", base_url, api_key, model, client, transport)
        self.fingerprint: str = self._about.fingerprint or ""
        self.dimension: int | None = self._about.dimension
        self.unrelated_cosine: float = self._about.unrelated_cosine

    def embed(self, texts: Sequence[str]) -> Rows:
        """Embed texts; float32 [n, dim] of unit length, in their order.

        Raises:
            InvalidInputError: Not a list of strings; the message names the index and the type.
            StoreError: The server cannot be reached, or failed.
        """
        return self._client.do(self._embed(require_texts(texts)))

    async def aembed(self, texts: Sequence[str]) -> Rows:
        """As `embed`, without blocking the event loop."""
        return await self._client.ado(self._embed(require_texts(texts)))

    def embed_query(self, text: str) -> Rows:
        """Embed what is searched for; float32 [dim].

        Raises:
            InvalidInputError: Not a string.
            StoreError: As `embed`.
        """
        return self._client.do(self._query(require_text(text, "text")))

    async def aembed_query(self, text: str) -> Rows:
        """As `embed_query`, without blocking the event loop."""
        return await self._client.ado(self._query(require_text(text, "text")))

    def _query(self, text: str) -> Talk[Rows]:
        rows = yield from self._embedded([text], "query")
        row: Rows = rows[0]
        return row

    def _embed(self, texts: list[str]) -> Talk[Rows]:
        rows = np.empty((len(texts), self.dimension or 0), np.float32)
        for at in range(0, len(texts), _TEXTS):
            part = yield from self._embedded(texts[at : at + _TEXTS], "passage")
            if not at and part.shape[1] != rows.shape[1]:  # it did not say how long they are
                rows = np.empty((len(texts), part.shape[1]), np.float32)
            rows[at : at + len(part)] = part
        return rows

    def _embedded(self, texts: list[str], kind: str) -> Talk[Rows]:
        readable = [clean(text) for text in texts]  # as the model would be given them
        body = EmbedBody(input=readable, model=self.model, input_type=kind)
        try:
            told: EmbeddedAnswer = yield Ask("/v1/embeddings", EmbeddedAnswer, body)
        except TooLargeError:
            if len(texts) == 1:
                raise
            half = len(texts) // 2
            first = yield from self._embedded(texts[:half], kind)
            return np.concatenate([first, (yield from self._embedded(texts[half:], kind))])
        rows = sorted(told.data, key=lambda row: row.index)
        if [row.index for row in rows] != list(range(len(texts))):
            msg = f"The server {self.base_url} gave other vectors than one for each text."
            raise StoreError(msg)
        return np.stack([said.unpack_vector(row.embedding) for row in rows])


class RemoteReranker(_Remote):
    """The reranker of a server, a `PassageScorer`. Safe to call from any number of threads.

    Args:
        base_url: ``http://host:port`` of `tars-rag serve`.
        api_key: Its key; None: TARS_API_KEY, or none.
        model: What it has to be: its name, or ``default`` for whichever the server has.
        transport: How to reach it; None: by the network.

    Raises:
        ConfigError: The address is none, the key is wrong, or the server has no such reranker.
        StoreError: The server cannot be reached.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        model: str = DEFAULT_MODEL,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__("reranker", base_url, api_key, model, None, transport)

    def score(self, query: str, texts: Sequence[str], budget_ms: float | None = None) -> Rows:
        """Scores in 0 to 1, float32 [n], in the order of the texts.

        Args:
            query: What is asked.
            texts: The passages; with a budget, best first.
            budget_ms: Milliseconds that the server may take, what the network takes not counted.

        Returns:
            NaN for those that the budget left no time for.

        Raises:
            InvalidInputError: As `Reranker.score`.
            StoreError: The server cannot be reached, or failed.
        """
        return self._client.do(self._score(query, texts, budget_ms))

    async def ascore(
        self, query: str, texts: Sequence[str], budget_ms: float | None = None
    ) -> Rows:
        """As `score`, without blocking the event loop."""
        return await self._client.ado(self._score(query, texts, budget_ms))

    def _score(self, query: str, texts: Sequence[str], budget_ms: float | None) -> Talk[Rows]:
        query, texts = require_text(query, "query"), require_texts(texts)
        check_budget(budget_ms)
        left = math.inf if budget_ms is None else budget_ms
        deadline = time.perf_counter() + left / 1000
        scores = np.full(len(texts), np.nan, np.float32)
        for at in range(0, len(texts), _TEXTS):
            part = texts[at : at + _TEXTS]
            scores[at : at + len(part)] = yield from self._scored(query, part, left)
            left = (deadline - time.perf_counter()) * 1000
            if left < 0:
                break
        if budget_ms is None and np.isnan(scores).any():
            msg = f"The server {self.base_url} did not score every text."
            raise StoreError(msg)
        return scores

    def _scored(self, query: str, texts: list[str], budget_ms: float) -> Talk[Rows]:
        body = RerankBody(
            query=clean(query),
            documents=[clean(text) for text in texts],
            model=self.model,
            budget_ms=budget_ms if math.isfinite(budget_ms) else None,
        )
        try:
            told: RerankedAnswer = yield Ask("/v1/rerank", RerankedAnswer, body)
        except TooLargeError:
            if len(texts) == 1:
                raise
            half = len(texts) // 2
            first = yield from self._scored(query, texts[:half], budget_ms)
            rest = yield from self._scored(query, texts[half:], budget_ms)
            return np.concatenate([first, rest])
        scores = np.full(len(texts), np.nan, np.float32)
        for row in told.results:
            if not 0 <= row.index < len(texts):
                msg = f"The server {self.base_url} scored a text that was not sent."
                raise StoreError(msg)
            scores[row.index] = row.relevance_score
        return scores
