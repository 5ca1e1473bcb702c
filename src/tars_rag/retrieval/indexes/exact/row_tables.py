"""What a batch of rows says of them beside their vectors, and its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tables:
    """What a batch says of its rows, beside their vectors.

    Attributes:
        contents: A hash of each vector's bytes, uint64 [added].
        ends: Where each id ends in `ids`, uint32 [added].
        steps, residuals, shares: See `Codes`, float32 [added].
        removed: Slots, uint32.
        centres: More of them, float32 [m, dim].
        kinds: See `Codes`, uint8 [added].
        stamp: The caller's.
        ids: UTF-8 (lone surrogates passed), one after the other.
    """

    contents: NDArray[np.uint64]
    ends: NDArray[np.uint32]
    steps: NDArray[np.float32]
    residuals: NDArray[np.float32]
    shares: NDArray[np.float32]
    removed: NDArray[np.uint32]
    centres: NDArray[np.float32]
    kinds: NDArray[np.uint8]
    stamp: bytes
    ids: bytes

    def pack(self) -> bytes:
        """The bytes, padded to a multiple of 8."""
        columns = (self.contents, self.ends, self.steps, self.residuals, self.shares)
        arrays = (*columns, self.removed, self.centres, self.kinds)
        body = b"".join([*(array.tobytes() for array in arrays), self.stamp, self.ids])
        return body + bytes(-len(body) % 8)

    @classmethod
    def unpack(
        cls, data: bytes, added: int, removed: int, centres: int, dim: int, stamp: int, ids: int
    ) -> Tables:
        """What was packed, given how much there is of everything."""
        at = 0
        parts: list[Any] = []
        columns = (("<u8", added), ("<u4", added), *[("<f4", added)] * 3)
        for kind, count in (*columns, ("<u4", removed), ("<f4", centres * dim), ("u1", added)):
            parts.append(np.frombuffer(data, kind, count, at))
            at += parts[-1].nbytes
        parts[6] = parts[6].reshape(centres, dim)
        parts.append(data[at : at + stamp])
        parts.append(data[at + stamp : at + stamp + ids])
        return cls(*parts)


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
    bounds = zip([0, *ends], ends, strict=False)
    if tables.ids.isascii():  # twice as fast, and most are
        text = tables.ids.decode("ascii")
        return [text[start:end] for start, end in bounds]
    return [decode_id(tables.ids[start:end]) for start, end in bounds]


def decode_id(data: bytes) -> str:
    """An id of its bytes."""
    return data.decode("utf-8", "surrogatepass")
