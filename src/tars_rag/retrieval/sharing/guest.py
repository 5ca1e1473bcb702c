"""A guest's side: a store that another process holds, asked through its socket."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag import advice
from tars_rag.errors import StoreError, StoreLockedError, shown
from tars_rag.retrieval.indexes.chroma.filters import Where, parse
from tars_rag.retrieval.passage import Passage, Progress, ScoredPassage
from tars_rag.retrieval.searching import Request
from tars_rag.retrieval.sharing.wire import (
    HELLO,
    PART,
    PROTOCOL,
    VERSION,
    LineError,
    Wire,
    error_of,
    hit_of,
    passage_of,
    passage_row,
    plain,
)
from tars_rag.retrieval.storage.backup import Backup, write_backup
from tars_rag.retrieval.storage.holder import Holder
from tars_rag.retrieval.storage.layout import LOCK
from tars_rag.retrieval.storage.listener import connect
from tars_rag.retrieval.storage.snapshot import snapshot_beside
from tars_rag.retrieval.storage.store_json import StoreJson
from tars_rag.retrieval.timing import Step, Stopwatch

_IDLE = 4  # connections that are kept for the next calls
_STOPPED_SECONDS = 5.0


class HolderGoneError(Exception):
    """The holder ended, or the connection to it: what was asked may have been done or not."""


class Guest:
    """A store through its holder. Each call has a connection of its own; some are kept.

    Args:
        path: The store's directory.

    Raises:
        OSError: Nobody listens there, or not to this user.
        HolderGoneError: Whoever listened is gone.
        StoreLockedError: It is another version, whose messages are not ours.
    """

    directory = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.Lock()
        self._idle: list[Wire] = []
        self._closed = False
        self._store: dict[str, Any] = {}
        self._idle.append(self._connected())

    @property
    def store_json(self) -> StoreJson:
        """See `StoreAccess`."""
        if self._store["dimension"] is None:
            self._store = self._one("describe")
        return StoreJson(**self._store)

    def probe(self) -> NDArray[np.float32] | None:
        """See `StoreAccess`."""
        [(_, row)] = self._ask("probe")
        return None if row is None else row.copy()

    def record_probe(self, probe: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `StoreAccess`."""
        [(_, row)] = self._ask("record_probe", rows=probe)
        return np.array(row, np.float32)

    def check_writable(self) -> None:
        """See `StoreAccess`: whoever holds a store and has guests writes."""

    def changed(self, batch: Sequence[Passage]) -> list[Passage]:
        """See `StoreAccess`."""
        ids: set[str] = set()
        for start, end in _pieces(batch):
            rows = [passage_row(passage) for passage in batch[start:end]]
            ids.update(self._one("changed", passages=rows))
        return [passage for passage in batch if passage.id in ids]

    def upsert(self, batch: Sequence[Passage], vectors: NDArray[np.float32]) -> None:
        """See `StoreAccess`."""
        for start, end in _pieces(batch):
            rows = [passage_row(passage) for passage in batch[start:end]]
            self._ask("upsert", rows=vectors[start:end], passages=rows)

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """See `StoreAccess`."""
        return [key for part, _ in self._ask("matching", **_chosen(ids, where)) for key in part]

    def delete(self, batch: Sequence[str], where: Where | None) -> int:
        """See `StoreAccess`."""
        return int(self._one("delete", **_chosen(batch, where)))

    def get(
        self, ids: Sequence[str] | None, where: Where | None, limit: int | None
    ) -> dict[str, Passage]:
        """See `StoreAccess`."""
        parts = self._ask("get", **_chosen(ids, where), limit=limit)
        return {passage.id: passage for part, _ in parts for passage in map(passage_of, part)}

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """See `StoreAccess`."""
        parts = self._ask("vectors", ids=list(ids))
        return {
            key: row.copy()
            for keys, rows in parts
            if rows is not None
            for key, row in zip(keys, rows, strict=True)
        }

    def search(
        self, request: Request, vector: NDArray[np.float32] | None, watch: Stopwatch
    ) -> list[ScoredPassage]:
        """See `StoreAccess`."""
        if request.where is not None:
            parse(request.where)
        parts = self._ask(
            "search",
            rows=vector,
            query=request.query,
            k=request.k,
            strategy=request.strategy,
            where=plain(request.where),
            weight=request.weight,
            min_score=request.min_score,
            floor=request.floor,
            every=request.every,
        )
        watch.steps.extend(Step(*step) for step in parts[-1][0]["steps"])
        return [hit_of(row) for part, _ in parts for row in part["hits"]]

    def count(self) -> int:
        """See `StoreAccess`."""
        return int(self._one("count"))

    def flush(self) -> None:
        """See `StoreAccess`."""
        self._ask("flush")

    def compact(self, progress: Progress | None) -> None:
        """See `StoreAccess`."""
        self._ask("compact", progress=progress)

    def backup(self, path: Path, progress: Progress | None) -> Backup:
        """See `StoreAccess`: taken beside the holder, which is not asked."""
        return write_backup(path, self.path, lambda: snapshot_beside(self.path), progress)

    def close(self, *, flush: bool = True) -> None:
        """See `StoreAccess`."""
        with self._mutex:
            self._closed = True
            idle, self._idle = self._idle, []
        for wire in idle:
            wire.close()

    def _one(self, op: str, **arguments: Any) -> Any:
        [(answer, _)] = self._ask(op, **arguments)
        return answer

    def _ask(
        self,
        op: str,
        rows: NDArray[np.float32] | None = None,
        progress: Progress | None = None,
        **arguments: Any,
    ) -> list[tuple[Any, NDArray[np.float32] | None]]:
        """Ask the holder; all parts of its answer.

        Raises:
            HolderGoneError: There is no holder any more.
            TarsRagError: What the holder raised.
        """
        with self._wire() as wire:
            wire.send({"op": op, **arguments}, rows)
            parts = []
            while True:
                said, got = wire.receive()
                match said:
                    case {"part": part}:
                        parts.append((part, got))
                    case {"last": part}:
                        return [*parts, (part, got)]
                    case {"error": row}:
                        break
                    case {"progress": [done, total]}:
                        if progress is not None:
                            progress(done, total)
                    case _:
                        msg = f"it answered {shown(said)}"
                        raise LineError(msg)
        raise error_of(row)

    @contextlib.contextmanager
    def _wire(self) -> Iterator[Wire]:
        """A connection for one question; kept if that was answered."""
        with self._mutex:
            wire = self._idle.pop() if self._idle else None
        try:
            wire = wire or self._connected()
            yield wire
        except (LineError, OSError) as error:
            _close(wire)
            raise HolderGoneError(str(error)) from error
        except BaseException:  # the next question would get this one's answer
            _close(wire)
            raise
        with self._mutex:
            keep = not self._closed and len(self._idle) < _IDLE
            if keep:
                self._idle.append(wire)
        if not keep:
            wire.close()

    def _connected(self) -> Wire:
        wire = Wire(connect(self.path), self._waiting)
        try:
            wire.send({HELLO: PROTOCOL, "version": VERSION})
            said, _ = wire.receive()
            if not isinstance(said, dict) or said.get(HELLO) != PROTOCOL:
                raise StoreLockedError(_other_version(self.path, said))
            self._store = said["store"]
        except LineError as error:
            wire.close()
            raise HolderGoneError(str(error)) from error
        except BaseException:
            wire.close()
            raise
        return wire

    def _waiting(self, seconds: float) -> None:
        if seconds < _STOPPED_SECONDS:
            return
        holder = Holder.of(self.path / LOCK)
        if holder is not None and holder.is_stopped:
            msg = (
                f"The store {self.path} is held by a process that is stopped (pid {holder.pid}) "
                f"and answers nobody. Let it go on: kill -CONT {holder.pid}"
            )
            raise StoreError(msg)


def _close(wire: Wire | None) -> None:
    if wire is not None:
        wire.close()


def _chosen(ids: Sequence[str] | None, where: Where | None) -> dict[str, Any]:
    if where is not None:
        parse(where)  # refused here, in our own words, if it is no filter
    return {"ids": None if ids is None else list(ids), "where": plain(where)}


def _pieces(batch: Sequence[Passage]) -> Iterator[tuple[int, int]]:
    """Where to cut a batch, so that a message has a few megabytes unless one passage has more."""
    start, room = 0, PART
    for number, passage in enumerate(batch):
        room -= len(passage.text)
        if room < 0 and number > start:
            yield start, number
            start, room = number, PART - len(passage.text)
    if start < len(batch):
        yield start, len(batch)


def _other_version(path: Path, said: Any) -> str:
    theirs = said if isinstance(said, dict) else {}
    return (
        f"The store {path} is held by another process (pid {theirs.get('pid', '?')}) with tars-rag "
        f"{theirs.get('version', '?')}, whose messages (version {theirs.get(HELLO, '?')}) this "
        f"tars-rag {VERSION} (version {PROTOCOL}) does not read. Use one tars-rag in both "
        f"({advice.update()}), or close the store there."
    )
