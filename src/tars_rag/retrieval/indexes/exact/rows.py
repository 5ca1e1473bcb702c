"""The file of an exact index: ids and float32 vectors, appended in batches, one fsync each.

    head      512 bytes  magic, salt, how far batches were committed, CRC-32
    batch     header     what `_HEADER` says, sealed by a CRC-32 over itself, the salt and the
                         header before it: bytes that an older file left here are never a batch
              tables     of the batch's rows: content hashes, ends of ids, numbers and kinds
                         (see `codes`); the slots it removes; new centres; the caller's stamp;
                         the ids
              vectors    float32 [added, dim]

A row has a *slot*, its number in the file. Rows are never changed: replacing one removes its slot.

What must be durable when: a batch is written past the committed end and fsync'd, then the head is
written, without an fsync. A head that lags behind (power cut) costs nothing, for the batches after
it are sealed themselves and are taken if they are whole. One that is not whole after the end that
the head names is a write that was cut off, and is dropped; before that end it is damage. So a
process that is killed leaves the last commit or the one in flight, and so does a power cut, on a
disk that orders nothing but by fsync.
"""

from __future__ import annotations

import hashlib
import os
import struct
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.exact.row_tables import Tables

_MAGIC = b"tars-rag rows 2\n"
_HEAD = struct.Struct("<16s8sQ")
_HEAD_SIZE = 512
_BATCH_MAGIC = b"TRXB"
# magic, dimension, added, removed, new centres, bytes of stamp, bytes of ids, CRC-32 of tables, of
# vectors and of codes, generation, digest
_HEADER = struct.Struct("<4s9IQ8s")
_CRC = struct.Struct("<I")
_HEADER_SIZE = _HEADER.size + _CRC.size
_PIECE = 1 << 20


class DamageError(StoreError):
    """The file is not what was written; the message says where."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Where a batch is, and what its header says."""

    at: int
    first: int
    dim: int
    added: int
    removed: int
    centres: int
    stamp: int
    ids: int
    tables_crc: int
    vectors_crc: int
    codes_crc: int
    generation: int
    digest: bytes
    crc: int

    @property
    def tables_at(self) -> int:
        """Where its tables begin."""
        return self.at + _HEADER_SIZE

    @property
    def ends_at(self) -> int:
        """Where its ends of ids begin."""
        return self.tables_at + 8 * self.added

    @property
    def ids_at(self) -> int:
        """Where its ids begin."""
        numbers = self.removed + self.centres * self.dim
        return self.tables_at + 25 * self.added + 4 * numbers + self.stamp

    @property
    def vectors_at(self) -> int:
        """Where its vectors begin."""
        return self.ids_at + self.ids + -(self.ids_at + self.ids - self.tables_at) % 8

    @property
    def place(self) -> tuple[int, int, int, int, int]:
        """What a `RowReader` wants to know of it."""
        return self.first, self.ends_at, self.ids_at, self.vectors_at, self.added

    @property
    def end(self) -> int:
        """Where the next batch begins."""
        return self.vectors_at + 4 * self.dim * self.added


class RowFile:
    """One such file, open.

    Args:
        path: The file.
        read_only: Never write to it.

    Raises:
        DamageError: It is no such file, or was damaged.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
        self._close = weakref.finalize(self, os.close, self.file)
        self._salt = b""
        self._read_head()
        self.end = _HEAD_SIZE
        self.count = 0
        self._last_crc = 0

    @classmethod
    def create(cls, path: Path) -> RowFile:
        """A new file, durable in itself; its name is not until the directory is fsync'd."""
        with path.open("wb") as stream:
            stream.write(_head(os.urandom(8), _HEAD_SIZE))
            stream.flush()
            os.fsync(stream.fileno())
        return cls(path, read_only=False)

    def close(self) -> None:
        """Release it. May be called twice."""
        self._close()

    def follow(self, *, tail: bool) -> Iterator[tuple[Batch, Tables]]:
        """The batches that were committed since the last call, whole and in order.

        Args:
            tail: Take those that are whole after the end that the head names, too.

        Raises:
            DamageError: One of them is not what was written.
        """
        committed = self._read_head()
        while tail or self.end < committed:
            try:
                batch = self._header()
                tables = self._tables(batch)
                if self.end >= committed:
                    self.check_vectors(batch)
            except DamageError:
                if self.end < committed:
                    raise
                return
            self._accept(batch)
            yield batch, tables

    def drop_tail(self) -> None:
        """Cut off what is no whole batch, and make durable what is."""
        if os.fstat(self.file).st_size > self.end:
            os.ftruncate(self.file, self.end)
        if self._read_head() != self.end:
            self.commit()

    def append(
        self,
        tables: Tables,
        vectors: NDArray[np.float32],
        codes_crc: int,
        generation: int,
        digest: bytes | None,
        previous: bytes,
    ) -> Batch:
        """Write a batch after the last.

        Args:
            tables: Of the rows.
            vectors: [added, dim].
            codes_crc: Of the rows' codes.
            generation: The commit's number.
            digest: Of everything up to it; None: made from `previous` and the batch.
            previous: The digest before.

        Returns:
            The batch, which is durable after `commit`, and part of the file after it.
        """
        body, content = tables.pack(), vectors.astype("<f4", copy=False).tobytes()
        crcs = zlib.crc32(body), zlib.crc32(content), codes_crc
        sizes = len(tables.removed), len(tables.centres), len(tables.stamp), len(tables.ids)
        fields = (vectors.shape[1], len(vectors), *sizes, *crcs, generation)
        if digest is None:
            packed = previous + _HEADER.pack(_BATCH_MAGIC, *fields, bytes(8))
            digest = hashlib.blake2b(packed, digest_size=8).digest()
        header = _HEADER.pack(_BATCH_MAGIC, *fields, digest)
        crc = self._seal(header)
        _write(self.file, [header, _CRC.pack(crc), body, content], self.end)
        made: tuple[Any, ...] = (self.end, self.count, *fields, digest, crc)
        batch = Batch(*made)
        self._accept(batch)
        return batch

    def commit(self) -> None:
        """Make what was appended durable."""
        os.fdatasync(self.file)
        self._mark()

    def back_to(self, place: tuple[int, int, int]) -> None:
        """Forget what was appended since a `place`.

        Raises:
            OSError: It cannot be cut off. What is appended next is written over it all the same.
        """
        self.end, self.count, self._last_crc = place
        self._mark()
        os.ftruncate(self.file, self.end)

    @property
    def place(self) -> tuple[int, int, int]:
        """Where the next batch goes: its offset, its first slot, the seal before it."""
        return self.end, self.count, self._last_crc

    def check_vectors(self, batch: Batch) -> None:
        """Raise a `DamageError` if the vectors of the batch are not what was written."""
        crc, at = 0, batch.vectors_at
        while at < batch.end:
            piece = os.pread(self.file, min(_PIECE, batch.end - at), at)
            if not piece:
                raise self._damage(batch.at, "is cut off")
            crc = zlib.crc32(piece, crc)
            at += len(piece)
        if crc != batch.vectors_crc:
            raise self._damage(batch.at, "holds vectors that were altered")

    def _read_head(self) -> int:
        """How far batches were committed."""
        head = os.pread(self.file, _HEAD_SIZE, 0).ljust(_HEAD_SIZE, b"\0")
        magic, self._salt, committed = _HEAD.unpack_from(head)
        crc = _CRC.unpack_from(head, _HEAD.size)[0]
        if magic != _MAGIC or crc != zlib.crc32(head[: _HEAD.size]):
            msg = f"{self.path.name}: its head was altered"
            raise DamageError(msg)
        return int(committed)

    def _header(self) -> Batch:
        data = os.pread(self.file, _HEADER_SIZE, self.end)
        if len(data) < _HEADER_SIZE:
            raise self._damage(self.end, "is cut off")
        header = data[: _HEADER.size]
        crc = _CRC.unpack_from(data, _HEADER.size)[0]
        if crc != self._seal(header):
            raise self._damage(self.end, "has a header that was altered")
        fields: tuple[Any, ...] = (self.end, self.count, *_HEADER.unpack(header)[1:], crc)
        return Batch(*fields)

    def _tables(self, batch: Batch) -> Tables:
        size = batch.vectors_at - batch.tables_at
        data = read(self.file, size, batch.tables_at)
        if len(data) < size:
            raise self._damage(batch.at, "is cut off")
        if zlib.crc32(data) != batch.tables_crc:
            raise self._damage(batch.at, "holds tables that were altered")
        numbers = batch.added, batch.removed, batch.centres, batch.dim
        return Tables.unpack(data, *numbers, batch.stamp, batch.ids)

    def _accept(self, batch: Batch) -> None:
        self.end, self._last_crc = batch.end, batch.crc
        self.count += batch.added

    def _mark(self) -> None:
        """Note in the head how far batches are committed; not fsync'd, see the module."""
        _write(self.file, [_head(self._salt, self.end)], 0)

    def _seal(self, header: bytes) -> int:
        return zlib.crc32(self._salt + _CRC.pack(self._last_crc) + header)

    def cut_off(self, at: int) -> DamageError:
        """What to raise where the file ends though a batch does not."""
        return DamageError(f"{self.path.name}: cut off at byte {at}")

    def _damage(self, at: int, what: str) -> DamageError:
        return DamageError(f"{self.path.name}: the batch at byte {at} {what}")


def _head(salt: bytes, committed: int) -> bytes:
    head = _HEAD.pack(_MAGIC, salt, committed)
    return (head + _CRC.pack(zlib.crc32(head))).ljust(_HEAD_SIZE, b"\0")


def _write(file: int, parts: Sequence[bytes], at: int) -> None:
    data = memoryview(b"".join(parts))
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written


def read(file: int, size: int, at: int) -> bytes:
    """Bytes of a descriptor from `at` on; fewer where it ends."""
    parts = []
    while size and (piece := os.pread(file, size, at)):
        parts.append(piece)
        size, at = size - len(piece), at + len(piece)
    return b"".join(parts)


def read_into(file: RowFile, out: NDArray[Any], at: int) -> None:
    """Fill an array from the file.

    Raises:
        DamageError: The file ends before it.
    """
    buffer = out.data.cast("B") if out.size else memoryview(b"")
    while buffer:
        got = os.preadv(file.file, [buffer], at)
        if not got:
            raise file.cut_off(at)
        buffer, at = buffer[got:], at + got
