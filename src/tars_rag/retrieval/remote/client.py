"""A tars-rag server, asked over HTTP: what is sent again, and what its errors mean here."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from tars_rag import errors
from tars_rag.errors import ConfigError, InvalidInputError, StoreError, TarsRagError, shown
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
_M = TypeVar("_M", bound=BaseModel)


class TooLargeError(InvalidInputError):
    """The server takes no request of this size; half of it may do."""


class Client:
    """One server. Any number of threads may ask; connections are kept and shared.

    What is asked again by itself: whatever did not reach the server, what it refused for want of
    room (429, 503 with Retry-After), and, where asking twice changes nothing, what was cut off.

    Args:
        base_url: ``http://host:port`` of the server, or a path below it.
        api_key: Its key; None: it has none.
        transport: How to reach it; None: by the network.

    Raises:
        ConfigError: `base_url` is no such address.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            msg = f"{base_url!r} is no address of a server. Use http://host:port"
            raise ConfigError(msg)
        self.base_url = base_url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(
            base_url=self.base_url,
            headers=headers,
            timeout=_SECONDS,
            transport=transport,
            trust_env=False,  # a proxy of the environment does not lead to a board on the LAN
        )

    def get(self, path: str, answer: type[_M]) -> _M:
        """What is at a path.

        Raises:
            TarsRagError: The server said so, cannot be reached, or answers something else.
        """
        return self._ask("GET", path, None, answer, again=True)

    def post(self, path: str, body: BaseModel, answer: type[_M], *, again: bool = True) -> _M:
        """What is answered to a request.

        Args:
            path: Below the server's address.
            body: The request.
            answer: What the answer must be.
            again: It may be done twice without harm.

        Raises:
            TarsRagError: As `get`.
        """
        return self._ask("POST", path, body.model_dump(exclude_none=True), answer, again=again)

    def close(self) -> None:
        """Close its connections. May be called twice."""
        self._http.close()

    def _ask(self, method: str, path: str, body: Any, answer: type[_M], *, again: bool) -> _M:
        for attempt in range(1, _ATTEMPTS + 1):
            last = attempt == _ATTEMPTS
            try:
                response = self._http.request(method, path, json=body)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                if last:
                    raise self._unreached(error) from error
            except httpx.TransportError as error:
                if last or not again:
                    raise self._unreached(error) from error
            else:
                if response.is_success:
                    return self._read(response, answer)
                if (
                    last
                    or response.status_code not in (429, 503)
                    or "Retry-After" not in (response.headers)
                ):
                    raise self._refused(response)
            time.sleep(min(_LONGEST_WAIT, 0.1 * 2**attempt) * random.uniform(0.5, 1))
        raise AssertionError  # the last attempt returns or raises

    def _read(self, response: httpx.Response, answer: type[_M]) -> _M:
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            said = shown(response.text)
            msg = (
                f"{response.url} answered {said}, which is not what a tars-rag server says "
                f"({error.error_count()} fields). Is it one, and of this version?"
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
            f"The server {self.base_url} cannot be reached ({error or type(error).__name__}). "
            "There: tars-rag serve --host 0.0.0.0 --api-key-file FILE, with --store for each store."
        )
        return StoreError(msg)


def split_store(url: str) -> tuple[str, str]:
    """The server and the quoted name of a store's address ``http://host:port/name``.

    Raises:
        ConfigError: It names no store.
    """
    base, _, name = url.rstrip("/").rpartition("/")
    if not name or not urlsplit(base).hostname:
        msg = f"{url!r} names no store. Use http://host:port/NAME, as in serve --store NAME=DIR."
        raise ConfigError(msg)
    return base, quote(name, safe="%")
