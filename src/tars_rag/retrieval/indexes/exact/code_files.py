"""One pair of files of an exact index, open: rows, and the codes made of them.

rows-N.log     ids and vectors, the truth (see `rows`)
codes-N.bin    the codes of its rows, derived (see `code_file`)
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.exact.centres import new_centres, no_centres
from tars_rag.retrieval.indexes.exact.coarse import Coarse
from tars_rag.retrieval.indexes.exact.code_file import CodeFile
from tars_rag.retrieval.indexes.exact.codes import Codes, encode, unit_rows
from tars_rag.retrieval.indexes.exact.growing import Growing
from tars_rag.retrieval.indexes.exact.id_table import IdTable, hashes_of
from tars_rag.retrieval.indexes.exact.nearest import Snapshot
from tars_rag.retrieval.indexes.exact.row_reader import RowReader
from tars_rag.retrieval.indexes.exact.row_tables import Tables, content_hashes, pack_ids, unpack_ids
from tars_rag.retrieval.indexes.exact.rows import Batch, DamageError, RowFile

_CHECKED = 16  # batches that one thread checks before it looks for more
_Columns: TypeAlias = tuple[
    NDArray[np.int64],
    NDArray[np.float32],
    NDArray[np.float32],
    NDArray[np.float32],
    NDArray[np.uint8],
]
"""Places of batches; steps, residuals, shares and kinds of rows."""
_NOTHING = encode(np.empty((0, 1), np.float32), no_centres(1))


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
        empty = np.empty(0, np.float32)
        self._steps, self._residuals, self._shares = (Growing(empty) for _ in range(3))
        self._kinds = Growing(np.empty(0, np.uint8))
        self._coarse = Coarse()
        self.snapshot = _empty(self._file, self._coarse)
        self._load()

    @property
    def batches(self) -> int:
        """How many there are; opening takes time for each."""
        return self.snapshot.reader.batches

    def close(self) -> None:
        """Begin nothing more; searches under way end well."""
        self._coarse.stop()

    def follow(self) -> None:
        """See what another process committed since."""
        for batch, tables in self._file.follow(tail=False):
            after = self._after(batch, tables, hashes_of(unpack_ids(tables)))
            self.snapshot = self._mended(after, [batch])

    def append(self, changes: Mapping[str, NDArray[np.float32] | None], stamp: str) -> None:
        """Commit: vectors by id, None for ids to remove. Durable on return, or not there."""
        old = self.snapshot
        slots = old.table.find(hashes_of(list(changes)))
        removed = np.sort(slots[slots >= 0]).astype("<u4")
        added = {key: row for key, row in changes.items() if row is not None}
        dim = len(next(iter(added.values()))) if added else old.dim
        vectors = np.array(list(added.values()), "<f4").reshape(len(added), dim)
        centres = old.codes.centres if old.dim else no_centres(dim)
        tables, codes = _tables(list(added), vectors, removed, centres, stamp)
        # The codes first: without them the rows would be found only after the next opening.
        if added:
            self._open_codes(dim).write(len(old.codes.rows), codes.rows)
        crc, digest = zlib.crc32(codes.rows.data), bytes.fromhex(old.digest)
        before = self._file.place
        try:
            batch = self._file.append(tables, vectors, crc, old.generation + 1, None, digest)
            self._file.commit()
            self.snapshot = self._after(batch, tables, hashes_of(list(added)))
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
        living, digest = old.living(), bytes.fromhex(old.digest)
        new = RowFile.create(rows)
        code_file = CodeFile(codes, old.dim) if old.dim else None
        none, centres = np.empty(0, np.uint32), no_centres(old.dim)
        for start in range(0, max(1, len(living)), piece):
            slots = living[start : start + piece]
            ids, vectors = old.reader.ids(slots), old.reader.vectors(slots)
            tables, made = _tables(ids, vectors, none, centres, old.stamp)
            centres = made.centres
            if code_file is not None:
                code_file.write(new.count, made.rows)
            crc = zlib.crc32(made.rows.data)
            new.append(tables, vectors, crc, old.generation, digest, digest)
        new.commit()
        new.close()

    def _load(self) -> None:
        """Read, verify and mend everything. Batch by batch: their tables need not all be held."""
        batches: list[Batch] = []
        removed, keys = [np.empty(0, np.int64)], Growing(np.empty(0, np.int64))
        centres: list[NDArray[np.float32]] = []
        for batch, tables in self._file.follow(tail=True):
            hashes = keys.extended(batch.first, hashes_of(unpack_ids(tables)))
            removed.append(tables.removed.astype(np.int64))
            columns, stamp = self._columns(len(batches), batch, tables), tables.stamp
            centres.append(tables.centres.copy())
            batches.append(batch)
        verify(self._file, batches)
        if not self._read_only:
            self._file.drop_tail()
        if not batches:
            return
        dead = np.sort(np.concatenate(removed))
        alive = np.ones(len(hashes), bool)
        alive[dead] = False
        slots = np.flatnonzero(alive).astype(np.uint32)
        table = IdTable.of(hashes[slots], slots)
        dim = max(batch.dim for batch in batches)  # 0 as long as there were no vectors
        middles = _joined(no_centres(dim), centres)
        snapshot = self._snapshot(dim, columns, middles, dead, table, batches[-1], stamp)
        self.snapshot = self._mended(snapshot, batches)

    def _after(self, batch: Batch, tables: Tables, hashes: NDArray[np.int64]) -> Snapshot:
        """The snapshot after one more batch, given the hashes of its ids; its codes are written."""
        old = self.snapshot
        removed = tables.removed.astype(np.int64)
        gone = hashes_of(old.reader.ids(removed))
        dead = np.sort(np.concatenate([old.dead, removed])) if len(removed) else old.dead
        columns = self._columns(self.batches, batch, tables)
        table = old.table.changed(gone, hashes, batch.first)
        dim = batch.dim or old.dim
        centres = old.codes.centres if old.dim else no_centres(dim)
        centres = _joined(centres, [tables.centres])
        return self._snapshot(dim, columns, centres, dead, table, batch, tables.stamp)

    def _columns(self, batches: int, batch: Batch, tables: Tables) -> _Columns:
        """What is held of each batch and row, with one batch more than there were."""
        first = batch.first
        return (
            self._places.extended(batches, np.array([batch.place], np.int64)),
            self._steps.extended(first, tables.steps),
            self._residuals.extended(first, tables.residuals),
            self._shares.extended(first, tables.shares),
            self._kinds.extended(first, tables.kinds),
        )

    def _snapshot(
        self,
        dim: int,
        columns: _Columns,
        centres: NDArray[np.float32],
        dead: NDArray[np.int64],
        table: IdTable,
        last: Batch,
        stamp: bytes,
    ) -> Snapshot:
        places, steps, residuals, shares, kinds = columns
        rows = self._open_codes(dim).rows(len(steps)) if dim else _NOTHING.rows
        return Snapshot(
            dim,
            RowReader(self._file, dim, places),
            Codes(rows, steps, residuals, shares, kinds, centres),
            self._coarse,
            dead,
            table,
            last.generation,
            last.digest.hex(),
            stamp.decode(),
        )

    def _mended(self, snapshot: Snapshot, batches: Sequence[Batch]) -> Snapshot:
        """The snapshot with codes made again that are not what they were: they are not fsync'd."""
        codes = snapshot.codes
        for batch in batches:
            slots = np.arange(batch.first, batch.first + batch.added)
            if zlib.crc32(codes.rows[batch.first : batch.first + batch.added].data) == (
                batch.codes_crc
            ):
                continue
            made = encode(snapshot.reader.vectors(slots), codes.centres, codes.kinds[slots])
            codes.steps[slots], codes.residuals[slots] = made.steps, made.residuals
            codes.shares[slots] = made.shares
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


def _empty(file: RowFile, coarse: Coarse) -> Snapshot:
    reader = RowReader(file, 0, np.empty((0, 5), np.int64))
    none = np.empty(0, np.int64)
    table = IdTable(none, np.empty(0, np.uint32))
    return Snapshot(0, reader, _NOTHING, coarse, none, table, 0, bytes(8).hex(), "")


def _tables(
    ids: Sequence[str],
    vectors: NDArray[np.float32],
    removed: NDArray[np.uint32],
    centres: NDArray[np.float32],
    stamp: str,
) -> tuple[Tables, Codes]:
    """A batch beside its vectors, and its codes; it may add centres to those there are."""
    if len(vectors):
        more = new_centres(unit_rows(vectors).astype(np.float32), centres)
        codes = encode(vectors, _joined(centres, [more]))
    else:
        more, codes = centres[:0], replace(_NOTHING, centres=centres)
    packed, ends = pack_ids(ids)
    columns = codes.steps, codes.residuals, codes.shares
    contents = content_hashes(vectors)
    tables = Tables(contents, ends, *columns, removed, more, codes.kinds, stamp.encode(), packed)
    return tables, codes


def _joined(
    first: NDArray[np.float32], others: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Centres, and more of them; the same array if there are none."""
    more = [centres for centres in others if len(centres)]
    return np.concatenate([first, *more]) if more else first
