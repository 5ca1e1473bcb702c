"""Vectors, texts and metadata in Chroma: embedded (in a process of its own), or behind a server."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes import codec
from tars_rag.retrieval.indexes.chroma import filter_plan
from tars_rag.retrieval.indexes.chroma.client import ChromaError, Client
from tars_rag.retrieval.indexes.chroma.errors import asking, translated
from tars_rag.retrieval.indexes.chroma.filters import Condition, Where
from tars_rag.retrieval.indexes.chroma.layout import SESSION
from tars_rag.retrieval.indexes.chroma.passing import Passing
from tars_rag.retrieval.indexes.chroma.predicates import Predicate, predicate
from tars_rag.retrieval.indexes.chroma.rows import (
    Record,
    passages_of,
    selected,
    vector_of,
    vectors_of,
)
from tars_rag.retrieval.passage import Passage, Progress

# Chroma's own index is never searched, so it is cheap to build. Not cheaper: with 2 to 8 neighbours
# hnswlib comes to a node around which all are deleted, adds another, and ends the process
# (reproduced after 600 to 400,000 writes; with 12 and more in none of 500,000).
_HNSW: dict[str, Any] = {"space": "cosine", "max_neighbors": 16, "ef_construction": 8}
_READ_BATCH = 1000
_IDS_BATCH = 20_000
_WRITE_BATCH = 256
_MOST = (1 << 32) - 1
# In a collection's own metadata: which codec wrote what can be filtered on. 2: lists too.
_MARK, _CURRENT = "tars_filters", 2


class VectorIndex:
    """One Chroma collection with cosine distance.

    Args:
        client: A Chroma; shared by its collections.
        name: The collection's name.
        create: Make the collection if it is missing.

    Raises:
        StoreError: Chroma cannot be reached, or the collection is missing.
    """

    def __init__(self, client: Client, name: str, *, create: bool = False) -> None:
        self.name = name
        self._client = client
        with translated(self._client, "opened"):
            self._piece = min(_WRITE_BATCH, client.get_max_batch_size())
            if create:  # the mark is written only where there was no such collection
                self._collection = client.get_or_create_collection(
                    name, {"hnsw": _HNSW}, {_MARK: _CURRENT}
                )
            else:
                self._collection = client.get_collection(name)
        known = self._collection.metadata or {}
        self._session = str(known.get(SESSION, ""))
        self._passing = Passing(
            self._ids,
            client.place,
            remembers=client.exclusive,
            holds_lists=known.get(_MARK) == _CURRENT,
        )

    @property
    def alive(self) -> bool:
        """False once Chroma's process died, or was killed because a write failed: open it anew."""
        return self._client.alive

    def open_sibling(self, name: str, *, create: bool = False) -> VectorIndex:
        """Another collection of the same Chroma. Closing either closes both."""
        return VectorIndex(self._client, name, create=create)

    def dimension(self) -> int | None:
        """Length of the vectors; None if there is none yet."""
        for rows in self._read(None, None, 1, ["embeddings"]):
            for vector in rows["embeddings"]:
                return len(vector)
        return None

    def write(self, records: Sequence[Record], replaced: Collection[str] = ()) -> None:
        """Write records; durable on return, though not in one step.

        Args:
            records: From `records`.
            replaced: Ids among them that exist already. Chroma merges their old metadata into the
                new, so what is not in the new is taken out by name. Their vectors are overwritten
                in place, where no search of Chroma's own might find them, but none is made.

        Raises:
            StoreError: Chroma failed.
        """
        self._passing.written()
        held = {} if self._collection.replaces else self._keys(replaced)
        sizes = {r["id"]: len(held.get(r["id"], ())) + len(r["metadata"]) for r in records}
        # More than Chroma can name at once.
        self.delete([codec.decode(key) for key, size in sizes.items() if size > codec.MAX_KEYS])
        for start in range(0, len(records), self._piece):
            piece = records[start : start + self._piece]
            self._do(
                "written",
                "upsert",
                ids=[record["id"] for record in piece],
                embeddings=np.stack([vector_of(record) for record in piece]),
                metadatas=[dict.fromkeys(held.get(r["id"], ())) | r["metadata"] for r in piece],
            )

    def _keys(self, ids: Collection[str]) -> dict[str, list[str]]:
        """The metadata keys that Chroma holds of passages, by their encoded ids."""
        return {
            key: list(metadata or ())
            for rows in self._read(list(ids), None, None, ["metadatas"])
            for key, metadata in zip(rows["ids"], rows["metadatas"], strict=True)
        }

    def delete(self, ids: Sequence[str]) -> None:
        """Delete ids (unknown ones are ignored); durable on return."""
        for start in range(0, len(ids), self._piece):
            piece = [codec.encode(key) for key in ids[start : start + self._piece]]
            self._do("written", "delete", ids=piece)
        self._passing.deleted(ids)

    def get(
        self,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        limit: int | None = None,
    ) -> dict[str, Passage]:
        """Passages by id (unknown ones left out) and filter."""
        passages: dict[str, Passage] = {}
        for rows in self._read(ids, where, limit, ["metadatas"]):
            passages |= passages_of(rows, self._client.place)
        return passages

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """Which of the ids (None: of all) exist and pass the filter.

        Raises:
            InvalidInputError: The filter cannot be answered.
        """
        if ids is None:
            condition = self._passing.condition(where)
            if condition is not None:
                return list(self._passing.ids(condition))
        pieces = self._read(ids, where, None, [])
        return [key for rows in pieces for key in codec.decode_all(rows["ids"])]

    def decided(self, where: Where | None, others: Mapping[str, Mapping[str, Any]]) -> Predicate:
        """The filter, to be decided on metadata that Chroma does not hold yet (see `Passing`)."""
        return self._passing.decided(where, others)

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Stored vectors [dim] by id."""
        found: dict[str, NDArray[np.float32]] = {}
        for rows in self._read(ids, None, None, ["embeddings"]):
            found |= vectors_of(rows)
        return found

    def scan(
        self, size: int = _READ_BATCH, *, vectors: bool = False
    ) -> Iterator[list[tuple[Passage, NDArray[np.float32] | None, list[float]]]]:
        """Every passage in batches, with its vector (if asked for) and its stored sketch."""
        include = ["metadatas", *(["embeddings"] if vectors else [])]
        offset = 0
        while True:
            rows = self._do("read", "get", limit=size, offset=offset, include=include)
            if not rows["ids"]:
                return
            offset += len(rows["ids"])
            passages = passages_of(rows, self._client.place)
            embeddings = rows["embeddings"] if vectors else [None] * len(passages)
            yield [
                (
                    passage,
                    None if vector is None else np.asarray(vector, np.float32),
                    codec.stored_sketch(metadata),
                )
                for passage, vector, metadata in zip(
                    passages.values(), embeddings, rows["metadatas"], strict=True
                )
            ]

    def count(self) -> int:
        """Number of passages."""
        return int(self._do("read", "count"))

    def refresh(self) -> None:
        """See what another process wrote through the same server."""
        self._collection.refresh()

    def lost(self) -> list[str]:
        """Passages that were stored, and that the server has no more."""
        with translated(self._client, "read"):
            return codec.decode_all(self._collection.lost())

    def sweep(self) -> None:
        """Delete what requests left that a server carried out too late; nobody else may write."""
        with translated(self._client, "swept"):
            self._collection.sweep()

    def upgrade(self, progress: Progress | None = None, *, again: bool = False) -> int:
        """Give Chroma what today's filters need, where an earlier version wrote the passages.

        Texts and vectors stay as they are. Cut short, it starts again the next time.

        Args:
            progress: Called with (done, total).
            again: Compare every passage even if that was done.

        Returns:
            How many passages were changed.
        """
        if self._passing.holds_lists and not again:
            return 0
        changed = done = 0
        total = self.count()
        for rows in self._read(None, None, None, ["metadatas"]):
            passages_of(rows, self._client.place)  # each is one of ours
            held = zip(rows["ids"], rows["metadatas"], strict=True)
            todo = {key: change for key, old in held if (change := codec.outdated(old))}
            keys = iter(todo)
            while piece := list(islice(keys, self._piece)):
                self._do("written", "update", ids=piece, metadatas=[todo[key] for key in piece])
            changed += len(todo)
            done += len(rows["ids"])
            if progress is not None:
                progress(done, total)
        if not self._passing.holds_lists:
            self._describe({_MARK: _CURRENT})
        self._passing.holds_lists = True
        return changed

    def begin_session(self, session: str) -> None:
        """Name the session that writes from now on; durable on return."""
        self._describe({SESSION: session})
        self._session = session

    def drop(self, name: str) -> None:
        """Delete a collection; one that is not there is no error."""
        with translated(self._client, "written"):
            try:
                self._client.delete_collection(name)
            except ChromaError as error:
                if error.kind != "NotFoundError":
                    raise

    def drop_others(self, keep: Collection[str]) -> None:
        """Delete every other collection but `keep`: what a process that was killed left behind."""
        with translated(self._client, "read"):
            names = self._client.collection_names()
        for name in names:
            if name != self.name and name not in keep:
                self.drop(name)

    def close(self) -> None:
        """Close Chroma, for every collection of it. May be called twice."""
        self._client.close()

    def abandon(self) -> None:
        """Kill Chroma's process (a server is left alone): it is not `alive` any more."""
        self._client.abandon()

    def _read(
        self,
        ids: Sequence[str] | None,
        where: Where | None,
        limit: int | None,
        include: list[str],
    ) -> Iterator[Any]:
        """Chroma's answers, in pieces, of what passes the filter."""
        condition = self._passing.condition(where)
        if ids is not None:
            yield from self._read_ids(ids, condition, include)
        elif condition is None:
            total, step = self.count(), _READ_BATCH if include else _IDS_BATCH
            total = total if limit is None else min(limit, total)
            for start in range(0, total, step):
                size = min(step, total - start)
                yield self._do("read", "get", limit=size, offset=start, include=include)
        elif filter_plan.fits(condition):
            there = filter_plan.encoded(condition)
            most = None if limit is None else min(limit, _MOST)
            yield self._do("searched", "get", where=there, limit=most, include=include)
        else:
            yield from self._read_ids(list(self._passing.ids(condition))[:limit], None, include)

    def _read_ids(
        self, ids: Sequence[str], condition: Condition | None, include: list[str]
    ) -> Iterator[Any]:
        """The same of some ids: few are decided here, of many those that pass are looked up."""
        if condition is not None and len(ids) > _READ_BATCH:
            passing = self._passing.ids(condition)
            ids, condition = [key for key in ids if key in passing], None
        there = include if condition is None else [*{*include, "metadatas"}]
        passes = None if condition is None else predicate(condition)
        for start in range(0, len(ids), _READ_BATCH):
            keys = [codec.encode(key) for key in ids[start : start + _READ_BATCH]]
            rows = self._do("read", "get", ids=keys, include=there)
            yield rows if passes is None else selected(rows, passes)

    def _describe(self, changes: dict[str, Any]) -> None:
        """Change the collection's own metadata."""
        known: dict[str, Any] = {_MARK: _CURRENT} if self._passing.holds_lists else {}
        if self._session:
            known[SESSION] = self._session
        self._do("written", "modify", metadata=known | changes)

    def _ids(self, where: dict[str, Any] | None, limit: int | None) -> list[str]:
        """The ids that Chroma finds for a filter that it can take."""
        if where is None:
            return self.matching(None, None)
        found = self._do("searched", "get", where=where, limit=limit, include=[])
        return codec.decode_all(found["ids"])

    def _do(self, verb: str, op: str, **arguments: Any) -> Any:
        with asking(self._client, self._collection, verb, op, **arguments) as answer:
            return answer()
