"""The file that a backup is: an SQLite database with every passage and vector, and their checksums.

It is a well-kept format that other programs read, and it does not depend on how this version of
the package lays out its indexes. What is read may be anybody's, so nothing in it is trusted: the
tables must be the very ones made here (no trigger, no view), the file is opened so that neither a
rollback journal nor a write-ahead log beside it is looked at, every size is bounded before it is
read, and every row has a checksum, as has the whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.retrieval.indexes.codec import check_passage, decode, unpack_content
from tars_rag.retrieval.indexes.words.languages import check_language
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage.store_json import StoreJson

APPLICATION: Final = 0x74617262  # "tarb", in the header of the file
VERSION: Final = 1
SCHEMA: Final = {
    "about": "CREATE TABLE about(name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "passages": (
        "CREATE TABLE passages(id TEXT PRIMARY KEY, content BLOB NOT NULL, vector BLOB NOT NULL, "
        "digest BLOB NOT NULL)"
    ),
    "records": "CREATE TABLE records(name TEXT PRIMARY KEY, data BLOB NOT NULL)",
}
_MOST = 1 << 28  # bytes of a passage, or of a record of indexed files
_OF_STORE = ("fingerprint", "model", "created", "dimension", "language", "probe")
_DIMENSIONS = 1 << 16
_MAGIC = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class About:
    """What a backup says of itself.

    Attributes:
        taken: UTC, ISO 8601.
        store: What its store said of itself.
        line: The store's sessions, the last one first (see `state`).
        passages: How many there are.
        digest: Of all rows, and of the other fields.
    """

    taken: str
    store: StoreJson
    line: tuple[str, ...]
    passages: int
    digest: str

    @property
    def rows(self) -> dict[str, str]:
        """As the file keeps it."""
        described = asdict(self.store)
        held = {name: described[name] for name in _OF_STORE}
        about = {"taken": self.taken, "store": held, "line": self.line, "passages": self.passages}
        return {name: json.dumps(value) for name, value in {**about, "digest": self.digest}.items()}

    def of(self, rows: Iterator[tuple[str, bytes]], records: dict[str, bytes]) -> About:
        """With the digest of all rows (encoded id and digest, in the order of the ids)."""
        digest = hashlib.sha256()
        for key, its in rows:
            digest.update(key.encode() + b"\0" + its)
        told = {name: value.encode() for name, value in self.rows.items() if name != "digest"}
        for name, data in sorted({**told, **records}.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        return replace(self, digest=digest.hexdigest())


def row_digest(key: str, content: bytes, vector: bytes) -> bytes:
    """16 bytes that differ when any of them does."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (key.encode(), content, vector):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class BackupFile:
    """A backup, to be read.

    Args:
        path: The file.

    Raises:
        StoreError: It is none, or not whole, or cannot be read; the message names the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = self._opened()
        try:
            with self._translated():
                self.about = self._about()
        except BaseException:
            self._database.close()
            raise

    def verify(self) -> None:
        """Read everything and compare it with the checksums.

        Raises:
            StoreError: What differs.
        """
        with self._translated():
            rows = ((key, its) for key, _, _, its in self._rows())
            if self.about.of(rows, self.records()) != self.about:
                self._refuse("a passage is missing, or something in it was altered")

    def passages(self, size: int) -> Iterator[tuple[list[Passage], NDArray[np.float32]]]:
        """All passages with their vectors [n, dim], in batches.

        Raises:
            StoreError: One is not what was written, or nothing that a store can hold.
        """
        passages: list[Passage] = []
        vectors: list[bytes] = []
        with self._translated():
            for key, content, vector, _ in self._rows():
                passages.append(check_passage(unpack_content(key, content)))
                vectors.append(vector)
                if len(passages) == size:
                    yield passages, self._stacked(vectors)
                    passages, vectors = [], []
            if passages:
                yield passages, self._stacked(vectors)

    def records(self) -> dict[str, bytes]:
        """What else lay in the store's directory, by name."""
        with self._translated():
            self._check_sizes("records", "data")
            return {str(name): data for name, data in self._ask("SELECT name, data FROM records")}

    def digests(self) -> dict[str, bytes]:
        """The digest of each row by its encoded id."""
        with self._translated():
            return dict(self._ask("SELECT id, digest FROM passages"))

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._database.close()

    def __enter__(self) -> BackupFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> sqlite3.Connection:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
                head = os.pread(descriptor, 100, 0) if stat.S_ISREG(status.st_mode) else b""
            finally:
                os.close(descriptor)
        except OSError as error:
            msg = f"The backup {self.path} cannot be read: {error}. Check path and permissions."
            raise StoreError(msg) from error
        if not head.startswith(_MAGIC) or int.from_bytes(head[68:72], "big") != APPLICATION:
            self._refuse("it is no backup of a store")
        page, pages = (int.from_bytes(head[at:to], "big") for at, to in ((16, 18), (28, 32)))
        if (page if page > 1 else 1 << 16) * pages != status.st_size:
            self._refuse(f"it is of {status.st_size} bytes, not of {pages} pages")
        # immutable: what lies beside the file, a journal for instance, is none of ours.
        uri = f"file:{quote(str(self.path.absolute()))}?mode=ro&immutable=1"
        try:
            return sqlite3.connect(uri, uri=True, check_same_thread=False)
        except sqlite3.Error as error:
            self._refuse(str(error), error)

    def _about(self) -> About:
        for pragma in ("trusted_schema=0", "cell_size_check=1", "query_only=1", "mmap_size=0"):
            self._ask(f"PRAGMA {pragma}")
        found = {
            name: sql
            for name, sql in self._ask("SELECT name, sql FROM sqlite_schema")
            if not str(name).startswith("sqlite_autoindex_")
        }
        if found != SCHEMA:
            self._refuse("its tables are not those of a backup")
        # Pages that are referred to twice would make a small file look endless.
        problem = self._ask("PRAGMA quick_check(1)")[0][0]
        if problem != "ok":
            self._refuse(str(problem))
        version = self._ask("PRAGMA user_version")[0][0]
        if version != VERSION:
            self._refuse(f"it is of version {version}, this tars-rag reads {VERSION}")
        self._check_sizes("about", "value")
        held = {name: json.loads(value) for name, value in self._ask("SELECT * FROM about")}
        if not held:
            self._refuse("it was never finished")
        line = tuple(map(str, held["line"]))
        store = _store(held["store"])
        return About(str(held["taken"]), store, line, int(held["passages"]), str(held["digest"]))

    def _rows(self) -> Iterator[tuple[str, bytes, bytes, bytes]]:
        for column in ("id", "content", "vector", "digest"):
            self._check_sizes("passages", column)
        wanted = 4 * (self.about.store.dimension or 0)
        for row in self._database.execute(
            "SELECT id, content, vector, digest FROM passages ORDER BY id"
        ):
            key, content, vector, its = row
            kinds = [type(value) for value in row]
            if kinds != [str, bytes, bytes, bytes] or row_digest(key, content, vector) != its:
                self._refuse(f"passage {decode(str(key))!r} is not what was written")
            if len(vector) != wanted:
                self._refuse(f"the vector of {decode(key)!r} has {len(vector)} bytes")
            yield key, content, vector, its

    def _stacked(self, vectors: list[bytes]) -> NDArray[np.float32]:
        dimension = self.about.store.dimension or 1
        return np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), dimension)

    def _check_sizes(self, table: str, column: str) -> None:
        (largest,) = self._ask(f"SELECT max(length({column})) FROM {table}")[0]
        if largest is not None and largest > _MOST:
            self._refuse(f"{table}.{column} holds {largest} bytes, more than {_MOST}")

    def _ask(self, sql: str) -> list[Any]:
        return self._database.execute(sql).fetchall()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (
            *(sqlite3.Error, InvalidInputError),
            *(ValueError, KeyError, TypeError, AttributeError),
        ) as error:
            self._refuse(str(error), error)
        except (RecursionError, MemoryError, OverflowError) as error:
            self._refuse(type(error).__name__, error)

    def _refuse(self, problem: str, cause: BaseException | None = None) -> NoReturn:
        msg = (
            f"The backup {self.path} cannot be used: {problem}. Nothing was restored from it. Give "
            "another backup, or make a new one of the store, if it is still there."
        )
        raise StoreError(msg) from cause


def _store(raw: dict[str, Any]) -> StoreJson:
    """What a new store will say of itself; Chroma's collection, and where it is, are its own.

    Raises:
        ValueError: A field is not what it must be.
    """
    fingerprint, model, created, dimension, language, probe = (raw[name] for name in _OF_STORE)
    known = (
        isinstance(fingerprint, str)
        and isinstance(created, str)
        and isinstance(model, str | None)
        and (dimension is None or (type(dimension) is int and 0 < dimension <= _DIMENSIONS))
        and (probe is None or all(type(number) is float for number in probe))
    )
    if not known:
        msg = "what it says of its store is not to be understood"
        raise ValueError(msg)
    return StoreJson(
        fingerprint,
        "passages",
        dimension=dimension,
        created=created,
        model=model,
        language=check_language(language),
        probe=probe,
    )
