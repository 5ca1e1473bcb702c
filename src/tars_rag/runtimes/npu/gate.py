"""Which cores may be opened besides core 0, and what is remembered of machines that froze.

On many images with a driver below 0.9.6 the cores 1 and 2 of an RK3588 fail each job, and some
boards freeze over it (rockchip-linux/rknpu2 issues 121 and 123; airockchip/rknn-toolkit2 issue 138
for the cure). A freeze cannot be caught. So before a core is opened that has not worked on this
kernel yet, a note of that goes to the disk, and goes away when the attempt is over: a note of an
earlier boot means that the machine did not live to remove it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tars_rag.errors import DeviceError
from tars_rag.files import write_atomically

logger = logging.getLogger("tars_rag")

MIN_DRIVER: Final = (0, 9, 6)
"""Below it the cores 1 and 2 of an RK3588 are not used unless they are named."""
CLEAR: Final = "tars-rag doctor --clear-npu-notes"

_CORE_0: Final = (0, 1)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MOST_BYTES: Final = 1 << 16
_LATEST: Final = 4e9  # in the year 2096
_writing = threading.Lock()
_told: set[Path] = set()
"""Folders that cannot be written, as was said once."""


@dataclass(frozen=True)
class Note:
    """A core that is being opened, or was when the machine stopped. `time`: since 1970, in s."""

    core_mask: int
    kernel: str
    boot: str
    time: float
    pid: int


class CoreGate:
    """Decides about the cores of one model; what it remembers is shared by all.

    Args:
        soc: Of this machine.
        library: Version of librknnrt.
        chosen: The cores were named, not left to us.
        driver: Its version, where the machine says it; else a core that is open is asked.
        folder: Where notes are kept; None: in the user's state directory.
        kernel: Release of the running kernel.
        boot: What differs after each start of the machine.
    """

    def __init__(
        self,
        soc: str | None,
        library: str | None,
        *,
        chosen: bool,
        driver: str | None = None,
        folder: Path | None = None,
        kernel: str | None = None,
        boot: str | None = None,
    ) -> None:
        self._soc = soc
        self._chosen = chosen
        self._driver = driver
        self._folder = folder or default_folder()
        self._kernel = kernel or platform.release()
        self._boot = boot or _boot_id()
        self._key = f"{soc} {self._kernel} {library}"
        self._tidy()

    def is_proven(self, core_mask: int) -> bool:
        """Whether the core has worked with this kernel and library before."""
        return core_mask in _CORE_0 or core_mask in _worked(self._folder).get(self._key, ())

    def refusal(self, core_mask: int, versions: str) -> str:
        """Why the core is not to be opened; empty: it may be.

        Args:
            core_mask: Which core.
            versions: What a core that is open says of library and driver; empty: none is.
        """
        if core_mask in _CORE_0:
            return ""
        if any(n.core_mask == core_mask and self._froze(n) for n in notes(self._folder)):
            return (
                f"the machine stopped while it was opened (kernel {self._kernel}); "
                f"to try again: {CLEAR}"
            )
        driver = driver_version(versions) or self._driver
        if self._soc == "rk3588" and not self._chosen and driver and _older(driver):
            least = ".".join(map(str, MIN_DRIVER))
            return (
                f"left out: with driver {driver} (below {least}) it may freeze the machine; "
                "to use it all the same: NPU_CORE_MASK=0_1_2"
            )
        return ""

    @contextlib.contextmanager
    def opening(self, core_mask: int) -> Iterator[None]:
        """Around the opening of a core; what comes out of it unhurt has worked."""
        if self.is_proven(core_mask):
            yield
            return
        note = Note(core_mask, self._kernel, self._boot, time.time(), os.getpid())
        path = self._folder / f"opening-{core_mask}-{note.pid}-{threading.get_ident()}.json"
        write_note(path, asdict(note))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        _remember(self._folder, self._key, core_mask)

    def _tidy(self) -> None:
        """A program that was killed while it opened a core did not stop the machine."""
        for path in self._folder.glob("opening-*.json"):
            data = read_note(path)
            if data.get("boot") == self._boot and not _lives(data.get("pid")):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _froze(self, note: Note) -> bool:
        return note.kernel == self._kernel and note.boot != self._boot


def default_folder() -> Path:
    """``npu-cores`` in the user's state directory."""
    import platformdirs

    return Path(platformdirs.user_state_dir("tars-rag", appauthor=False)) / "npu-cores"


def notes(folder: Path | None = None) -> list[Note]:
    """Of cores that are being opened, or were when a machine stopped; oldest first."""
    paths = (folder or default_folder()).glob("opening-*.json")
    found = [note for path in paths if (note := _note(read_note(path)))]
    return sorted(found, key=lambda note: note.time)


def _note(data: dict[str, Any]) -> Note | None:
    """A note, if it is one: the disk of a machine that froze may hold anything."""
    mask, when, pid = data.get("core_mask"), data.get("time"), data.get("pid")
    kernel, boot = data.get("kernel"), data.get("boot")
    if not (isinstance(mask, int) and isinstance(pid, int) and isinstance(when, float)):
        return None
    if not (isinstance(kernel, str) and isinstance(boot, str) and kernel.isprintable()):
        return None
    return Note(mask, kernel, boot, when, pid) if 0 <= when <= _LATEST else None


def freezes(folder: Path | None = None) -> list[Note]:
    """The notes of earlier boots: the machine stopped, or lost its power, meanwhile."""
    return [note for note in notes(folder) if note.boot != _boot_id()]


def clear(folder: Path | None = None) -> int:
    """Forget all that is remembered of cores; the number of notes removed.

    Raises:
        DeviceError: They cannot be removed.
    """
    folder = folder or default_folder()
    paths = list(folder.glob("*.json"))
    try:
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as error:
        msg = f"The notes of the NPU's cores cannot be removed ({error}): sudo rm -r {folder}"
        raise DeviceError(msg) from error
    return sum(path.name.startswith("opening-") for path in paths)


def driver_version(versions: str) -> str | None:
    """The driver's version in what the library says of itself and the driver."""
    match = re.search(r"(?i)\bdr(?:v|iver)\b\D{0,40}(\d+\.\d+\.\d+)", versions)
    return match.group(1) if match else None


def _lives(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:
        pass  # somebody else's
    return True


def _older(driver: str) -> bool:
    return tuple(int(number) for number in driver.split(".")) < MIN_DRIVER


def _worked(folder: Path) -> dict[str, list[int]]:
    data = read_note(folder / "worked.json")
    return {
        key: [core for core in cores if isinstance(core, int)]
        for key, cores in data.items()
        if isinstance(cores, list)
    }


def _remember(folder: Path, key: str, core_mask: int) -> None:
    with _writing:
        known = _worked(folder)
        cores = sorted({*known.get(key, ()), core_mask})
        write_note(folder / "worked.json", dict([*known.items(), (key, cores)][-20:]))


def read_note(path: Path) -> dict[str, Any]:
    """A small file of JSON; empty if it is anything else."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return {}
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def write_note(path: Path, data: dict[str, Any]) -> None:
    """On the disk before it returns; where that cannot be, the work goes on all the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(data).encode("ascii"))
    except OSError as error:
        if path.parent not in _told:
            _told.add(path.parent)
            logger.warning("No note of the NPU's cores can be kept in %s: %s", path.parent, error)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""
