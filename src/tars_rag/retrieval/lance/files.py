"""Which file each passage was read from, and which files are done: columns and a table beside.

A passage and its file are written as one row, so nothing comes between them. What a file that is
done gave is kept as a sum; where the sum of the rows is another one, somebody has written since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.codec import encode, pack_content
from tars_rag.retrieval.lance import library, table, upkeep
from tars_rag.retrieval.lance.access import LanceAccess
from tars_rag.retrieval.lance.facts import quoted, with_ids
from tars_rag.retrieval.lance.moment import ids_of, matrix_of
from tars_rag.retrieval.lance.table import FILES
from tars_rag.retrieval.passage import Passage

_AT_ONCE: Final = 500  # names or ids in one condition


@dataclass(frozen=True, slots=True)
class FileRow:
    """What is kept of a file that is done.

    Attributes:
        version: Of its content, and of how it is cut.
        stamp: What the disk said of it (see `ingest.stamps`).
        sum: Over its passages, `mark` by `mark`.
    """

    version: str
    stamp: str
    sum: int


class Files:
    """What the store in a table keeps of files.

    Args:
        access: The open store.
    """

    def __init__(self, access: LanceAccess) -> None:
        self._access = access

    def done(self) -> dict[str, FileRow]:
        """The files that are done."""
        with self._asking("read"):
            held = self._access.beside(FILES)
            if held is None:
                return {}
            return {
                row["source"]: FileRow(row["version"], row["stamp"], int(row["sum"], 16))
                for row in held.search().to_arrow().to_pylist()
            }

    def finish(self, rows: dict[str, FileRow]) -> None:
        """Keep that files are done: one version of the table for all of them."""
        if not rows:
            return
        self._access.check_writable()
        with self._asking("written"):
            held = self._access.beside(FILES, table.files_schema)
            columns = {
                "source": list(rows),
                "version": [row.version for row in rows.values()],
                "stamp": [row.stamp for row in rows.values()],
                "sum": [f"{row.sum:032x}" for row in rows.values()],
            }
            made = library.arrow().table(columns, schema=held.schema)

            def write(writer: Any) -> None:
                merge = writer.merge_insert("source")
                merge.when_matched_update_all().when_not_matched_insert_all().execute(made)

            self._access.written(write, FILES)

    def reopen(self, sources: Iterable[str]) -> None:
        """Keep that files are not done, or no more."""
        self._access.check_writable()
        with self._asking("written"):
            for some in _parts(sources):
                if self._access.beside(FILES) is None:
                    return
                condition = _in("source", some)
                self._access.written(methodcaller("delete", condition), FILES)

    def tidy(self) -> None:
        """Join the files of the table where there are many."""
        with self._asking("compacted"):
            held = self._access.beside(FILES)
            if held is not None and upkeep.scattered(held):
                self._access.written(upkeep.tidy, FILES)

    def sums(self) -> dict[str, tuple[int, int]]:
        """By file the sum over its passages, and how many they are, as they are in the table."""
        found: dict[str, tuple[int, int]] = {}
        for part in self._read(["id", "origin", "digest"], ["origin IS NOT NULL"]):
            names = ("id", "origin", "digest")
            for key, source, digest in zip(*(part[n].to_pylist() for n in names), strict=True):
                before, count = found.get(source, (0, 0))
                found[source] = before ^ _mark(key, digest), count + 1
        return found

    def ids(self, sources: Iterable[str]) -> dict[str, list[str]]:
        """The ids of all passages that were read from files, by file."""
        found: dict[str, list[str]] = {}
        conditions = [_in("origin", some) for some in _parts(sources)]
        for part in self._read(["id", "origin"], conditions):
            for key, source in zip(ids_of(part), part["origin"].to_pylist(), strict=True):
                found.setdefault(source, []).append(key)
        return found

    def origins(self, ids: Iterable[str]) -> dict[str, str | None]:
        """From which file each of the ids that are there was read; None: from none."""
        found: dict[str, str | None] = {}
        for part in self._read(["id", "origin"], [with_ids(some) for some in _parts(ids)]):
            found.update(zip(ids_of(part), part["origin"].to_pylist(), strict=True))
        return found

    def alike(self, embedded: Iterable[str]) -> Iterator[tuple[str, str]]:
        """(What is embedded, id) of passages of files that may have one of these vectors."""
        conditions = [_in("embedded", some) for some in _parts(embedded)]
        for part in self._read(["id", "embedded"], conditions):
            yield from zip(part["embedded"].to_pylist(), ids_of(part), strict=True)

    def embedded(self, ids: Iterable[str]) -> dict[str, tuple[str, NDArray[np.float32]]]:
        """By id what is embedded of passages of files, and the vector of it, read at once."""
        found: dict[str, tuple[str, NDArray[np.float32]]] = {}
        conditions = [f"{with_ids(some)} AND embedded IS NOT NULL" for some in _parts(ids)]
        for part in self._read(["id", "embedded", "vector"], conditions):
            made = zip(part["embedded"].to_pylist(), matrix_of(part).copy(), strict=True)
            found.update(zip(ids_of(part), made, strict=True))
        return found

    def adopt(self, source: str, ids: Iterable[str]) -> None:
        """Keep that passages that are there as they are were read from a file."""
        self._access.check_writable()
        with self._asking("written"):
            for some in _parts(ids):
                to = {"origin": source}
                self._access.written(methodcaller("update", where=with_ids(some), values=to))

    def _read(self, columns: list[str], conditions: Sequence[str]) -> Iterator[Any]:
        with self._asking("read"):
            now = self._access.now() if conditions else None
            if now is not None:
                for condition in conditions:
                    yield now[0].read(columns, condition)

    def _asking(self, done: str) -> Any:
        return library.asking(self._access.path, done)


def mark(passage: Passage) -> int:
    """Stands for a passage as it is stored; the sum of a file is made of them by ``^``."""
    return _mark(encode(passage.id), table.digest(pack_content(passage)))


def _mark(key: str, digest: str) -> int:
    made = hashlib.blake2b(f"{key}\0{digest}".encode(), digest_size=16).digest()
    return int.from_bytes(made, "big")


def _in(column: str, values: Sequence[str]) -> str:
    return f"{column} IN ({', '.join(map(quoted, values))})"


def _parts(items: Iterable[str]) -> Iterator[list[str]]:
    every = list(items)
    for start in range(0, len(every), _AT_ONCE):
        yield every[start : start + _AT_ONCE]
