"""Whether the files of a tantivy index are whole.

tantivy ends each segment file with a footer that holds a CRC-32 of what is before it, but checks it
only on demand, and its Python binding cannot ask. A flipped bit would give wrong answers quietly,
so the store checks at every open (about 1 GB a second).

Footer: JSON with the key "crc", then its length (uint32), then a magic number (uint32), both
little endian (tantivy, src/directory/footer.rs).
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path

_META = "meta.json"
_MAGIC = 1337
_TAIL = struct.Struct("<II")
_SUFFIXES = ("idx", "pos", "term", "store", "fast", "fieldnorm")
_PIECE = 1 << 20


def digest(content: bytes) -> str:
    """16 hexadecimal digits that differ when the content does."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def damage(path: Path) -> str | None:
    """What is wrong with the files of the index in `path`; None: nothing."""
    try:
        meta = json.loads((path / _META).read_bytes())
        for segment in meta["segments"]:
            stem = segment["segment_id"].replace("-", "")
            deletes = segment["deletes"]
            names = [f"{stem}.{suffix}" for suffix in _SUFFIXES]
            if deletes:
                names.append(f"{stem}.{deletes['opstamp']}.del")
            for name in names:
                problem = _file_damage(path / name)
                if problem:
                    return f"{name}: {problem}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{_META}: {error}"
    return None


def _file_damage(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size < _TAIL.size:
            return "truncated"
        stream.seek(size - _TAIL.size)
        length, magic = _TAIL.unpack(stream.read())
        body = size - _TAIL.size - length
        if magic != _MAGIC or body < 0:
            return "truncated or altered"
        stream.seek(body)
        try:
            crc = int(json.loads(stream.read(length))["crc"])
        except (ValueError, KeyError, TypeError):
            return "footer altered"
        stream.seek(0)
        found, left = 0, body
        while left and (piece := stream.read(min(left, _PIECE))):
            found = zlib.crc32(piece, found)
            left -= len(piece)
    return None if found == crc else "checksum does not match"
