"""Another embedder for a whole store, in place."""

from __future__ import annotations

from pathlib import Path

from tars_rag.retrieval.passage import Progress, TextEmbedder
from tars_rag.retrieval.storage.directory import Engine
from tars_rag.retrieval.storage.rebuild import rebuild_vectors


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
    engine = Engine(
        Path(path).expanduser().absolute(),
        None,
        chroma_url=chroma_url,
        embed=embedder.embed,
        embed_fingerprint=embedder.fingerprint,
        progress=progress,
    )
    try:
        with engine.writing():
            if engine.manifest.fingerprint == embedder.fingerprint:
                return engine.rebuilt
            return rebuild_vectors(engine, embedder.embed, embedder.fingerprint, progress)
    finally:
        engine.close()
