"""Exact nearest neighbours by cosine, on disk: what is nearest is found, whatever the data."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.retrieval.commands import check_command
from tars_rag.retrieval.indexes.exact import code_directory
from tars_rag.retrieval.indexes.exact.code_directory import CodeDirectory
from tars_rag.retrieval.indexes.exact.codes import Query, check_vectors
from tars_rag.retrieval.indexes.exact.id_table import hashes_of
from tars_rag.retrieval.indexes.exact.nearest import Snapshot
from tars_rag.retrieval.indexes.exact.rows import DamageError
from tars_rag.retrieval.passage import Ranking

_log = logging.getLogger(__name__)


class ExactIndex:
    """A directory with the vectors of a store, found exactly.

    Any number of threads may search while one writes; each search sees one commit, whole. Other
    processes may open the directory read-only beside the writer, and see its commits after
    `refresh`. That only one process writes at a time, the store's lock must see to.

    Nothing is written before `commit`, which is durable on return (one fsync) and whole or not
    there after any crash. Opening verifies every byte.

    Memory: the mapped codes (one byte a number), 25 bytes a passage, and 8 of a removed one. From
    32,768 passages on that are searched more than once, five eighths of a byte a number more.

    Args:
        path: The directory; made if missing, unless `read_only`.
        dimension: Numbers in a vector; None: whatever the index has, or the first ones added.
        read_only: Never write.

    Raises:
        DamageError: The files are damaged, or missing (`read_only`). The index is derived: delete
            the directory, and add everything again.
        StoreError: It is of another dimension, or cannot be read.
    """

    def __init__(
        self, path: Path, dimension: int | None = None, *, read_only: bool = False
    ) -> None:
        self.path = path
        self.read_only = read_only
        self._expected = dimension
        self._writing = threading.Lock()
        self._pending: dict[str, NDArray[np.float32] | None] = {}
        self._open: CodeDirectory | None = None
        with self._translated("opened"):
            self._open = CodeDirectory(path, read_only=read_only)
        found = self._snapshot().dim
        if dimension and found and found != dimension:
            msg = (
                f"The vector index {path} holds vectors of {found} numbers, not of {dimension}. "
                f"Rebuild it: {check_command(path.parent, repair=True)}"
            )
            raise StoreError(msg)

    # -- reading ------------------------------------------------------------------------------

    def nearest(
        self,
        vector: NDArray[np.floating],
        k: int,
        among: Iterable[str] | None = None,
        without: Collection[str] = (),
    ) -> Ranking:
        """The k passages with the largest cosine, best first, equal ones by id. Exact.

        Args:
            vector: [dim], of any length but zero.
            k: How many at most; less than 1 gives none.
            among: Only these ids (unknown ones are ignored); None: all.
            without: Not these, though they be `among` them.

        Raises:
            InvalidInputError: The vector is zero, not finite, or of another dimension.
            StoreError: The files cannot be read, or the index is closed.
        """
        snapshot = self._snapshot()
        query = self._query(vector, snapshot)
        if query is None or k < 1:
            return []
        slots = None if among is None else self._slots(snapshot, among)
        if without:
            gone = self._slots(snapshot, without)
            snapshot = replace(snapshot, dead=np.union1d(snapshot.dead, gone))
            if slots is not None:
                slots = np.setdiff1d(slots, gone, assume_unique=True)
        with self._translated("read"):
            return snapshot.nearest(query, k, slots)

    def scores(self, vector: NDArray[np.floating], ids: Sequence[str]) -> dict[str, float]:
        """The exact cosine of each id that is there; the same as `nearest` gives it.

        Raises:
            InvalidInputError: See `nearest`.
            StoreError: See `nearest`.
        """
        snapshot = self._snapshot()
        query = self._query(vector, snapshot)
        if query is None:
            return {}
        known, slots = self._known(snapshot, ids)
        with self._translated("read"):
            cosines = query.cosines(snapshot.reader.vectors(slots))
        return dict(zip(known, cosines.tolist(), strict=True))

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors [dim] as they were added, of each id that is there."""
        return self.vectors_of_now()(ids)

    def held(self, ids: Sequence[str]) -> list[str]:
        """Those of the ids that are there, each once."""
        return self._known(self._snapshot(), ids)[0] if ids else []

    def vectors_of_now(self) -> Callable[[Sequence[str]], dict[str, NDArray[np.float32]]]:
        """What `vectors` gives of this state, whatever is committed later."""
        snapshot = self._snapshot()

        def vectors(ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
            known, slots = self._known(snapshot, ids)
            with self._translated("read"):
                return dict(zip(known, snapshot.reader.vectors(slots), strict=True))

        return vectors

    def ids(self) -> list[str]:
        """All ids, in the order in which they were added last."""
        snapshot = self._snapshot()
        with self._translated("read"):
            return snapshot.reader.ids(snapshot.living())

    def count(self) -> int:
        """How many passages there are."""
        return self._snapshot().count

    @property
    def dimension(self) -> int | None:
        """Numbers in a vector; None as long as that is open."""
        return self._snapshot().dim or self._expected

    @property
    def generation(self) -> int:
        """How many commits made this state; compaction does not count."""
        return self._snapshot().generation

    @property
    def digest(self) -> str:
        """16 hexadecimal digits: equal ones mean the same commits in the same order."""
        return self._snapshot().digest

    @property
    def stamp(self) -> str:
        """What the last commit was given; empty before the first."""
        return self._snapshot().stamp

    # -- writing ------------------------------------------------------------------------------

    def add(self, ids: Sequence[str], vectors: NDArray[np.floating]) -> None:
        """Add vectors [n, dim], replacing those of ids that are there; seen after `commit`.

        Raises:
            InvalidInputError: A vector is zero, not finite, or of another dimension, or there are
                not as many as ids. Nothing was added.
            StoreError: The index is read-only or closed.
        """
        self._check_writable()
        if not len(ids) and not len(vectors):
            return
        dim = self.dimension or next(
            (len(row) for row in self._pending.values() if row is not None), None
        )
        checked = check_vectors(np.asarray(vectors), dim)
        if len(checked) != len(ids):
            msg = f"There are {len(ids)} ids and {len(checked)} vectors. Give one vector for each."
            raise InvalidInputError(msg)
        if checked is vectors:
            checked = checked.copy()  # until the commit
        with self._writing:
            for passage_id, row in zip(ids, checked, strict=True):
                self._pending.pop(passage_id, None)  # the last one's place counts
                self._pending[passage_id] = row

    def remove(self, ids: Iterable[str]) -> None:
        """Remove ids; unknown ones are ignored; seen after `commit`."""
        self._check_writable()
        with self._writing:
            self._pending.update(dict.fromkeys(ids))

    def rollback(self) -> None:
        """Forget what was added and removed since the last commit."""
        with self._writing:
            self._pending.clear()

    def commit(self, stamp: str | None = None) -> None:
        """Make what was added and removed durable, all of it or nothing.

        Args:
            stamp: Kept with this state, for instance what names the same state of another index;
                None: the one before.

        Raises:
            StoreError: It could not be written, and nothing changed; it is still pending.
        """
        self._check_writable()
        with self._writing, self._translated("written"):
            before = self._snapshot().stamp
            stamp = before if stamp is None else stamp
            if self._pending or stamp != before:
                self._directory().files.append(self._pending, stamp)
                self._pending = {}
        if self._directory().wasteful:
            try:
                self.compact()
            except StoreError as error:  # what was committed is there all the same
                _log.warning("%s", error)

    def compact(self) -> None:
        """Rewrite the files without removed rows. `commit` does it when more than half is waste.

        Killed at any moment it leaves the old files or the new ones; searches go on meanwhile.

        Raises:
            StoreError: There is no room, for instance; the old files stay.
        """
        self._check_writable()
        with self._writing, self._translated("compacted"):
            self._directory().compact()

    def refresh(self) -> None:
        """See what another process committed since."""
        with self._writing, self._translated("read"):
            self._directory().refresh()

    def close(self) -> None:
        """Release the files; searches under way end well. May be called twice."""
        with self._writing:
            if self._open is not None:
                self._open.close()
            self._open = None

    @staticmethod
    def damage(path: Path) -> str | None:
        """What is wrong with the files in `path`, for a person; None: nothing.

        Codes that do not fit the vectors are no damage: opening makes them again.
        """
        return code_directory.damage(path)

    # -- what both stand on -------------------------------------------------------------------

    def _directory(self) -> CodeDirectory:
        directory = self._open
        if directory is None:
            msg = f"The vector index {self.path} is closed. Open the store again."
            raise StoreError(msg)
        return directory

    def _snapshot(self) -> Snapshot:
        return self._directory().files.snapshot

    def _check_writable(self) -> None:
        self._snapshot()
        if self.read_only:
            msg = f"The vector index {self.path} is open read-only. Open the store for writing."
            raise StoreError(msg)

    @staticmethod
    def _query(vector: NDArray[np.floating], snapshot: Snapshot) -> Query | None:
        """The query; None if there is nothing to compare it with."""
        array = np.asarray(vector)
        query = Query(array, snapshot.dim or array.size)
        return query if snapshot.count else None

    @staticmethod
    def _slots(snapshot: Snapshot, ids: Iterable[str]) -> NDArray[np.int64]:
        """The slots of the ids that are there, ascending."""
        hashes = hashes_of(ids if isinstance(ids, Collection) else list(ids))
        hashes.sort()  # many are found three times faster in order
        slots = snapshot.table.find(hashes)
        slots.sort()
        return slots[np.diff(slots, prepend=-1) > 0]

    @staticmethod
    def _known(snapshot: Snapshot, ids: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
        """The ids that are there, each once, with their slots, ascending."""
        slots = snapshot.table.find(hashes_of(ids))
        places = np.argsort(slots, kind="stable")
        slots = slots[places]
        there = np.diff(slots, prepend=-1) > 0
        return [ids[place] for place in places[there].tolist()], slots[there]

    @contextlib.contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        """Errors of the files as ours."""
        try:
            yield
        except DamageError as error:
            msg = (
                f"The vector index {self.path} is damaged ({error}). It can be made again from the "
                f"store: {check_command(self.path.parent, repair=True)}"
            )
            raise DamageError(msg) from error
        except OSError as error:
            msg = (
                f"The vector index {self.path} could not be {verb}: {error}. "
                "Check permissions and space."
            )
            raise StoreError(msg) from error
