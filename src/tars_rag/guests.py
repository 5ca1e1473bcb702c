"""Packages whose private names or file formats are used here, and the versions that were tested.

What is private may change in any release. So each has one row: `pyproject.toml` pins it to the row,
`tars-rag doctor` names an installed version outside it, and where a file or a table looks otherwise
than in these versions, that is what the error says. tests/test_guests.py compares the installed
versions with what the code expects, and fails where one of them changed.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from typing import Final

from tars_rag.errors import UnknownLayoutError


@dataclass(frozen=True)
class Guest:
    """A distribution, the oldest and newest version tested, and what of it is private."""

    name: str
    first: str
    last: str
    private: str

    @property
    def installed(self) -> str | None:
        """The version that is installed; None: it is not."""
        return version_of(self.name)

    @property
    def pin(self) -> str:
        """The versions tested, as pip takes them."""
        return f"{self.name}>={self.first},<={self.last}"

    def is_tested(self, version: str) -> bool:
        """Whether a version lies within those tested; a pre-release does not."""
        if not re.fullmatch(r"\d+(\.\d+)*", version):
            return False
        return _numbers(self.first) <= _numbers(version) <= _numbers(self.last)

    def unknown_layout(self, where: object, what: str, otherwise: str) -> UnknownLayoutError:
        """The error for files that no tested version writes.

        Args:
            where: The file or directory.
            what: What is different, for a bug report.
            otherwise: What helps where a tested version is installed and another one wrote them.
        """
        installed = self.installed or "not"
        fix = otherwise if self.is_tested(installed) else f"pip install '{self.pin}'"
        msg = (
            f"{where} has a layout this tars-rag does not know ({what}). It was tested with "
            f"{self.name} {self.first} to {self.last}; {installed} is installed. Nothing was "
            f"changed. {fix}"
        )
        return UnknownLayoutError(msg)


CHROMA: Final = Guest(
    "chromadb", "1.5.2", "1.5.9", "the tables of its database and the vector files of hnswlib"
)
TANTIVY: Final = Guest("tantivy", "0.25.0", "0.27.0", "the names and footers of its segment files")
RKNN: Final = Guest(
    "rknn-toolkit-lite2", "2.3.2", "2.5.0", "the C functions behind it, and its logger"
)
GUESTS: Final = (CHROMA, TANTIVY, RKNN)


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None: it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))
