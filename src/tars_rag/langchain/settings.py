"""The arguments of a `TarsVectorStore`: checked before anything is opened, or read from outside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.embeddings import Embeddings
from pydantic import SecretStr

from tars_rag.adapters.arguments import refuse, require_count, require_kind, require_strategy
from tars_rag.adapters.foreign import ForeignEmbedder
from tars_rag.errors import InvalidInputError, shown
from tars_rag.langchain.embeddings import TarsEmbeddings
from tars_rag.langchain.rerank import TarsRerank
from tars_rag.langchain.searching import NO_RERANKER
from tars_rag.retrieval.address import is_url, split_store
from tars_rag.retrieval.neighbours import require_window
from tars_rag.retrieval.opening import language_for
from tars_rag.settings import Settings

if TYPE_CHECKING:
    from tars_rag.models.embedder import Embedder
    from tars_rag.retrieval.remote.models import RemoteEmbedder

SETTINGS = (
    *("strategy", "k", "rerank", "candidates", "read_only", "chroma_url", "language"),
    "api_key",
)
"""Arguments beside embedding and path; attributes of the same names."""
_ALLOWED = f"embedding, path, {', '.join(SETTINGS)}"
_COLLECTION = "A collection is a directory of its own: write path='DIRECTORY/NAME'."
_SERVER = "For a Chroma server write chroma_url='http://HOST:PORT'."
_INSTEAD = {
    "persist_directory": "Write path=...",
    "embedding_function": "Write embedding=...",
    "collection_name": _COLLECTION,
    "collection_metadata": "Distances are cosine; there is nothing to set.",
    "collection_configuration": "Distances are cosine; there is nothing to set.",
    "client": _SERVER,
    "client_settings": _SERVER,
    "host": _SERVER,
    "port": _SERVER,
    "relevance_score_fn": "Relevance is the reranker's score, or else cosine similarity.",
    "search_type": "Write as_retriever(search_type=...).",
    "search_kwargs": "Write as_retriever(search_kwargs=...).",
}
_FIRST = (
    "an Embeddings object: TarsVectorStore(TarsEmbeddings(model='all-MiniLM-L6-v2'), 'my-store')"
)


def check_settings(
    embedding: object,
    search: tuple[object, object, object, object],
    read_only: object,
    chroma_url: object,
    unknown: dict[str, Any],
) -> None:
    """Refuse constructor arguments that are unknown or of the wrong kind.

    Args:
        embedding: The constructor's.
        search: Its strategy, k, rerank and candidates.
        read_only: The constructor's.
        chroma_url: The constructor's.
        unknown: Any other arguments.

    Raises:
        InvalidInputError: The message names the argument and what to write.
    """
    strategy, k, rerank, candidates = search
    refuse(unknown, allowed=_ALLOWED, instead=_INSTEAD)
    require_kind("embedding", embedding, (Embeddings, type(None)), _FIRST)
    require_strategy(strategy)
    require_count("k", k)
    require_count("candidates", candidates)
    require_kind("rerank", rerank, (TarsRerank, type(None)), "TarsRerank() or None")
    require_kind("read_only", read_only, bool, "True or False")
    if chroma_url is not None and not str(chroma_url).startswith(("http://", "https://")):
        msg = f"chroma_url is {shown(chroma_url)} and not a server's URL: http://localhost:8000"
        raise InvalidInputError(msg)


def check_retriever(arguments: dict[str, Any], rerank: TarsRerank | None) -> None:
    """Refuse a retriever whose every search would be refused.

    Raises:
        InvalidInputError: A strategy or window that is none, or reranking without a reranker.
    """
    for given in (arguments, arguments.get("search_kwargs") or {}):
        if given.get("strategy") is not None:
            require_strategy(given["strategy"])
        if given.get("k") is not None:
            require_count("k", given["k"])
        if given.get("window") is not None:
            require_window(given["window"])
        if given.get("rerank") and rerank is None:
            raise InvalidInputError(NO_RERANKER)


def usual_embeddings(path: object, api_key: SecretStr | None) -> TarsEmbeddings:
    """What embeds for a store unless its user says otherwise: a server's, where that has it."""
    if not is_url(path):
        return TarsEmbeddings()
    return TarsEmbeddings(base_url=split_store(str(path))[0], api_key=api_key)


def embedder_of(embedding: Embeddings) -> Embedder | RemoteEmbedder | ForeignEmbedder:
    """What embeds for the store.

    Raises:
        InvalidInputError: What a foreign model returns are not vectors.
    """
    if isinstance(embedding, TarsEmbeddings):
        return embedding.embedder
    return ForeignEmbedder(embedding, embedding.embed_documents, embedding.embed_query)


def environment(
    path: str | Path | None, embedding: Embeddings | None, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Constructor arguments from RAG_STRATEGY and its like, and RERANK_MODEL; `overrides` win.

    A server's store is embedded by that server, whatever EMBED_MODEL says.

    Raises:
        ConfigError: A variable has a value that is not allowed.
    """
    settings = Settings.from_env()
    arguments: dict[str, Any] = {
        "embedding": embedding or (None if is_url(path) else TarsEmbeddings.from_env()),
        "strategy": settings.rag_strategy,
        "k": settings.memory_top_k,
        "language": language_for(path, settings),
        **overrides,
    }
    asked_for = "rerank_model" in settings.model_fields_set and settings.rerank_model.strip()
    if "rerank" not in arguments and asked_for:
        arguments["rerank"] = TarsRerank.from_env()
    return arguments
