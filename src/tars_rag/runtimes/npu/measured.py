"""What the known answers of a bundle gave on a core, kept while nothing changes.

The first time every length is opened and measured, which takes seconds. After that a core opens the
shortest, and others when a text needs them: what they give is known.
"""

from __future__ import annotations

import math
import platform
from pathlib import Path

from tars_rag.runtimes.npu.gate import default_folder, read_note, write_note

_MOST = 100


class Measured:
    """The gaps of one bundle on the cores of this machine; see `spec.SessionInfo`.

    Args:
        contents: What differs where a file of the bundle does.
        versions: Of librknnrt and the driver.
        folder: Where it is kept; None: in the user's state directory.
    """

    def __init__(self, contents: str, versions: str, folder: Path | None = None) -> None:
        self._key = f"{contents[:32]} {versions} {platform.release()}"
        self._path = (folder or default_folder()) / "measured.json"

    def of(self, core_mask: int) -> tuple[float, ...] | None:
        """What a core gave at all lengths; None: it was not measured with these."""
        gaps = read_note(self._path).get(f"{self._key} {core_mask}")
        if not isinstance(gaps, list):
            return None
        sound = all(isinstance(gap, float) and math.isfinite(gap) for gap in gaps)
        return tuple(gaps) if sound else None

    def keep(self, core_mask: int, gaps: tuple[float, ...]) -> None:
        """Remember what a core gave; where that cannot be, it is measured again next time."""
        known = read_note(self._path) | {f"{self._key} {core_mask}": [float(gap) for gap in gaps]}
        write_note(self._path, dict([*known.items()][-_MOST:]))
