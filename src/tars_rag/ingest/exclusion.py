"""What is left out of a directory: by .gitignore files, and by patterns of the caller."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pathspec

from tars_rag.errors import InvalidInputError


class Exclusion:
    """Decides, on a walk from the top down, which files and directories are left out.

    Args:
        top: Where the walk begins. Where it lies in a Git repository, the .gitignore files above it
            hold, too.
        patterns: As in a .gitignore, relative to `top`; they come before all files.

    Raises:
        InvalidInputError: A pattern is none.
    """

    def __init__(self, top: Path, patterns: Sequence[str] = ()) -> None:
        try:
            self._own = pathspec.GitIgnoreSpec.from_lines(patterns)
        except ValueError as error:
            msg = f"A pattern to exclude cannot be used: {error}. Write it as in a .gitignore."
            raise InvalidInputError(msg) from error
        self._top = top
        self._specs: dict[Path, pathspec.GitIgnoreSpec] = {}
        above = [top, *top.parents]
        inside = next((n for n, one in enumerate(above) if (one / ".git").exists()), 0)
        for directory in above[1 : inside + 1]:
            self.enter(directory)

    def enter(self, directory: Path) -> None:
        """Obey the .gitignore of a directory, if there is one that can be read."""
        try:
            lines = (directory / ".gitignore").read_text("utf-8", "replace").splitlines()
            self._specs[directory] = pathspec.GitIgnoreSpec.from_lines(lines)
        except (OSError, ValueError):
            return

    def has(self, path: Path, *, folder: bool = False) -> bool:
        """Whether a file or directory is left out: the nearest .gitignore that names it decides."""
        end = "/" if folder else ""
        if self._own.match_file(path.relative_to(self._top).as_posix() + end):
            return True
        for directory in path.parents:
            spec = self._specs.get(directory)
            if spec is None:
                continue
            found = spec.check_file(path.relative_to(directory).as_posix() + end).include
            if found is not None:
                return found
        return False
