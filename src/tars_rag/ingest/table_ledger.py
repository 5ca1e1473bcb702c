"""The record of indexed files of a store in LanceDB: what a `Ledger` is for one in a directory.

Several machines may index at once. Which passages came from which file stands in the rows of the
passages themselves, so it is always true. Whether a file is done is told by a sum over its rows:
where another machine, or one that was killed, has left other rows, the sum is another one, and the
next run reads the file again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.ingest.digests import Claim
from tars_rag.ingest.ledger import few_of_each, grouped
from tars_rag.ingest.root import Root
from tars_rag.retrieval.lance.files import FileRow, Files, mark

if TYPE_CHECKING:
    from tars_rag.retrieval.lance.access import LanceAccess
    from tars_rag.retrieval.store import HybridStore

_ROOT: Final = ""
"""No file's name: its row names the root."""


class TableLedger:
    """See `Ledger`, whose methods these are.

    What is there is read once, when this is made; what a run asks of passages it is about to write
    is asked anew.

    Args:
        access: The open store.
    """

    def __init__(self, access: LanceAccess) -> None:
        self._files = Files(access)
        self._done = self._files.done()
        self._held = self._files.sums()
        self._root = self._done.pop(_ROOT, None)
        self._sums: dict[str, int] = {}  # of what this run has read of files
        self._new: dict[str, FileRow] = {}
        self._reopened: set[str] = set()

    @property
    def root(self) -> Root:
        """From where sources are named."""
        return Root(None if self._root is None else Path(self._root.version))

    def settle(self, root: Root) -> None:
        """Name sources from a directory, or record that the directory has moved.

        Raises:
            InvalidInputError: It cannot be, see `Root.check_successor`.
        """
        before = self.root
        if before != root:
            before.check_successor(root, self.sources())
            self._root = FileRow(str(root.directory), "", 0)
            self._files.finish({_ROOT: self._root})

    def version(self, source: str) -> str | None:
        """What `finish` recorded for a file; None: never finished."""
        row = self._done.get(source)
        return None if row is None else row.version

    def stamp(self, source: str) -> str:
        """What was recorded of a file's place on the disk; may be empty, or another machine's."""
        row = self._done.get(source)
        return "" if row is None else row.stamp

    def is_whole(self, source: str, store: HybridStore) -> bool:
        """Whether the store holds what the file gave when it was finished, and nothing else."""
        row = self._done.get(source)
        return row is not None and row.sum == self._held.get(source, (0, 0))[0]

    def ids(self, *sources: str) -> list[str]:
        """Ids of all passages that the store holds of files."""
        return [key for ids in self._files.ids(sources).values() for key in ids]

    def sources(self) -> list[str]:
        """All files that gave passages."""
        return sorted(self._done.keys() | self._held.keys())

    def owners(self, ids: Iterable[str]) -> dict[str, str]:
        """Map those of `ids` that came from a file to that file."""
        origins = self._files.origins(ids)
        return {key: source for key, source in origins.items() if source is not None}

    def claim(self, claims: Iterable[Claim]) -> None:
        """Record passages. Only those that are there and of no file, or another, need it now."""
        given, adopted = list(claims), dict[str, list[str]]()
        origins = self._files.origins(one.id for one in given)
        for one in given:
            assert one.passage is not None
            self._sums[one.source] = self._sums.get(one.source, 0) ^ mark(one.passage)
            if origins.get(one.id, one.source) != one.source:
                adopted.setdefault(one.source, []).append(one.id)
        for source, ids in adopted.items():
            self._files.adopt(source, ids)

    def alike(self, digests: Iterable[str]) -> dict[str, list[str]]:
        """Map digests to ids of passages that may have them in the store: a few of each."""
        return few_of_each(self._files.alike(digests))

    def embedded(
        self, ids: Sequence[str], store: HybridStore
    ) -> dict[str, tuple[str, NDArray[np.float32]]]:
        """By id the digest of what is embedded of passages, and the vector [dim] of just that.

        Both are read at once: another machine may replace a passage between two reads.
        """
        return self._files.embedded(ids)

    def without_content(self) -> list[str]:
        """Nothing: contents are not recorded."""
        return []

    def record_content(self, contents: Iterable[tuple[str, str]]) -> None:
        """Nothing."""

    def copies(self) -> list[list[str]]:
        """Files with the same content, two or more each."""
        return grouped((row.version, source) for source, row in sorted(self._done.items()))

    def counts(self) -> dict[str, int]:
        """How many passages each file has, files without any among them."""
        return {source: self._held.get(source, (0, 0))[1] for source in self.sources()}

    def reopen(self, source: str) -> None:
        """Record that a file is being indexed: it does not count as done until `finish`."""
        self._done.pop(source, None)
        self._sums.pop(source, None)
        self._new.pop(source, None)
        self._reopened.add(source)

    def finish(self, source: str, version: str, stamp: str = "") -> None:
        """Record that all passages of a file are in the store, and by what it is known again."""
        self._put(source, FileRow(version, stamp, self._sums.pop(source, 0)))

    def restamp(self, source: str, stamp: str) -> None:
        """Record that a file that looks changed holds what it held."""
        if self.stamp(source) != stamp:
            self._put(source, replace(self._done[source], stamp=stamp))

    def release(self, ids: Iterable[str]) -> None:
        """Nothing: they are gone with what was recorded of them."""

    def flush(self) -> None:
        """Write which files are done, of many at once."""
        self._files.reopen(self._reopened - self._new.keys())
        self._files.finish(self._new)
        self._reopened, self._new = set(), {}

    def __enter__(self) -> TableLedger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:  # otherwise what is not written is found again by the next run
            self.flush()
            self._files.tidy()

    def _put(self, source: str, row: FileRow) -> None:
        self._done[source] = self._new[source] = row
