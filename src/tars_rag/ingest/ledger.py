"""Records which passages came from which file, so that a later run can skip, replace and prune.

Passages are recorded before the store gets them (`claim`) and a file is recorded as done after it
(`finish`). So the record always names at least those passages of a file that the store holds, and
a process that is killed in between loses work, but never a passage.
"""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import StoreError
from tars_rag.ingest.digests import Claim, digest_of
from tars_rag.ingest.root import Root
from tars_rag.retrieval.storage.layout import SOURCES

if TYPE_CHECKING:
    from tars_rag.retrieval.store import HybridStore

_ALIKE = 4  # passages with one digest that are looked at: some may be gone
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sources(
    source TEXT PRIMARY KEY, version TEXT NOT NULL, stamp TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS passages(
    id TEXT PRIMARY KEY, source TEXT NOT NULL, digest TEXT NOT NULL DEFAULT '',
    content TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS roots(root TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_source ON passages(source);
"""
# Columns that records of before lack.
_LATER = (("passages", "digest"), ("sources", "stamp"), ("passages", "content"))
_INDEXES = """
CREATE INDEX IF NOT EXISTS by_digest ON passages(digest) WHERE digest != '';
CREATE INDEX IF NOT EXISTS by_content ON passages(content) WHERE content != '';
"""
_MANY = 20  # files that share a text without being copies: a licence, a signature
_NEAR = """
WITH shared(content) AS (
    SELECT content FROM passages WHERE content != ''
    GROUP BY content HAVING COUNT(DISTINCT source) BETWEEN 2 AND ?
)
SELECT a.source, b.source, COUNT(DISTINCT a.content)
FROM shared JOIN passages a USING (content) JOIN passages b USING (content)
WHERE a.source < b.source GROUP BY a.source, b.source ORDER BY a.source, b.source
"""


class Ledger:
    """The record of indexed files, kept in the store's directory.

    Args:
        store: The directory.
        reading: Leave the file as it is, which may be one that must not be written.

    Raises:
        StoreError: The record is damaged or cannot be written.
    """

    def __init__(self, store: Path, *, reading: bool = False) -> None:
        path = store / SOURCES
        try:
            # Autocommit: every statement is durable when it returns.
            self._db = sqlite3.connect(path, isolation_level=None)
            if reading:
                self._db.execute("SELECT COUNT(*) FROM sqlite_master")
                return
            self._db.executescript(_SCHEMA)
            for table, name in _LATER:
                columns = [row[1] for row in self._db.execute(f"PRAGMA table_info({table})")]
                if name not in columns:
                    add = f"ALTER TABLE {table} ADD COLUMN {name} TEXT NOT NULL DEFAULT ''"
                    self._db.execute(add)
            self._db.executescript(_INDEXES)
        except sqlite3.Error as error:
            msg = (
                f"{path}, the record of indexed files, cannot be used ({error}). Delete it and "
                "run the same command again: passages in the store are not embedded again. "
                f"To delete it: rm {shlex.quote(str(path))}"
            )
            raise StoreError(msg) from error

    @property
    def root(self) -> Root:
        """From where sources are named; records of before, and those without one: whole paths."""
        tables = self._db.execute("SELECT name FROM sqlite_master WHERE name = 'roots'")
        if tables.fetchone() is None:
            return Root()
        row = self._db.execute("SELECT root FROM roots").fetchone()
        return Root(None if row is None else Path(row[0]))

    def settle(self, root: Root) -> None:
        """Name sources from a directory, or record that the directory has moved.

        Raises:
            InvalidInputError: It cannot be, see `Root.check_successor`.
        """
        before = self.root
        if before == root:
            return
        before.check_successor(root, self.sources())
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM roots")
            self._db.execute("INSERT INTO roots VALUES (?)", (str(root.directory),))

    def version(self, source: str) -> str | None:
        """What `finish` recorded for a file; None: never finished."""
        row = self._db.execute("SELECT version FROM sources WHERE source = ?", (source,)).fetchone()
        return None if row is None else str(row[0])

    def stamp(self, source: str) -> str:
        """What `finish` or `restamp` recorded of a file's place on the disk; may be empty."""
        row = self._db.execute("SELECT stamp FROM sources WHERE source = ?", (source,)).fetchone()
        return "" if row is None else str(row[0])

    def ids(self, *sources: str) -> list[str]:
        """Ids of all passages that the store may hold of files."""
        sql = "SELECT id FROM passages WHERE source = ?"
        return [row[0] for source in sources for row in self._db.execute(sql, (source,))]

    def is_whole(self, source: str, store: HybridStore) -> bool:
        """Whether the store holds all that a finished file gave."""
        ids = self.ids(source)  # of vectors, because those are in memory
        return all(len(store.vectors(batch)) == len(batch) for batch in batches(ids, 1000))

    def sources(self) -> list[str]:
        """All files that gave passages."""
        rows = self._db.execute(
            "SELECT source FROM sources UNION SELECT source FROM passages ORDER BY source"
        )
        return [row[0] for row in rows]

    def owners(self, ids: Iterable[str]) -> dict[str, str]:
        """Map those of `ids` that came from a file to that file."""
        found: dict[str, str] = {}
        for batch in batches(ids, 500):
            marks = ",".join("?" * len(batch))
            sql = f"SELECT id, source FROM passages WHERE id IN ({marks})"
            found.update(self._db.execute(sql, batch))
        return found

    def claim(self, claims: Iterable[Claim]) -> None:
        """Record passages, before the store gets them."""
        rows = [(one.id, one.source, one.digest, one.content) for one in claims]
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO passages VALUES (?, ?, ?, ?)", rows)

    def alike(self, digests: Iterable[str]) -> dict[str, list[str]]:
        """Map digests to ids of passages that may have them in the store: a few of each."""

        def pairs() -> Iterator[tuple[str, str]]:
            for batch in batches(digests, 500):
                marks = ",".join("?" * len(batch))
                sql = f"SELECT digest, id FROM passages WHERE digest IN ({marks}) AND digest != ''"
                yield from self._db.execute(sql, batch)

        return few_of_each(pairs())

    def embedded(
        self, ids: Sequence[str], store: HybridStore
    ) -> dict[str, tuple[str, NDArray[np.float32]]]:
        """By id the digest of what is embedded of passages, and the vector [dim] of just that."""
        digests = {passage.id: digest_of(passage) for passage in store.get(ids=ids)}
        vectors = store.vectors(list(digests))
        return {key: (digests[key], vector) for key, vector in vectors.items()}

    @property
    def knows_contents(self) -> bool:
        """Whether contents can be recorded; a record of before has no place for them."""
        columns = self._db.execute("PRAGMA table_info(passages)")
        return "content" in [row[1] for row in columns]

    def without_content(self) -> list[str]:
        """Ids of passages whose content is not recorded: those of before."""
        return [row[0] for row in self._db.execute("SELECT id FROM passages WHERE content = ''")]

    def record_content(self, contents: Iterable[tuple[str, str]]) -> None:
        """Record (content, id) of passages of before."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany("UPDATE passages SET content = ? WHERE id = ?", contents)

    def with_content(self, content: str, most: int) -> list[str]:
        """Ids of passages with a content, of files that are in the store as a whole."""
        sql = (
            "SELECT id FROM passages JOIN sources USING (source) "
            "WHERE content = ? AND content != '' ORDER BY id LIMIT ?"
        )
        return [row[0] for row in self._db.execute(sql, (content, most))]

    def near_copies(self, least: float) -> list[tuple[str, str, float]]:
        """Pairs of files, not the same byte for byte, with the same texts, or nearly all of them.

        Texts that stand in more than 20 files do not count.

        Args:
            least: What share of the texts of either file the other must have, 0 to 1.
        """
        sql = "SELECT source, COUNT(DISTINCT content) FROM passages GROUP BY source"
        counts = dict(self._db.execute(sql))
        same = {source: number for number, group in enumerate(self.copies()) for source in group}
        found = []
        for one, other, shared in self._db.execute(_NEAR, (_MANY,)):
            share = shared / max(counts[one], counts[other])
            if share >= least and same.get(one, -1) != same.get(other, -2):
                found.append((one, other, share))
        return found

    def copies(self) -> list[list[str]]:
        """Files with the same content, two or more each."""
        sql = "SELECT version, source FROM sources ORDER BY version, source"
        return grouped(self._db.execute(sql))

    def counts(self) -> dict[str, int]:
        """How many passages each file has, files without any among them."""
        found = dict.fromkeys(self.sources(), 0)
        sql = "SELECT source, COUNT(*) FROM passages GROUP BY source"
        return found | dict(self._db.execute(sql))

    def reopen(self, source: str) -> None:
        """Record that a file is being indexed: it does not count as done until `finish`."""
        self._db.execute("DELETE FROM sources WHERE source = ?", (source,))

    def finish(self, source: str, version: str, stamp: str = "") -> None:
        """Record that all passages of a file are in the store, and by what it is known again."""
        sql = "INSERT OR REPLACE INTO sources VALUES (?, ?, ?)"
        self._db.execute(sql, (source, version, stamp))

    def restamp(self, source: str, stamp: str) -> None:
        """Record that a file that looks changed holds what it held."""
        self._db.execute("UPDATE sources SET stamp = ? WHERE source = ?", (stamp, source))

    def release(self, ids: Iterable[str]) -> None:
        """Record that passages are no longer in the store."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany("DELETE FROM passages WHERE id = ?", ((key,) for key in ids))

    def flush(self) -> None:
        """Nothing: every statement is durable when it returns."""

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def grouped(versions: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Of (version, source) the sources that have one version, two or more each."""
    same: dict[str, list[str]] = {}
    for version, source in versions:
        same.setdefault(version, []).append(source)
    return [sources for sources in same.values() if len(sources) > 1]


def few_of_each(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Of (digest, id) a few ids for each digest, in their order."""
    found: dict[str, list[str]] = {}
    for digest, key in pairs:
        ids = found.setdefault(digest, [])
        if len(ids) < _ALIKE:
            ids.append(key)
    return found


def batches(items: Iterable[str], size: int) -> Iterable[Sequence[str]]:
    """Cut `items` into lists of at most `size`."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
