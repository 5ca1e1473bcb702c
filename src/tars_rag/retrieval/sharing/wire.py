"""What holder and guest say to each other: frames over a Unix socket, JSON and raw float32.

A frame is its length (4 bytes, little-endian) and a message of `child.pack`: nothing that is
unpickled. A frame is read in pieces, so that a length alone takes no memory.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag import errors
from tars_rag.child import pack, unpack
from tars_rag.errors import InvalidInputError, StoreError, TarsRagError, shown
from tars_rag.guests import version_of
from tars_rag.retrieval.passage import Passage, ScoredPassage

PROTOCOL: Final = 1
"""Both ends must speak the same; what is said first, and the answer to it, never changes."""
VERSION: Final = version_of("tars-rag") or "?"
HELLO: Final = "tars-rag-share"
LARGEST: Final = 256 << 20
"""Bytes of a frame."""
PART: Final = 4 << 20
"""Characters of text in one part of an answer, or of a write; one passage may be longer."""
_PIECE = 1 << 20
_TICK_SECONDS = 1.0
_NO_ROWS: Mapping[str, NDArray[Any]] = {}


class LineError(Exception):
    """The other end is gone, or what it said is no message."""


class Wire:
    """One end of a connection; one thread at a time uses it.

    Args:
        connection: Connected.
        waiting: Called about once a second while nothing moves, with the seconds since something
            did; what it raises ends the waiting.
    """

    def __init__(self, connection: socket.socket, waiting: Callable[[float], None]) -> None:
        self._connection = connection
        self._connection.setblocking(False)
        self._waiting = waiting
        _open_wires.add(self)

    def send(self, header: Any, rows: NDArray[np.float32] | None = None) -> None:
        """Send a message.

        Raises:
            LineError: The other end is gone.
            InvalidInputError: The message is too large; nothing was sent.
        """
        message = pack(header, _NO_ROWS if rows is None else {"rows": rows})
        if len(message) > LARGEST:
            msg = (
                f"A message of {len(message) / 1e6:.0f} MB is too large for another process; "
                f"{LARGEST / 1e6:.0f} MB are allowed. Give less at once."
            )
            raise InvalidInputError(msg)
        left = memoryview(len(message).to_bytes(4, "little") + message)
        try:
            while left:
                self._wait(select.POLLOUT)
                with contextlib.suppress(BlockingIOError):
                    left = left[self._connection.send(left[:_PIECE]) :]
        except (OSError, ValueError) as error:  # ValueError: closed by another thread
            raise LineError(str(error)) from error

    def receive(self) -> tuple[Any, NDArray[np.float32] | None]:
        """The next message: its header, and its rows (read-only) if it has some.

        Raises:
            LineError: The other end is gone, or what came is no message.
        """
        try:
            size = int.from_bytes(self._read(4), "little")
            if size > LARGEST:
                msg = f"a frame of {size} bytes"
                raise LineError(msg)
            header, arrays = unpack(bytes(self._read(size)))
            rows = arrays.get("rows")
            if rows is not None and (rows.dtype != np.float32 or rows.ndim > 2):
                msg = f"rows of {rows.dtype}"
                raise LineError(msg)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
            raise LineError(str(e)) from e
        return header, rows

    def hang_up(self, *, reading: bool = False) -> None:
        """Let nothing come any more, and unless `reading` alone, go either; from any thread."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RD if reading else socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end. May be called twice."""
        self._connection.close()

    def _read(self, size: int) -> bytearray:
        data = bytearray()
        while len(data) < size:
            self._wait(select.POLLIN)
            with contextlib.suppress(BlockingIOError):
                piece = self._connection.recv(min(_PIECE, size - len(data)))
                if not piece:
                    msg = "the other end hung up"
                    raise LineError(msg)
                data += piece
        return data

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._connection.fileno(), event)
        waited = 0.0
        while not poll.poll(_TICK_SECONDS * 1e3):
            waited += _TICK_SECONDS
            self._waiting(waited)


_open_wires: weakref.WeakSet[Wire] = weakref.WeakSet()


def _forked() -> None:
    """A child that kept an end open would hide from the other that ours is gone."""
    for wire in list(_open_wires):
        wire.close()


os.register_at_fork(after_in_child=_forked)


# -- what is said -----------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A filter or metadata as JSON has them: what is a mapping or sequence of any kind made one."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(entry) for entry in value]
    return value


def passage_row(passage: Passage) -> list[Any]:
    """A passage for a header."""
    return [passage.id, passage.text, plain(passage.metadata)]


def passage_of(row: Any) -> Passage:
    """The inverse of `passage_row`."""
    passage_id, text, metadata = row
    return Passage(passage_id, text, metadata)


def hit_row(hit: ScoredPassage) -> list[Any]:
    """A hit for a header."""
    return [
        passage_row(hit.passage),
        hit.score,
        hit.vector_score,
        hit.lexical_score,
        hit.fused_score,
        hit.rerank_score,
        hit.lexical_share,
    ]


def hit_of(row: Any) -> ScoredPassage:
    """The inverse of `hit_row`."""
    passage, *scores = row
    return ScoredPassage(passage_of(passage), *scores)


def error_row(error: BaseException, who: str) -> list[str]:
    """An error for a header: the name of its public class, and its message.

    Args:
        error: What was raised.
        who: Names the process, for an error that is none of this package.
    """
    if isinstance(error, TarsRagError):
        for kind in type(error).__mro__:
            if kind.__module__ == errors.__name__:
                return [kind.__name__, str(error)]
    return [StoreError.__name__, f"{who} failed: {type(error).__name__}: {error}"]


def error_of(row: Any) -> TarsRagError:
    """The inverse of `error_row`."""
    try:
        name, message = row
        kind = getattr(errors, name)
        if issubclass(kind, TarsRagError):
            return kind(message)  # type: ignore[no-any-return]
    except (TypeError, ValueError, AttributeError):
        pass
    return StoreError(f"The process that holds the store answered {shown(row)}.")
