"""Requests to a Chroma server: each ends in time, and says of which server it was.

One under which the connection was lost is sent once more: all are such that a second time changes
nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tars_rag.errors import ConfigError, shown
from tars_rag.retrieval.indexes.chroma.client import ChromaError

TIMEOUT_VARIABLE, DEFAULT_TIMEOUT_S = "TARS_CHROMA_TIMEOUT", 20.0
_CONNECT_S = _SLACK_S = 5.0
T = TypeVar("T")


def request_timeout() -> float:
    """Seconds that a request to a Chroma server may take (TARS_CHROMA_TIMEOUT, default 20).

    Raises:
        ConfigError: It is set to something that is no number above 0.
    """
    given = os.environ.get(TIMEOUT_VARIABLE, "").strip()
    try:
        seconds = float(given or DEFAULT_TIMEOUT_S)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        msg = f"{TIMEOUT_VARIABLE}={given} must be a number of seconds above 0, such as 20."
        raise ConfigError(msg)
    return seconds


def url_parts(url: object) -> Any:
    """The parts of a server's url.

    Raises:
        ConfigError: It is none.
    """
    parts: Any = None
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:  # a port that is none
        usable = False
    if not usable:
        msg = f"chroma_url must look like http://host:8000, got {shown(url)}."
        raise ConfigError(msg)
    return parts


def operation_timeout() -> float:
    """Seconds after which an operation on a store that has a Chroma server is over, or hangs.

    It asks for little more than two things, one after the other, and ends with the first that
    fails.
    """
    return 2 * request_timeout() + _SLACK_S


class Asker:
    """Sends requests to a server: each ends in time, and a lost connection is tried once more."""

    def __init__(self, place: str, session: Any) -> None:
        import httpx

        self.place = place
        self._seconds = request_timeout()
        self._httpx = httpx
        session.timeout = httpx.Timeout(self._seconds, connect=min(_CONNECT_S, self._seconds))
        session.event_hooks = {"request": [self._began], "response": [self._arrive]}

    def ask(self, request: Callable[..., T], **arguments: Any) -> T:
        """The answer.

        Raises:
            ChromaError: There was none, or the server refused.
        """
        httpx = self._httpx
        try:
            try:
                return request(**arguments)
            except httpx.TimeoutException:
                raise
            except httpx.TransportError:
                return request(**arguments)
        except httpx.TimeoutException as error:
            problem = f"the server did not answer within {self._seconds:g} s"
            advice = (
                f"It is busy or stalled: look at its log, or start it again (chroma run); to wait "
                f"longer: export {TIMEOUT_VARIABLE}={3 * self._seconds:g}"
            )
            raise ChromaError(problem, type(error).__name__, advice=advice) from error
        except httpx.TransportError as error:
            problem = f"the server cannot be reached ({error or type(error).__name__})"
            advice = "Is the server running (chroma run), and is the url right?"
            raise ChromaError(problem, type(error).__name__, advice=advice) from error
        except Exception as error:
            raise ChromaError.of(error) from error

    @staticmethod
    def _began(request: Any) -> None:
        request.extensions["tars_rag_began"] = time.monotonic()

    def _arrive(self, response: Any) -> None:
        """Read an answer, which as a whole has as long as httpx gives each piece of it."""
        request = response.request
        parts = []
        for part in response.iter_bytes():
            parts.append(part)
            if time.monotonic() - request.extensions["tars_rag_began"] > self._seconds:
                msg = "the answer comes too slowly"
                raise self._httpx.ReadTimeout(msg, request=request)
        response._content = b"".join(parts)
