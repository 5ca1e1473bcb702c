"""Storing, replacing and listing the documents of a `TarsVectorStore`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypedDict

from tars_rag.adapters.arguments import require_all, require_count
from tars_rag.adapters.shared_store import SharedStore
from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.indexes.codec import check_passage
from tars_rag.retrieval.passage import Passage

_PARTS = ("documents", "metadatas", "embeddings")


class Records(TypedDict):
    """Stored documents in columns, as Chroma's `get` returns them.

    What was not asked for is None; the other lists are as long as `ids`.
    """

    ids: list[str]
    documents: list[str] | None
    metadatas: list[dict[str, Any]] | None
    embeddings: list[list[float]] | None


def store_all(shared: SharedStore, passages: Sequence[Passage], batch_size: int | None) -> None:
    """Store passages, `batch_size` at a time; all of them are checked before the first is stored.

    Raises:
        InvalidInputError: One of them cannot be stored, or an id occurs twice.
    """
    if batch_size is not None:
        require_count("batch_size", batch_size)
        for passage in passages:
            check_passage(passage)
    distinct = len({passage.id for passage in passages}) == len(passages)
    step = batch_size if batch_size and distinct else len(passages)  # upsert tells the id
    with shared.using() as store:
        for start in range(0, len(passages), step or 1):
            store.upsert(list(passages[start : start + step]))


def replace(shared: SharedStore, passages: Sequence[Passage]) -> None:
    """Replace passages that are there.

    Raises:
        InvalidInputError: One is not there; nothing was changed.
    """
    with shared.using() as store:
        held = {passage.id for passage in store.get([passage.id for passage in passages])}
        missing = [passage.id for passage in passages if passage.id not in held]
        if missing:
            shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
            msg = (
                f"There is no document {shown} to update, so nothing was changed. add_documents "
                "stores new documents, and replaces those that are there."
            )
            raise InvalidInputError(msg)
        store.upsert(list(passages))


def records(
    shared: SharedStore,
    ids: str | Sequence[str] | None,
    where: dict[str, Any] | None,
    limit: int | None,
    include: Collection[str],
) -> Records:
    """What is stored, in columns.

    Raises:
        InvalidInputError: An argument cannot be used.
    """
    require_all("include", include, str, f"one of {', '.join(_PARTS)}")
    if unknown := set(include) - set(_PARTS):
        msg = f"include names {', '.join(sorted(unknown))}. Allowed: {', '.join(_PARTS)}."
        raise InvalidInputError(msg)
    with shared.using() as store:
        found = store.get([ids] if isinstance(ids, str) else ids, where, limit)
        rows = store.vectors(p.id for p in found) if "embeddings" in include else {}
    if rows:
        found = [passage for passage in found if passage.id in rows]  # deleted meanwhile
    return Records(
        ids=[passage.id for passage in found],
        documents=[passage.text for passage in found] if "documents" in include else None,
        metadatas=[dict(p.metadata) for p in found] if "metadatas" in include else None,
        embeddings=[rows[p.id].tolist() for p in found] if "embeddings" in include else None,
    )
