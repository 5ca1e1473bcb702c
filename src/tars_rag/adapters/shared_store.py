"""How both frameworks open a `HybridStore`: shared by path, checked, reopened after `close`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from tars_rag.adapters.foreign import ForeignEmbedder, check_probe
from tars_rag.adapters.handle import Handle
from tars_rag.adapters.threads import Lane
from tars_rag.errors import InvalidInputError, shown
from tars_rag.retrieval.address import is_lance, is_url, lance_address, server_key, store_url
from tars_rag.retrieval.indexes.words.languages import check_language
from tars_rag.retrieval.passage import TextEmbedder
from tars_rag.retrieval.storage.layout import store_path
from tars_rag.retrieval.store import HybridStore
from tars_rag.runtimes.base import FloatArray

PathLike = str | os.PathLike[str]


class SharedStore:
    """The open `HybridStore` of all objects with the same directory and embedder.

    It is opened by the first call that needs it and let go with the last object that shares it.
    After `close` the next call opens it again. Any number of threads may call any method.
    """

    def __init__(
        self,
        path: PathLike | None,
        embedder: TextEmbedder,
        *,
        read_only: bool = False,
        chroma_url: str | None = None,
        language: str | None = None,
        probe: FloatArray | None = None,
        sharing: str = "",
        api_key: str | None = None,
    ) -> None:
        """Describe the store; nothing is opened or made yet, but a temporary directory.

        Args:
            path: Its directory, in any spelling: ``~``, ``..`` and links lead to the same store.
                None: a temporary one, deleted with the last object that shares the store. Or the
                address of a store that a server has.
            embedder: What makes its vectors.
            read_only: As `HybridStore`'s.
            chroma_url: As `HybridStore`'s.
            language: As `HybridStore`'s.
            probe: `ForeignEmbedder.probe` of what makes the vectors, where only that is at hand.
            sharing: Stores are shared among those that give the same word.
            api_key: As `HybridStore`'s.

        Raises:
            InvalidInputError: The path is none.
            ConfigError: It is an address, and names no store.
        """
        self._handle = Handle()
        self._temporary = _TemporaryDirectory() if path is None else None
        self.path: Final = self._temporary.path if self._temporary else resolved(path or "")
        self._embedder = embedder
        self._probe = embedder.probe if isinstance(embedder, ForeignEmbedder) else probe
        self._read_only, self._chroma_url = read_only, chroma_url
        self._language = None if language is None else check_language(language)
        self._sharing = sharing
        self._api_key = server_key(api_key) if is_url(self.path) else api_key

    @property
    def is_temporary(self) -> bool:
        """Whether the directory goes with the last object."""
        return self._temporary is not None

    def lane(self, lane: Lane) -> Lane:
        """Where async calls of the store run: those that wait for a server do not wait in turn."""
        return "network" if isinstance(self.path, str) else lane

    @property
    def store(self) -> HybridStore:
        """The open store.

        Raises:
            FingerprintError: Its vectors were made by another embedder.
            StoreLockedError: It is open where it cannot be shared (see `HybridStore`).
            StoreError: It is damaged, or cannot be read or written.
        """
        return self._handle.get(self._key, self._open, self._temporary)

    @contextlib.contextmanager
    def using(self) -> Iterator[HybridStore]:
        """The open store for one call, which `close` in another thread waits for."""
        with self._handle.using(self._key, self._open, self._temporary) as store:
            yield store

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close if the block fails: who keeps the exception would keep the store and its lock."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the directory, for every object that shares the store; using one reopens it."""
        self._handle.close()

    @property
    def _key(self) -> tuple[object, ...]:
        made_by = self._embedder.fingerprint
        opened = (self.path, made_by, self._read_only, self._chroma_url, self._api_key)
        return (HybridStore, self._sharing, *opened)

    def _open(self) -> HybridStore:
        store = HybridStore(
            self.path,
            self._embedder,
            read_only=self._read_only,
            chroma_url=self._chroma_url,
            language=self._language,
            api_key=self._api_key,
        )
        if self._probe is None:
            return store
        try:
            check_probe(
                store,
                self._probe,
                None if isinstance(self._embedder, NamedEmbedder) else self._embedder.embed,
                read_only=self._read_only,
            )
        except BaseException:
            store.close()  # who keeps the exception keeps the store, and with it the lock
            raise
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()  # owners are made again by their settings, and find the store by them

    def __copy__(self) -> SharedStore:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedStore:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedStore) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _nothing() -> None:
    """What a pickled `SharedStore` becomes."""


class NamedEmbedder:
    """Stands for a model that is known by its fingerprint only, so that it cannot embed."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def embed(self, texts: Sequence[str]) -> NoReturn:
        """Say what is missing.

        Raises:
            InvalidInputError: Always.
        """
        msg = (
            f"Texts cannot be embedded: the store was opened with the name {self.fingerprint!r} of "
            "its embedding model, not with the model. Open it with the model, or give vectors."
        )
        raise InvalidInputError(msg)


def resolved(path: object) -> Path | str:
    """The directory that a path means, the same for each way to write it; or an address.

    Raises:
        InvalidInputError: It is empty, no path, or names the home of an unknown user.
        ConfigError: It is an address, and names no store.
    """
    if is_url(path):
        return store_url(str(path))
    if is_lance(path):
        return lance_address(str(path))
    if not isinstance(path, str | os.PathLike):
        msg = f"The store's path is {shown(path)}: give the name of a directory."
        raise InvalidInputError(msg)
    if not os.fspath(path):
        msg = "The store's path is empty: name a directory, or leave it out."
        raise InvalidInputError(msg)
    return store_path(Path(path))


class _TemporaryDirectory:
    """A directory that is deleted with this object, or at the end of the process that made it."""

    def __init__(self) -> None:
        self.path: Final = Path(tempfile.mkdtemp(prefix="tars-rag-")).resolve()
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, maker: int) -> None:
    if os.getpid() == maker:  # a forked child ends without taking its parent's store along
        shutil.rmtree(path, ignore_errors=True)
