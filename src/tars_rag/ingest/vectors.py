"""Vectors that are in the store already: of a file that moved, of a text that is there twice."""

from __future__ import annotations

from collections.abc import Collection, Iterable
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
        digests = {p.id: digest_of(p) for p in self._store.get(ids=ids)}
        right = [key for key, digest in digests.items() if digest in wanted]
        for key, vector in self._store.vectors(right).items():
            self._vectors.setdefault(digests[key], vector)

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
        made = self._store.vectors([first[key].id for key in missing])
        self._vectors |= {key: made[first[key].id] for key in missing}
        if rest:
            self._store.upsert(rest, [self._vectors[digest_of(passage)] for passage in rest])
        return len(rest)
