"""A backup of a store that goes on working, in one file, made new beside the last and then renamed.

All that holds writers up is to take hold of the state of two indexes that never change it (the word
index has the passages, the exact index the vectors) and of what is only in the log, and to copy the
record of indexed files. What was written by then is in the backup, what comes later is not.

Only passages that are new, or differ from the last backup in that file, are written. A backup that
was killed goes on from what it had; until it is complete, and has been read back, the file is the
last backup or not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.files import sync
from tars_rag.retrieval.passage import Progress
from tars_rag.retrieval.storage.backup_file import (
    APPLICATION,
    SCHEMA,
    VERSION,
    About,
    BackupFile,
    row_digest,
)
from tars_rag.retrieval.storage.directory import StoreDirectory
from tars_rag.retrieval.storage.snapshot import StoreSnapshot

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Backup:
    """What was done.

    Attributes:
        path: The file.
        passages: How many it holds.
        written: How many were new, or not as in the last backup.
        removed: How many of the last backup are no more.
        size: Bytes of the file.
    """

    path: Path
    passages: int
    written: int
    removed: int
    size: int


def back_up(directory: StoreDirectory, path: Path, progress: Progress | None = None) -> Backup:
    """Back up an open store while others go on reading and writing.

    Writers wait while its state is taken hold of, which is a matter of milliseconds, and of copying
    the record of indexed files, if there is one.

    Args:
        directory: The store.
        path: The file; brought up to date if it is a backup of this store.
        progress: Called with (done, total) passages.

    Raises:
        InvalidInputError: `path` is something else than a backup of this store.
        StoreError: It cannot be written, or what was written cannot be read back.
    """

    def take() -> StoreSnapshot:
        with directory.still() as (indexes, tail):
            return StoreSnapshot.of(indexes, tail)

    return write_backup(path, directory.path, take, progress)


def write_backup(
    path: Path,
    store: Path,
    take: Callable[[], StoreSnapshot],
    progress: Progress | None = None,
) -> Backup:
    """Write a backup, or bring the one in `path` up to date.

    Args:
        path: The file.
        store: The store's directory.
        take: Takes hold of the store's present state; called once the file may be written.
        progress: Called with (done, total) passages.

    Raises:
        InvalidInputError: `path` is something else than a backup of this store.
        StoreError: It cannot be written, or what was written cannot be read back.
    """
    if path.is_relative_to(store):
        msg = f"{path} lies in the store that it is to be a backup of. Give a file elsewhere."
        raise InvalidInputError(msg)
    part = path.with_name(f".{path.name}.backup")
    try:
        with _claimed(part):
            base = _base(path, part)
            moment = take()
            if base is not None and base.line and not set(base.line) & set(moment.line):
                msg = (
                    f"{path} is a backup of another store (made {base.store.created or '?'}). "
                    "Give another file."
                )
                raise InvalidInputError(msg)
            done = _fill(part, path, moment, progress)
            with BackupFile(part) as written:
                written.verify()
            sync(part)
            part.replace(path)
            sync(path.parent)
            return done
    except (OSError, sqlite3.Error) as error:
        msg = (
            f"The backup {path} cannot be written: {error}. Check space and permissions, then "
            "repeat it: it goes on where it was. The last backup, if there was one, is untouched."
        )
        raise StoreError(msg) from error


def _base(path: Path, part: Path) -> About | None:
    """Make `part` what is written into: what a killed backup left, the last backup, or nothing."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        msg = f"{path} is not a file. Give the name of a backup, or of a file that is to be made."
        raise InvalidInputError(msg)
    about = None
    if path.exists():
        try:
            with BackupFile(path) as last:
                about = last.about
        except StoreError as error:
            msg = f"{path} is there already, and is not written over: {error}"
            raise InvalidInputError(msg) from error
    if not _usable(part):
        part.unlink(missing_ok=True)
        part.with_name(part.name + "-journal").unlink(missing_ok=True)
        if about is not None:
            _copy(path, part)
    return about


def _usable(part: Path) -> bool:
    """Whether what a killed backup left can be gone on with."""
    if not part.is_file() or not part.stat().st_size:
        return False
    with contextlib.closing(sqlite3.connect(part)) as database, contextlib.suppress(sqlite3.Error):
        tables = dict(
            database.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
        )
        return tables == SCHEMA and database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    return False


def _fill(part: Path, path: Path, moment: StoreSnapshot, progress: Progress | None) -> Backup:
    """Make the tables in `part` those of the moment."""
    with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous=OFF")  # it is made durable before it is renamed
        if not database.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
            database.execute(f"PRAGMA application_id={APPLICATION}")
            database.execute(f"PRAGMA user_version={VERSION}")
            for table in SCHEMA.values():
                database.execute(table)
        there: dict[str, bytes] = dict(database.execute("SELECT id, digest FROM passages"))
        known: dict[str, bytes] = {}
        written, total = 0, moment.words.count
        rows = moment.rows()
        while batch := list(islice(rows, _BATCH)):
            digests = {key: row_digest(key, *parts) for key, *parts in batch}
            new = [(*row, digests[row[0]]) for row in batch if there.get(row[0]) != digests[row[0]]]
            database.execute("BEGIN")
            database.executemany("INSERT OR REPLACE INTO passages VALUES (?, ?, ?, ?)", new)
            database.execute("COMMIT")
            known |= digests
            written += len(new)
            if progress is not None:
                progress(len(known), total)
        gone = [(key,) for key in there if key not in known]
        taken = datetime.now(timezone.utc).isoformat(timespec="seconds")
        order = sorted(known.items(), key=lambda row: row[0].encode())
        about = About(taken, moment.store, moment.line, len(known), "")
        about = about.of(iter(order), moment.records)
        database.execute("BEGIN")
        database.executemany("DELETE FROM passages WHERE id = ?", gone)
        database.execute("DELETE FROM records")
        database.executemany("INSERT INTO records VALUES (?, ?)", moment.records.items())
        database.execute("DELETE FROM about")
        database.executemany("INSERT INTO about VALUES (?, ?)", about.rows.items())
        database.execute("COMMIT")
        free = database.execute("PRAGMA freelist_count").fetchone()[0]
        if 2 * free > database.execute("PRAGMA page_count").fetchone()[0]:
            database.execute("VACUUM")
    return Backup(path, len(known), written, len(gone), part.stat().st_size)


def _copy(source: Path, target: Path) -> None:
    """Copy a file; where the file system can, without copying a block."""
    with source.open("rb") as old, target.open("xb") as new:
        left, offset = os.fstat(old.fileno()).st_size, 0
        while left:
            try:
                copied = os.copy_file_range(old.fileno(), new.fileno(), left)
            except OSError:  # not across file systems, nor on all of them
                copied = os.sendfile(new.fileno(), old.fileno(), offset, left)
            if not copied:
                return
            left, offset = left - copied, offset + copied


@contextlib.contextmanager
def _claimed(part: Path) -> Iterator[None]:
    """Hold the right to write `part`.

    Raises:
        StoreError: Another process has it.
    """
    lock = part.with_name(part.name + ".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        msg = f"Another process is writing the same backup ({part}). Wait until it has ended."
        raise StoreError(msg) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)
