"""LangChain's documents as passages, and back."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import Document

from tars_rag.adapters.arguments import require_all, require_kind
from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.passage import Passage, ScoredPassage


def as_passages(
    documents: Sequence[Document], ids: Sequence[str | None] | None = None
) -> list[Passage]:
    """One passage for each document.

    Args:
        documents: Left as they are.
        ids: One for each; they win over `Document.id`. Where neither is given, a new one is made.

    Raises:
        InvalidInputError: Not a list of documents, or the numbers differ.
    """
    require_all("documents", documents, Document, "a Document")
    if ids is not None:
        require_all("ids", ids, (str, type(None)), "a string")
        _same_number("ids", len(ids), "documents", len(documents))
    return [
        Passage(name or document.id or str(uuid.uuid4()), document.page_content, document.metadata)
        for name, document in zip(ids or [None] * len(documents), documents, strict=True)
    ]


def as_documents(
    texts: Iterable[str], metadatas: Sequence[dict[str, Any] | None] | None = None
) -> list[Document]:
    """Texts with their metadata as documents.

    Raises:
        InvalidInputError: Not strings, or the numbers differ.
    """
    require_kind("texts", texts, Iterable, "a list of strings")
    if isinstance(texts, str):
        msg = "texts is one string: pass a list of strings."
        raise InvalidInputError(msg)
    texts = list(texts)
    require_all("texts", texts, str, "a string")
    if metadatas:
        require_all("metadatas", metadatas, (dict, type(None)), "a dict")
        _same_number("metadatas", len(metadatas), "texts", len(texts))
    return [
        Document(page_content=text, metadata=metadata or {})
        for text, metadata in zip(texts, metadatas or [None] * len(texts), strict=True)
    ]


def as_document(passage: Passage) -> Document:
    """A passage as a document with the same id, text and metadata."""
    return Document(id=passage.id, page_content=passage.text, metadata=dict(passage.metadata))


def found_documents(hits: Iterable[ScoredPassage]) -> list[Document]:
    """What a search found, in its order."""
    return [as_document(hit.passage) for hit in hits]


def _same_number(what: str, count: int, of: str, wanted: int) -> None:
    if count != wanted:
        msg = f"{count} {what} for {wanted} {of}: give one for each, or none."
        raise InvalidInputError(msg)
