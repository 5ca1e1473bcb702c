"""One write as the write-ahead log holds it: passages with their vectors, or ids that are deleted.

Layout, little endian: how many passages, how many deleted ids, numbers in a vector (uint32 each);
the passages (id, content); the deleted ids; the vectors as float32. Every string is preceded by its
length (uint32); ids and content are as `codec` packs them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.codec import (
    decode,
    encode,
    filterable,
    pack_content,
    unpack_content,
)
from tars_rag.retrieval.indexes.words.bm25 import Terms
from tars_rag.retrieval.passage import Passage

_COUNTS = struct.Struct("<III")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Entry:
    """One passage of a write, with a copy of all that is the caller's.

    Attributes:
        id: The passage's.
        content: Text and metadata, packed.
        vector: float32 [dim].
    """

    id: str
    content: bytes = field(repr=False)
    vector: NDArray[np.float32] = field(repr=False)
    _terms: Terms | None = field(default=None, init=False, repr=False, compare=False)

    @cached_property
    def passage(self) -> Passage:
        """The passage as the store returns it."""
        return unpack_content(encode(self.id), self.content)

    @cached_property
    def metadata(self) -> dict[str, object]:
        """What can be filtered on, as Chroma would hold it."""
        return filterable(self.passage)

    def terms(self, terms_of: Callable[[str], list[str]]) -> Terms:
        """What it is found by; `terms_of` is asked once."""
        if self._terms is None:
            object.__setattr__(self, "_terms", Terms.of(terms_of(self.passage.indexed)))
        assert self._terms is not None
        return self._terms

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.id) + len(self.content) + self.vector.nbytes


@dataclass(frozen=True, slots=True)
class Change:
    """One write: all of it is done, or nothing.

    Attributes:
        entries: Passages that are stored.
        deleted: Ids that are deleted.
    """

    entries: tuple[Entry, ...] = ()
    deleted: tuple[str, ...] = ()

    @classmethod
    def upsert(cls, passages: Sequence[Passage], vectors: NDArray[np.float32]) -> Change:
        """Of checked passages and their vectors [n, dim]."""
        own = vectors.astype(np.float32, copy=True)
        return cls(
            tuple(
                Entry(passage.id, pack_content(passage), row)
                for passage, row in zip(passages, own, strict=True)
            )
        )

    def packed(self) -> bytes:
        """As the log holds it."""
        dim = len(self.entries[0].vector) if self.entries else 0
        parts = [_COUNTS.pack(len(self.entries), len(self.deleted), dim)]
        for entry in self.entries:
            for piece in (encode(entry.id).encode(), entry.content):
                parts += [_LENGTH.pack(len(piece)), piece]
        for passage_id in self.deleted:
            piece = encode(passage_id).encode()
            parts += [_LENGTH.pack(len(piece)), piece]
        parts += [entry.vector.astype("<f4").tobytes() for entry in self.entries]
        return b"".join(parts)

    @classmethod
    def unpacked(cls, data: bytes) -> Change:
        """The inverse of `packed`.

        Raises:
            ValueError: It is none.
        """
        try:
            stored, gone, dim = _COUNTS.unpack_from(data)
            pieces = _strings(data, _COUNTS.size)
            held = [(_id(next(pieces)[0]), next(pieces)[0]) for _ in range(stored)]
            deleted = tuple(_id(next(pieces)[0]) for _ in range(gone))
            size = 4 * dim
            start = len(data) - stored * size
            rows = np.frombuffer(data, "<f4", stored * dim, start).reshape(stored, dim)
            own = rows.astype(np.float32)
        except (struct.error, StopIteration) as error:
            msg = f"not a change: {error}"
            raise ValueError(msg) from error
        entries = (Entry(key, content, row) for (key, content), row in zip(held, own, strict=True))
        return cls(tuple(entries), deleted)


def _strings(data: bytes, start: int) -> Iterator[tuple[bytes, int]]:
    while True:
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size + length
        yield data[start - length : start], start


def _id(piece: bytes) -> str:
    return decode(piece.decode())
