"""Which record of a shared Chroma is a passage's own: a file beside the other indexes.

Behind a server a request may be carried out late, twice, or after its sender gave up on it. So
no two versions of a passage share a record: each write makes a new one, named by the passage's id
and a revision that never comes again, and this file says which revision counts. What a late
request adds counts for nothing, and what it deletes had stopped counting before it was sent.

The file grows by one line a write, with a checksum, and is read on from where it was read last; it
is written anew once most of it is of the past. Whoever reads or writes it holds the store's lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from tars_rag.errors import StoreError
from tars_rag.files import sync, write_atomically

_MAGIC = b"tars-rag revisions 1\n"
_MARK = "\x1etars-rag:"
_DIGITS = 24
_SPARE = 1000


def new_revision() -> str:
    """A revision that no other write has; by the clocks of the writers, the later is the larger."""
    return f"{time.time_ns():016x}{secrets.token_hex(4)}"


def record_id(key: str, revision: str) -> str:
    """The id of a record in Chroma; without a revision it is one of before there were any."""
    return f"{key}{_MARK}{revision}" if revision else key


def parts_of(record: str) -> tuple[str, str]:
    """Key and revision of a record's id."""
    key, mark, revision = record.rpartition(_MARK)
    return (key, revision) if mark and len(revision) == _DIGITS else (record, "")


class Revisions:
    """The revisions of one collection, by key (the encoded id of a passage).

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is none yet (see `create`).
        StoreError: It is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, str] = {}
        self._read = 0
        self._lines = 0
        self._file: tuple[int, int] | None = None
        self._reading = threading.Lock()
        self.refresh()

    @classmethod
    def create(cls, path: Path, known: Mapping[str, str]) -> Revisions:
        """Write a new file, durably, in the place of any other.

        Raises:
            OSError: It cannot be written.
        """
        if not path.parent.is_dir():
            path.parent.mkdir()
            sync(path.parent.parent)
        write_atomically(path, _MAGIC + _line(known))
        return cls(path)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def page(self, offset: int, limit: int | None) -> list[str]:
        """Keys in their order, which stays the same until something is written."""
        return list(islice(self._known, offset, None if limit is None else offset + limit))

    def record_ids(self, keys: Sequence[str]) -> list[str]:
        """The records of those keys that are known."""
        known = self._known
        return [record_id(key, known[key]) for key in keys if key in known]

    def counts(self, record: str) -> bool:
        """Whether a record is its passage's present one."""
        key, revision = parts_of(record)
        return self._known.get(key) == revision

    def refresh(self) -> None:
        """Read what others have written since.

        Raises:
            StoreError: The file is damaged.
            OSError: It cannot be read.
        """
        with self._reading:
            self._read_on()

    def _read_on(self) -> None:
        status = self.path.stat()
        file = status.st_dev, status.st_ino
        if file != self._file or status.st_size < self._read:
            self._known, self._read, self._lines, self._file = {}, 0, 0, file
        if status.st_size == self._read:
            return
        with self.path.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        if self._read == 0:
            if not data.startswith(_MAGIC):
                raise StoreError(self._damaged())
            self._read, data = len(_MAGIC), data[len(_MAGIC) :]
        lines = data.split(b"\n")
        for number, line in enumerate(lines[:-1]):
            content = _content(line)
            if content is None:
                if number < len(lines) - 2:
                    raise StoreError(self._damaged())
                return  # its writer was killed: nobody was told that it was written
            self._learn(content)
            self._read += len(line) + 1

    def commit(self, changes: Mapping[str, str | None]) -> None:
        """Make revisions the present ones (None: there is no such passage any more); durable.

        Raises:
            OSError: It cannot be written; nothing has changed.
        """
        if not changes:
            return
        if self._lines > 4 * len(self._known) + _SPARE:
            known = {**self._known, **changes}
            kept = {key: value for key, value in known.items() if value is not None}
            write_atomically(self.path, _MAGIC + _line(kept))
            self.refresh()
            return
        with self._appending() as stream:
            line = _line(changes)
            if os.write(stream, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(stream)
        self._learn(changes)
        self._read += len(line)

    @contextlib.contextmanager
    def _appending(self) -> Iterator[int]:
        """The file, open at the end of its last whole line, to which it is cut back on an error."""
        stream = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(stream, self._read)
            os.lseek(stream, self._read, os.SEEK_SET)
            try:
                yield stream
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(stream, self._read)
                raise
        finally:
            os.close(stream)

    def _learn(self, changes: Mapping[str, str | None]) -> None:
        self._lines += len(changes)
        for key, revision in changes.items():
            self._known.pop(key, None)  # what was written last comes last
            if revision is not None:
                self._known[key] = revision

    def _damaged(self) -> str:
        return (
            f"{self.path} is damaged. Rename it: the next opening for writing makes it anew, from "
            "what the Chroma server and the word index hold."
        )


def _line(changes: Mapping[str, str | None]) -> bytes:
    body = json.dumps(changes, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _content(line: bytes) -> dict[str, str | None] | None:
    """What a line says; None: it is torn."""
    checksum, _, body = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        return None
    content: dict[str, str | None] = json.loads(body)
    return content
