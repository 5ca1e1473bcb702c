"""A server that speaks OpenAI's chat protocol, asked with the standard library."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from typing import Any

from tars_rag.errors import TarsRagError


class LlmError(TarsRagError):
    """The language model's server cannot be reached, refused, or broke off."""


class Llm:
    """A language model's server.

    Args:
        url: Its address, up to and with ``/v1``.
        key: Sent as a bearer token, if it needs one.
        timeout: Seconds to wait for the connection, and for each next piece.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 120) -> None:
        self._url, self._key, self._timeout = url.rstrip("/"), key, timeout

    def first_model(self) -> str:
        """The first model that the server lists.

        Raises:
            LlmError: It lists none, or does not answer.
        """
        try:
            with self._open("/models") as answer:
                told = json.load(answer)
            return str(told["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            msg = f"{self._url} lists no model. Name one: --llm-model NAME"
            raise LlmError(msg) from error
        except (OSError, HTTPException) as error:
            raise self._failure(error) from error

    def stream(self, model: str, system: str, user: str) -> Iterator[str]:
        """The answer, piece by piece.

        Raises:
            LlmError: The server does not answer, refuses, or stops before the end.
        """
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        ended = False
        try:
            with self._open(
                "/chat/completions", {"model": model, "messages": messages, "stream": True}
            ) as answer:
                for line in answer:
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        ended = True
                        break
                    piece = json.loads(data)
                    if "error" in piece:
                        msg = f"{self._url} broke off: {piece['error']!s:.300}"
                        raise LlmError(msg)
                    for choice in piece.get("choices", [])[:1]:
                        ended = ended or choice.get("finish_reason") is not None
                        text = choice.get("delta", {}).get("content")
                        if text:
                            yield text
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            msg = f"{self._url} sent what is not OpenAI's protocol ({error}). Check --llm."
            raise LlmError(msg) from error
        except (OSError, HTTPException) as error:
            raise self._failure(error) from error
        if not ended:
            msg = f"{self._url} stopped before the end of its answer. See its log, then ask again."
            raise LlmError(msg)

    def _open(self, path: str, body: dict[str, Any] | None = None) -> HTTPResponse:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, */*"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers)
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=self._timeout)
        return answer

    def _failure(self, error: OSError | HTTPException) -> LlmError:
        if isinstance(error, urllib.error.HTTPError):
            told = error.read(500).decode("utf-8", "replace")
            return LlmError(f"{self._url} refused with {error.code}: {told}")
        if isinstance(error, TimeoutError) or "timed out" in str(error):
            return LlmError(
                f"{self._url} sent nothing for {self._timeout:g} s. Wait longer: --timeout SECONDS"
            )
        return LlmError(
            f"{self._url} cannot be reached ({error}). Start the server, or give another --llm URL."
        )
