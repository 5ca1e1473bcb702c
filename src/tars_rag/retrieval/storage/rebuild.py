"""New vectors for every passage of a store: beside the old ones, then one atomic switch.

Used to change the embedder, and to mend a vector index that was damaged. Texts and metadata are
copied from the old collection; until store.json names the new one, nothing has changed.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import numpy as np

from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.vectors import records
from tars_rag.retrieval.passage import Embed, Progress

if TYPE_CHECKING:
    from tars_rag.retrieval.storage.directory import Engine

_BATCH = 256


def rebuild_vectors(
    engine: Engine, embed: Embed, fingerprint: str, progress: Progress | None = None
) -> int:
    """Embed every text anew and switch to the new vectors. Call while nobody else reads or writes.

    Killed at any moment, it goes on where it was when it is called again with the same embedder.

    Args:
        engine: The store, open for writing.
        embed: Texts to vectors [n, dim].
        fingerprint: Of the embedder.
        progress: Called with (done, total).

    Returns:
        How many passages were embedded (fewer than there are, if it went on from before).
    """
    source = engine.vectors
    target_name = _target(engine, fingerprint)
    target = source.open_sibling(target_name, create=True)
    embedded = done = 0
    total = source.count()
    kept: set[str] = set()
    for batch in source.scan(_BATCH):
        passages = [passage for passage, _, _ in batch]
        there = target.get([passage.id for passage in passages])
        todo = [passage for passage in passages if there.get(passage.id) != passage]
        if todo:
            vectors = np.asarray(embed([passage.text for passage in todo]), np.float32)
            if vectors.ndim != 2 or len(vectors) != len(todo) or not np.isfinite(vectors).all():
                msg = f"The embedder gave vectors of shape {list(vectors.shape)}, or not finite."
                raise StoreError(msg)
            target.write(records(todo, vectors), [p.id for p in todo if p.id in there])
            engine.seal_vectors()
        kept.update(passage.id for passage in passages)
        embedded += len(todo)
        done += len(passages)
        if progress is not None:
            progress(done, total)
    # What was deleted since an earlier attempt.
    target.delete([key for key in target.matching(None, None) if key not in kept])
    engine.seal_vectors()
    old = engine.manifest.collection
    engine.switch(target, fingerprint)
    target.drop(old)
    engine.seal_vectors()
    return embedded


def _target(engine: Engine, fingerprint: str) -> str:
    """Name of the collection to fill: that of an attempt that was cut short, or a new one."""
    manifest = engine.manifest
    attempt = manifest.reembedding
    if attempt and attempt["fingerprint"] == fingerprint:
        return attempt["collection"]
    if attempt:
        engine.vectors.drop(attempt["collection"])
    name = f"{manifest.collection[:40]}-{uuid.uuid4().hex[:12]}"
    engine.update_manifest(reembedding={"fingerprint": fingerprint, "collection": name})
    return name
