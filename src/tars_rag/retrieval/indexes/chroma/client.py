"""What `vectors` needs of a Chroma, be it embedded (`process`) or behind a server (`server`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

Answer: TypeAlias = Callable[[], Any]
"""Waits for the answer to what was asked, and returns or raises it; to be called once."""


class ChromaError(Exception):
    """What Chroma raised.

    Attributes:
        kind: Name of its class.
        is_value_error: Whether it was a `ValueError`.
        advice: What to do; empty: let the store be checked.
    """

    def __init__(
        self, message: str, kind: str, *, is_value_error: bool = False, advice: str = ""
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.is_value_error = is_value_error
        self.advice = advice

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
    replaces: bool
    """Whether upsert puts a record in the place of the old one, whole, in one step."""

    def asking(self, op: str, **arguments: Any) -> AbstractContextManager[Answer]:
        """Ask for an operation (upsert, update, delete, query, get, count, modify) on entry.

        The arguments are those of Chroma's own collection.

        Raises:
            ChromaError: On entry or from the answer: Chroma refused or failed.
            StoreError: Its process died.
            TypeError, ValueError: An argument cannot be written as JSON.
        """

    def refresh(self) -> None:
        """See what other processes wrote."""

    def lost(self) -> list[str]:
        """Ids that should be there and are not: a server's data were exchanged or tampered with."""

    def sweep(self) -> None:
        """Delete what counts for nothing any more; only while nobody else writes."""


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
