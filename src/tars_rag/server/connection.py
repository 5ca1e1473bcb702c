"""One connection of a client: what it may take before there is a request, and after the answer."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SLOW_HEADERS: Final = 30.0
"""Seconds within which the headers of a request have to be there, from the connection's start."""
MOST_HEADERS: Final = 64 << 10
"""Bytes of the headers of a request; what comes in one read may be more."""
SLOW_READER: Final = 30.0
"""Seconds within which a client has to take `LEAST_READ` of its answer, or what is left of it."""
LEAST_READ: Final = 64 << 10
"""Bytes."""


class Connection(H11Protocol):
    """Closes connections that say nothing, or send headers or take their answer in drops.

    uvicorn limits the time between requests only; before the first, and once a byte has come, a
    connection may take for ever, and an answer that nobody reads is kept for ever.
    """

    slow_headers = SLOW_HEADERS
    slow_reader = SLOW_READER
    _patience: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        # `pause_writing` is told of almost every byte that is not taken. At 0, TLS pauses for ever.
        transport.set_write_buffer_limits(high=1, low=0)
        link = transport.get_extra_info(
            "socket"
        )  # under TLS only the kernel sees who takes nothing
        if link is not None and link.family in (socket.AF_INET, socket.AF_INET6):
            patience = int(self.slow_reader * 1000)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
        self._wait_for_headers()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._wait_for_reader(None)

    def resume_writing(self) -> None:
        """All was taken."""
        super().resume_writing()
        self._stop_reading()

    def data_received(self, data: bytes) -> None:
        """Take bytes; they do not prolong the wait."""
        super().data_received(data)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        self._stop_reading()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_waiting()
        elif self._patience is None:
            self._patience = self.loop.call_later(self.slow_headers, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _wait_for_reader(self, before: int | None) -> None:
        left = self.transport.get_write_buffer_size()
        if before is not None and before - left < LEAST_READ:
            self.transport.abort()  # to close it would wait for the client, too
        else:
            self._reading = self.loop.call_later(self.slow_reader, self._wait_for_reader, left)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
