"""Vectors, texts and metadata in Chroma: embedded in this process, or behind a server."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import ConfigError, InvalidInputError, StoreError
from tars_rag.retrieval import codec
from tars_rag.retrieval.fusion import Ranking, ranked
from tars_rag.retrieval.passage import Passage

_HNSW: dict[str, Any] = {"space": "cosine"}
# Chroma visits max(100, n_results) candidates; near that number it begins to miss some.
_SURE = 50
_READ_BATCH = 1000
# Embedded Chroma holds the interpreter's lock for the whole of a write: so write in pieces that
# take about this long, or an event loop in the main thread stands still. A writer in the main
# thread keeps such a loop waiting anyway, and gets larger pieces: each costs a commit to disk.
_PIECE_SECONDS, _PIECE_SECONDS_IN_MAIN = 0.03, 0.12
_PIECE_MIN, _PIECE_MAX, _PIECE_FIRST = 4, 256, 16

Where: TypeAlias = Mapping[str, Any]
Record: TypeAlias = dict[str, Any]
"""What Chroma keeps of a passage, as JSON: id, text, metadata, vector (float32 in base64)."""


class VectorIndex:
    """One Chroma collection with cosine distance.

    Args:
        path: Directory of an embedded Chroma.
        url: ``http://host:port`` of a Chroma server, instead of `path`.
        name: The collection's name.
        create: Make the collection if it is missing.

    Raises:
        StoreError: Chroma cannot be opened or reached, or the collection is missing.
        ConfigError: The url is not usable.
    """

    def __init__(
        self, path: Path | None, name: str, *, url: str | None = None, create: bool = False
    ) -> None:
        self.name = name
        self.where_it_is = url or str(path)
        self._path, self._url = path, url
        self._client: Any = None
        self._piece = _PIECE_FIRST
        self._connect(create=create)

    def _connect(self, *, create: bool) -> None:
        self._client = _client(self._path, self._url)
        try:
            with self._translated("opened"):
                self._piece_max = min(_PIECE_MAX, int(self._client.get_max_batch_size()))
                if create:
                    self._collection = self._client.get_or_create_collection(
                        self.name, embedding_function=None, configuration={"hnsw": _HNSW}
                    )
                else:
                    self._collection = self._client.get_collection(
                        self.name, embedding_function=None
                    )
        except BaseException:
            self.close()
            raise

    def reopen(self) -> None:
        """Start afresh after a failure: embedded Chroma waits for itself for ever after one."""
        self.close()
        self._connect(create=False)

    def open_sibling(self, name: str, *, create: bool = False) -> VectorIndex:
        """Another collection of the same Chroma."""
        return VectorIndex(self._path, name, url=self._url, create=create)

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
        start = 0
        while start < len(records):
            piece = records[start : start + self._piece]
            began = time.perf_counter()
            with self._translated("written"):
                self._collection.upsert(
                    ids=[record["id"] for record in piece],
                    embeddings=[
                        np.frombuffer(base64.b64decode(record["vector"]), "<f4") for record in piece
                    ],
                    documents=[record["text"] for record in piece],
                    metadatas=[record["metadata"] for record in piece],
                )
            self._pace(time.perf_counter() - began)
            start += len(piece)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete ids (unknown ones are ignored); durable on return."""
        start = 0
        while start < len(ids):
            piece = ids[start : start + self._piece]
            began = time.perf_counter()
            with self._translated("written"):
                self._collection.delete(ids=[codec.encode(key) for key in piece])
            self._pace(time.perf_counter() - began)
            start += len(piece)

    def query(self, vector: NDArray[np.float32], limit: int, where: Where | None = None) -> Ranking:
        """The nearest `limit` ids by cosine similarity.

        Raises:
            InvalidInputError: Chroma refuses the filter.
            StoreError: Chroma failed.
        """
        with self._translated("searched"):
            found = self._collection.query(
                query_embeddings=[vector],
                n_results=limit if limit <= _SURE else 2 * limit,
                where=codec.encode_where(where),
                include=["distances"],
            )
        hits = zip(found["ids"][0], found["distances"][0], strict=True)
        scores = ((codec.decode(key), 1.0 - float(distance)) for key, distance in hits)
        return ranked(scores)[:limit]

    def get(
        self,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        limit: int | None = None,
    ) -> dict[str, Passage]:
        """Passages by id (unknown ones left out) and filter."""
        passages: dict[str, Passage] = {}
        for rows in self._read(ids, where, limit, ["documents", "metadatas"]):
            passages |= self._unpack_all(rows["ids"], rows["documents"], rows["metadatas"])
        return passages

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """Which of the ids (None: of all) exist and pass the filter."""
        pieces = self._read(ids, where, None, [])
        return [codec.decode(key) for rows in pieces for key in rows["ids"]]

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Stored vectors [dim] by id."""
        found: dict[str, NDArray[np.float32]] = {}
        for rows in self._read(ids, None, None, ["embeddings"]):
            for key, vector in zip(rows["ids"], rows["embeddings"], strict=True):
                found[codec.decode(key)] = np.asarray(vector, np.float32)
        return found

    def scan(
        self, size: int = _READ_BATCH, *, vectors: bool = False
    ) -> Iterator[list[tuple[Passage, NDArray[np.float32] | None, list[float]]]]:
        """Every passage in batches, with its vector (if asked for) and its stored sketch."""
        include = ["documents", "metadatas", *(["embeddings"] if vectors else [])]
        offset = 0
        while True:
            with self._translated("read"):
                rows = self._collection.get(limit=size, offset=offset, include=include)
            if not rows["ids"]:
                return
            offset += len(rows["ids"])
            passages = self._unpack_all(rows["ids"], rows["documents"], rows["metadatas"])
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
        with self._translated("read"):
            return int(self._collection.count())

    def check_where(self, where: Where | None) -> None:
        """Let Chroma decide whether the filter is one.

        Raises:
            InvalidInputError: It is not; the message is Chroma's.
        """
        if where is None:
            return
        with self._translated("searched"):
            self._collection.get(where=codec.encode_where(where), limit=1, include=[])

    def drop(self, name: str) -> None:
        """Delete a collection; one that is not there is no error."""
        from chromadb.errors import NotFoundError

        with self._translated("written"), contextlib.suppress(NotFoundError):
            self._client.delete_collection(name)

    def drop_others(self, keep: Collection[str]) -> None:
        """Delete every other collection but `keep`: what a process that was killed left behind."""
        with self._translated("read"):
            names = [collection.name for collection in self._client.list_collections()]
        for name in names:
            if name != self.name and name not in keep:
                self.drop(name)

    def close(self) -> None:
        """Close files and threads. May be called twice."""
        if self._client is not None:
            client, self._client, self._collection = self._client, None, None
            client.close()

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
            with self._translated("read"):
                rows = self._collection.get(**piece, include=include)
            yield rows

    def _unpack_all(
        self,
        ids: Sequence[str],
        documents: Sequence[str | None],
        metadatas: Sequence[Mapping[str, Any] | None],
    ) -> dict[str, Passage]:
        passages = {}
        for row in zip(ids, documents, metadatas, strict=True):
            try:
                passage = codec.unpack(*row)
            except (KeyError, ValueError, TypeError) as error:
                msg = (
                    f"The record {row[0]!r} in Chroma ({self.where_it_is}) is damaged or was not "
                    "written by tars-rag. See: tars-rag store check DIR"
                )
                raise StoreError(msg) from error
            passages[passage.id] = passage
        return passages

    def _pace(self, seconds: float) -> None:
        """Aim the size of the next piece at the time a write may take in this thread."""
        in_main = threading.current_thread() is threading.main_thread()
        aim = _PIECE_SECONDS_IN_MAIN if in_main else _PIECE_SECONDS
        factor = min(2.0, max(0.5, aim / max(seconds, 1e-6)))
        self._piece = int(min(self._piece_max, max(_PIECE_MIN, self._piece * factor)))

    @contextlib.contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        """Chroma's errors as ours."""
        try:
            yield
        except (StoreError, InvalidInputError):
            raise
        except Exception as error:
            text = str(error) or type(error).__name__
            if "where" in text.lower() and (
                isinstance(error, ValueError) or "InvalidArgument" in type(error).__name__
            ):
                msg = f"The filter `where` is not one that Chroma takes: {text}"
                raise InvalidInputError(msg) from error
            msg = (
                f"Chroma ({self.where_it_is}) could not be {verb}: {text}. "
                "See what is wrong: tars-rag store check DIR"
            )
            raise StoreError(msg) from error


def records(passages: Sequence[Passage], vectors: NDArray[np.float32]) -> list[Record]:
    """Checked passages and their vectors [n, dim] as Chroma will hold them."""
    return [
        {
            "id": codec.encode(passage.id),
            "text": codec.encode(passage.text),
            "metadata": codec.pack_metadata(passage, vector),
            "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii"),
        }
        for passage, vector in zip(passages, vectors, strict=True)
    ]


def _client(path: Path | None, url: str | None) -> Any:
    import chromadb
    from chromadb.config import Settings

    settings = Settings(anonymized_telemetry=False)
    connect: Callable[[], Any]
    if url is None:
        connect = _embedded(chromadb, path, settings)
    else:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"chroma_url must look like http://host:8000, got {url!r}."
            raise ConfigError(msg)
        port = parts.port or (443 if parts.scheme == "https" else 8000)
        host, ssl = parts.hostname, parts.scheme == "https"
        connect = lambda: chromadb.HttpClient(host, port, ssl, settings=settings)  # noqa: E731
    try:
        return connect()
    except Exception as error:
        hint = " Is the server running (chroma run)?" if url else ""
        msg = f"Chroma ({url or path}) cannot be opened: {error}.{hint}"
        raise StoreError(msg) from error


def _embedded(chromadb: Any, path: Path | None, settings: Any) -> Callable[[], Any]:
    return lambda: chromadb.PersistentClient(str(path), settings=settings)
