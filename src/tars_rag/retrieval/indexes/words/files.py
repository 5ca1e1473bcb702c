"""Whether the files of a tantivy index are whole.

tantivy ends each segment file with a footer that holds a CRC-32 of what is before it, but checks it
only on demand, and its Python binding cannot ask. A flipped bit would give wrong answers quietly,
so the store checks at every open (about 1 GB a second).

Footer: JSON with the keys "crc" and "version", then its length (uint32), then a magic number
(uint32), both little endian (tantivy, src/directory/footer.rs). It is private to tantivy
(`guests.TANTIVY`): what all files of an index do alike, and no tested version does, is another
layout; what one file does is damage.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from tars_rag.errors import UnknownLayoutError
from tars_rag.files import write_atomically
from tars_rag.guests import TANTIVY

SUFFIXES: Final = ("idx", "pos", "term", "store", "fast", "fieldnorm")
"""The files that every segment has; one with deletions also has <number>.del."""
FORMAT_VERSION: Final = 7
"""``index_format_version`` of the footers."""
MAGIC: Final = 1337

_META = "meta.json"
_TAIL = struct.Struct("<II")
_VERSION = {"major", "minor", "patch", "index_format_version"}
_PIECE = 1 << 20
_BLOCK, _LARGE_BLOCK = 1 << 12, 1 << 14  # bytes; the second is tantivy's own


def digest(content: bytes) -> str:
    """16 hexadecimal digits that differ when the content does."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def committed(path: Path) -> tuple[int, int]:
    """How many documents BM25 reckons with, and the number of the last operation (opstamp).

    Documents that are deleted count until they are merged.
    """
    meta = json.loads((path / _META).read_bytes())
    return sum(int(segment["max_doc"]) for segment in meta["segments"]), int(meta["opstamp"])


def begin_small_blocks(path: Path) -> bool:
    """Have an index that holds nothing yet keep what is stored in smaller compressed blocks.

    A search reads few passages here and there, each with the block around it.

    Returns:
        Whether it was changed, for whoever opens it next. In another layout nothing is.
    """
    meta = json.loads((path / _META).read_bytes())
    settings = meta.get("index_settings", {})
    if meta.get("segments") or settings.get("docstore_blocksize") != _LARGE_BLOCK:
        return False
    settings["docstore_blocksize"] = _BLOCK
    write_atomically(path / _META, json.dumps(meta, indent=2).encode())
    return True


def damage(path: Path) -> str | None:
    """What is wrong with the files of the index in `path`; None: nothing.

    Raises:
        UnknownLayoutError: No tested version of tantivy wrote them: they cannot be checked.
    """
    try:
        names = list(_names(path))
        _require_known_layout(path, names)
        for name in names:
            problem = _file_damage(path / name)
            if problem:
                return f"{name}: {problem}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{_META}: {error}"
    return None


def _names(path: Path) -> Iterable[str]:
    """The files that ``meta.json`` stands for."""
    meta = json.loads((path / _META).read_bytes())
    for segment in _value(path, meta, "segments"):
        stem = _value(path, segment, "segment_id").replace("-", "")
        deletes = _value(path, segment, "deletes")
        yield from (f"{stem}.{suffix}" for suffix in SUFFIXES)
        if deletes:
            yield f"{stem}.{_value(path, deletes, 'opstamp')}.del"


def _value(path: Path, mapping: Mapping[str, Any], key: str) -> Any:
    if isinstance(mapping, dict) and key not in mapping:
        altered = (other for other in mapping if len(other) == len(key))
        if not any(sum(a != b for a, b in zip(other, key, strict=True)) == 1 for other in altered):
            raise _unknown(path, f"{_META} without {key}")
    return mapping[key]


def _require_known_layout(path: Path, names: list[str]) -> None:
    """Tell another layout from damage: it is in every file, or in a file of its own."""
    there = {file.name for file in path.iterdir()}
    for stem in {name.partition(".")[0] for name in names}:
        missing = [name for name in names if name.startswith(f"{stem}.") and name not in there]
        others = [name for name in there - set(names) if name.startswith(f"{stem}.")]
        for name in others:
            suffix = name.partition(".")[2]
            if suffix.isalpha() and (missing or _tail(path / name)[1] == MAGIC):
                raise _unknown(path, f"a file *.{suffix}")
    present = [name for name in names if name in there]
    magics = {_tail(path / name)[1] for name in present}
    if len(present) > 1 and len(magics) == 1 and not magics & {0, MAGIC}:
        raise _unknown(path, f"every file ends in {magics.pop()}, not {MAGIC}")
    footers = [footer for name in present if (footer := _footer(path / name)) is not None]
    if len(footers) > 1 and all("crc" not in footer for footer in footers):
        raise _unknown(path, "no file has a checksum")
    versions = {_format_version(footer) for footer in footers}
    if len(footers) > 1 and FORMAT_VERSION not in versions and len(versions) == 1:
        raise _unknown(path, f"index_format_version {versions.pop()}, not {FORMAT_VERSION}")


def _tail(path: Path) -> tuple[int, int]:
    """Length of the footer, and the magic number; zeros where the file is too short."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        if size < _TAIL.size:
            return 0, 0
        stream.seek(size - _TAIL.size)
        length, magic = _TAIL.unpack(stream.read())
    return (length, magic) if length <= size - _TAIL.size else (0, 0)


def _footer(path: Path) -> dict[str, Any] | None:
    """The footer of a file; None if it has none that can be read."""
    length, magic = _tail(path)
    if magic != MAGIC:
        return None
    with path.open("rb") as stream:
        stream.seek(-_TAIL.size - length, 2)
        try:
            footer = json.loads(stream.read(length))
        except ValueError:
            return None
    return footer if isinstance(footer, dict) else None


def _format_version(footer: dict[str, Any]) -> object:
    version = footer.get("version")
    found = version.get("index_format_version") if isinstance(version, dict) else None
    return found if isinstance(found, int) else None


def _has_its_keys(footer: dict[str, Any]) -> bool:
    """No checksum covers the footer itself, and not every release of tantivy reads all of it."""
    return set(footer) == {"version", "crc"} and set(footer["version"]) == _VERSION


def _file_damage(path: Path) -> str | None:
    length, magic = _tail(path)
    if magic != MAGIC:
        return "truncated or altered"
    footer = _footer(path)
    if footer is None or _format_version(footer) != FORMAT_VERSION or not _has_its_keys(footer):
        return "footer altered"
    found, left = 0, path.stat().st_size - _TAIL.size - length
    with path.open("rb") as stream:
        while left and (piece := stream.read(min(left, _PIECE))):
            found = zlib.crc32(piece, found)
            left -= len(piece)
    return None if found == footer.get("crc") else "checksum does not match"


def _unknown(path: Path, what: str) -> UnknownLayoutError:
    again = f"To make it anew from the texts: rm -r {path}, then open the store"
    return TANTIVY.unknown_layout(path, what, again)
