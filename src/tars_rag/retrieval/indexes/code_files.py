"""One pair of files of an exact index, open: rows, and the codes made of them.

rows-N.log     ids and vectors, the truth (see `rows`)
codes-N.bin    the codes of its rows, derived (see `code_file`)
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.code_file import CodeFile
from tars_rag.retrieval.indexes.codes import Codes, encode
from tars_rag.retrieval.indexes.growing import Growing
from tars_rag.retrieval.indexes.id_table import IdTable, hashes_of
from tars_rag.retrieval.indexes.nearest import Snapshot
from tars_rag.retrieval.indexes.row_reader import RowReader
from tars_rag.retrieval.indexes.row_tables import Tables, content_hashes, pack_ids, unpack_ids
from tars_rag.retrieval.indexes.rows import Batch, DamageError, RowFile

_CHECKED = 16  # batches that one thread checks before it looks for more
_T = TypeVar("_T", bound=np.generic)
_NOTHING = Codes(np.empty((0, 0), np.uint8), np.empty(0, np.float32), np.empty(0, np.float32))


class CodeFiles:
    """Both files, verified. One thread writes; `snapshot` may be read by all meanwhile.

    Args:
        rows: The row file.
        codes: The file of its codes; made where it is missing or does not fit the rows.
        read_only: Write to neither: codes that do not fit are made in memory.

    Attributes:
        snapshot: The index after the last commit.

    Raises:
        DamageError: The row file is not what was written.
        OSError: A file cannot be read or written.
    """

    def __init__(self, rows: Path, codes: Path, *, read_only: bool) -> None:
        self._read_only = read_only
        self._file = RowFile(rows, read_only=read_only)
        self._codes_path = codes
        self._code_file: CodeFile | None = None
        self._places = Growing(np.empty((0, 5), np.int64))
        self._steps, self._residuals = (Growing(np.empty(0, np.float32)) for _ in range(2))
        found = [*self._file.follow(tail=True)]
        verify(self._file, [batch for batch, _ in found])
        if not read_only:
            self._file.drop_tail()
        self.snapshot = _empty(self._file)
        if found:
            self.snapshot = self._mended(
                self._extended(
                    [(batch, tables, hashes_of(unpack_ids(tables))) for batch, tables in found]
                ),
                [batch for batch, _ in found],
            )

    @property
    def batches(self) -> int:
        """How many there are; opening takes time for each."""
        return self.snapshot.reader.batches

    def follow(self) -> None:
        """See what another process committed since."""
        for batch, tables in self._file.follow(tail=False):
            items = [(batch, tables, hashes_of(unpack_ids(tables)))]
            self.snapshot = self._mended(self._extended(items), [batch])

    def append(self, changes: Mapping[str, NDArray[np.float32] | None], stamp: str) -> None:
        """Commit: vectors by id, None for ids to remove. Durable on return, or not there."""
        old = self.snapshot
        slots = old.table.find(hashes_of(list(changes)))
        removed = np.sort(slots[slots >= 0]).astype("<u4")
        added = {key: row for key, row in changes.items() if row is not None}
        dim = len(next(iter(added.values()))) if added else old.dim
        vectors = np.array(list(added.values()), "<f4").reshape(len(added), dim)
        codes = encode(vectors) if added else _NOTHING
        packed, ends = pack_ids(list(added))
        tables = Tables(
            content_hashes(vectors),
            ends,
            codes.steps,
            codes.residuals,
            removed,
            stamp.encode(),
            packed,
        )
        # The codes first: without them the rows would be found only after the next opening.
        if added:
            self._open_codes(dim).write(len(old.codes.rows), codes.rows)
        crc, digest = zlib.crc32(codes.rows.data), bytes.fromhex(old.digest)
        before = self._file.place
        try:
            batch = self._file.append(tables, vectors, crc, old.generation + 1, None, digest)
            self._file.commit()
            self.snapshot = self._extended([(batch, tables, hashes_of(list(added)))])
        except BaseException:
            self.snapshot = old
            with contextlib.suppress(OSError):  # it was one that brought us here, as a rule
                self._file.back_to(before)
            raise

    def copy_to(self, rows: Path, codes: Path, piece: int) -> None:
        """Write the living rows into new files, durable but for their names.

        Args:
            rows: The new row file.
            codes: The new file of codes.
            piece: Rows in a batch of it.
        """
        old = self.snapshot
        living = old.living()
        new = RowFile.create(rows)
        code_file = CodeFile(codes, old.dim) if old.dim else None
        for start in range(0, max(1, len(living)), piece):
            slots = living[start : start + piece]
            ids, ends = pack_ids(old.reader.ids(slots))
            held = old.codes.at(slots)
            if code_file is not None:
                code_file.write(new.count, held.rows)
            tables = Tables(
                old.reader.contents(slots),
                ends,
                held.steps,
                held.residuals,
                np.empty(0, "<u4"),
                old.stamp.encode(),
                ids,
            )
            digest, crc = bytes.fromhex(old.digest), zlib.crc32(held.rows.data)
            new.append(tables, old.reader.vectors(slots), crc, old.generation, digest, digest)
        new.commit()
        new.close()

    def _extended(self, items: Sequence[tuple[Batch, Tables, NDArray[np.int64]]]) -> Snapshot:
        """The snapshot after one more batch, or after all of a file, with the hashes of its ids."""
        old, (last, last_tables, _) = self.snapshot, items[-1]
        first, batches = len(old.codes.rows), old.reader.batches
        steps = self._steps.extended(first, _joined(tables.steps for _, tables, _ in items))
        residuals = self._residuals.extended(
            first, _joined(tables.residuals for _, tables, _ in items)
        )
        places = np.array([batch.place for batch, _, _ in items], np.int64)
        dim = next((batch.dim for batch, _, _ in items if batch.added), old.dim)
        reader = RowReader(self._file, dim, self._places.extended(batches, places))
        removed = _joined(tables.removed for _, tables, _ in items).astype(np.int64)
        hashes = _joined(item[2] for item in items)
        dead = np.sort(np.concatenate([old.dead, removed])) if len(removed) else old.dead
        if first:
            gone = hashes_of(reader.ids(removed))
            table = old.table.changed(gone, hashes, first)
        else:
            alive = np.ones(len(steps), bool)
            alive[dead] = False
            slots = np.flatnonzero(alive)
            table = IdTable.of(hashes[slots], slots.astype(np.uint32))
        rows = self._open_codes(dim).rows(len(steps)) if dim else old.codes.rows
        codes = Codes(rows, steps, residuals)
        stamp = last_tables.stamp.decode()
        return Snapshot(dim, reader, codes, dead, table, last.generation, last.digest.hex(), stamp)

    def _mended(self, snapshot: Snapshot, batches: Sequence[Batch]) -> Snapshot:
        """The snapshot with codes made again that are not what they were: they are not fsync'd."""
        codes = snapshot.codes
        for batch in batches:
            slots = np.arange(batch.first, batch.first + batch.added)
            if zlib.crc32(codes.rows[batch.first : batch.first + batch.added].data) == (
                batch.codes_crc
            ):
                continue
            made = encode(snapshot.reader.vectors(slots))
            codes.steps[slots], codes.residuals[slots] = made.steps, made.residuals
            self._open_codes(batch.dim).write(batch.first, made.rows)
        if snapshot.dim:  # a read-only index keeps those in memory
            rows = self._open_codes(snapshot.dim).rows(len(codes.rows))
            snapshot = replace(snapshot, codes=replace(codes, rows=rows))
        return snapshot

    def _open_codes(self, dim: int) -> CodeFile:
        if self._code_file is None:
            self._code_file = CodeFile(self._codes_path, dim, read_only=self._read_only)
        return self._code_file


def verify(file: RowFile, batches: Sequence[Batch]) -> None:
    """Raise a `DamageError` if a vector of the batches was altered; all processors read."""

    def check(some: Sequence[Batch]) -> None:
        for batch in some:
            file.check_vectors(batch)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        pieces = (batches[start : start + _CHECKED] for start in range(0, len(batches), _CHECKED))
        for _ in pool.map(check, pieces):
            pass


def damage(rows: Path) -> str | None:
    """What is wrong with a row file, for a person; None: nothing."""
    try:
        file = RowFile(rows, read_only=True)
        verify(file, [batch for batch, _ in file.follow(tail=True)])
    except (DamageError, OSError) as error:
        return str(error)
    return None


def _empty(file: RowFile) -> Snapshot:
    reader = RowReader(file, 0, np.empty((0, 5), np.int64))
    none = np.empty(0, np.int64)
    table = IdTable(none, np.empty(0, np.uint32))
    return Snapshot(0, reader, _NOTHING, none, table, 0, bytes(8).hex(), "")


def _joined(arrays: Iterable[NDArray[_T]]) -> NDArray[_T]:
    return np.concatenate(list(arrays))
