"""Whether the files of Chroma's vector index are the ones that the last write left.

Embedded Chroma keeps texts, metadata and a log of recent vectors in SQLite, which survives
anything. Every thousand writes it moves the vectors into plain files, in place, without fsync and
without checksums: killed meanwhile it may not open again, and a truncated file ends the process
with a segmentation fault. So the store fsyncs these files itself, keeps their sizes and CRC-32
here, and compares them before Chroma touches them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tars_rag.files import boot_id, sync, write_atomically
from tars_rag.retrieval.indexes.chroma.layout import (
    DATABASE,
    SAVED,
    cut_short,
    database,
    require_known_files,
    require_known_names,
    require_known_tables,
    saved_elements,
)

_PIECE = 1 << 20
_ASIDE = "damaged-"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_Marks = dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Damage:
    """Directories of vectors that are not as they were sealed, and what is wrong with one."""

    directories: frozenset[str]
    problem: str


class Seal:
    """Sizes and checksums of the files in the subdirectories of `chroma`, kept in `path`."""

    def __init__(self, path: Path, chroma: Path) -> None:
        self.path = path
        self._chroma = chroma
        self._database = chroma / DATABASE
        self._seen: _Marks | None = None  # the state that the file is of, where that is known

    def damage(self, *, in_place: bool = True) -> Damage | None:
        """What is not as it was sealed, or must be more than was; None: nothing.

        Args:
            in_place: The files lie where they were written. In a copy nothing follows from times.

        Raises:
            UnknownLayoutError: No tested version of Chroma wrote the files.
        """
        if not self._database.is_file():
            return None  # there is worse to report
        require_known_tables(self._database)
        aside = {entry.name.removeprefix(_ASIDE) for entry in self._chroma.glob(_ASIDE + "*")}
        stamps = self._stamps()
        try:
            content = json.loads(self.path.read_bytes())
            sealed, boot, saves = content["files"], content["boot"], content["saves"]
        except FileNotFoundError:
            sealed, boot, saves = {}, "", {}
        except (OSError, ValueError, KeyError, TypeError):
            everything = {Path(name).parent.name for name in stamps} | self._lost_saves({}) | aside
            return Damage(frozenset(everything), f"{self.path.name} cannot be read")
        found = {name: list(_measure(self._chroma / name)) for name in stamps}
        wrong = {name for name in found.keys() | sealed if found.get(name) != sealed.get(name)}
        for directory in {Path(name).parent.name for name in wrong}:
            require_known_files(self._chroma / directory)
        lost: set[str] = set()
        if in_place and boot and boot == boot_id():
            wrong -= self._saved_since(wrong, stamps, saves)
        else:
            lost = self._lost_saves(saves)
        directories = frozenset({Path(name).parent.name for name in wrong} | lost | aside)
        if not directories:
            self._seen = stamps if found == sealed else None
            return None
        if wrong:
            name = min(wrong)
            problem = f"{name} is {'not as it was written' if name in found else 'missing'}"
        elif lost:
            problem = f"what was written to {min(lost)} last is missing"
        else:
            problem = "an earlier repair was cut short"
        return Damage(directories, problem)

    @property
    def state(self) -> object:
        """Another object after each save of Chroma's that was sealed."""
        return self._seen

    def renew(self) -> None:
        """Seal the files as they are, if Chroma wrote to them since; durable on return.

        Raises:
            OSError: They cannot be made durable, or Chroma found no room for all of one: it does
                not notice.
            UnknownLayoutError: No tested version of Chroma wrote them: they cannot be checked.
        """
        # SQLite commits by removing its rollback journal, and does not fsync that: should the name
        # come back after a power cut, the next open would roll the commit back.
        sync(self._chroma)
        stamps = self._stamps()
        if stamps == self._seen:
            return
        require_known_tables(self._database)
        saves = self._saves()
        for name in saves:
            with contextlib.suppress(FileNotFoundError):  # set aside
                require_known_names(self._chroma / name)
        for name in {Path(name).parent.name for name in stamps}:
            if cut_short(self._chroma / name):
                raise OSError(errno.ENOSPC, "No room for the vector files", name)
        for name in stamps:
            sync(self._chroma / name)
        for directory in {(self._chroma / name).parent for name in stamps}:
            sync(directory)
        files = {name: _measure(self._chroma / name) for name in stamps}
        content = {"boot": boot_id(), "saves": saves, "files": files}
        write_atomically(self.path, json.dumps(content).encode("ascii"))
        self._seen = stamps

    def directory_of(self, collection: str) -> str | None:
        """The directory that holds a collection's vectors; None if the database cannot say."""
        rows = self._ask(
            "SELECT s.id FROM segments s JOIN collections c ON s.collection = c.id "
            "WHERE s.scope = 'VECTOR' AND c.name = ?",
            collection,
        )
        return str(rows[0][0]) if rows else None

    def elements(self, collection: str) -> int:
        """How many vectors the files of a collection hold, deleted ones included."""
        directory = self.directory_of(collection)
        return saved_elements(self._chroma / directory) if directory else 0

    def sweep(self) -> None:
        """Delete directories of vectors that no collection has any more: Chroma leaves them."""
        segments = {str(name) for (name,) in self._ask("SELECT id FROM segments")}
        for entry in self._chroma.iterdir() if segments else ():
            if _UUID.fullmatch(entry.name) and entry.name not in segments and entry.is_dir():
                shutil.rmtree(entry)

    def set_aside(self, directories: Iterable[str]) -> None:
        """Rename directories of vectors, so that Chroma does not load them."""
        for name in directories:
            damaged, target = self._chroma / name, self._chroma / (_ASIDE + name)
            if target.exists():  # an earlier repair was cut short
                shutil.rmtree(damaged, ignore_errors=True)
            elif damaged.exists():
                damaged.rename(target)
            else:
                target.mkdir()
        sync(self._chroma)

    def discard(self) -> None:
        """Delete what was set aside: the repair is done."""
        for entry in self._chroma.glob(_ASIDE + "*"):
            shutil.rmtree(entry)

    def _stamps(self) -> _Marks:
        """Size and time of change of each file, to see cheaply whether anything was written.

        Only where Chroma has saved: before that the vectors are in SQLite alone.
        """
        stamps = {}
        for saved in self._chroma.glob(f"*/{SAVED}"):
            directory = saved.parent
            if not directory.name.startswith(_ASIDE):
                for file in directory.iterdir():
                    status = file.stat()
                    stamps[f"{directory.name}/{file.name}"] = (status.st_size, status.st_mtime_ns)
        return stamps

    def _saved_since(self, names: Iterable[str], stamps: _Marks, saves: dict[str, int]) -> set[str]:
        """Files that Chroma saved whole after the last seal, the process dying before the next.

        Chroma notes a save in SQLite when its files are written. So the save is whole if the note
        is newer than the sealed one and nothing was written to the files after SQLite. (Only
        without a power cut in between: what was not fsync'd survives a process, not the power.)
        """
        noted = self._saves()
        written = self._database.stat().st_mtime_ns
        whole = set()
        for name in names:
            directory = Path(name).parent.name
            times = [stamp[1] for key, stamp in stamps.items() if key.startswith(directory)]
            noticed = noted.get(directory, 0) > saves.get(directory, 0)
            last = written > max(times, default=0)
            if noticed and last and not cut_short(self._chroma / directory):
                whole.add(name)
        return whole

    def _lost_saves(self, saves: dict[str, int]) -> set[str]:
        """Directories of which Chroma noted a save after the last seal.

        After a power cut that save may be lost, for SQLite is fsync'd before the files: with the
        note, and without its own log of what was saved. Files that are as they were sealed, or
        were never sealed and are not there, would then pass for good.
        """
        return {name for name, noted in self._saves().items() if noted > saves.get(name, 0)}

    def _saves(self) -> dict[str, int]:
        """How far into its log Chroma had saved each directory."""
        rows = self._ask(
            "SELECT s.id, m.seq_id FROM max_seq_id m JOIN segments s ON m.segment_id = s.id "
            "WHERE s.scope = 'VECTOR'"
        )
        return {str(name): int(saved) for name, saved in rows}

    def _ask(self, query: str, *values: str) -> list[Any]:
        try:
            with database(self._database) as connection:
                return connection.execute(query, values).fetchall()
        except (sqlite3.Error, ValueError):
            return []  # the database is damaged: assume the worst


def _measure(path: Path) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
    return size, crc
