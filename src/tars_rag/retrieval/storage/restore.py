"""A store made of a backup: verified first, built beside, renamed when it is whole."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.files import publishing
from tars_rag.retrieval.indexes.checks import check_passages, check_vectors
from tars_rag.retrieval.passage import Progress
from tars_rag.retrieval.storage.backup_file import BackupFile
from tars_rag.retrieval.storage.index_set import IndexSet
from tars_rag.retrieval.storage.layout import LOCK, SOURCES
from tars_rag.retrieval.storage.lock import StoreLock
from tars_rag.retrieval.storage.state import State, read_state

_BATCH = 2048
_TABLES = {
    *(("table", "sources"), ("table", "passages")),
    ("table", "roots"),
    *(("index", "by_source"), ("index", "by_digest"), ("index", "by_content")),
}


def restore_store(file: Path, target: Path, progress: Progress | None = None) -> int:
    """Make a store of a backup. The directory appears when everything is in it, or not at all.

    Args:
        file: The backup.
        target: The directory; made. One that is empty is taken.
        progress: Called with (done, total) passages.

    Returns:
        How many passages it holds.

    Raises:
        InvalidInputError: There is something at `target`.
        StoreError: The backup is not whole, or the store cannot be written.
    """
    if target.is_symlink() or (target.exists() and not (target.is_dir() and _is_empty(target))):
        msg = f"{target} is there already. Give a directory that is empty, or is to be made."
        raise InvalidInputError(msg)
    with BackupFile(file) as backup:
        backup.verify()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with publishing(target) as part:
                _build(backup, part, progress)
        except OSError as error:
            msg = (
                f"The store {target} cannot be made of {file}: {error}. Check space and "
                "permissions, then repeat the command."
            )
            raise StoreError(msg) from error
    return backup.about.passages


def _build(backup: BackupFile, path: Path, progress: Progress | None) -> None:
    about = backup.about
    store_json = about.store.write(path)
    State(line=about.line).write(path)  # so that the next backup knows the store again
    lock = StoreLock(path / LOCK)
    with contextlib.ExitStack() as stack:
        stack.callback(lock.close)
        lock.acquire()
        indexes = IndexSet(path, store_json, lock, None, read_only=False)
        stack.callback(indexes.close)
        indexes.create()
        done, seen = 0, set[str]()
        for passages, vectors in backup.passages(_BATCH):
            check_passages(passages, seen)
            names = [f"passage {passage.id!r}" for passage in passages]
            indexes.upsert(passages, check_vectors(vectors, names, store_json.dimension))
            done += len(passages)
            if progress is not None:
                progress(done, about.passages)
        if {*indexes.counts()} != {about.passages}:
            msg = f"Of {about.passages} passages {indexes.counts()} arrived in the indexes."
            raise StoreError(msg)
        if about.store.dimension is not None and not done:
            indexes.update(dimension=about.store.dimension)
    state = read_state(path)
    if state is not None:
        replace(state, line=state.line).placed(path).write(path)
    for name, data in backup.records().items():
        if name == SOURCES:
            (path / SOURCES).write_bytes(data)
            _check_record(path / SOURCES)


def _check_record(path: Path) -> None:
    """The record of indexed files has its tables and nothing that would run by itself.

    Raises:
        StoreError: It has something else.
    """
    with contextlib.closing(sqlite3.connect(path)) as database:
        try:
            database.execute("PRAGMA trusted_schema=0")
            found = {
                (kind, name)
                for kind, name in database.execute("SELECT type, name FROM sqlite_schema")
                if not name.startswith("sqlite_autoindex_")
            }
        except sqlite3.Error as error:
            found = {("", str(error))}
    if not found <= _TABLES:
        msg = "The backup's record of indexed files is none. Nothing was restored from it."
        raise StoreError(msg)


def _is_empty(directory: Path) -> bool:
    return next(directory.iterdir(), None) is None
