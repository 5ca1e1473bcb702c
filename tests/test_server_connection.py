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
from tars_rag.server.connection import Connection
from tars_rag.server.process import HTTP
from tars_rag.server.security import Hosts
from tars_rag.server.service import Service


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "slow_headers", 0.1)


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(2 * Connection.slow_headers)  # an answer may take longer than the headers
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
    )
    await send({"type": "http.response.body", "body": b"done"})


class _Peer:
    """A client's end of a connection; `serve`'s settings are at the other. No port is opened."""

    def __init__(self, first: bytes, app: Any = _answer) -> None:
        """Send what is there when the server comes to the connection, however slow it is."""
        self._app = app
        self._ours, self._theirs = socket.socketpair()
        self._ours.sendall(first)
        self._ours.setblocking(False)
        self._theirs.setblocking(False)

    async def __aenter__(self) -> _Peer:
        config = uvicorn.Config(self._app, log_config=None, lifespan="off", **HTTP)
        config.load()
        self.state = state = uvicorn.server.ServerState()
        protocol: Any = config.http_protocol_class
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: protocol(config=config, server_state=state, app_state={}), self._theirs
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ours.close()
        await asyncio.sleep(0)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._ours, data)

    async def told(self, *, until: bytes | None = None) -> bytes:
        """All that comes until the server closes, or has said `until`."""
        loop, whole = asyncio.get_running_loop(), b""
        while until is None or not whole.endswith(until):
            part = await asyncio.wait_for(loop.sock_recv(self._ours, 1 << 16), 60)
            if not part:
                break
            whole += part
        return whole


WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("begun", [b"", b"GET / HT", WHOLE[:-2]])
async def test_headers_that_do_not_come_end_the_connection(hasty: None, begun: bytes) -> None:
    async with _Peer(begun) as peer:
        assert await peer.told() == b""


async def test_drops_do_not_prolong_the_wait(hasty: None) -> None:
    async with _Peer(b"GET / HTTP/1.1\r\nX: ") as peer:

        async def drip() -> None:
            while True:
                await asyncio.sleep(Connection.slow_headers / 4)
                await peer.send(b"a")

        dripping = asyncio.create_task(drip())
        try:
            assert await peer.told() == b""
        except ConnectionResetError:  # it was closed while a drop was under way
            pass
        finally:
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)


async def test_an_answer_may_take_longer_and_the_next_request_is_limited_again(
    hasty: None,
) -> None:
    async with _Peer(WHOLE) as peer:
        assert b"200 OK" in await peer.told(until=b"done")
        await peer.send(b"GET")  # of a second request, which never comes
        assert await peer.told() == b""


LONG = b"a" * (4 << 20) + b"end"


async def _long_answer(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"%d" % len(LONG))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": LONG})


async def test_an_answer_that_nobody_takes_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "slow_reader", 0.1)
    async with _Peer(WHOLE, _long_answer) as peer:
        while not peer.state.connections:  # it was not come to yet
            await asyncio.sleep(0)
        while peer.state.connections:
            await asyncio.sleep(0.01)
        assert len(await peer.told()) < len(LONG)


async def test_an_answer_that_is_taken_comes_whole() -> None:
    async with _Peer(WHOLE, _long_answer) as peer:
        assert (await peer.told(until=b"end")).endswith(LONG)


async def test_headers_are_limited_in_size() -> None:
    """Whatever other parsers are installed: httptools would take these."""
    async with _Peer(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ") as peer:
        try:
            await peer.send(b"a" * (2 << 20) + b"\r\n\r\n")
            told = await peer.told(until=b"done")
        except ConnectionError:  # it closed before all was sent
            return
    assert b" 400 " in told


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
