"""What a `HybridStore` asks of where its passages are, and the answer where that is a directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.chroma.filters import Where
from tars_rag.retrieval.passage import Passage, Progress, ScoredPassage
from tars_rag.retrieval.searching import Request, Sides, search
from tars_rag.retrieval.storage import passages as written
from tars_rag.retrieval.storage.backup import Backup, back_up
from tars_rag.retrieval.storage.compaction import compact
from tars_rag.retrieval.storage.directory import StoreDirectory
from tars_rag.retrieval.storage.store_json import StoreJson
from tars_rag.retrieval.timing import Stopwatch


class StoreAccess(Protocol):
    """Passages, wherever they are. What comes in was checked; a batch is of 256 at most.

    Any number of threads may call any method. Each may raise a `StoreError`.
    """

    @property
    def path(self) -> Path | str:
        """The store's directory, absolute; or its address, where a server has it."""

    @property
    def directory(self) -> StoreDirectory | None:
        """The open directory; None: another process has it open."""

    @property
    def store_json(self) -> StoreJson:
        """What the store says of itself."""

    def probe(self) -> NDArray[np.float32] | None:
        """The embedder's probe, float32 [dim]; None: nothing usable."""

    def record_probe(self, probe: NDArray[np.float32]) -> NDArray[np.float32]:
        """Keep a probe, unless one is there; what is there afterwards."""

    def check_writable(self) -> None:
        """Raise a `StoreError` if nothing may be written."""

    def changed(self, batch: Sequence[Passage]) -> list[Passage]:
        """Those of the passages that the store does not hold as they are."""

    def upsert(self, batch: Sequence[Passage], vectors: NDArray[np.float32]) -> None:
        """Store a batch with its vectors [n, dim]; durable on return."""

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """Those of the ids (None: all) that are there and pass the filter."""

    def delete(self, batch: Sequence[str], where: Where | None) -> int:
        """Delete those of the ids that are there and pass the filter; how many they are."""

    def get(
        self, ids: Sequence[str] | None, where: Where | None, limit: int | None
    ) -> dict[str, Passage]:
        """Those of the ids (None: all) that are there and pass the filter; at most `limit`."""

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Stored vectors [dim] by id; unknown ids left out."""

    def search(
        self, request: Request, vector: NDArray[np.float32] | None, watch: Stopwatch
    ) -> list[ScoredPassage]:
        """The best passages; `watch` gets the steps."""

    def count(self) -> int:
        """Number of passages."""

    def flush(self) -> None:
        """Bring what is only in the log into the indexes."""

    def compact(self, progress: Progress | None) -> None:
        """Free what deleted passages hold."""

    def backup(self, path: Path, progress: Progress | None) -> Backup:
        """Write everything to one file."""

    def close(self, *, flush: bool = True) -> None:
        """Release everything. May be called twice."""


class Local:
    """The store's directory, open in this process.

    Args:
        directory: Closed with this.
    """

    def __init__(self, directory: StoreDirectory) -> None:
        self.directory = directory

    @property
    def path(self) -> Path:
        """See `StoreAccess`."""
        return self.directory.path

    @property
    def store_json(self) -> StoreJson:
        """See `StoreAccess`."""
        return self.directory.store_json

    def probe(self) -> NDArray[np.float32] | None:
        """See `StoreAccess`."""
        return self.directory.probe()

    def record_probe(self, probe: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `StoreAccess`."""
        return self.directory.record_probe(probe)

    def check_writable(self) -> None:
        """See `StoreAccess`."""
        self.directory.check_writable()

    def changed(self, batch: Sequence[Passage]) -> list[Passage]:
        """See `StoreAccess`."""
        return written.changed(self.directory, batch)

    def upsert(self, batch: Sequence[Passage], vectors: NDArray[np.float32]) -> None:
        """See `StoreAccess`."""
        written.upsert(self.directory, batch, vectors)

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """See `StoreAccess`."""
        return written.ask(self.directory, where, lambda view: view.vectors.matching(ids, where))

    def delete(self, batch: Sequence[str], where: Where | None) -> int:
        """See `StoreAccess`."""
        return written.delete(self.directory, batch, where)

    def get(
        self, ids: Sequence[str] | None, where: Where | None, limit: int | None
    ) -> dict[str, Passage]:
        """See `StoreAccess`."""
        return written.ask(self.directory, where, lambda view: view.vectors.get(ids, where, limit))

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """See `StoreAccess`."""
        with self.directory.reading() as view:
            return view.exact.vectors(ids)

    def search(
        self, request: Request, vector: NDArray[np.float32] | None, watch: Stopwatch
    ) -> list[ScoredPassage]:
        """See `StoreAccess`."""
        return written.ask(
            self.directory,
            request.where,
            lambda view: search(
                Sides(view.vectors, view.exact, view.lexical, view.agree), request, vector, watch
            ),
        )

    def count(self) -> int:
        """See `StoreAccess`."""
        with self.directory.reading() as view:
            return view.vectors.count()

    def flush(self) -> None:
        """See `StoreAccess`."""
        self.directory.flush()

    def compact(self, progress: Progress | None) -> None:
        """See `StoreAccess`."""
        compact(self.directory, progress)

    def backup(self, path: Path, progress: Progress | None) -> Backup:
        """See `StoreAccess`."""
        return back_up(self.directory, path, progress)

    def close(self, *, flush: bool = True) -> None:
        """See `StoreAccess`."""
        self.directory.close(flush=flush)
