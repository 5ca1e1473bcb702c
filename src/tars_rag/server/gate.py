"""Before any route: who asks, how much, for how long; and one line in the log for each request."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import anyio

from tars_rag.server.metrics import Metrics
from tars_rag.server.security import Hosts, Keys
from tars_rag.server.service import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_OPEN: Final = frozenset({"/", "/health", "/health/live", "/health/ready"})
"""Paths without contents: they need no key."""
_UNREAD: Final = frozenset({401, 403, 413, 429})
"""What may be said before the body was read."""
_LINGER: Final = 2.0
"""Seconds for the rest of a body that is not wanted."""
access = logging.getLogger("tars_rag.access")
log = logging.getLogger("tars_rag.server")


class _RefusedError(Exception):
    def __init__(self, status: int, kind: str, message: str, retry: bool = False) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.retry = status, kind, message, retry


class Gate:
    """Wraps the application (ASGI).

    Args:
        app: The application.
        limits: What may be asked for.
        keys: Who may ask.
        hosts: By which names.
        metrics: Counts what happened.
    """

    def __init__(
        self, app: App, limits: Limits, keys: Keys, hosts: Hosts, metrics: Metrics
    ) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._keys, self._hosts = keys, hosts
        self._at_work = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        start, status = time.perf_counter(), 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        admitted = 0
        try:
            self._admit(scope)
            admitted = 1  # who is not let in must not fill the house
            self._count(admitted)
            body = await self._body(scope, receive)
            await self._while_there(scope, body, receive, told)
        except _RefusedError as refused:
            if not status:
                close = refused.status in (408, 499)
                if refused.status in _UNREAD:
                    close = not await _discarded(scope, receive)
                await _send_error(told, refused, close)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                message = "The server failed; its log says why."
                await _send_error(told, _RefusedError(500, "Internal", message), False)
        finally:
            self._count(-admitted)
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(scope["method"], route, status or 499, seconds)
            client = (scope.get("client") or ["-"])[0]
            milliseconds = seconds * 1e3
            path = scope["path"].encode("unicode_escape").decode("ascii")
            access.info(
                "%s %s %s %d %.1f ms", client, scope["method"], path, status or 499, milliseconds
            )

    def _count(self, more: int) -> None:
        self._at_work += more
        self._metrics.at_work.set(self._at_work)

    def _admit(self, scope: Message) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not self._hosts.admit(headers.get(b"host", b""), headers.get(b"origin")):
            message = (
                "This server does not go by that Host, or the request comes from a page of another "
                "site (Origin). Use its address, or start it with --allow-host NAME."
            )
            raise _RefusedError(403, "Forbidden", message)
        authorization = headers.get(b"authorization", b"")
        if scope["path"] not in _OPEN and not self._keys.admit(
            authorization, headers.get(b"x-api-key", b"")
        ):
            message = "A key is needed: the header 'Authorization: Bearer KEY'."
            raise _RefusedError(401, "Unauthorized", message)
        if self._at_work >= self._limits.requests and scope["path"] not in _OPEN:
            message = f"{self._at_work} requests are at work. Try again in a moment."
            raise _RefusedError(429, "Overloaded", message, retry=True)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._limits.body:
            raise self._too_large()

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        """The whole body, if it is small enough and comes in time."""
        parts: list[bytes] = []
        size = 0
        with anyio.move_on_after(self._limits.slow_body):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _RefusedError(499, "Timeout", "The client left.")
                size += len(message.get("body", b""))
                if size > self._limits.body:
                    raise self._too_large()
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return b"".join(parts)
        told = f"The body was not there within {self._limits.slow_body:g} s."
        raise _RefusedError(408, "Timeout", told)

    async def _while_there(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        """Run the application until it is done, the client left, or the time is up."""
        left = anyio.Event()
        given = False

        async def replay() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()
            group.cancel_scope.cancel()

        failed: Exception | None = None
        with anyio.move_on_after(self._limits.seconds) as time_limit:
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                try:
                    await self._app(scope, replay, send)
                except Exception as error:
                    failed = error
                group.cancel_scope.cancel()
        if failed is not None:
            raise failed
        if time_limit.cancelled_caught and not left.is_set():
            message = f"No answer within {self._limits.seconds:g} s. Ask for less at once."
            raise _RefusedError(504, "Timeout", message)

    def _too_large(self) -> _RefusedError:
        message = f"The body is larger than {self._limits.body} bytes. Send it in several requests."
        return _RefusedError(413, "TooLarge", message)


async def _discarded(scope: Message, receive: Receive) -> bool:
    """Whether the rest of a body came soon. None of it is kept.

    A connection that is closed before all was read is reset, and the client never sees why.
    """
    if any(name == b"expect" for name, _ in scope["headers"]):
        return False  # it sends nothing until it is told to
    with anyio.move_on_after(_LINGER):
        while (message := await receive())["type"] == "http.request":
            if not message.get("more_body", False):
                return True
    return False


async def _send_error(send: Send, refused: _RefusedError, close: bool) -> None:
    body = json.dumps({"error": {"message": refused.message, "type": refused.kind}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refused.retry:
        headers.append((b"retry-after", b"1"))
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if close:  # the rest of the body was not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
