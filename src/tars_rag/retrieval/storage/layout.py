"""What lies in a store's directory, and whether a directory is one."""

from __future__ import annotations

import uuid
from pathlib import Path

from tars_rag.errors import ConfigError, FingerprintError, StoreError
from tars_rag.files import sync
from tars_rag.retrieval.storage.store_json import NAME as MANIFEST
from tars_rag.retrieval.storage.store_json import StoreManifest, read_manifest

CHROMA, LEXICAL, JOURNAL, LOCK, SEAL = "chroma", "lexical", "journal", "lock", "seal.json"
_TEMPORARY = {MANIFEST + ".tmp", SEAL + ".tmp"}
_OURS = {CHROMA, LEXICAL, JOURNAL, LOCK, SEAL, MANIFEST} | _TEMPORARY


def prepare_directory(path: Path, *, create: bool) -> None:
    """Make sure that `path` is a store, or, with `create`, an empty directory to make one in.

    Raises:
        StoreError: It is neither, or cannot be read or made.
    """
    try:
        if create:
            _make_directory(path)
        present = {entry.name for entry in path.iterdir()}
    except OSError as error:
        msg = f"The store {path} cannot be opened: {error}. Check path and permissions."
        raise StoreError(msg) from error
    if MANIFEST in present:
        return
    if not create:
        raise StoreError(_no_store(path))
    if present - {LOCK} - _TEMPORARY:
        what = f"has lost its {MANIFEST}" if present <= _OURS else "is not empty, and not a store"
        msg = (
            f"{path} {what} (it holds {', '.join(sorted(present)[:5])}). "
            "Give another directory, or restore the missing file from a backup."
        )
        raise StoreError(msg)


def _make_directory(path: Path) -> None:
    """With its parents; durable on return, or a power cut could take the store with its name."""
    if path.is_dir():
        return
    if path.parent != path:
        _make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def open_manifest(path: Path, fingerprint: str | None, chroma_url: str | None) -> StoreManifest:
    """Read store.json and check it, or write that of a new store.

    Args:
        path: The store's directory.
        fingerprint: Of the embedder; None: any, and no new store.
        chroma_url: Where the vectors are to be; None: in the directory.

    Raises:
        FingerprintError: The store was made with another embedder.
        ConfigError: The store's Chroma is elsewhere.
        StoreError: The file cannot be read or written, or there is none.
    """
    manifest = read_manifest(path)
    if manifest is None:
        if fingerprint is None:
            raise StoreError(_no_store(path))
        collection = f"tars-{uuid.uuid4().hex}" if chroma_url else "passages"
        try:
            return StoreManifest.new(fingerprint, collection, chroma_url).write(path)
        except OSError as error:
            msg = f"The store {path} cannot be written: {error}. Check permissions and space."
            raise StoreError(msg) from error
    if fingerprint is not None and manifest.fingerprint != fingerprint:
        msg = (
            f"The store {path} was made with the embedder {manifest.fingerprint!r}, the one given "
            f"is {fingerprint!r}; their vectors do not mix. Use the first, or embed the store "
            f"anew: tars-rag store reembed {path} --model MODEL"
        )
        raise FingerprintError(msg)
    if fingerprint is not None and (manifest.chroma_url is None) != (chroma_url is None):
        its = manifest.chroma_url or "embedded in its directory"
        msg = (
            f"The store {path} has its Chroma at: {its}; chroma_url={chroma_url!r} was given. "
            "Give the same, or make another store."
        )
        raise ConfigError(msg)
    return manifest


def _no_store(path: Path) -> str:
    return f"{path} is not a store: it has no {MANIFEST}. Make one: tars-rag index FILES --store"
