"""What a client may do to a connection of the server before there is a request."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest

from conftest import HashEmbedder

pytest.importorskip("fastapi")
pytest.importorskip("mcp")

import uvicorn

from tars_rag.server.app import application
from tars_rag.server.connection import MOST_HEADERS, Connection
from tars_rag.server.security import Hosts
from tars_rag.server.service import Service


class Hasty(Connection):
    slow_headers = 0.2


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(3 * Hasty.slow_headers)  # an answer may take longer than the headers
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b"done"})


class _Peer:
    """A client's end of a connection that `Hasty` has the other end of; no port is opened."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)

    async def __aenter__(self) -> _Peer:
        config = uvicorn.Config(
            _answer, log_config=None, lifespan="off", h11_max_incomplete_event_size=MOST_HEADERS
        )
        config.load()
        loop = asyncio.get_running_loop()
        state = uvicorn.server.ServerState()
        await loop.connect_accepted_socket(
            lambda: Hasty(config=config, server_state=state, app_state={}), self._theirs
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ours.close()
        await asyncio.sleep(0)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._ours, data)

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        loop, parts = asyncio.get_running_loop(), [b""]
        while part := await asyncio.wait_for(loop.sock_recv(self._ours, 4096), 60):
            parts.append(part)
        return b"".join(parts)


WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("begun", [b"", b"GET / HT", WHOLE[:-2]])
async def test_headers_that_do_not_come_end_the_connection(begun: bytes) -> None:
    async with _Peer() as peer:
        await peer.send(begun)
        assert await peer.rest() == b""


async def test_drops_do_not_prolong_the_wait() -> None:
    async with _Peer() as peer:

        async def drip() -> None:
            await peer.send(b"GET / HTTP/1.1\r\nX: ")
            while True:
                await asyncio.sleep(Hasty.slow_headers / 8)
                await peer.send(b"a")

        dripping = asyncio.create_task(drip())
        try:
            assert await peer.rest() == b""
        except ConnectionResetError:  # it was closed while a drop was under way
            pass
        finally:
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)


async def test_an_answer_may_take_longer_and_the_next_request_is_limited_again() -> None:
    async with _Peer() as peer:
        await peer.send(WHOLE)
        await asyncio.sleep(2 * Hasty.slow_headers)
        await peer.send(b"GET")  # of a second request, which never comes
        assert b"200 OK" in (told := await peer.rest())
        assert told.count(b"HTTP/1.1") == 1


async def test_headers_are_limited_in_size() -> None:
    async with _Peer() as peer:
        try:
            await peer.send(b"GET / HTTP/1.1\r\nX: " + b"a" * (2 * MOST_HEADERS))
            assert b" 400 " in await peer.rest()
        except ConnectionError:  # it closed before all was sent
            pass


@pytest.mark.parametrize("host", ["localhost", "192.0.2.7:7588", "board.example"])
async def test_an_agent_may_call_the_server_by_every_name_that_others_may(host: str) -> None:
    service = Service(HashEmbedder())
    app = application(service, hosts=Hosts(["board.example"]))
    ask = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    accept = {"accept": "application/json, text/event-stream", "host": host}
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    begun, ended = asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not begun.is_set():
            begun.set()
            return {"type": "lifespan.startup"}
        await ended.wait()
        return {"type": "lifespan.shutdown"}

    started = asyncio.Event()

    async def send(message: Any) -> None:
        started.set()

    life = asyncio.create_task(app({"type": "lifespan"}, receive, send))  # type: ignore[arg-type]
    await started.wait()
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            told = await client.post("/mcp", json=ask, headers=accept)
            evil = await client.post("/mcp", json=ask, headers={**accept, "host": "evil.example"})
    finally:
        ended.set()
        await life
        await asyncio.to_thread(service.close)
    assert told.status_code == 200, told.text
    assert told.json()["result"]["serverInfo"]["name"] == "tars-rag"
    assert evil.status_code == 403
