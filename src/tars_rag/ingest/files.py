"""Find the files to index, and read their text.

A problem with one file is an `InvalidInputError` that names it, so that the others can go on.
"""

from __future__ import annotations

import codecs
import os
import shlex
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tars_rag.errors import InvalidInputError

MARKDOWN = (".md", ".markdown")
RECORDS = (".jsonl", ".ndjson")
TEXT = (".txt", ".text", ".rst")
_KNOWN = {*MARKDOWN, *RECORDS, *TEXT}
_PANDOC = "pandoc -t gfm -o text.md {}"
_TOOLS = {
    ".pdf": "pdftotext -layout {} text.txt",
    **dict.fromkeys((".docx", ".odt", ".epub", ".html", ".htm", ".xhtml", ".rtf"), _PANDOC),
}
# UTF-32 before UTF-16: the first two bytes of its little-endian mark are UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass
class Found:
    """What `find` found below the given paths.

    Attributes:
        files: Absolute paths, each once, sorted within a directory.
        ignored: File suffix -> number of files in directories that are of no known type.
        failures: Path (for example of a directory) -> why it cannot be read.
    """

    files: list[Path] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)


def find(paths: Sequence[Path]) -> Found:
    """List the files to index.

    A file that is named is taken whatever it is called; a directory is searched for text,
    Markdown and JSONL files, leaving out hidden ones.
    """
    found = Found()
    seen: set[Path] = set()
    for path in paths:
        try:
            top = path.expanduser().resolve()
            files = _walk(top, found) if stat.S_ISDIR(top.stat().st_mode) else [_regular(top)]
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


def _walk(top: Path, found: Found) -> Iterator[Path]:
    def blocked(error: OSError) -> None:
        found.failures[str(error.filename)] = error.strerror or str(error)

    for directory, folders, names in os.walk(top, onerror=blocked):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = sum(Path(directory, name).is_symlink() for name in folders)
        if linked:  # they may lead back to where they are
            found.ignored["linked folder"] += linked
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in _KNOWN:
                file = Path(directory, name)
                try:
                    _regular(file)
                except InvalidInputError as error:
                    found.failures[str(file)] = str(error)
                    continue
                except OSError:
                    pass  # told when it is read
                yield file
            else:
                found.ignored[suffix or "no suffix"] += 1


def _regular(path: Path) -> Path:
    """The path, if it leads to a file that has an end.

    Raises:
        InvalidInputError: It is a pipe, a device or a socket, which may never end; or of a kind
            that is no text.
        OSError: It leads nowhere.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        msg = f"{path} is not a regular file, so it was not read."
        raise InvalidInputError(msg)
    tool = _TOOLS.get(path.suffix.lower())
    if tool is not None:
        msg = f"{path} is no text. Convert it first: {tool.format(shlex.quote(str(path)))}"
        raise InvalidInputError(msg)
    return path


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Raises:
        InvalidInputError: It cannot be read, is binary, or is in another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(_unreadable(path, error)) from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding in ("utf-8", "utf-8-sig") and b"\0" in data:
        msg = f"{path} is a binary file, not text. Convert it to text or Markdown first."
        raise InvalidInputError(msg)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        msg = (
            f"{path} is not {encoding.removesuffix('-sig').upper()} text (byte {error.start}: "
            f"0x{data[error.start]:02x}). Convert it, e.g. with iconv -f LATIN1 -t UTF-8."
        )
        raise InvalidInputError(msg) from error


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
    found = next((name for mark, name in _MARKS if start.startswith(mark)), None)
    return None if found == "utf-8-sig" else found


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read: {error.strerror or error}. Check its permissions."
