"""The two indexes of a store directory opened, with a verdict where that cannot be."""

from __future__ import annotations

from pathlib import Path

from tars_rag.errors import StoreError
from tars_rag.retrieval import segments
from tars_rag.retrieval.layout import CHROMA, LEXICAL
from tars_rag.retrieval.lexical import LexicalIndex
from tars_rag.retrieval.manifest import StoreManifest
from tars_rag.retrieval.vectors import VectorIndex


def open_vectors(
    path: Path, manifest: StoreManifest, url: str | None, *, create: bool = False
) -> VectorIndex:
    """Chroma, in the store's directory or behind `url`.

    Raises:
        StoreError: It cannot be opened; the message says whether the texts are lost.
    """
    if url is not None:
        return VectorIndex(None, manifest.collection, url=url, create=create)
    database = path / CHROMA / "chroma.sqlite3"
    if not create and not database.is_file():
        msg = (
            f"The store {path} has lost its texts and vectors: {database} is missing. "
            "Restore the directory from a backup, or index the sources again."
        )
        raise StoreError(msg)
    try:
        return VectorIndex(path / CHROMA, manifest.collection, create=create)
    except StoreError as error:
        msg = (
            f"The texts and vectors of the store {path} cannot be opened: {error} If the disk is "
            "full or read-only, mend that; otherwise the database is damaged: restore the "
            "directory from a backup, or index the sources again."
        )
        raise StoreError(msg) from error


def lexical_damage(path: Path) -> str | None:
    """Why the lexical index of a store cannot be used as it is; None: it can."""
    problem = segments.damage(path / LEXICAL)
    if problem is None:
        try:
            LexicalIndex(path / LEXICAL, read_only=True).close()
        except StoreError as error:
            problem = str(error)
    return problem
