"""The intent journal: what is being written, on disk before the first index is touched.

Between `begin` and `clear` the two indexes may disagree about the ids it names and no others. A
passage that replaces another is kept here whole: one with more metadata keys than Chroma can take
out at once is replaced in two steps (delete, then add), and behind a server any write may be cut
off. Should the process die meanwhile, the next open writes it again.

The record carries its own checksum. One that is torn means that the power went while it was being
written, so that nothing was written after it, or that the file was damaged later; the two look
alike, so then every passage is compared.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tars_rag.files import sync
from tars_rag.retrieval.indexes.codec import decode, encode

_MAGIC = b"tars-rag journal 1\n"


@dataclass(frozen=True, slots=True)
class Intent:
    """What was in flight.

    Attributes:
        ids: The passages that were being written or deleted; None where the record is torn.
        redo: Records for Chroma (see `VectorIndex.records`) that were replacing others.
        before: The stamp of the exact index, which is written last, before it.
    """

    ids: tuple[str, ...] | None
    redo: tuple[dict[str, Any], ...] = ()
    before: str | None = None


class Journal:
    """A file that is there only while a write is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(
        self, ids: Sequence[str], redo: Sequence[dict[str, Any]] = (), before: str | None = None
    ) -> None:
        """Record the intent (see `Intent`); on disk (file and directory) on return."""
        content = {"ids": [encode(key) for key in ids], "redo": list(redo), "before": before}
        body = json.dumps(content, ensure_ascii=False).encode()
        record = _MAGIC + b"%08x %d\n" % (zlib.crc32(body), len(body)) + body
        try:
            with self.path.open("wb") as stream:
                stream.write(record)
                stream.flush()
                os.fsync(stream.fileno())
            sync(self.path.parent)
        except OSError:
            self.clear()  # nothing was written yet
            raise

    def clear(self) -> None:
        """Forget the intent.

        Not fsync'd: should the file come back after a power cut, the same is done once more.
        """
        self.path.unlink(missing_ok=True)

    def pending(self) -> Intent | None:
        """What a crash left in flight; None: nothing."""
        try:
            record = self.path.read_bytes()
        except FileNotFoundError:
            return None
        header, _, body = record.removeprefix(_MAGIC).partition(b"\n")
        if not record.startswith(_MAGIC) or header != b"%08x %d" % (zlib.crc32(body), len(body)):
            return Intent(None)
        content = json.loads(body)
        ids = tuple(decode(key) for key in content["ids"])
        return Intent(ids, tuple(content["redo"]), content.get("before"))
