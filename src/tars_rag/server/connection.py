"""One connection of a client: what it may take before there is a request."""

from __future__ import annotations

import asyncio
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SLOW_HEADERS: Final = 30.0
"""Seconds within which the headers of a request have to be there, from the connection's start."""
MOST_HEADERS: Final = 64 << 10
"""Bytes of the headers of a request; what comes in one read may be more."""


class Connection(H11Protocol):
    """Closes connections that say nothing, or that send their headers in drops (slowloris).

    uvicorn limits the time between requests only; before the first, and once a byte has come, a
    connection may take for ever.
    """

    slow_headers = SLOW_HEADERS
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Take bytes; they do not prolong the wait."""
        super().data_received(data)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
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
