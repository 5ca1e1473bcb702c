"""Whether a file can have changed, without reading it."""

from __future__ import annotations

import time
from pathlib import Path

_SETTLED = 3.0  # seconds; two changes in a shorter time may have one time (FAT: 2 s)
_FRESH = "fresh"


def stamp_of(path: Path) -> str:
    """The state of a file on the disk; to be taken before the file is read.

    Returns:
        Times of the last change of its content and of anything of it (which no program can set
        back), size, inode, and whether it was changed just now. Empty: it cannot be looked at.
    """
    try:
        held = path.stat()
    except OSError:
        return ""
    stamp = f"{held.st_mtime_ns} {held.st_ctime_ns} {held.st_size} {held.st_ino}"
    return f"{stamp} {_FRESH}" if held.st_ctime > time.time() - _SETTLED else stamp


def unchanged(before: str, now: str) -> bool:
    """Whether two stamps of a file say that nothing can have changed in between."""
    return bool(now) and before == now and not now.endswith(_FRESH)


def same_date(before: str, now: str) -> bool:
    """Whether a file's content is dated as before, in seconds as metadata has it."""
    return not before or _seconds(before) == _seconds(now)


def _seconds(stamp: str) -> str:
    return stamp.split(" ")[0][:-9]
