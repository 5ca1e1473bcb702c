"""The intent journal: which ids are being written, on disk before the first of them is.

Between `begin` and `clear` the two indexes may disagree about these ids and no others. The record
carries its own checksum. A record that is whole means: compare these ids. A record that is torn
means that the power went while it was being written, so that nothing was written after it, or
that the file was damaged later; the two look alike, so every id is compared.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"tars-rag journal 1\n"


@dataclass(frozen=True, slots=True)
class Intent:
    """What was in flight; `ids` is None where the record is torn."""

    ids: tuple[str, ...] | None


class Journal:
    """A file that is there only while a write is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, ids: Sequence[str]) -> None:
        """Record the ids; on disk (file and directory) on return."""
        body = json.dumps(list(ids)).encode("ascii")  # \ud800 escapes: any string survives
        record = _MAGIC + b"%08x %d\n" % (zlib.crc32(body), len(body)) + body
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(record)
            stream.flush()
            os.fsync(descriptor)
        sync_directory(self.path.parent)

    def clear(self) -> None:
        """Forget the intent.

        Not fsync'd: should the file come back after a power cut, ids that agree are compared again.
        """
        self.path.unlink(missing_ok=True)

    def pending(self) -> Intent | None:
        """What a crash left in flight; None: nothing."""
        try:
            record = self.path.read_bytes()
        except FileNotFoundError:
            return None
        return Intent(_parse(record))


def _parse(record: bytes) -> tuple[str, ...] | None:
    if not record.startswith(_MAGIC):
        return None
    header, _, body = record[len(_MAGIC) :].partition(b"\n")
    if header != b"%08x %d" % (zlib.crc32(body), len(body)):
        return None
    return tuple(json.loads(body))


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (fsync of the directory, as POSIX asks for)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that after any crash it is the old one or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_directory(path.parent)
