"""Whether the files of Chroma's vector index are the ones that the last write left.

Embedded Chroma keeps texts, metadata and a log of recent vectors in SQLite, which survives
anything. Every thousand writes it moves the vectors into plain files, in place, without fsync and
without checksums: killed meanwhile it may not open again, and a truncated file ends the process
with a segmentation fault. So the store fsyncs these files itself, keeps their sizes and CRC-32
here, and compares them before Chroma touches them.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path

from tars_rag.retrieval.journal import sync_directory, write_atomically

_PIECE = 1 << 20
_SAVED = "index_metadata.pickle"
_ASIDE = "damaged-"
_Marks = dict[str, tuple[int, int]]


class Seal:
    """Sizes and checksums of the files in the subdirectories of `chroma`, kept in `path`."""

    def __init__(self, path: Path, chroma: Path) -> None:
        self.path = path
        self._chroma = chroma
        self._seen: _Marks | None = None

    def problem(self) -> str | None:
        """Which file is not as it was sealed; None: all are, or nothing was sealed yet."""
        try:
            sealed = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return f"{self.path.name} cannot be read"
        if not self._chroma.is_dir():
            return None  # there is worse to report
        if self.is_set_aside():
            return "an earlier repair was cut short"
        self._seen = self._stamps()
        found = {name: list(_measure(self._chroma / name)) for name in self._seen}
        for name in sorted(found.keys() | sealed):
            if found.get(name) != sealed.get(name):
                return f"{name} is {'not as it was written' if name in found else 'missing'}"
        return None

    def renew(self) -> None:
        """Seal the files as they are, if Chroma wrote to them since; durable on return."""
        stamps = self._stamps()
        if stamps == (self._seen or {}):
            return
        for name in stamps:
            _sync(self._chroma / name)
        for directory in {(self._chroma / name).parent for name in stamps}:
            sync_directory(directory)
        marks = {name: _measure(self._chroma / name) for name in stamps}
        write_atomically(self.path, json.dumps(marks).encode("ascii"))
        self._seen = stamps

    def _stamps(self) -> _Marks:
        """Size and time of change of each file, to see cheaply whether anything was written."""
        stamps = {}
        for directory in self._directories():
            if directory.name.startswith(_ASIDE):
                continue
            for file in directory.iterdir():
                status = file.stat()
                stamps[f"{directory.name}/{file.name}"] = (status.st_size, status.st_mtime_ns)
        return stamps

    def _directories(self) -> list[Path]:
        """Those Chroma saved to. Before the first save the vectors are in SQLite alone."""
        return [entry.parent for entry in self._chroma.glob(f"*/{_SAVED}")]

    def set_aside(self) -> None:
        """Rename every directory of vectors, so that Chroma does not load it."""
        for entry in list(self._chroma.iterdir()):
            if entry.is_dir() and not entry.name.startswith(_ASIDE):
                entry.rename(entry.with_name(_ASIDE + entry.name))
        sync_directory(self._chroma)

    def is_set_aside(self) -> bool:
        """Whether a repair was begun and not finished."""
        return any(self._chroma.glob(_ASIDE + "*"))

    def discard(self) -> None:
        """Delete what was set aside: the repair is done."""
        for entry in self._chroma.glob(_ASIDE + "*"):
            shutil.rmtree(entry)


def _measure(path: Path) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
    return size, crc


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
