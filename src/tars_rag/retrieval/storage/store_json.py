"""store.json: what a store directory is, and which embedder made its vectors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tars_rag.errors import StoreError
from tars_rag.files import write_atomically

NAME = "store.json"
FORMAT = "tars-rag-store"
VERSION = 2


@dataclass(frozen=True, slots=True)
class StoreManifest:
    """The contents of store.json.

    Attributes:
        fingerprint: Of the embedder that made the vectors.
        collection: Name of the Chroma collection that holds them.
        chroma_url: The Chroma server; None: embedded, in the directory.
        dimension: Length of the vectors; None until the first passage.
        created: UTC, ISO 8601.
        ready: False while the store is being made: nothing was acknowledged yet.
        reembedding: A half-done change of embedder: its fingerprint and collection.
    """

    fingerprint: str
    collection: str
    chroma_url: str | None = None
    dimension: int | None = None
    created: str = ""
    ready: bool = False
    reembedding: dict[str, str] | None = None
    format: str = FORMAT
    version: int = VERSION

    @classmethod
    def new(cls, fingerprint: str, collection: str, chroma_url: str | None) -> StoreManifest:
        """The manifest of a store that is about to be made."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(fingerprint, collection, chroma_url, created=now)

    def write(self, directory: Path, **changes: Any) -> StoreManifest:
        """Write this manifest, with `changes`, atomically and durably; return what was written."""
        changed = replace(self, **changes)
        data = json.dumps(asdict(changed), indent=2).encode("ascii")
        write_atomically(directory / NAME, data + b"\n")
        return changed


def read_manifest(directory: Path) -> StoreManifest | None:
    """The manifest of a store; None if the directory has none.

    Raises:
        StoreError: It cannot be read, or is of another format or version.
    """
    path = directory / NAME
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read ({error}). Restore it from a backup of the store."
        raise StoreError(msg) from error
    known = {field.name for field in fields(StoreManifest)}
    if (
        not isinstance(raw, dict)
        or raw.get("format") != FORMAT
        or not isinstance(raw.get("fingerprint"), str)
        or not isinstance(raw.get("collection"), str)
    ):
        msg = f"{path} is not the manifest of a tars-rag store. Give the directory of a store."
        raise StoreError(msg)
    if raw.get("version") != VERSION or not raw.keys() <= known:
        step = "Update tars-rag."
        if raw.get("version") == 1:
            step = "That one was never released: index the sources into another directory."
        msg = (
            f"{path} is of version {raw.get('version')}, this tars-rag reads version {VERSION}. "
            f"{step}"
        )
        raise StoreError(msg)
    return StoreManifest(**raw)
