"""What the server has open: one embedder, maybe a reranker, and stores by their names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tars_rag.adapters.threads import in_thread
from tars_rag.errors import InvalidInputError, TarsRagError
from tars_rag.models.tokenizer import Tokenizer
from tars_rag.retrieval.http_contract import ModelAnswer, StoreAnswer, pack_vector
from tars_rag.retrieval.http_contract import names as is_named
from tars_rag.retrieval.pipeline import PassageScorer
from tars_rag.retrieval.store import HybridStore
from tars_rag.server.batcher import FEW, BatchedEmbedder, Batcher, Lane, Prompt, Rows


class NotFoundError(TarsRagError):
    """There is no model or store of that name."""


class ReadOnlyError(TarsRagError):
    """The server only reads."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and all together, may ask for.

    Attributes:
        body: Bytes of a request.
        texts: Texts of one request.
        tokens: Tokens of all texts of one request, as the model reads them.
        seconds: From the first byte to the answer.
        slow_body: Seconds within which a request's body has to be there.
        requests: Requests at work or waiting.
        waiting: Texts waiting to be embedded.
    """

    body: int = 16 << 20
    texts: int = 2048
    tokens: int = 600_000
    seconds: float = 120
    slow_body: float = 30
    requests: int = 256
    waiting: int = 8192


class Service:
    """Models and stores of one process.

    Args:
        embedder: An `Embedder`, or what a store needs of one.
        reranker: A `Reranker`, or None.
        limits: What may be asked for.
        read_only: Nothing is written.
    """

    def __init__(
        self,
        embedder: Any,
        reranker: PassageScorer | None = None,
        *,
        limits: Limits | None = None,
        read_only: bool = False,
    ) -> None:
        self.limits = limits or Limits()
        self.batcher = Batcher(embedder, self.limits.waiting)
        self.embedder = BatchedEmbedder(embedder, self.batcher)
        self.reranker = reranker
        self.read_only = read_only
        self.stores: dict[str, HybridStore] = {}
        self.model: str = str(getattr(embedder, "model", embedder.fingerprint))
        self.reranker_model = None if reranker is None else str(getattr(reranker, "model", "own"))
        self._dimension: int = getattr(embedder, "dimension", 0)

    def add_store(self, name: str, store: HybridStore) -> None:
        """Serve a store under a name; it is closed with the service."""
        self.stores[name] = store

    def store(self, name: str) -> HybridStore:
        """The store of that name.

        Raises:
            NotFoundError: There is none.
        """
        if name not in self.stores:
            known = ", ".join(sorted(self.stores)) or "none"
            msg = f"There is no store {name!r:.80}. Stores here: {known}."
            raise NotFoundError(msg)
        return self.stores[name]

    def writable(self, name: str) -> HybridStore:
        """The store of that name, to write to.

        Raises:
            NotFoundError: There is none.
            ReadOnlyError: The server only reads.
        """
        store = self.store(name)
        if self.read_only:
            msg = "This server only reads (--read-only). Nothing was written."
            raise ReadOnlyError(msg)
        return store

    def require_embedder(self, name: str | None) -> str:
        """The embedder's own name, for one that clients use."""
        return _require(name, self.model, getattr(self.embedder, "reference", self.model))

    def require_reranker(self, name: str | None) -> PassageScorer:
        """The reranker, by a name that clients use.

        Raises:
            NotFoundError: There is none, or it has another name.
        """
        if self.reranker is None or self.reranker_model is None:
            msg = "This server has no reranker: it was started without RERANK_MODEL."
            raise NotFoundError(msg)
        _require(name, self.reranker_model, self.reranker_model)
        return self.reranker

    def models(self) -> list[ModelAnswer]:
        """The embedder, and the reranker if there is one."""
        embedder = self.embedder
        told = ModelAnswer(
            id=self.model,
            kind="embedder",
            fingerprint=embedder.fingerprint,
            dimension=self._dimension or None,
            device=getattr(embedder, "device", None),
            unrelated_cosine=float(getattr(embedder, "unrelated_cosine", 0.0)),
        )
        if self.reranker_model is None:
            return [told]
        device = getattr(self.reranker, "device", None)
        return [told, ModelAnswer(id=self.reranker_model, kind="reranker", device=device)]

    def describe(self, name: str) -> StoreAnswer:
        """What a store says of itself."""
        store = self.store(name)
        probe = store.probe
        return StoreAnswer(
            name=name,
            fingerprint=store.fingerprint,
            dimension=store.dimension,
            language=store.language,
            count=store.count(),
            read_only=self.read_only,
            model=self.model,
            reranker=self.reranker_model,
            unrelated_cosine=float(getattr(self.embedder, "unrelated_cosine", 0.0)),
            probe=None if probe is None else pack_vector(probe),
        )

    async def embed(self, texts: Sequence[str], prompt: Prompt = "passage") -> tuple[Rows, int]:
        """Vectors [n, dimension] and how many tokens were read.

        Raises:
            InvalidInputError: No texts, or too many of them or of their tokens.
            OverloadedError: Too much is waiting.
        """
        if not texts or len(texts) > self.limits.texts:
            msg = f"Give 1 to {self.limits.texts} texts in one request, not {len(texts)}."
            raise InvalidInputError(msg)
        with self.batcher.room(len(texts)):  # before the work of reading them
            lane: Lane = "query" if len(texts) <= FEW else "bulk"
            tokens = await in_thread(lane, self.count_tokens, texts)
        if tokens > self.limits.tokens:
            msg = f"{tokens} tokens in one request are too many; {self.limits.tokens} are taken."
            raise InvalidInputError(msg)
        future = self.batcher.submit(texts, prompt)
        return await asyncio.wrap_future(future), tokens

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that the embedder reads of texts, the special ones included."""
        return self._count(texts)

    @cached_property
    def _count(self) -> Callable[[Sequence[str]], int]:
        path: Path | None = getattr(self.embedder, "tokenizer_path", None)
        if path is None:
            return lambda texts: sum(len(text.split()) for text in texts)
        tokenizer = Tokenizer(path.parent, self.embedder.max_length)
        return lambda texts: sum(map(len, tokenizer.encode(texts)))

    def check_dimensions(self, wanted: int | None) -> None:
        """Refuse another length of vectors than the model's.

        Raises:
            InvalidInputError: No model of the catalogue was trained to be cut.
        """
        if wanted is not None and wanted != self._dimension:
            msg = (
                f"dimensions={wanted} is not possible: vectors of {self.model} have "
                f"{self._dimension} and are not trained to be cut. Leave dimensions out."
            )
            raise InvalidInputError(msg)

    def close(self) -> None:
        """Finish what is waiting, then close stores and models."""
        try:
            for store in self.stores.values():
                store.close()
        finally:
            self.batcher.close()


def _require(given: str | None, *names: str) -> str:
    if given is not None and not is_named(given, *names):
        msg = f"There is no model {given!r:.80} here, but {names[0]!r}. See /v1/models."
        raise NotFoundError(msg)
    return names[0]


WORDS: Final[Mapping[type[TarsRagError], tuple[int, str]]] = {
    NotFoundError: (404, "NotFound"),
    ReadOnlyError: (403, "Forbidden"),
}
"""Status and type of the errors that only a server has."""
