"""What is done to a whole store at once: another embedder or language, backup and restore."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

from tars_rag.errors import StoreLockedError
from tars_rag.files import size_of
from tars_rag.retrieval.indexes.words.languages import check_language
from tars_rag.retrieval.passage import Progress, TextEmbedder
from tars_rag.retrieval.storage.backup import Backup, back_up, write_backup
from tars_rag.retrieval.storage.compaction import compact as compact_open
from tars_rag.retrieval.storage.directory import StoreDirectory
from tars_rag.retrieval.storage.layout import store_path
from tars_rag.retrieval.storage.restore import restore_store
from tars_rag.retrieval.storage.snapshot import snapshot_beside


def reembed(
    path: str | Path,
    embedder: TextEmbedder,
    progress: Progress | None = None,
    *,
    chroma_url: str | None = None,
) -> int:
    """Embed every passage of a store with another embedder, then switch to the new vectors.

    The store stays valid with its old embedder until the switch, which is one atomic rename.
    Killed at any moment, calling it again goes on where it was. Also mends damaged vectors, with
    the same embedder.

    Args:
        path: The store's directory.
        embedder: The new one.
        progress: Called with (done, total) passages.
        chroma_url: Of a store whose Chroma is a server.

    Returns:
        How many passages were embedded; 0 if the store was made with this embedder already.

    Raises:
        StoreLockedError: Another process has the store open.
        StoreError: There is no store, or it is damaged beyond the vectors.
    """
    directory = StoreDirectory(
        store_path(path), embedder, chroma_url=chroma_url, any_embedder=True, progress=progress
    )
    try:
        return directory.reembed(embedder, progress)
    finally:
        directory.close()


def relex(
    path: str | Path,
    language: str,
    progress: Progress | None = None,
    *,
    chroma_url: str | None = None,
) -> int:
    """Read the words of a store in another language: make its lexical index anew from the texts.

    Nothing is embedded. Killed at any moment, the next opening of the store finishes it.

    Args:
        path: The store's directory.
        language: See `HybridStore`.
        progress: Called with (done, total) passages.
        chroma_url: Of a store whose Chroma is a server.

    Returns:
        How many passages the store holds.

    Raises:
        InvalidInputError: There is no such language.
        StoreLockedError: Another process has the store open.
        StoreError: There is no store, or it is damaged.
    """
    directory = StoreDirectory(
        store_path(path),
        None,
        chroma_url=chroma_url,
        language=check_language(language),
        relex=True,
        progress=progress,
    )
    try:
        with directory.reading() as indexes:
            return indexes.vectors.count()
    finally:
        directory.close()


def compact(path: str | Path, progress: Progress | None = None) -> int:
    """Free what deleted passages hold in a store that nobody has open.

    A store does it by itself where more was deleted than there is; `HybridStore.compact` does it in
    one that is open.

    Args:
        path: The store's directory.
        progress: Called with (done, total) passages.

    Returns:
        By how many bytes its files are smaller. Space within Chroma's database is used again, and
        not given back.

    Raises:
        StoreLockedError: Another process has the store open.
        StoreError: There is no store, there is no room for a copy of the vectors, or its Chroma is
            a server.
    """
    place = store_path(path)
    with contextlib.closing(StoreDirectory(place, None)) as directory:
        before = size_of(place)
        compact_open(directory, progress)
    return before - size_of(place)


def backup(path: str | Path, file: str | Path, progress: Progress | None = None) -> Backup:
    """Back up a store, also one that another process has open: neither waits for the other.

    `HybridStore.backup` does it for one that is open in this process.

    Args:
        path: The store's directory.
        file: The backup; brought up to date if it is one of this store.
        progress: Called with (done, total) passages.

    Returns:
        How many passages it holds, how many were new, how large it is.

    Raises:
        InvalidInputError: `file` is something else than a backup of this store.
        StoreError: There is no store, or the backup cannot be written or read back.
    """
    place, target = store_path(path), store_path(file)
    try:
        directory = StoreDirectory(place, None)
    except StoreLockedError:
        return write_backup(target, place, partial(snapshot_beside, place), progress)
    try:
        return back_up(directory, target, progress)
    finally:
        directory.close()


def restore(file: str | Path, path: str | Path, progress: Progress | None = None) -> int:
    """Make a store of a backup, in a directory that is empty or is to be made.

    The backup is verified first. The directory appears when everything is in it: a restore that was
    killed is done again. Nothing is embedded; fingerprint, language and the record of indexed files
    are the old store's. One whose Chroma was a server becomes one that has it in its directory.

    Args:
        file: The backup.
        path: The new store's directory.
        progress: Called with (done, total) passages.

    Returns:
        How many passages the store holds.

    Raises:
        InvalidInputError: There is something at `path` already.
        StoreError: The backup is not whole, or the store cannot be written.
    """
    return restore_store(store_path(file), store_path(path), progress)
