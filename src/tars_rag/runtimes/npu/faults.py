"""What went wrong on the NPU lately, for `tars-rag doctor`: one JSON line a fault.

The log is there to help; it must never stand in the way. Whatever the file holds and whoever owns
it, `record` and `recent` return.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tars_rag.files import write_atomically

logger = logging.getLogger("tars_rag")

_KEEP: Final = 50
_TAIL_BYTES: Final = 1 << 18
_LATEST: Final = 4e9
"""In the year 2096; a later time is not one that this program wrote."""

_writing = threading.Lock()


@dataclass(frozen=True)
class Fault:
    """A core that was retired. `time` is in seconds since 1970."""

    time: float
    model: str
    core_mask: int
    reason: str


def default_path() -> Path:
    """``npu-faults.jsonl`` in the user's state directory."""
    import platformdirs

    return Path(platformdirs.user_state_dir("tars-rag", appauthor=False)) / "npu-faults.jsonl"


def record(model: str, core_mask: int, reason: str, path: Path | None = None) -> None:
    """Append a fault. Where it cannot be written that is logged: it must not stop the work."""
    fault = Fault(time.time(), model, core_mask, reason)
    try:
        path = path or default_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with _writing:
            lines = [json.dumps(asdict(f)) for f in [*recent(path)[-(_KEEP - 1) :], fault]]
            write_atomically(path, ("\n".join(lines) + "\n").encode("ascii"))
    except Exception as error:
        logger.warning("The NPU fault could not be recorded in %s: %s", path, error)


def recent(path: Path | None = None) -> list[Fault]:
    """The last faults, oldest first; what cannot be read is left out."""
    try:
        lines = _tail(path or default_path()).splitlines()
    except Exception as error:
        logger.debug("The log of NPU faults cannot be read: %s", error)
        return []
    return [fault for line in lines if (fault := _parse(line)) is not None][-_KEEP:]


def _tail(path: Path) -> str:
    # Never wait for the other end of a pipe that has taken the log's place.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return ""
        stream.seek(max(0, status.st_size - _TAIL_BYTES))
        return stream.read(_TAIL_BYTES).decode("utf-8", "replace")


def _parse(line: str) -> Fault | None:
    try:
        data = json.loads(line)
        when, mask = float(data["time"]), data["core_mask"]
        if not (0 <= when <= _LATEST and isinstance(mask, int)):
            return None
        return Fault(when, _printable(data["model"]), mask, _printable(data["reason"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _printable(text: object) -> str:
    """What a terminal and UTF-8 can take: no escapes, no half characters."""
    if not isinstance(text, str):
        raise TypeError
    return "".join(letter if letter.isprintable() else " " for letter in text)
