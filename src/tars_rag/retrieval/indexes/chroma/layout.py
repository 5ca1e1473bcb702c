"""What embedded Chroma writes: the tables and the vector files, as the tested versions make them.

All of it is private to Chroma and may change with any release (`guests.CHROMA`). What no tested
version writes is an `UnknownLayoutError`: to take it for damage would have the vectors made anew at
every opening, and to take it for a full disk would send people looking in the wrong place.
"""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tars_rag import advice
from tars_rag.errors import UnknownLayoutError
from tars_rag.guests import CHROMA

DATABASE: Final = "chroma.sqlite3"
SESSION: Final = "tars_session"
"""In a collection's metadata: which session of the store wrote last."""
SAVED: Final = "index_metadata.pickle"
"""The file that a directory of vectors has once Chroma has saved them there."""

VECTOR_FILES: Final = frozenset(
    {SAVED, "header.bin", "data_level0.bin", "length.bin", "link_lists.bin"}
)
TABLES: Final = {
    "collections": {"id", "name"},
    "segments": {"id", "type", "scope", "collection"},
    "max_seq_id": {"segment_id", "seq_id"},
    "collection_metadata": {"collection_id", "key", "str_value"},
}
"""The columns that are read here."""

SEGMENTS: Final = frozenset(
    {
        ("VECTOR", "urn:chroma:segment/vector/hnsw-local-persisted"),
        ("METADATA", "urn:chroma:segment/metadata/sqlite"),
    }
)
HEADER: Final = struct.Struct("<iQQQQQQiiQQQdQ")
"""Of header.bin: version, offset of level 0, capacity, count, bytes a record, offset of the label,
offset of the vector, highest level, entry point, maxM, maxM0, M, 1 / ln M, ef_construction."""

_HEADER_VERSION = 1
_SHOWN = 5


@contextlib.contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """Chroma's database, to be read; never made where it is missing.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    # Not mode=ro: a transaction that a process left half-way could not be rolled back, and a sound
    # database would look damaged.
    uri = f"file:{quote(str(path))}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        yield connection


def last_write(path: Path, collection: str) -> tuple[str, int | None]:
    """Which session of the store wrote to a collection last, and its number in Chroma's log.

    Returns:
        Empty: no session said so. None: the database cannot be read.
    """
    try:
        with database(path) as connection:
            row = connection.execute(
                "SELECT k.str_value, m.seq_id FROM collections c "
                "JOIN segments s ON s.collection = c.id AND s.scope = 'METADATA' "
                "LEFT JOIN max_seq_id m ON m.segment_id = s.id "
                "LEFT JOIN collection_metadata k ON k.collection_id = c.id AND k.key = ? "
                "WHERE c.name = ?",
                (SESSION, collection),
            ).fetchone()
    except (sqlite3.Error, ValueError):
        return "", None
    session, number = row or (None, None)
    return session or "", int(number or 0)


def problem(path: Path) -> str | None:
    """What SQLite's own check of every page of the database says; None: nothing."""
    if not path.is_file():
        return f"{path.name} is missing"
    try:
        with database(path) as connection:
            rows = connection.execute(f"PRAGMA integrity_check({_SHOWN})").fetchall()
    except sqlite3.Error as error:
        return str(error)
    return None if rows == [("ok",)] else "; ".join(str(row[0]) for row in rows)


def require_known_tables(path: Path) -> None:
    """Look at the tables of a database, and what its segments are.

    A database that cannot be read, or has no table at all, is left to others to judge.

    Raises:
        UnknownLayoutError: No tested version of Chroma wrote it.
    """
    try:
        with database(path) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                return
            for table, wanted in TABLES.items():
                rows = connection.execute(f"PRAGMA table_info({table})").fetchall()
                missing = wanted - {row[1] for row in rows}
                if missing:
                    raise _unknown(path, f"table {table} has no {', '.join(sorted(missing))}")
            segments = connection.execute("SELECT DISTINCT scope, type FROM segments").fetchall()
            for segment in segments:
                if segment not in SEGMENTS:
                    raise _unknown(path, f"segments of {segment[0]} as {segment[1]}")
            kinds = connection.execute("SELECT DISTINCT typeof(seq_id) FROM max_seq_id").fetchall()
            if kinds not in ([], [("integer",)]):
                raise _unknown(path, "max_seq_id is no integer")
    except (sqlite3.Error, ValueError):
        return


def require_known_names(directory: Path) -> None:
    """Look at the names of the files in a directory of vectors.

    Raises:
        UnknownLayoutError: Chroma put something there that no tested version makes.
        FileNotFoundError: There is no such directory.
    """
    names = {file.name for file in directory.iterdir()}
    other = {name for name in names - VECTOR_FILES if not name.startswith(".")}
    if SAVED in names:  # what an editor may have left there is harmless
        other = {name for name in other if name.endswith((".bin", ".pickle"))}
    if other:
        raise _unknown(directory, f"a file {min(other)}")


def require_known_files(directory: Path) -> None:
    """Look at vector files that are not as they were sealed: damage adds nothing to a file.

    Raises:
        UnknownLayoutError: Chroma wrote something there that no tested version writes.
    """
    with contextlib.suppress(FileNotFoundError):
        require_known_names(directory)
        size = (directory / "header.bin").stat().st_size
        if size > HEADER.size:
            raise _unknown(directory, f"header.bin of {size} bytes, not {HEADER.size}")


def cut_short(directory: Path) -> bool:
    """Whether a vector file holds less than the header says: hnswlib does not see a write fail.

    Of each vector data_level0.bin has a record, length.bin a float32, and link_lists.bin a size and
    as many bytes (saveIndex in hnswlib's hnswalg.h, as Chroma changed it).

    Raises:
        UnknownLayoutError: No tested version of Chroma wrote these files.
    """
    try:
        require_known_names(directory)
        header = (directory / "header.bin").read_bytes()
        links = (directory / "link_lists.bin").read_bytes()
        level0 = (directory / "data_level0.bin").stat().st_size
        lengths = (directory / "length.bin").stat().st_size
    except FileNotFoundError:
        return True
    fields = _header(directory, header)
    if fields is None:
        return True
    count, record = fields[3], fields[4]
    at = 0
    for _ in range(count):
        if at + 4 > len(links):
            return True
        at += 4 + int.from_bytes(links[at : at + 4], "little")
    return at > len(links) or level0 < count * record or lengths < 4 * count


def saved_elements(directory: Path) -> int:
    """How many vectors the files in a directory hold, deleted ones included; 0: none is saved.

    Raises:
        UnknownLayoutError: No tested version of Chroma wrote them.
    """
    try:
        fields = _header(directory, (directory / "header.bin").read_bytes())
    except FileNotFoundError:
        return 0
    return int(fields[3]) if fields is not None else 0


def _header(directory: Path, header: bytes) -> tuple[Any, ...] | None:
    """The fields of header.bin; None: it was cut off, or its blocks were never written."""
    if not any(header):
        return None
    installed = CHROMA.installed
    if len(header) < HEADER.size and installed and CHROMA.is_tested(installed):
        return None
    if len(header) != HEADER.size:
        raise _unknown(directory, f"header.bin of {len(header)} bytes, not {HEADER.size}")
    fields = HEADER.unpack(header)
    version, _, capacity, count, record, label, vector = fields[:7]
    max_m, max_m0, m = fields[9:12]
    if version != _HEADER_VERSION:
        raise _unknown(directory, f"header.bin of version {version}, not {_HEADER_VERSION}")
    # A record is its links (a count and max_m0 of them), its vector of float32 and its label.
    known = count <= capacity and (max_m, max_m0) == (m, 2 * m) and vector == 4 + 4 * max_m0
    if not (known and record == label + 8 and label > vector and (label - vector) % 4 == 0):
        raise _unknown(directory, "the fields of header.bin do not fit each other")
    return fields


def _unknown(where: Path, what: str) -> UnknownLayoutError:
    return CHROMA.unknown_layout(where, what, f"Update it: {advice.update()}")
