"""Find the files to index, and read their text.

A problem with one file is an `InvalidInputError` that names it, so that the others can go on.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tars_rag.errors import InvalidInputError
from tars_rag.ingest.encodings import MARKS, decode
from tars_rag.ingest.exclusion import Exclusion
from tars_rag.ingest.formats import is_searched_for


@dataclass
class Found:
    """What `find` found below the given paths.

    Attributes:
        files: Absolute paths, each once, sorted within a directory.
        ignored: File suffix -> number of files in directories that are of no known type.
        excluded: How many files and directories .gitignore or the caller's patterns leave out.
        failures: Path (for example of a directory) -> why it cannot be read.
    """

    files: list[Path] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    excluded: int = 0


def find(paths: Sequence[Path], exclude: Sequence[str] = ()) -> Found:
    """List the files to index.

    A file that is named is taken whatever it is called; a directory is searched for files of known
    kinds, leaving out hidden ones and what a .gitignore in or above it leaves out.

    Args:
        paths: Files and directories.
        exclude: Patterns as in a .gitignore, relative to each directory.
    """
    found = Found()
    seen: set[Path] = set()
    for path in paths:
        try:
            top = path.expanduser().resolve()
            files = (
                _walk(top, found, exclude) if stat.S_ISDIR(top.stat().st_mode) else [_regular(top)]
            )
        except InvalidInputError as error:
            found.failures[str(path)] = str(error)
            continue
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, an unknown ~user
            found.failures[str(path)] = getattr(error, "strerror", None) or str(error)
            continue
        for file in files:
            if file not in seen:
                seen.add(file)
                found.files.append(file)
    return found


def _walk(top: Path, found: Found, exclude: Sequence[str]) -> Iterator[Path]:
    def blocked(error: OSError) -> None:
        found.failures[str(error.filename)] = error.strerror or str(error)

    left_out = Exclusion(top, exclude)
    for directory, folders, names in os.walk(top, onerror=blocked):
        here = Path(directory)
        left_out.enter(here)
        visible = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in visible if not left_out.has(here / name, folder=True)]
        found.excluded += len(visible) - len(folders)
        linked = sum((here / name).is_symlink() for name in folders)
        if linked:  # they may lead back to where they are
            found.ignored["linked folder"] += linked
        for name in sorted(names):
            file = here / name
            if name.startswith("."):
                continue
            if left_out.has(file):
                found.excluded += 1
            elif is_searched_for(file):
                try:
                    _regular(file)
                except InvalidInputError as error:
                    found.failures[str(file)] = str(error)
                    continue
                except OSError:
                    pass  # told when it is read
                yield file
            else:
                found.ignored[file.suffix.lower() or "no suffix"] += 1


def _regular(path: Path) -> Path:
    """The path, if it leads to a file that has an end.

    Raises:
        InvalidInputError: It is a pipe, a device or a socket, which may never end.
        OSError: It leads nowhere.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        msg = f"{path} is not a regular file, so it was not read."
        raise InvalidInputError(msg)
    return path


def read_text(path: Path) -> str:
    """The text of a file, in whatever encoding (see `encodings`).

    Raises:
        InvalidInputError: It cannot be read, is binary, or its encoding cannot be told.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(_unreadable(path, error)) from error
    return decode(data, path)


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """The lines of a file one by one: (line number from 1, position after it in bytes, line).

    Raises:
        InvalidInputError: It cannot be read or is binary.
    """
    position = 0
    try:
        encoding = _marked(path)
        if encoding is not None:
            for number, line in enumerate(read_text(path).split("\n"), 1):
                raw = line.encode("utf-8", "surrogatepass")
                position += 2 * len(raw)
                yield number, position, raw
            return
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                position += len(raw)
                if b"\0" in raw:
                    msg = f"{path} is a binary file (line {number}), not JSONL."
                    raise InvalidInputError(msg)
                yield number, position, raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
    except OSError as error:
        raise InvalidInputError(_unreadable(path, error)) from error


def _marked(path: Path) -> str | None:
    """UTF-16 or UTF-32, if a file begins with the mark of one; it is then read whole."""
    with path.open("rb") as stream:
        start = stream.read(4)
    found = next((name for mark, name in MARKS if start.startswith(mark)), None)
    return None if found == "utf-8-sig" else found


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read: {error.strerror or error}. Check its permissions."
