"""What is done to a store's passages: small writes through its log, larger ones to its indexes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.indexes.chroma.filters import Where
from tars_rag.retrieval.indexes.codec import same_content
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage.change import Change
from tars_rag.retrieval.storage.compaction import tidy
from tars_rag.retrieval.storage.directory import StoreDirectory
from tars_rag.retrieval.storage.views import View

_SMALL = 64
"""Passages: a write of more goes to the indexes, so that its content is not written twice."""
_Answer = TypeVar("_Answer")


def changed(directory: StoreDirectory, batch: Sequence[Passage]) -> list[Passage]:
    """Those of the passages that the store does not hold as they are."""
    with directory.reading() as view:
        held = view.vectors.get([passage.id for passage in batch])
    return [p for p in batch if p.id not in held or not same_content(p, held[p.id])]


def upsert(
    directory: StoreDirectory, passages: Sequence[Passage], vectors: NDArray[np.float32]
) -> None:
    """Store a batch; durable on return.

    Args:
        directory: Of the store.
        passages: Checked, no id twice.
        vectors: Checked, [n, dim].
    """
    directory.check_writable()
    known = directory.store_json.dimension is not None
    if directory.recent is not None and len(passages) <= _SMALL and known:
        directory.recent.write(Change.upsert(passages, vectors))
        return
    with directory.writing() as indexes:
        indexes.upsert(passages, vectors)
    tidy(directory)


def delete(directory: StoreDirectory, ids: Sequence[str], where: Where | None) -> int:
    """Delete those of the ids that are there and pass the filter; how many they are.

    Args:
        directory: Of the store.
        ids: At most a batch.
        where: The filter; None: all pass.
    """
    directory.check_writable()
    recent = directory.recent
    if recent is None or len(ids) > _SMALL:
        with directory.writing() as indexes:
            found = indexes.vectors.matching(ids, where)
            if found:
                indexes.delete(found)
        tidy(directory)
        return len(found)
    recent.make_room()
    with directory.alone():  # what is looked up is what is deleted
        with directory.reading() as view:
            found = view.vectors.matching(ids, where)
        ticket = recent.enqueue(Change(deleted=tuple(found))) if found else None
    if ticket is not None:
        recent.finish(ticket)
    return len(found)


def ask(
    directory: StoreDirectory, where: Where | None, question: Callable[[View], _Answer]
) -> _Answer:
    """What a read with a filter answers."""
    try:
        with directory.reading() as view:
            return question(view)
    except InvalidInputError:
        recent = directory.recent
        if where is None or directory.read_only or not recent or not len(recent.tail):
            raise
    # A filter may be refused because of a passage that is replaced already.
    directory.flush()
    with directory.reading() as view:
        return question(view)
