"""The commands that error messages end in: with the real path, quoted for a shell."""

from __future__ import annotations

import shlex
from pathlib import Path


def check_command(store: Path, *, repair: bool = False) -> str:
    """``tars-rag store check`` for the store in this directory."""
    return f"tars-rag store check {shlex.quote(str(store))}{' --repair' if repair else ''}"


def index_command(store: Path) -> str:
    """``tars-rag index`` into the store in this directory; the files are for the user to name."""
    return f"tars-rag index FILES --store {shlex.quote(str(store))}"


def restore_command(store: Path) -> str:
    """``tars-rag store restore`` beside the store in this directory, from the user's backup."""
    return f"tars-rag store restore BACKUP {shlex.quote(f'{store}-restored')}"
