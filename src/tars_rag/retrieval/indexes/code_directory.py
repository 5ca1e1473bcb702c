"""The files of an exact index: opening, following, appending, compacting.

    rows-N.log     ids and vectors, the truth (see `rows`)
    codes-N.bin    the codes of its rows, derived (see `code_file`)

N counts compactions. A compacted file is written under another name, made durable, and renamed;
the directory is fsync'd before the old files are deleted. So the highest N is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tars_rag.files import sync
from tars_rag.retrieval.indexes.code_file import CodeFile
from tars_rag.retrieval.indexes.codes import Codes, encode
from tars_rag.retrieval.indexes.growing import Growing
from tars_rag.retrieval.indexes.id_table import IdTable, hashes_of
from tars_rag.retrieval.indexes.nearest import Snapshot
from tars_rag.retrieval.indexes.rows import (
    Batch,
    DamageError,
    RowFile,
    RowReader,
    Tables,
    content_hashes,
    pack_ids,
    unpack_ids,
)

_PIECE = 4096  # rows in a batch of a compacted file
_DEAD = 1024  # dead rows that are not worth a compaction
_BATCHES = 2048  # and so many batches, which cost time when the file is opened


class CodeDirectory:
    """One directory, open. One thread at a time; `snapshot` may be used by all meanwhile.

    Attributes:
        path: The directory.
        snapshot: The index after the last commit.

    Raises:
        DamageError: The files are not what was written, or missing (`read_only`).
        OSError: They cannot be read or written.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self._read_only = read_only
        if not read_only:
            self._prepare()
        self._load()

    def refresh(self) -> None:
        """See what another process committed since."""
        if _newest(self.path) != self._number:
            self._load()
            return
        for batch, tables in self._file.follow(tail=False):
            self.snapshot = self._extended([(batch, tables, hashes_of(unpack_ids(tables)))])
            self._mend([batch])

    def append(self, changes: Mapping[str, NDArray[np.float32] | None], stamp: str) -> None:
        """Commit: vectors by id, None for ids to remove. Durable on return, or not there."""
        old = self.snapshot
        slots = old.table.find(hashes_of(list(changes)))
        removed = np.sort(slots[slots >= 0]).astype("<u4")
        added = {key: row for key, row in changes.items() if row is not None}
        dim = len(next(iter(added.values()))) if added else old.dim
        vectors = np.array(list(added.values()), np.float32).reshape(len(added), dim)
        tables, codes = _tables(list(added), vectors, removed, stamp)
        first = len(old.codes.rows)
        if added:
            self._open_codes(dim).write(first, codes.rows)
        place = self._file.place
        try:
            batch = self._file.append(
                tables,
                vectors,
                zlib.crc32(codes.rows.data),
                old.generation + 1,
                None,
                bytes.fromhex(old.digest),
            )
            self._file.commit()
        except BaseException:
            self._file.back_to(*place)
            raise
        self.snapshot = self._extended([(batch, tables, hashes_of(list(added)))])

    @property
    def wasteful(self) -> bool:
        """Whether compacting pays."""
        rows, dead = len(self.snapshot.codes.rows), len(self.snapshot.dead)
        batches = len(self._batches.view())
        return dead > max(_DEAD, rows - dead) or batches > _BATCHES + rows // 64

    def compact(self) -> None:
        """Write the living rows into new files, and switch to them."""
        old, number = self.snapshot, self._number + 1
        target = self.path / _rows(number)
        temporary = target.with_suffix(".tmp")
        living = old.living()
        with contextlib.ExitStack() as undo:
            undo.callback(temporary.unlink, missing_ok=True)
            undo.callback((self.path / _codes(number)).unlink, missing_ok=True)
            new = RowFile.create(temporary)
            codes = CodeFile(self.path / _codes(number), old.dim) if old.dim else None
            for start in range(0, max(1, len(living)), _PIECE):
                self._copy(new, codes, living[start : start + _PIECE])
            new.commit()
            temporary.rename(target)
            undo.pop_all()
        sync(self.path)
        self._load()
        self._delete_others()

    def _copy(self, new: RowFile, codes: CodeFile | None, slots: NDArray[np.int64]) -> None:
        """Append some rows to new files."""
        old = self.snapshot
        ids, ends = pack_ids(old.reader.ids(slots))
        rows = old.codes.rows[slots]
        tables = Tables(
            old.reader.contents(slots),
            ends,
            old.codes.steps[slots],
            old.codes.residuals[slots],
            np.empty(0, "<u4"),
            old.stamp.encode(),
            ids,
        )
        if codes is not None:
            codes.write(new.count, rows)
        digest = bytes.fromhex(old.digest)
        vectors = old.reader.vectors(slots)
        new.append(tables, vectors, zlib.crc32(rows.data), old.generation, digest, digest)

    # -- opening ------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make the directory and its first file, if there is none."""
        if not self.path.exists():
            self.path.mkdir(parents=True)
            sync(self.path.parent)
        if _newest(self.path) is None:
            target = self.path / _rows(1)
            RowFile.create(target.with_suffix(".tmp")).close()
            target.with_suffix(".tmp").rename(target)
            sync(self.path)

    def _load(self) -> None:
        number = _newest(self.path)
        if number is None:
            msg = "the row file is missing"
            raise DamageError(msg)
        file = RowFile(self.path / _rows(number), read_only=self._read_only)
        found = [
            (batch, tables, hashes_of(unpack_ids(tables)))
            for batch, tables in file.follow(tail=True)
        ]
        verify(file, [batch for batch, _, _ in found])
        if not self._read_only:
            file.drop_tail()
        self._number, self._file = number, file
        self._code_file: CodeFile | None = None
        self._batches = Growing(np.empty((0, 5), np.int64))
        self._steps, self._residuals = (Growing(np.empty(0, np.float32)) for _ in range(2))
        self.snapshot = _empty(file)
        if found:
            self.snapshot = self._extended(found)
            self._mend([batch for batch, _, _ in found])
        if not self._read_only:
            self._delete_others()

    def _extended(self, items: Sequence[tuple[Batch, Tables, NDArray[np.int64]]]) -> Snapshot:
        """The snapshot after one more batch, or after the first ones; their codes are written."""
        old, last = self.snapshot, items[-1][0]
        for batch, tables, _ in items:
            self._steps.append(tables.steps)
            self._residuals.append(tables.residuals)
            self._batches.append(np.array([batch.place], np.int64))
        rows = self._steps.view()
        dim = next((batch.dim for batch, _, _ in items if batch.added), old.dim)
        reader = RowReader(self._file, dim, self._batches.view())
        removed = np.concatenate([tables.removed for _, tables, _ in items]).astype(np.int64)
        hashes = np.concatenate([item[2] for item in items])
        dead = np.sort(np.concatenate([old.dead, removed])) if len(removed) else old.dead
        first = len(old.codes.rows)
        if first:
            gone = hashes_of(reader.ids(np.sort(removed))) if len(removed) else removed
            table = old.table.changed(gone, hashes, first)
        else:
            alive = np.ones(len(rows), bool)
            alive[dead] = False
            slots = np.flatnonzero(alive)
            table = IdTable.of(hashes[slots], slots.astype(np.uint32))
        mapped = self._open_codes(dim).rows(len(rows)) if dim else old.codes.rows
        return Snapshot(
            dim,
            reader,
            Codes(mapped, rows, self._residuals.view()),
            dead,
            table,
            last.generation,
            last.digest.hex(),
            items[-1][1].stamp.decode(),
        )

    def _open_codes(self, dim: int) -> CodeFile:
        if self._code_file is None:
            path = self.path / _codes(self._number)
            self._code_file = CodeFile(path, dim, read_only=self._read_only)
        return self._code_file

    def _mend(self, batches: Sequence[Batch]) -> None:
        """Make those codes again that are not what they were: they are never fsync'd."""
        snapshot = self.snapshot
        for batch in batches:
            rows = slice(batch.first, batch.first + batch.added)
            if zlib.crc32(snapshot.codes.rows[rows].data) != batch.codes_crc:
                slots = np.arange(batch.first, batch.first + batch.added)
                codes = encode(snapshot.reader.vectors(slots))
                snapshot.codes.steps[rows] = codes.steps
                snapshot.codes.residuals[rows] = codes.residuals
                self._open_codes(batch.dim).write(batch.first, codes.rows)
        if snapshot.dim:
            mapped = self._open_codes(snapshot.dim).rows(len(snapshot.codes.rows))
            self.snapshot = dataclasses.replace(
                snapshot, codes=dataclasses.replace(snapshot.codes, rows=mapped)
            )

    def _delete_others(self) -> None:
        keep = {_rows(self._number), _codes(self._number)}
        for pattern in ("rows-*", "codes-*"):
            for path in self.path.glob(pattern):
                if path.name not in keep:
                    path.unlink(missing_ok=True)


def damage(path: Path) -> str | None:
    """What is wrong with the files in `path`, for a person; None: nothing.

    Codes that do not fit the vectors are no damage: opening makes them again.
    """
    try:
        number = _newest(path)
        if number is None:
            return "the row file is missing"
        file = RowFile(path / _rows(number), read_only=True)
        verify(file, [batch for batch, _ in file.follow(tail=True)])
    except (DamageError, OSError) as error:
        return str(error)
    return None


def verify(file: RowFile, batches: Sequence[Batch]) -> None:
    """Raise a `DamageError` if a vector of the batches was altered. All processors read."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for _ in pool.map(file.check_vectors, batches):
            pass


def _tables(
    ids: Sequence[str], vectors: NDArray[np.float32], removed: NDArray[np.uint32], stamp: str
) -> tuple[Tables, Codes]:
    codes = encode(vectors) if len(vectors) else Codes(*_NOTHING)
    packed, ends = pack_ids(ids)
    contents = content_hashes(vectors)
    made = Tables(contents, ends, codes.steps, codes.residuals, removed, stamp.encode(), packed)
    return made, codes


def _empty(file: RowFile) -> Snapshot:
    reader = RowReader(file, 0, np.empty((0, 5), np.int64))
    none = np.empty(0, np.int64)
    table = IdTable(none, np.empty(0, np.uint32))
    return Snapshot(0, reader, Codes(*_NOTHING), none, table, 0, bytes(8).hex(), "")


_NOTHING = (np.empty((0, 0), np.uint8), np.empty(0, np.float32), np.empty(0, np.float32))


def _rows(number: int) -> str:
    return f"rows-{number}.log"


def _codes(number: int) -> str:
    return f"codes-{number}.bin"


def _newest(path: Path) -> int | None:
    """The highest number of a row file."""
    numbers = [
        int(name[5:-4])
        for name in (entry.name for entry in path.glob("rows-*.log"))
        if name[5:-4].isdigit()
    ]
    return max(numbers, default=None)
