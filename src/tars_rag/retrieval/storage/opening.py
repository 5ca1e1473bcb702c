"""The indexes of a store's directory: opened or judged, with a verdict where that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.files import widen
from tars_rag.retrieval.indexes.chroma.client import ChromaError, Client
from tars_rag.retrieval.indexes.chroma.process import ChromaProcess
from tars_rag.retrieval.indexes.chroma.server import ServerClient
from tars_rag.retrieval.indexes.chroma.vectors import VectorIndex
from tars_rag.retrieval.indexes.exact.index import ExactIndex
from tars_rag.retrieval.indexes.words import files as segments
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.storage.layout import CHROMA, EXACT, LEXICAL
from tars_rag.retrieval.storage.lock import StoreLock
from tars_rag.retrieval.storage.store_json import StoreJson

_MOST_PATH_BYTES = 480
"""SQLite takes 512, with the name of its journal in this directory."""
READERS = max(2, os.cpu_count() or 2)
"""How many threads may read a store at once; each asks Chroma two things at a time at most."""


def open_vectors(
    path: Path,
    store_json: StoreJson,
    url: str | None,
    lock: StoreLock,
    *,
    create: bool = False,
    read_only: bool = False,
) -> VectorIndex:
    """Chroma, in the store's directory or behind `url`.

    Args:
        path: The store's directory.
        store_json: Of the store.
        url: Of the Chroma server; None: embedded, in a process that holds `lock` too.
        lock: The store's.
        create: Make the collection if it is missing.
        read_only: Nothing may be written.

    Raises:
        ConfigError: `url` is not that of the store's server.
        InvalidInputError: The path is none that Chroma can open.
        StoreError: It cannot be opened; the message says whether the texts are lost.
    """
    if url is not None:
        return _open(ServerClient(url, path, read_only=read_only), store_json, create=create)
    database = path / CHROMA / "chroma.sqlite3"
    _check_name(path)
    if not create and not database.is_file():
        msg = (
            f"The store {path} has lost its texts and vectors: {database} is missing. "
            "Restore the directory from a backup, or index the sources again."
        )
        raise StoreError(msg)
    try:
        client = ChromaProcess(path / CHROMA, lock.descriptor, READERS + 1)
        lock.name_holder(client.pid)
        if not read_only:
            widen(database)
        return _open(client, store_json, create=create)
    except (StoreError, ChromaError) as error:
        msg = (
            f"The texts and vectors of the store {path} cannot be opened: {error} If the disk is "
            "full or read-only, mend that; otherwise the database is damaged: restore the "
            "directory from a backup, or index the sources again."
        )
        raise StoreError(msg) from error


def _check_name(path: Path) -> None:
    """Refuse a path that SQLite cannot open, before that is taken for damage."""
    name = os.fsencode(path)
    if len(name) > _MOST_PATH_BYTES:
        msg = (
            f"The path of the store has {len(name)} bytes, and Chroma's database takes "
            f"{_MOST_PATH_BYTES}: {path}. Put the store in a directory with a shorter path."
        )
        raise InvalidInputError(msg)
    try:
        name.decode("utf-8")
    except UnicodeDecodeError as error:
        msg = (
            f"The path of the store, {str(path)!a}, is not UTF-8, and Chroma takes no other. "
            "Rename the directory, or put the store in another one."
        )
        raise InvalidInputError(msg) from error


def _open(client: Client, store_json: StoreJson, *, create: bool) -> VectorIndex:
    try:
        return VectorIndex(client, store_json.collection, create=create)
    except BaseException:
        client.close()
        raise


def exact_damage(path: Path) -> str | None:
    """Why the exact index of a store cannot be used as it is; None: it can."""
    if not (path / EXACT).is_dir():
        return f"{EXACT} is missing"
    return ExactIndex.damage(path / EXACT)


def lexical_damage(path: Path, language: str) -> str | None:
    """Why the lexical index of a store cannot be used as it is; None: it can."""
    problem = segments.damage(path / LEXICAL)
    if problem is None:
        try:
            LexicalIndex(path / LEXICAL, language=language, read_only=True).close()
        except StoreError as error:
            problem = str(error)
    return problem
