"""tars-rag: the hybrid RAG pipeline of a small Rockchip board, on any CPU.

Public names are loaded on first use, so that ``import tars_rag`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tars_rag.errors import TarsRagError
    from tars_rag.ingest.api import index
    from tars_rag.models.embedder import Embedder
    from tars_rag.models.reranker import Reranker
    from tars_rag.retrieval.passage import Passage, ScoredPassage
    from tars_rag.retrieval.pipeline import Pipeline
    from tars_rag.retrieval.store import HybridStore
    from tars_rag.settings import Settings

__version__ = "0.1.0"

_HOMES = {
    "Embedder": "tars_rag.models.embedder",
    "HybridStore": "tars_rag.retrieval.store",
    "Passage": "tars_rag.retrieval.passage",
    "Pipeline": "tars_rag.retrieval.pipeline",
    "Reranker": "tars_rag.models.reranker",
    "ScoredPassage": "tars_rag.retrieval.passage",
    "Settings": "tars_rag.settings",
    "TarsRagError": "tars_rag.errors",
    "index": "tars_rag.ingest.api",
}

__all__ = [
    "Embedder",
    "HybridStore",
    "Passage",
    "Pipeline",
    "Reranker",
    "ScoredPassage",
    "Settings",
    "TarsRagError",
    "__version__",
    "index",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        msg = f"module 'tars_rag' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
