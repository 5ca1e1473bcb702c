"""Vectors, texts and metadata in Chroma: embedded (in a process of its own), or behind a server."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.retrieval.commands import check_command
from tars_rag.retrieval.indexes import codec
from tars_rag.retrieval.indexes.chroma_client import Answer, ChromaError, Client
from tars_rag.retrieval.passage import Passage, Ranking, ranked

_HNSW: dict[str, Any] = {"space": "cosine"}
# Chroma visits max(100, n_results) candidates; near that number it begins to miss some.
_SURE = 50
_READ_BATCH = 1000
_WRITE_BATCH = 256

Where: TypeAlias = Mapping[str, Any]
Record: TypeAlias = dict[str, Any]
"""What Chroma keeps of a passage, as JSON: id, metadata (see codec), vector (base64 float32)."""


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
        with self._translated("opened"):
            self._piece = min(_WRITE_BATCH, client.get_max_batch_size())
            if create:
                self._collection = client.get_or_create_collection(name, {"hnsw": _HNSW})
            else:
                self._collection = client.get_collection(name)

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
            replaced: Ids among them that exist already. They are deleted first: Chroma would
                merge the old metadata into the new, and overwriting a vector in place now and
                then leaves it where no search arrives.

        Raises:
            StoreError: Chroma failed.
        """
        self.delete(list(replaced))
        for start in range(0, len(records), self._piece):
            piece = records[start : start + self._piece]
            rows = [np.frombuffer(base64.b64decode(record["vector"]), "<f4") for record in piece]
            self._do(
                "written",
                "upsert",
                ids=[record["id"] for record in piece],
                embeddings=np.stack(rows),
                metadatas=[record["metadata"] for record in piece],
            )

    def delete(self, ids: Sequence[str]) -> None:
        """Delete ids (unknown ones are ignored); durable on return."""
        for start in range(0, len(ids), self._piece):
            piece = [codec.encode(key) for key in ids[start : start + self._piece]]
            self._do("written", "delete", ids=piece)

    def query(self, vector: NDArray[np.float32], limit: int, where: Where | None = None) -> Ranking:
        """The nearest `limit` ids by cosine similarity.

        Raises:
            InvalidInputError: Chroma refuses the filter.
            StoreError: Chroma failed.
        """
        with self.querying(vector, limit, where) as ranking:
            return ranking()

    @contextlib.contextmanager
    def querying(
        self, vector: NDArray[np.float32], limit: int, where: Where | None = None
    ) -> Iterator[Callable[[], Ranking]]:
        """`query`, asked on entry; what is yielded waits for the ranking."""
        with self._asking(
            "searched",
            "query",
            query_embeddings=vector.reshape(1, -1),
            n_results=limit if limit <= _SURE else 2 * limit,
            where=codec.encode_where(where),
            include=["distances"],
        ) as answer:

            def ranking() -> Ranking:
                found = answer()
                hits = zip(found["ids"][0], found["distances"][0], strict=True)
                scores = ((codec.decode(key), 1.0 - float(distance)) for key, distance in hits)
                return ranked(scores)[:limit]

            yield ranking

    def get(
        self,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        limit: int | None = None,
    ) -> dict[str, Passage]:
        """Passages by id (unknown ones left out) and filter."""
        passages: dict[str, Passage] = {}
        for rows in self._read(ids, where, limit, ["metadatas"]):
            passages |= self._unpack_all(rows["ids"], rows["metadatas"])
        return passages

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """Which of the ids (None: of all) exist and pass the filter."""
        pieces = self._read(ids, where, None, [])
        return [codec.decode(key) for rows in pieces for key in rows["ids"]]

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Stored vectors [dim] by id."""
        found: dict[str, NDArray[np.float32]] = {}
        for rows in self._read(ids, None, None, ["embeddings"]):
            found |= _vectors_of(rows)
        return found

    @contextlib.contextmanager
    def reading_vectors(
        self, ids: Sequence[str]
    ) -> Iterator[Callable[[], dict[str, NDArray[np.float32]]]]:
        """`vectors`, asked on entry; what is yielded waits for them."""
        if len(ids) > _READ_BATCH:
            found = self.vectors(ids)
            yield lambda: found
            return
        keys = [codec.encode(key) for key in ids]
        with self._asking("read", "get", ids=keys, include=["embeddings"]) as answer:
            yield lambda: _vectors_of(answer())

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
            passages = self._unpack_all(rows["ids"], rows["metadatas"])
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

    def check_where(self, where: Where | None) -> None:
        """Let Chroma decide whether the filter is one.

        Raises:
            InvalidInputError: It is not; the message is Chroma's.
        """
        if where is None:
            return
        self._do("searched", "get", where=codec.encode_where(where), limit=1, include=[])

    def drop(self, name: str) -> None:
        """Delete a collection; one that is not there is no error."""
        with self._translated("written"):
            try:
                self._client.delete_collection(name)
            except ChromaError as error:
                if error.kind != "NotFoundError":
                    raise

    def drop_others(self, keep: Collection[str]) -> None:
        """Delete every other collection but `keep`: what a process that was killed left behind."""
        with self._translated("read"):
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
        """Chroma's answers, in pieces; with a filter and no ids in one (each would filter all)."""
        condition = codec.encode_where(where)
        if ids is None and where is not None:
            pieces = [{"where": condition, "limit": limit}]
        elif ids is None:
            total = self.count() if limit is None else limit
            pieces = [
                {"limit": min(_READ_BATCH, total - start), "offset": start}
                for start in range(0, total, _READ_BATCH)
            ]
        else:
            keys = [codec.encode(key) for key in ids]
            pieces = [
                {"ids": keys[start : start + _READ_BATCH], "where": condition}
                for start in range(0, len(keys), _READ_BATCH)
            ]
        for piece in pieces:
            yield self._do("read", "get", **piece, include=include)

    def _unpack_all(
        self, ids: Sequence[str], metadatas: Sequence[Mapping[str, Any] | None]
    ) -> dict[str, Passage]:
        passages = {}
        for row in zip(ids, metadatas, strict=True):
            try:
                passage = codec.unpack(*row)
            except (KeyError, ValueError, TypeError) as error:
                msg = (
                    f"The record {row[0]!r} in Chroma ({self._client.place}) is damaged or was not "
                    f"written by tars-rag. See: {self._check}"
                )
                raise StoreError(msg) from error
            passages[passage.id] = passage
        return passages

    @property
    def _check(self) -> str:
        """The command that checks the store; of a server's the directory is not known here."""
        place = self._client.place
        if "://" in place:
            return "tars-rag store check, with the directory of the store"
        return check_command(Path(place).parent)

    def _do(self, verb: str, op: str, **arguments: Any) -> Any:
        with self._asking(verb, op, **arguments) as answer:
            return answer()

    @contextlib.contextmanager
    def _asking(self, verb: str, op: str, **arguments: Any) -> Iterator[Answer]:
        """Ask the collection; errors of asking and of the answer as ours."""
        with contextlib.ExitStack() as stack:
            with self._translated(verb):
                answer = stack.enter_context(self._collection.asking(op, **arguments))

            def translated() -> Any:
                with self._translated(verb):
                    return answer()

            yield translated

    @contextlib.contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        """Chroma's errors as ours."""
        try:
            yield
        except ChromaError as error:
            invalid = error.is_value_error or "InvalidArgument" in error.kind
            if invalid and "where" in str(error).lower():
                msg = f"The filter `where` is not one that Chroma takes: {error}"
                raise InvalidInputError(msg) from error
            if verb == "written":
                self.abandon()
            msg = (
                f"Chroma ({self._client.place}) could not be {verb}: {error}. "
                f"See what is wrong: {self._check}"
            )
            raise StoreError(msg) from error


def records(passages: Sequence[Passage], vectors: NDArray[np.float32]) -> list[Record]:
    """Checked passages and their vectors [n, dim] as Chroma will hold them."""
    return [
        {
            "id": codec.encode(passage.id),
            "metadata": codec.pack_metadata(passage, vector),
            "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii"),
        }
        for passage, vector in zip(passages, vectors, strict=True)
    ]


def _vectors_of(rows: Any) -> dict[str, NDArray[np.float32]]:
    return {
        codec.decode(key): np.asarray(vector, np.float32)
        for key, vector in zip(rows["ids"], rows["embeddings"], strict=True)
    }
