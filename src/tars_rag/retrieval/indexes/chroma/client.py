"""What `vectors` needs of a Chroma, and Chroma behind a server. `embedded` is the other one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

from tars_rag.errors import ConfigError, StoreError

Answer: TypeAlias = Callable[[], Any]
"""Waits for the answer to what was asked, and returns or raises it; to be called once."""


class ChromaError(Exception):
    """What Chroma raised.

    Attributes:
        kind: Name of its class.
        is_value_error: Whether it was a `ValueError`.
    """

    def __init__(self, message: str, kind: str, *, is_value_error: bool) -> None:
        super().__init__(message)
        self.kind = kind
        self.is_value_error = is_value_error

    @classmethod
    def of(cls, error: BaseException) -> ChromaError:
        """The error as ours."""
        kind = type(error).__name__
        return cls(str(error) or kind, kind, is_value_error=isinstance(error, ValueError))


class Collection(Protocol):
    """A collection of a `Client`."""

    name: str
    metadata: Mapping[str, Any] | None
    """The collection's own, as it was when it was opened."""

    def asking(self, op: str, **arguments: Any) -> AbstractContextManager[Answer]:
        """Ask for an operation (upsert, update, delete, query, get, count, modify) on entry.

        The arguments are those of Chroma's own collection.

        Raises:
            ChromaError: On entry or from the answer: Chroma refused or failed.
            StoreError: Its process died.
            TypeError, ValueError: An argument cannot be written as JSON.
        """


class Client(Protocol):
    """The few names of Chroma's client that are used, and what makes it trustworthy."""

    place: str
    """Url or directory."""
    exclusive: bool
    """Whether nobody else writes to it while it is open."""

    @property
    def alive(self) -> bool:
        """False once its process died or was abandoned: nothing can be asked any more."""

    def get_max_batch_size(self) -> int:
        """See Chroma."""

    def get_or_create_collection(
        self, name: str, configuration: Any, metadata: Mapping[str, Any]
    ) -> Collection:
        """See Chroma. One that is there keeps its metadata."""

    def get_collection(self, name: str) -> Collection:
        """See Chroma."""

    def delete_collection(self, name: str) -> None:
        """See Chroma."""

    def collection_names(self) -> Sequence[str]:
        """Of all collections."""

    def close(self) -> None:
        """Release everything. May be called twice; nobody may be asking any more."""

    def abandon(self) -> None:
        """Let go without asking Chroma: after a failure it may wait for itself for ever."""


class ServerClient:
    """Chroma behind a server.

    Args:
        url: ``http://host:port``.

    Raises:
        ConfigError: The url is not usable.
        StoreError: The server cannot be reached.
    """

    alive = True
    exclusive = False

    def __init__(self, url: str) -> None:
        try:
            import chromadb
            from chromadb.config import Settings
        except UnicodeDecodeError as error:
            msg = (
                f"Chroma's client reads {Path('.env').absolute()} and takes only UTF-8 ({error}). "
                "Start in another directory, or convert the file: iconv -f LATIN1 -t UTF-8 .env > "
                ".env.utf8 && mv .env.utf8 .env"
            )
            raise ConfigError(msg) from error

        self.place = url
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"chroma_url must look like http://host:8000, got {url!r}."
            raise ConfigError(msg)
        port = parts.port or (443 if parts.scheme == "https" else 8000)
        settings = Settings(anonymized_telemetry=False)
        try:
            self._client: Any = chromadb.HttpClient(
                parts.hostname, port, parts.scheme == "https", settings=settings
            )
        except Exception as error:
            msg = f"Chroma ({url}) cannot be opened: {error}. Is the server running (chroma run)?"
            raise StoreError(msg) from error

    def get_max_batch_size(self) -> int:
        """See Chroma."""
        with _translated():
            return int(self._client.get_max_batch_size())

    def get_or_create_collection(
        self, name: str, configuration: Any, metadata: Mapping[str, Any]
    ) -> Collection:
        """See Chroma. One that is there keeps its metadata."""
        with _translated():
            return _ServerCollection(
                self._client.get_or_create_collection(
                    name,
                    embedding_function=None,
                    configuration=configuration,
                    metadata=dict(metadata),
                )
            )

    def get_collection(self, name: str) -> Collection:
        """See Chroma."""
        with _translated():
            return _ServerCollection(self._client.get_collection(name, embedding_function=None))

    def delete_collection(self, name: str) -> None:
        """See Chroma."""
        with _translated():
            self._client.delete_collection(name)

    def collection_names(self) -> list[str]:
        """Of all collections."""
        with _translated():
            return [collection.name for collection in self._client.list_collections()]

    def close(self) -> None:
        """Close the connections. May be called twice."""
        self._client.close()

    def abandon(self) -> None:
        """The server looks after itself."""


class _ServerCollection:
    def __init__(self, collection: Any) -> None:
        self.name: str = collection.name
        self.metadata: Mapping[str, Any] | None = collection.metadata
        self._collection = collection

    @contextlib.contextmanager
    def asking(self, op: str, **arguments: Any) -> Iterator[Answer]:
        with _translated():
            result = getattr(self._collection, op)(**arguments)
        yield lambda: result


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ChromaError.of(error) from error
