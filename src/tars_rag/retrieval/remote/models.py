"""Models that a server has open: its embedder and its reranker, as this package's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from tars_rag.errors import ConfigError, StoreError
from tars_rag.retrieval import http_contract as said
from tars_rag.retrieval.remote.client import Client, TooLargeError

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


class RerankedRow(BaseModel):
    """The score of one document."""

    index: int
    relevance_score: float


class RerankedAnswer(BaseModel):
    """Scores, in any order."""

    results: list[RerankedRow]


class _Remote:
    """A model of a server, found among those that it names."""

    def __init__(
        self,
        kind: str,
        base_url: str,
        api_key: str | None,
        client: Client | None,
        transport: httpx.BaseTransport | None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._client = client or Client(base_url, api_key, transport=transport)
        models = self._client.get("/v1/models", said.ModelsAnswer).data
        about = next((model for model in models if model.kind == kind), None)
        if about is None:
            msg = f"The server {self.base_url} has no {kind}: it was started without one."
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
    """The embedder of a server. Safe to call from any number of threads.

    Args:
        base_url: ``http://host:port`` of `tars-rag serve`.
        api_key: Its key; None: it has none.
        client: Instead of a new one.
        transport: How to reach it; None: by the network.

    Raises:
        ConfigError: The address is none, or the key is wrong.
        StoreError: The server cannot be reached.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        client: Client | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__("embedder", base_url, api_key, client, transport)
        self.fingerprint: str = self._about.fingerprint or ""
        self.dimension: int | None = self._about.dimension
        self.unrelated_cosine: float = self._about.unrelated_cosine

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; float32 [n, dim] of unit length, in their order."""
        if not len(texts):
            return np.empty((0, self.dimension or 0), np.float32)
        parts = (list(texts[at : at + _TEXTS]) for at in range(0, len(texts), _TEXTS))
        return np.concatenate([self._embedded(part, "passage") for part in parts])

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Embed what is searched for; float32 [dim]."""
        row: NDArray[np.float32] = self._embedded([text], "query")[0]
        return row

    def _embedded(self, texts: list[str], kind: str) -> NDArray[np.float32]:
        body = EmbedBody(input=texts, model=self.model, input_type=kind)
        try:
            rows = self._client.post("/v1/embeddings", body, EmbeddedAnswer).data
        except TooLargeError:
            if len(texts) == 1:
                raise
            half = len(texts) // 2
            return np.concatenate(
                [self._embedded(texts[:half], kind), self._embedded(texts[half:], kind)]
            )
        if sorted(row.index for row in rows) != list(range(len(texts))):
            msg = f"The server {self.base_url} gave other vectors than one for each text."
            raise StoreError(msg)
        rows.sort(key=lambda row: row.index)
        return np.stack([said.unpack_vector(row.embedding) for row in rows])


class RemoteReranker(_Remote):
    """The reranker of a server, a `PassageScorer`. Safe to call from any number of threads.

    Args:
        base_url: ``http://host:port`` of `tars-rag serve`.
        api_key: Its key; None: it has none.
        transport: How to reach it; None: by the network.

    Raises:
        ConfigError: The address is none, the key is wrong, or the server has no reranker.
        StoreError: The server cannot be reached.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__("reranker", base_url, api_key, None, transport)

    def score(
        self, query: str, texts: Sequence[str], budget_ms: float | None = None
    ) -> NDArray[np.float32]:
        """Scores in 0 to 1, float32 [n], in the order of the texts; `budget_ms` is refused."""
        if budget_ms is not None:
            msg = "A server's reranker has no budget of its own. Search through its store instead."
            raise ConfigError(msg)
        scores = np.full(len(texts), np.nan, np.float32)
        for at in range(0, len(texts), _TEXTS):
            part = list(texts[at : at + _TEXTS])
            body = RerankBody(query=query, documents=part, model=self.model)
            for row in self._client.post("/v1/rerank", body, RerankedAnswer).results:
                if not 0 <= row.index < len(part):
                    msg = f"The server {self.base_url} scored a text that was not sent."
                    raise StoreError(msg)
                scores[at + row.index] = row.relevance_score
        if np.isnan(scores).any():
            msg = f"The server {self.base_url} did not score every text."
            raise StoreError(msg)
        return scores
