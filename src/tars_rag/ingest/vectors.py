"""Vectors that are in the store already: of a file that moved, of a text that is there twice."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tars_rag.ingest.digests import digest_of
from tars_rag.ingest.record import Record
from tars_rag.retrieval.passage import Passage

if TYPE_CHECKING:
    from tars_rag.retrieval.store import HybridStore


class Known:
    """Finds vectors by what they were made of, and stores passages with them."""

    def __init__(self, store: HybridStore, ledger: Record) -> None:
        self._store, self._ledger = store, ledger
        self._vectors: dict[str, NDArray[np.float32]] = {}  # by digest

    def look_for(self, passages: Iterable[Passage]) -> None:
        """Find the vectors of passages that are embedded alike; the record may be out of date."""
        wanted = {digest_of(passage) for passage in passages} - self._vectors.keys()
        ids = [key for found in self._ledger.alike(wanted).values() for key in found]
        self._look_at(ids)

    def upsert(self, passages: Collection[Passage]) -> int:
        """Store passages; embed each text once, and none whose vector is known.

        Returns:
            How many were not embedded.
        """
        first: dict[str, Passage] = {}
        for passage in passages:
            digest = digest_of(passage)
            if digest not in self._vectors:
                first.setdefault(digest, passage)
        new = list(first.values())
        if new:
            self._store.upsert(new)
        embedded = {passage.id for passage in new}
        rest = [passage for passage in passages if passage.id not in embedded]
        missing = {key for p in rest if (key := digest_of(p)) not in self._vectors}
        self._look_at([first[key].id for key in missing])
        known = [passage for passage in rest if digest_of(passage) in self._vectors]
        if known:
            self._store.upsert(known, [self._vectors[digest_of(passage)] for passage in known])
        if len(known) < len(rest):  # somebody replaced what was just written
            self._store.upsert([p for p in rest if digest_of(p) not in self._vectors])
        return len(known)

    def _look_at(self, ids: Sequence[str]) -> None:
        for digest, vector in self._ledger.embedded(ids, self._store).values():
            self._vectors.setdefault(digest, vector)
