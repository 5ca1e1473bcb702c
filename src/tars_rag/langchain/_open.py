"""How a `TarsVectorStore` is opened, shared, copied and closed."""

from __future__ import annotations

import copy
import tempfile
from abc import ABC
from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from typing_extensions import Self

from tars_rag.adapters.foreign import ForeignEmbedder, check_probe
from tars_rag.adapters.handle import Handle
from tars_rag.errors import InvalidInputError
from tars_rag.langchain.embeddings import TarsEmbeddings
from tars_rag.langchain.rerank import TarsRerank
from tars_rag.retrieval.store import HybridStore
from tars_rag.settings import Settings, Strategy


class OpenStore(VectorStore, ABC):
    """What a `TarsVectorStore` is made of, and how it is opened, shared, copied and closed."""

    def __init__(
        self,
        embedding: Embeddings | None = None,
        path: str | Path | None = None,
        *,
        strategy: Strategy = "hybrid",
        k: int = 4,
        rerank: TarsRerank | None = None,
        candidates: int = 20,
        read_only: bool = False,
        chroma_url: str | None = None,
    ) -> None:
        """Open the store.

        Args:
            embedding: Any LangChain embeddings. The store records what made its vectors and
                refuses embeddings that make others. Default: `TarsEmbeddings`.
            path: The store's directory, made if it is not there. None: a temporary one that lasts
                as long as this object and its copies.
            strategy: ``"hybrid"`` (vectors and BM25, fused), ``"naive"`` (vectors only) or
                ``"lexical"`` (BM25 only).
            k: How many documents a search returns, unless it says otherwise.
            rerank: Orders what was found by a cross-encoder; its `budget_ms` is the time for the
                whole search, which itself is never cut short.
            candidates: How many documents are found for the reranker.
            read_only: Open beside a process that writes.
            chroma_url: A Chroma server to keep the vectors in.

        Raises:
            FingerprintError: The store's vectors were made by other embeddings.
            StoreLockedError: Another process writes to this directory.
            StoreError: The store is damaged, or its directory cannot be written.
        """
        self._temporary = None
        if path is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="tars-rag-")
            path = self._temporary.name
        elif not str(path):
            msg = "The store's path is empty: name a directory, or leave it out."
            raise InvalidInputError(msg)
        self.path = Path(path).absolute()
        self._embedding = TarsEmbeddings() if embedding is None else embedding
        self.strategy: Strategy = strategy
        self.k = k
        self.rerank = rerank
        self.candidates = candidates
        self.read_only = read_only
        self.chroma_url = chroma_url
        self._embedder = (
            self._embedding.embedder
            if isinstance(self._embedding, TarsEmbeddings)
            else ForeignEmbedder(
                self._embedding, self._embedding.embed_documents, self._embedding.embed_query
            )
        )
        self._handle = Handle()
        _ = self.store

    @classmethod
    def from_env(
        cls, path: str | Path | None = None, embedding: Embeddings | None = None, **overrides: Any
    ) -> Self:
        """Read RAG_STRATEGY, MEMORY_TOP_K, and what `TarsEmbeddings` and `TarsRerank` read.

        Reranking is on where RERANK_MODEL is set and not empty: its weights are large, so it is
        something to ask for.

        Args:
            path: As the constructor's.
            embedding: Default: `TarsEmbeddings.from_env`.
            **overrides: Constructor arguments that win over the environment.

        Raises:
            ConfigError: A variable has a value that is not allowed.
        """
        settings = Settings.from_env()
        arguments: dict[str, Any] = {
            "strategy": settings.rag_strategy,
            "k": settings.memory_top_k,
            **overrides,
        }
        asked_for = "rerank_model" in settings.model_fields_set and settings.rerank_model.strip()
        if "rerank" not in arguments and asked_for:
            arguments["rerank"] = TarsRerank.from_env()
        return cls(embedding or TarsEmbeddings.from_env(), path, **arguments)

    @property
    def store(self) -> HybridStore:
        """The `HybridStore` underneath."""
        made_by = (type(self._embedder), self._embedder.fingerprint)
        key = (HybridStore, self.path, *made_by, self.read_only, self.chroma_url)
        return self._handle.get(key, self._open)

    def _open(self) -> HybridStore:
        store = HybridStore(
            self.path, self._embedder, read_only=self.read_only, chroma_url=self.chroma_url
        )
        if isinstance(self._embedder, ForeignEmbedder):
            check_probe(self.path, self._embedder.probe, read_only=self.read_only)
        return store

    @property
    def embeddings(self) -> Embeddings:
        """What embeds documents and queries."""
        return self._embedding

    def close(self) -> None:
        """Let go of the directory, for every object that shares the store; using one reopens it."""
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__, _handle=Handle())
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copy.copy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._temporary:
            msg = "A TarsVectorStore in a temporary directory cannot be pickled: give it a path."
            raise InvalidInputError(msg)
        names = ("strategy", "k", "rerank", "candidates", "read_only", "chroma_url")
        settings = {name: getattr(self, name) for name in names}
        return _restore, (type(self), self._embedding, self.path, settings)


def _restore(
    cls: type[OpenStore], embedding: Embeddings, path: Path, settings: dict[str, Any]
) -> OpenStore:
    return cls(embedding, path, **settings)
