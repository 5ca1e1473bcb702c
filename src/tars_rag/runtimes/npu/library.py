"""librknnrt: where it is, which version, where to get it, and which models it can run."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

TOOLKITS: Final = ("2.3.2", "2.5.0")
"""Versions of rknn-toolkit2 that `tars-rag convert` can build with."""

PUBLIC_VERSION: Final = "2.3.2"
"""The newest librknnrt that can be had in public."""

GET: Final = (
    "sudo curl -fLo /usr/lib/librknnrt.so https://github.com/airockchip/rknn-toolkit2/raw/"
    "42aa1d426c0a9e0869b6374edba009f7208a1926/rknpu2/runtime/Linux/librknn_api/aarch64/"
    "librknnrt.so"
)
"""Fetches it; the commit is that of the tag v2.3.2."""

# The wheel looks nowhere else, and ignores LD_LIBRARY_PATH.
_PLACES = (
    "usr/lib/librknnrt.so",
    "usr/lib/librknn_runtime.so",
    "usr/lib64/librknn_runtime.so",
)


@dataclass(frozen=True)
class Library:
    """A file where librknnrt should be. `unreadable` says why it is not known what is in it."""

    path: Path
    is_elf: bool = False
    version: str | None = None
    unreadable: str = ""


@dataclass(frozen=True)
class Mismatch:
    """A model and a library that were not made for each other, and what helps."""

    what: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}. {self.fix}"


def find_library(root: Path) -> Library | None:
    """The library of a machine; None: it has none."""
    return next((found for place in _PLACES if (found := _look(root / place))), None)


def compare(
    name: object, toolkit: str | None, library: str | None, convert: str
) -> Mismatch | None:
    """Whether a model fits the library; None: it does, or one of them does not say its version.

    Only the same version will do. A model of a newer toolkit crashes an older library, and the
    other way round (airockchip/rknn-toolkit2 issues 378, 506 and 511).

    Args:
        name: Of the model's file or bundle.
        toolkit: Version that made it.
        library: Version that is to run it.
        convert: The command that makes it again, without ``--toolkit``.
    """
    if not (toolkit and library) or numbers(toolkit) == numbers(library):
        return None
    what = f"{name} was made by toolkit {toolkit}, librknnrt is {library}"
    why = "it may be refused, crash, or answer wrongly"
    if library in TOOLKITS:
        fix = f"{convert} --toolkit {library}"
    elif numbers(toolkit) == numbers(PUBLIC_VERSION):
        fix = GET
    else:
        fix = f"{convert} --toolkit {PUBLIC_VERSION}  (on a PC; and here: {GET})"
    return Mismatch(what, why, fix)


def numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _look(path: Path) -> Library | None:
    """What lies at `path`; None: no file. Its several megabytes are read once."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return None
        return _read(path, status.st_mtime_ns, status.st_size)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Library(path, unreadable=error.strerror or type(error).__name__)


@lru_cache(maxsize=8)
def _read(path: Path, mtime_ns: int, size: int) -> Library:
    content = path.read_bytes()
    found = re.search(rb"librknnrt version: (\d+\.\d+\.\d+)", content)
    version = found.group(1).decode() if found else None
    return Library(path, is_elf=content.startswith(b"\x7fELF"), version=version)
