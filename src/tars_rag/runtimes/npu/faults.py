"""What went wrong on the NPU lately, for `tars-rag doctor`: one JSON line a fault."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

logger = logging.getLogger("tars_rag")

_KEEP: Final = 50


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
    """Append a fault. A disk that cannot be written is logged: it must not stop the work."""
    path = path or default_path()
    line = json.dumps(asdict(Fault(time.time(), model, core_mask, reason)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [*_lines(path)[-(_KEEP - 1) :], line]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        logger.warning("The NPU fault could not be recorded in %s: %s", path, error)


def recent(path: Path | None = None) -> list[Fault]:
    """The last faults, oldest first; lines that cannot be read are left out."""
    found = []
    for line in _lines(path or default_path()):
        with contextlib.suppress(ValueError, TypeError):
            found.append(Fault(**json.loads(line)))
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
