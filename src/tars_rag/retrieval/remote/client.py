"""A tars-rag server, asked over HTTP: what is sent again, and what its errors mean here."""

from __future__ import annotations

import asyncio
import json
import random
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from tars_rag import errors
from tars_rag.errors import ConfigError, InvalidInputError, StoreError, TarsRagError, shown
from tars_rag.retrieval.address import server_key, server_url
from tars_rag.retrieval.http_contract import ErrorAnswer

_SECONDS: Final = httpx.Timeout(130.0, connect=5.0)  # a server gives a request 120
_ATTEMPTS: Final = 5
_LONGEST_WAIT: Final = 5.0
_KNOWN: Final = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, TarsRagError)
}
_OTHERS: Final[Mapping[str, type[TarsRagError]]] = {
    "TooLarge": InvalidInputError,
    "NotFound": ConfigError,
    "Unauthorized": ConfigError,
    "Forbidden": StoreError,
}
_JSON: Final = {"Content-Type": "application/json"}
_M = TypeVar("_M", bound=BaseModel)
_T = TypeVar("_T")


class TooLargeError(InvalidInputError):
    """The server takes no request of this size; half of it may do."""


@dataclass(frozen=True)
class Ask(Generic[_M]):
    """One request, and what its answer must be.

    Attributes:
        path: Below the server's address.
        answer: What is answered.
        body: What is posted; None: the path is got.
        again: It may be done twice without harm.
    """

    path: str
    answer: type[_M]
    body: BaseModel | None = None
    again: bool = True


Talk = Generator[Ask[Any], Any, _T]
"""What is asked of a server, one request after the other, and what comes of it.

It yields each `Ask` and is given its answer, so that one text of it serves `Client.do`, which
waits, and `Client.ado`, which lets an event loop go on.
"""


class Client:
    """One server. Any number of threads and event loops may ask; connections are kept and shared.

    What is asked again by itself: whatever did not reach the server, what it refused for want of
    room (429, 503 with Retry-After), and, where asking twice changes nothing, what was cut off.

    Args:
        base_url: ``http://host:port`` of the server, or a path below it.
        api_key: Its key; None: TARS_API_KEY, or none.
        transport: How to reach it; None: by the network.

    Raises:
        ConfigError: `base_url` is no such address, or the key cannot be one.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = server_url(base_url)
        api_key = server_key(api_key)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            msg = "The api_key has characters that no key of a server has, such as a line's end."
            raise ConfigError(msg)
        self._settings: dict[str, Any] = {
            "base_url": self.base_url,
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            "timeout": _SECONDS,
            "trust_env": False,  # a proxy of the environment does not lead to a board on the LAN
        }
        self._http = httpx.Client(transport=transport, **self._settings)
        weakref.finalize(self, self._http.close)
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    def get(self, path: str, answer: type[_M]) -> _M:
        """What is at a path.

        Raises:
            TarsRagError: The server said so, cannot be reached, or answers something else.
        """
        return self._ask(Ask(path, answer))

    def post(self, path: str, body: BaseModel, answer: type[_M], *, again: bool = True) -> _M:
        """What is answered to a request; see `Ask`.

        Raises:
            TarsRagError: As `get`.
        """
        return self._ask(Ask(path, answer, body, again))

    def do(self, talk: Talk[_T]) -> _T:
        """Ask what is to be asked, and wait for the answers.

        Raises:
            TarsRagError: As `get`.
        """
        try:
            asked = next(talk)
            while True:
                asked = self._answer_to(talk, asked)()
        except StopIteration as end:
            result: _T = end.value
            return result

    async def ado(self, talk: Talk[_T]) -> _T:
        """As `do`, without blocking the event loop, and without a thread.

        Raises:
            TarsRagError: As `get`.
        """
        try:
            asked = next(talk)
            while True:
                asked = (await self._aanswer_to(talk, asked))()
        except StopIteration as end:
            result: _T = end.value
            return result

    def close(self) -> None:
        """Close its connections. May be called twice.

        Those of an event loop are closed with it, or when nobody has this object any more.
        """
        self._http.close()
        self._loops.clear()

    def _answer_to(self, talk: Talk[Any], asked: Ask[Any]) -> Callable[[], Ask[Any]]:
        """What goes on with the talk: it is told the answer, or the error."""
        try:
            return partial(talk.send, self._ask(asked))
        except TarsRagError as error:
            return partial(talk.throw, error)

    async def _aanswer_to(self, talk: Talk[Any], asked: Ask[Any]) -> Callable[[], Ask[Any]]:
        try:
            return partial(talk.send, await self._aask(asked))
        except TarsRagError as error:
            return partial(talk.throw, error)

    def _ask(self, asked: Ask[_M]) -> _M:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = self._http.request(**_request(asked))
            except httpx.TransportError as error:
                self._require_retry(asked, error, attempt)
            else:
                if self._answered(response, attempt):
                    return self._read(response, asked.answer)
            time.sleep(_pause(attempt))
        raise AssertionError  # the last attempt returns or raises

    async def _aask(self, asked: Ask[_M]) -> _M:
        loop = asyncio.get_running_loop()
        http = self._loops.get(loop)
        if http is None:  # connections belong to the loop that opened them
            http = self._loops[loop] = httpx.AsyncClient(**self._settings)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = await http.request(**_request(asked))
            except httpx.TransportError as error:
                self._require_retry(asked, error, attempt)
            else:
                if self._answered(response, attempt):
                    return self._read(response, asked.answer)
            await asyncio.sleep(_pause(attempt))
        raise AssertionError

    def _require_retry(self, asked: Ask[Any], error: httpx.TransportError, attempt: int) -> None:
        """Raise unless it may be asked again: it did not get there, or twice is no harm."""
        unreached = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        if attempt == _ATTEMPTS or not (unreached or asked.again):
            raise self._unreached(error) from error

    def _answered(self, response: httpx.Response, attempt: int) -> bool:
        """Whether there is an answer; false: it had no room, and says when to ask again."""
        if response.is_success:
            return True
        busy = response.status_code in (429, 503) and "Retry-After" in response.headers
        if attempt == _ATTEMPTS or not busy:
            raise self._refused(response)
        return False

    def _read(self, response: httpx.Response, answer: type[_M]) -> _M:
        try:
            # Not pydantic's own parser, which takes no half of a surrogate pair.
            return answer.model_validate(json.loads(response.content))
        except ValueError as error:  # a ValidationError is one
            said = shown(response.text)
            msg = (
                f"{response.url} answered {said}, which is not what a tars-rag server says. "
                "Is it one, and of this version?"
            )
            raise StoreError(msg) from error

    def _refused(self, response: httpx.Response) -> TarsRagError:
        try:
            said = ErrorAnswer.model_validate_json(response.content).error
        except ValidationError:
            msg = f"{response.url} answered {response.status_code}: {shown(response.text)}"
            return StoreError(msg)
        if response.status_code == 413:
            return TooLargeError(said.message)
        kind = _KNOWN.get(said.type) or _OTHERS.get(said.type, StoreError)
        return kind(said.message)

    def _unreached(self, error: Exception) -> StoreError:
        msg = (
            f"The server {self.base_url} cannot be reached ({str(error) or type(error).__name__}). "
            "There: tars-rag serve --host 0.0.0.0 --api-key-file FILE, with --store for each store."
        )
        return StoreError(msg)


def _request(asked: Ask[Any]) -> dict[str, Any]:
    if asked.body is None:
        return {"method": "GET", "url": asked.path}
    # In ASCII, so that half a surrogate pair gets there.
    body = json.dumps(asked.body.model_dump(exclude_none=True), allow_nan=False)
    return {"method": "POST", "url": asked.path, "content": body.encode(), "headers": _JSON}


def _pause(attempt: int) -> float:
    return min(_LONGEST_WAIT, 0.1 * 2.0**attempt) * random.uniform(0.5, 1)
