"""The write-ahead log: small writes, whole, in one file that one fdatasync makes durable.

    0       two headers of 512 bytes, written in turn: the valid one with the higher epoch counts
    1024    frames, each tied to the epoch by its checksum; then what earlier epochs left, or zeros

A frame with content is a record; its number is one more than that of the record before it. A frame
without content is written behind a record once that is durable, and made durable with the next one.
Every frame says up to which record everything was durable when it was written (`settled`).

So what a power cut leaves of a write that was never acknowledged is told from damage: if a record
cannot be read, and a frame behind it says that it was durable, what was acknowledged is lost, and
that is an error. Otherwise the log ends there.

Space is filled with zeros ahead of the records and used again: an fdatasync then has no size and no
block to write down beside the record, and a full disk does not stop the log at once.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tars_rag.files import replacing

_MAGIC = b"tars-rag wal 1\r\n"
_HEADER = struct.Struct("<16sQQ16s")  # magic, epoch, number of the first record, whose vectors
# and a checksum, another one of the stamp, and the stamp of the indexes that have all before it
_FRAME = struct.Struct("<4sIQQ")  # marker, length, number, settled
_CRC = struct.Struct("<I")
_MARKER = b"\xf4wal"
_SLOT = 512
_STAMP = 400
_START = 2 * _SLOT
_PAGE = 4096
_CHUNK = 256 << 10
_KEPT = 4 << 20  # bytes of the file that are kept to be used again


@dataclass(frozen=True, slots=True)
class Contents:
    """What a log holds.

    Attributes:
        records: Content of the records that can be read, oldest first.
        damage: Why acknowledged records cannot be read; None: all can.
    """

    records: tuple[bytes, ...] = ()
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class _Head:
    epoch: int
    first: int
    identity: bytes
    stamp: str = ""

    def packed(self) -> bytes:
        data = _HEADER.pack(_MAGIC, self.epoch, self.first, self.identity)
        data += _CRC.pack(zlib.crc32(data))
        text = self.stamp.encode()[:_STAMP]
        return (data + _CRC.pack(zlib.crc32(text)) + text).ljust(_SLOT, b"\0")


@dataclass(frozen=True, slots=True)
class _Frame:
    epoch: int
    number: int
    settled: int
    body: bytes
    start: int
    end: int


class WriteAheadLog:
    """The log of one store. One thread at a time appends or resets.

    Args:
        path: The file; made at the first record.
        identity: What the vectors of the records are of: the embedder's fingerprint.

    Attributes:
        size: Bytes that records take in the file.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.size = 0
        self._identity = _digest(identity)
        self._head = _Head(0, 1, self._identity)
        self._descriptor = -1
        self._end = _START
        self._room = 0
        self._next = 1
        self._spoiled = False

    def read(self) -> Contents:
        """What the file holds, read from the beginning; nothing is changed.

        Raises:
            OSError: It cannot be read.
        """
        try:
            descriptor = self._opened(os.O_RDONLY)
        except FileNotFoundError:
            return Contents()
        with os.fdopen(descriptor, "rb") as stream:
            data = stream.read()
        head, damage = _newest(data), None
        newer = list(_frames(data, head.epoch + 1)) if head else []
        if newer:  # there is none before its header is durable
            damage = "its header is damaged"
            head = _Head(newer[0].epoch, newer[0].number, self._identity)
        if head is None or len(data) < _CHUNK:
            damage = "its header is damaged" if head is None else "it was cut off"
            head = head or _Head(1, 1, self._identity)
        self._head = head
        records, lost = self._parsed(list(_frames(data, head.epoch)))
        if lost:
            damage = f"{len(lost)} acknowledged writes cannot be read"
        elif head.identity != self._identity and records:
            damage, records = "its vectors are of another embedder", []
        return Contents(tuple(records), damage)

    def open(self) -> None:
        """Go on where `read` found the end: what is behind it is wiped out.

        Raises:
            OSError: The file cannot be written.
        """
        if not self._head.epoch:
            return  # there is no file yet
        self._descriptor = self._opened(os.O_RDWR)
        self._room = os.fstat(self._descriptor).st_size
        rest = os.pread(self._descriptor, self._room - self._end, self._end)
        if rest.strip(b"\0"):
            # A record that was never acknowledged must not come back behind the next one.
            self._clear(self._end, self._room)
            os.fdatasync(self._descriptor)
        if self._head.identity != self._identity:
            self.reset()

    def append(self, bodies: Sequence[bytes]) -> None:
        """Add records; durable on return, or nothing is there.

        Raises:
            OSError: They could not be written.
        """
        if not self._head.epoch:
            self._create()
        if self._spoiled:
            self._unspoil()
        settled = self._next - 1
        frames = [self._frame(settled + n, settled, body) for n, body in enumerate(bodies, 1)]
        data = b"".join(frames)
        try:
            self._extended(data)
            os.fdatasync(self._descriptor)
        except BaseException:
            self._spoiled = True
            raise
        self._next += len(bodies)
        self._end += len(data)
        self.size = self._end - _START
        self._settle()

    def reset(self, identity: str | None = None, stamp: str = "") -> None:
        """Forget every record: the indexes have them. Durable on return.

        Args:
            identity: Whose vectors come next; None: as before.
            stamp: Of the indexes that have them (see `state`); empty: not known.

        Raises:
            OSError: The file cannot be written; nothing is forgotten.
        """
        if identity is not None:
            self._identity = _digest(identity)
        if self._descriptor < 0:
            return
        head = _Head(self._head.epoch + 1, self._next, self._identity, stamp)
        self._write(head.packed(), _SLOT * (head.epoch % 2))
        if self._room > _KEPT:
            os.ftruncate(self._descriptor, _KEPT)
            self._room = _KEPT
        os.fdatasync(self._descriptor)
        self._head, self._end, self.size = head, _START, 0
        self._spoiled = False

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _create(self) -> None:
        head = _Head(1, self._next, self._identity)
        try:
            with replacing(self.path) as part:
                self._descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
                self._clear(0, _CHUNK)
                self._write(head.packed(), _SLOT * (head.epoch % 2))
        except BaseException:
            self.close()
            raise
        self._head, self._end, self._room = head, _START, _CHUNK

    def _opened(self, flags: int) -> int:
        descriptor = os.open(self.path, flags | os.O_CLOEXEC)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # see _clear
        return descriptor

    def _clear(self, start: int, end: int) -> None:
        """Write zeros, one page at a time.

        What is written or read at once the kernel may keep in memory as one piece, and count as
        written whole whenever a record changes a part of it.
        """
        while start < end:
            stop = min(end, (start // _PAGE + 1) * _PAGE)
            self._write(bytes(stop - start), start)
            start = stop

    def _extended(self, data: bytes) -> None:
        """Write at the end; where there is no room left, also zeros for the records to come."""
        missing = self._end + len(data) - self._room
        if missing > 0:
            room = self._room + -(-missing // _CHUNK) * _CHUNK
            self._clear(self._room, room)
            self._room = room
        self._write(data, self._end)

    def _settle(self) -> None:
        """Say behind the last record that it is durable; if it fails, the next one says it."""
        frame = self._frame(self._next - 1, self._next - 1, b"")
        if self._end + len(frame) <= self._room:
            try:
                self._write(frame, self._end)
            except OSError:
                return
            self._end += len(frame)

    def _unspoil(self) -> None:
        """Wipe out what a failed write may have left: it was not acknowledged."""
        self._room = os.fstat(self._descriptor).st_size
        self._clear(self._end, self._room)
        os.fdatasync(self._descriptor)
        self._spoiled = False

    def _write(self, data: bytes, start: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, start)
            view, start = view[written:], start + written

    def _frame(self, number: int, settled: int, body: bytes) -> bytes:
        head = _FRAME.pack(_MARKER, len(body), number, settled)
        return head + _CRC.pack(_checksum(self._head.epoch, head, body)) + body

    def _parsed(self, frames: list[_Frame]) -> tuple[list[bytes], list[int]]:
        """The records, and the numbers of acknowledged ones that are missing."""
        first = self._head.first
        settled = max((frame.settled for frame in frames), default=first - 1)
        self._next, self._end = settled + 1, _START
        bodies: dict[int, bytes] = {}
        for frame in frames:
            if frame.body and frame.number > settled:
                if frame.number != self._next or frame.start != self._end:
                    break  # what is left of a write that was not acknowledged
                self._next += 1
            self._end = frame.end
            if frame.body:
                bodies[frame.number] = frame.body
        self.size = self._end - _START
        lost = [number for number in range(first, settled + 1) if number not in bodies]
        return [bodies[number] for number in sorted(bodies) if number >= first], lost


def stamp_before(path: Path) -> str:
    """The stamp of the indexes that have all of what the log in `path` held before; empty: unknown.

    Older indexes lack some of it: they are of another moment than the log.
    """
    try:
        with path.open("rb") as stream:
            head = _newest(stream.read(_START))
    except OSError:
        return ""
    return head.stamp if head else ""


def _newest(data: bytes) -> _Head | None:
    found = []
    for start in (0, _SLOT):
        slot = data[start : start + _HEADER.size + _CRC.size]
        if len(slot) == _HEADER.size + _CRC.size:
            magic, epoch, first, identity = _HEADER.unpack_from(slot)
            (crc,) = _CRC.unpack_from(slot, _HEADER.size)
            if magic == _MAGIC and crc == zlib.crc32(slot[: _HEADER.size]):
                text = data[start + _HEADER.size + 2 * _CRC.size : start + _SLOT].rstrip(b"\0")
                (own,) = _CRC.unpack_from(data, start + _HEADER.size + _CRC.size)
                stamp = text.decode() if own == zlib.crc32(text) else ""
                found.append(_Head(epoch, first, identity, stamp))
    return max(found, key=lambda head: head.epoch, default=None)


def _frames(data: bytes, epoch: int) -> Iterator[_Frame]:
    """The frames of an epoch that are whole, wherever they are."""
    place, size = _START, _FRAME.size + _CRC.size
    while (place := data.find(_MARKER, place)) >= 0 and place + size <= len(data):
        head = data[place : place + _FRAME.size]
        _, length, number, settled = _FRAME.unpack(head)
        (crc,) = _CRC.unpack_from(data, place + _FRAME.size)
        body = data[place + size : place + size + length]
        if len(body) == length and crc == _checksum(epoch, head, body):
            yield _Frame(epoch, number, settled, body, place, place + size + length)
            place += size + length
        else:
            place += 1


def _checksum(epoch: int, head: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(head, zlib.crc32(epoch.to_bytes(8, "little"))))


def _digest(identity: str) -> bytes:
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16).digest()
