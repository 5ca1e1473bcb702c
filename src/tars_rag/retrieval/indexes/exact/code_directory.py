"""The directory of an exact index: which of its files count, and how they are replaced.

Files have a number, which counts compactions; the highest is the index. A compacted row file is
written under another name, made durable and renamed, and the directory is fsync'd, before the old
files are deleted: whatever is cut off where, the row file with the highest number is whole.
"""

from __future__ import annotations

from pathlib import Path

from tars_rag.files import sync
from tars_rag.retrieval.indexes.exact import code_files
from tars_rag.retrieval.indexes.exact.code_files import CodeFiles
from tars_rag.retrieval.indexes.exact.rows import DamageError, RowFile

_PIECE = 4096  # rows in a batch of a compacted file
_DEAD = 1024  # dead rows that are not worth a compaction
_BATCHES = 2048  # and so many batches


class CodeDirectory:
    """One directory, open. One thread at a time, but for `files.snapshot`.

    Args:
        path: The directory; made if missing, unless `read_only`.
        read_only: Never write.

    Attributes:
        files: What is in it.

    Raises:
        DamageError: The files are not what was written, or missing (`read_only`).
        OSError: They cannot be read or written.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._path = path
        self._read_only = read_only
        if not read_only:
            self._prepare()
        self._open()

    def refresh(self) -> None:
        """See what another process committed, or compacted, since."""
        if _newest(self._path) == self._number:
            self.files.follow()
        else:
            self._reopen()

    @property
    def wasteful(self) -> bool:
        """Whether compacting pays."""
        snapshot = self.files.snapshot
        dead, batches = len(snapshot.dead), self.files.batches
        return dead > max(_DEAD, snapshot.count) or batches > _BATCHES + snapshot.count // 64

    def compact(self) -> None:
        """Write the living rows into new files, and switch to them."""
        number = self._number + 1
        target, codes = self._path / _rows(number), self._path / _codes(number)
        temporary = target.with_suffix(".tmp")
        try:
            self.files.copy_to(temporary, codes, _PIECE)
            temporary.rename(target)
        except BaseException:
            for path in (temporary, codes):
                path.unlink(missing_ok=True)
            raise
        sync(self._path)
        self._reopen()

    def close(self) -> None:
        """Begin nothing more; searches under way end well."""
        self.files.close()

    def _prepare(self) -> None:
        """Make the directory and its first file, if there is none."""
        if not self._path.exists():
            self._path.mkdir(parents=True)
            sync(self._path.parent)
        if _newest(self._path) is None:
            target = self._path / _rows(1)
            temporary = target.with_suffix(".tmp")
            RowFile.create(temporary).close()
            temporary.rename(target)
            sync(self._path)

    def _reopen(self) -> None:
        before = self.files
        self._open()
        before.close()

    def _open(self) -> None:
        while True:
            number = _newest(self._path)
            if number is None:
                msg = "the row file is missing"
                raise DamageError(msg)
            rows, codes = self._path / _rows(number), self._path / _codes(number)
            try:
                self.files = CodeFiles(rows, codes, read_only=self._read_only)
            except FileNotFoundError:
                if _newest(self._path) == number:
                    raise
                continue  # another process compacted it meanwhile
            self._number = number
            break
        if not self._read_only:
            for path in [*self._path.glob("rows-*"), *self._path.glob("codes-*")]:
                if path not in (rows, codes):
                    path.unlink(missing_ok=True)


def damage(path: Path) -> str | None:
    """What is wrong with the files in `path`, for a person; None: nothing.

    Codes that do not fit the vectors are no damage: opening makes them again.
    """
    number = _newest(path)
    return "the row file is missing" if number is None else code_files.damage(path / _rows(number))


def _rows(number: int) -> str:
    return f"rows-{number}.log"


def _codes(number: int) -> str:
    return f"codes-{number}.bin"


def _newest(path: Path) -> int | None:
    """The highest number of a row file."""
    names = [entry.stem.removeprefix("rows-") for entry in path.glob("rows-*.log")]
    return max((int(name) for name in names if name.isdigit()), default=None)
