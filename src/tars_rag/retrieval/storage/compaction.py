"""Chroma's vector files without what was deleted.

Chroma only marks a deleted vector, and keeps it in memory and on disk. So where there are more of
those than of the others, every passage is copied, with the vector that the exact index has of it,
into a fresh collection, which then takes the place of the old one.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from tars_rag.errors import StoreError
from tars_rag.retrieval.passage import Progress
from tars_rag.retrieval.storage.index_set import IndexSet
from tars_rag.retrieval.storage.rebuild import adopt, fill_sibling
from tars_rag.retrieval.storage.views import View

_log = logging.getLogger(__name__)


class Compactable(Protocol):
    """What compaction needs of an open store (see `StoreDirectory`)."""

    path: Path

    @property
    def shared(self) -> bool:
        """See there."""

    def check_writable(self) -> None:
        """See there."""

    def flush(self) -> None:
        """See there."""

    def changing(self) -> AbstractContextManager[IndexSet]:
        """See there."""

    def reading(self) -> AbstractContextManager[View]:
        """See there."""

    def exclusive(self) -> AbstractContextManager[IndexSet]:
        """See there."""


def compact(store: Compactable, progress: Progress | None = None) -> None:
    """Copy what there is into fresh files; reads go on meanwhile, and small writes to the log.

    Killed at any moment it leaves the store as it was or as it will be; what it has copied is used
    when it is called again.

    Args:
        store: Whose files.
        progress: Called with (done, total) passages.

    Raises:
        StoreError: There is no room, for instance; or Chroma is a server.
    """
    store.check_writable()
    if store.shared:
        msg = (
            f"The vectors of the store {store.path} are kept by a Chroma server. Compact a store "
            "whose Chroma is embedded, or index the sources into a new collection."
        )
        raise StoreError(msg)
    store.flush()
    with store.changing() as indexes:
        with store.exclusive():
            pass  # mended, if an earlier write was cut short
        with store.reading():
            sibling, _ = fill_sibling(indexes, None, progress, indexes.exact)
        with store.exclusive():
            adopt(indexes, sibling)
            indexes.exact.compact()


def tidy(store: Compactable) -> None:
    """Compact a store where more was deleted than there is. Call without a lock.

    That it cannot be done is no error of the write that came before.
    """
    try:
        with store.changing() as indexes:
            wasteful = indexes.wasteful
        if wasteful:
            compact(store)
    except StoreError as error:
        _log.warning("%s was not compacted: %s", store.path, error)
