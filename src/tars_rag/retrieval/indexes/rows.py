"""The file of an exact index: ids and float32 vectors, appended in batches, one fsync each.

    head      512 bytes  magic, salt, how far batches were committed, CRC-32
    batch     header     what `_HEADER` says, sealed by a CRC-32 over itself, the salt and the
                         header before it: bytes that an older file left here are never a batch
              tables     of the batch's rows: content hashes, ends of ids, steps, residuals;
                         the slots it removes; the caller's stamp; the ids
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
import itertools
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

_MAGIC = b"tars-rag rows 1\n"
_HEAD = struct.Struct("<16s8sQ")
_HEAD_SIZE = 512
_BATCH_MAGIC = b"TRXB"
# magic, dimension, added, removed, bytes of stamp, bytes of ids, CRC-32 of tables, of vectors and
# of codes, generation, digest
_HEADER = struct.Struct("<4s8IQ8s")
_CRC = struct.Struct("<I")
_PAIR = struct.Struct("<II")
_HEADER_SIZE = _HEADER.size + _CRC.size
_PIECE = 1 << 20
_GAP = 8  # rows that are read and thrown away rather than asking once more


class DamageError(Exception):
    """The file is not what was written; the message says where."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What a batch says of its rows, beside their vectors.

    Attributes:
        contents: A hash of each vector's bytes, uint64 [added].
        ends: Where each id ends in `ids`, uint32 [added].
        steps: See `Codes`, float32 [added].
        residuals: See `Codes`, float32 [added].
        removed: Slots, uint32.
        stamp: The caller's.
        ids: UTF-8 (lone surrogates passed), one after the other.
    """

    contents: NDArray[np.uint64]
    ends: NDArray[np.uint32]
    steps: NDArray[np.float32]
    residuals: NDArray[np.float32]
    removed: NDArray[np.uint32]
    stamp: bytes
    ids: bytes

    def pack(self) -> bytes:
        """The bytes, padded to a multiple of 8."""
        arrays = (self.contents, self.ends, self.steps, self.residuals, self.removed)
        body = b"".join([*(array.tobytes() for array in arrays), self.stamp, self.ids])
        return body + bytes(-len(body) % 8)


@dataclass(frozen=True, slots=True)
class Batch:
    """Where a batch is, and what its header says."""

    at: int
    first: int
    dim: int
    added: int
    removed: int
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
        return self.tables_at + 20 * self.added + 4 * self.removed + self.stamp

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
        sizes = len(tables.removed), len(tables.stamp), len(tables.ids)
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

    def back_to(self, end: int, count: int, crc: int) -> None:
        """Forget what was appended since, and failed to become durable."""
        self.end, self.count, self._last_crc = end, count, crc

    @property
    def place(self) -> tuple[int, int, int]:
        """What `back_to` takes."""
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
        data = _read(self.file, size, batch.tables_at)
        if len(data) < size:
            raise self._damage(batch.at, "is cut off")
        if zlib.crc32(data) != batch.tables_crc:
            raise self._damage(batch.at, "holds tables that were altered")
        added, at = batch.added, 0
        parts: list[Any] = []
        kinds = (("<u8", added), ("<u4", added), ("<f4", added), ("<f4", added))
        for kind, count in (*kinds, ("<u4", batch.removed)):
            parts.append(np.frombuffer(data, kind, count, at))
            at += parts[-1].nbytes
        parts.append(data[at : at + batch.stamp])
        parts.append(data[at + batch.stamp : at + batch.stamp + batch.ids])
        return Tables(*parts)

    def _accept(self, batch: Batch) -> None:
        self.end, self._last_crc = batch.end, batch.crc
        self.count += batch.added

    def _mark(self) -> None:
        """Note in the head how far batches are committed; not fsync'd, see the module."""
        _write(self.file, [_head(self._salt, self.end)], 0)

    def _seal(self, header: bytes) -> int:
        return zlib.crc32(self._salt + _CRC.pack(self._last_crc) + header)

    def _damage(self, at: int, what: str) -> DamageError:
        return DamageError(f"{self.path.name}: the batch at byte {at} {what}")


class RowReader:
    """The rows of a file up to some batch, by slot. Never changes; any thread may use it.

    Args:
        file: The file; its descriptor stays open as long as this lives.
        dim: Numbers in a vector.
        batches: `Batch.place` of each, int64 [b, 5].
    """

    def __init__(self, file: RowFile, dim: int, batches: NDArray[np.int64]) -> None:
        self._file, self._dim, self._batches = file, dim, batches

    def vectors(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors [m, dim] of ascending slots."""
        found = np.empty((len(slots), self._dim), "<f4")
        if not len(slots):
            return found
        size = 4 * self._dim
        where = self._where(slots)
        at = self._batches[where, 3] + (slots - self._batches[where, 0]) * size
        breaks = (np.diff(at) > _GAP * size) | (np.diff(where) != 0)
        cuts = np.flatnonzero(breaks) + 1
        bounds = [0, *cuts.tolist(), len(slots)]
        for start, stop in itertools.pairwise(bounds):
            self._read_run(found[start:stop], at[start:stop])
        return found

    def _read_run(self, out: NDArray[np.float32], at: NDArray[np.int64]) -> None:
        """Read rows that are near one another into `out` [m, dim]."""
        if not len(at):
            return
        start, size = int(at[0]), 4 * self._dim
        total = int(at[-1]) + size - start
        if total == out.nbytes:
            _read_into(self._file, out, start)
            return
        scratch = np.empty((total // size, self._dim), "<f4")
        _read_into(self._file, scratch, start)
        out[:] = scratch[(at - start) // size]

    def contents(self, slots: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The content hashes of ascending slots; rows of equal vectors have equal ones."""
        found = np.empty(len(slots), "<u8")
        for batch, start, stop in self._groups(slots):
            first, ends_at = int(self._batches[batch, 0]), int(self._batches[batch, 1])
            added = int(self._batches[batch, 4])
            table = np.empty(added, "<u8")
            _read_into(self._file, table, ends_at - 8 * added)
            found[start:stop] = table[slots[start:stop] - first]
        return found

    def ids(self, slots: NDArray[np.int64]) -> list[str]:
        """The ids of ascending slots."""
        found: list[str] = []
        for batch, start, stop in self._groups(slots):
            first, ends_at, ids_at = self._batches[batch, :3].tolist()
            if stop - start == 1:
                found.append(self._id(int(slots[start]) - first, ends_at, ids_at))
                continue
            places = slots[start:stop] - first
            low, high = int(places[0]), int(places[-1]) + 1
            ends = np.zeros(high - low + 1, "<u4")
            skip = low == 0
            _read_into(self._file, ends[int(skip) :], ends_at + 4 * (low - 1 + int(skip)))
            base = int(ends[0])
            blob = _read(self._file.file, int(ends[-1]) - base, ids_at + base)
            bounds = (ends - base).tolist()
            found += [
                blob[bounds[place] : bounds[place + 1]].decode("utf-8", "surrogatepass")
                for place in (places - low).tolist()
            ]
        return found

    def _id(self, place: int, ends_at: int, ids_at: int) -> str:
        """One id of a batch."""
        skip = min(place, 1)
        data = _read(self._file.file, 4 + 4 * skip, ends_at + 4 * (place - skip))
        begin, end = _PAIR.unpack(data.rjust(_PAIR.size, b"\0"))
        blob = _read(self._file.file, end - begin, ids_at + begin)
        return blob.decode("utf-8", "surrogatepass")

    def _where(self, slots: NDArray[np.int64]) -> NDArray[np.intp]:
        return np.searchsorted(self._batches[:, 0], slots, side="right") - 1

    def _groups(self, slots: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """(batch, start, stop) for the slots of each batch."""
        where = self._where(slots)
        cuts = (np.flatnonzero(np.diff(where)) + 1).tolist()
        for start, stop in zip([0, *cuts], [*cuts, len(slots)], strict=True):
            if stop > start:
                yield int(where[start]), start, stop


def content_hashes(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """64 bits of BLAKE2b of each row's bytes [n]."""
    data = np.ascontiguousarray(vectors, "<f4")
    hashes = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in data)
    return np.frombuffer(hashes, "<u8")


def pack_ids(ids: Sequence[str]) -> tuple[bytes, NDArray[np.uint32]]:
    """The ids' bytes, and where each ends."""
    encoded = [passage_id.encode("utf-8", "surrogatepass") for passage_id in ids]
    ends = np.cumsum([len(data) for data in encoded], dtype=np.uint32)
    return b"".join(encoded), ends.astype(np.uint32)


def unpack_ids(tables: Tables) -> list[str]:
    """The ids of a batch."""
    ends = tables.ends.tolist()
    return [
        tables.ids[start:end].decode("utf-8", "surrogatepass")
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _head(salt: bytes, committed: int) -> bytes:
    head = _HEAD.pack(_MAGIC, salt, committed)
    return (head + _CRC.pack(zlib.crc32(head))).ljust(_HEAD_SIZE, b"\0")


def _write(file: int, parts: Sequence[bytes], at: int) -> None:
    data = memoryview(b"".join(parts))
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written


def _read(file: int, size: int, at: int) -> bytes:
    parts = []
    while size and (piece := os.pread(file, size, at)):
        parts.append(piece)
        size, at = size - len(piece), at + len(piece)
    return b"".join(parts)


def _read_into(file: RowFile, out: NDArray[Any], at: int) -> None:
    """Fill an array from the file.

    Raises:
        DamageError: The file ends before it.
    """
    buffer = out.data.cast("B") if out.size else memoryview(b"")
    while buffer:
        got = os.preadv(file.file, [buffer], at)
        if not got:
            msg = f"{file.path.name}: cut off at byte {at}"
            raise DamageError(msg)
        buffer, at = buffer[got:], at + got
