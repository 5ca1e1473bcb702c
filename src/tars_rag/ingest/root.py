"""What sources are called: by their whole path, or as seen from a directory that may move."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tars_rag.errors import InvalidInputError


@dataclass(frozen=True)
class Root:
    """Names of files and back.

    Attributes:
        directory: What lies below it is named as seen from it, with ``/``; the rest, and all where
            it is None, by its whole path.
    """

    directory: Path | None = None

    @classmethod
    def at(cls, directory: Path) -> Root:
        """The root that a user names.

        Raises:
            InvalidInputError: It is no directory.
        """
        try:
            place = directory.expanduser().resolve()
            there = place.is_dir()
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, an unknown ~user
            why = getattr(error, "strerror", None) or str(error)
            msg = f"The root {directory} cannot be used: {why}. Give a directory that is there."
            raise InvalidInputError(msg) from error
        if not there:
            msg = f"The root {directory} is no directory. Give the one that the files lie below."
            raise InvalidInputError(msg)
        return cls(place)

    def name(self, path: Path) -> str:
        """What the source at an absolute path is called.

        Raises:
            InvalidInputError: The path is not UTF-8.
        """
        try:
            str(path).encode()
        except UnicodeEncodeError:
            msg = f"The name of {str(path)!a} is not UTF-8. Rename the file."
            raise InvalidInputError(msg) from None
        if self.directory is not None and path.is_relative_to(self.directory):
            return path.relative_to(self.directory).as_posix()
        return str(path)

    def check_successor(self, root: Root, names: Sequence[str]) -> None:
        """Refuse another root for the sources of these names, unless this one was moved there.

        Raises:
            InvalidInputError: There are sources already that are named by their whole paths, or
                from this directory, which still has them, or the other has none of them, or has one
                that is named by its whole path.
        """
        if names and self.directory is None:
            msg = (
                "The store's sources are named by their whole paths, and stay so: a root is given "
                "when the first file is indexed. Index into a new store, with --root."
            )
            raise InvalidInputError(msg)
        if self.holds_any(names):
            msg = (
                f"The store's sources are named from {self.directory}, which still has them. "
                "Only a root that was moved may be given anew. To index: leave --root out."
            )
            raise InvalidInputError(msg)
        if any(not Path(one).is_absolute() for one in names) and not root.holds_any(names):
            msg = (
                f"The store's sources are named from {self.directory}, and {root.directory} has "
                "none of them. Give the directory that it was moved to: --root DIR"
            )
            raise InvalidInputError(msg)
        whole = next((one for one in names if root.name(Path(one)) != one), None)
        if whole is not None:
            msg = (
                f"{whole} is in the store by its whole path, and lies below {root.directory}. "
                f"Remove it first, then index again: tars-rag store rm {shlex.quote(whole)}"
            )
            raise InvalidInputError(msg)

    def path(self, name: str) -> Path:
        """Where the source of that name is."""
        return Path(name) if self.directory is None else self.directory / name

    def holds_any(self, names: Sequence[str]) -> bool:
        """Whether a file is there for one of the names that are seen from here."""
        seen = (one for one in names if not Path(one).is_absolute())
        return any(self.path(one).exists() for one in seen)
