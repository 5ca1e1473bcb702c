"""The other indexes made to follow Chroma, and new vectors for every passage.

Chroma is the truth. New vectors, for another embedder or because the old ones were damaged, go
into a second collection beside the first; until store.json names it, nothing has changed.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.retrieval.indexes.checks import check_vectors
from tars_rag.retrieval.indexes.chroma.rows import records
from tars_rag.retrieval.indexes.chroma.vectors import VectorIndex
from tars_rag.retrieval.indexes.codec import matches, same_content
from tars_rag.retrieval.indexes.exact.index import ExactIndex
from tars_rag.retrieval.passage import Passage, Progress, TextEmbedder
from tars_rag.retrieval.storage.index_set import IndexSet

_log = logging.getLogger(__name__)
_BATCH = 256
_READ_BATCH = 1000
_FILL_BATCH = 10_000  # each is a commit: fewer segments to merge


def rebuild_vectors(
    indexes: IndexSet,
    embedder: TextEmbedder | None,
    progress: Progress | None = None,
    copy: ExactIndex | None = None,
) -> int:
    """New vectors for every passage, then the switch to them. Call while nobody reads or writes.

    Killed at any moment, it goes on where it was when it is called again with the same embedder.

    Args:
        indexes: The store's indexes, open for writing.
        embedder: Makes the vectors that `copy` has not; None: all must be there.
        progress: Called with (done, total).
        copy: The same embedder's vectors; those that are still of their passages are taken.

    Returns:
        How many passages were embedded (fewer than there are, if it went on from before).

    Raises:
        StoreError: The embedder's vectors cannot be compared, or writing failed.
    """
    known = indexes.store_json
    target, embedded = fill_sibling(indexes, embedder, progress, copy)
    if embedder is None or embedder.fingerprint == known.fingerprint:
        indexes.switch(target)
    else:
        changes = {"fingerprint": embedder.fingerprint, "model": model_of(embedder)}
        indexes.switch(target, **changes, probe=None)
    fill_exact(indexes, None)
    if indexes.is_open[2]:
        indexes.settle()
    _drop(indexes, known.collection)
    return embedded


def fill_sibling(
    indexes: IndexSet,
    embedder: TextEmbedder | None,
    progress: Progress | None = None,
    copy: ExactIndex | None = None,
) -> tuple[VectorIndex, int]:
    """Every passage, with new vectors, in a second collection; call while nobody writes.

    See `rebuild_vectors`.

    Returns:
        The collection, and how many passages were embedded.
    """
    source = indexes.vectors
    fingerprint = embedder.fingerprint if embedder else indexes.store_json.fingerprint
    target = source.open_sibling(_target(indexes, fingerprint), create=True)
    embedded = done = 0
    total = source.count()
    kept: set[str] = set()
    for batch in source.scan(_BATCH):
        passages = [passage for passage, _, _ in batch]
        there = target.get([passage.id for passage in passages])
        todo = [p for p in passages if p.id not in there or not same_content(p, there[p.id])]
        if todo:
            sketches = {passage.id: sketch for passage, _, sketch in batch}
            rows = _copied(copy, todo, sketches)
            missing = [p for p in todo if p.id not in rows]
            if missing:
                made = _embed(indexes, embedder, missing, target.dimension())
                rows |= zip((p.id for p in missing), made, strict=True)
            target.write(
                records(todo, np.stack([rows[p.id] for p in todo])),
                [p.id for p in todo if p.id in there],
            )
            indexes.seal_vectors()
            embedded += len(missing)
        kept.update(passage.id for passage in passages)
        done += len(passages)
        if progress is not None:
            progress(done, total)
    # What was deleted since an earlier attempt.
    target.delete([key for key in target.matching(None, None) if key not in kept])
    indexes.seal_vectors()
    return target, embedded


def adopt(indexes: IndexSet, sibling: VectorIndex) -> None:
    """Make the sibling that holds the same vectors the store's own, and the old one go.

    Call while nobody reads or writes. Cut short after the switch, the next opening makes the exact
    index anew.
    """
    old = indexes.store_json.collection
    indexes.switch(sibling)
    indexes.settle()
    _drop(indexes, old)


def _drop(indexes: IndexSet, collection: str) -> None:
    """Let a collection go, with the files of its vectors, which Chroma leaves."""
    indexes.vectors.drop(collection)
    if indexes.seal is not None:
        indexes.seal.sweep()
    indexes.seal_vectors()


def model_of(embedder: TextEmbedder | None) -> str | None:
    """What names the embedder's model and, where that is possible, opens it again."""
    name = getattr(embedder, "reference", None) or getattr(embedder, "model", None)
    return name if isinstance(name, str) else None


def _copied(
    copy: ExactIndex | None, passages: Sequence[Passage], sketches: Mapping[str, Sequence[float]]
) -> dict[str, NDArray[np.float32]]:
    """The vectors that the copy has of these passages, as they are now."""
    held = copy.vectors([passage.id for passage in passages]) if copy else {}
    return {key: row for key, row in held.items() if matches(row, sketches[key])}


def _embed(
    indexes: IndexSet,
    embedder: TextEmbedder | None,
    passages: Sequence[Passage],
    dimension: int | None,
) -> NDArray[np.float32]:
    if embedder is None:
        msg = (
            f"The vectors of {len(passages)} or more passages of {indexes.path} are lost, "
            f"{passages[0].id!r} among them. Their texts are not: make the vectors anew: "
            f"{indexes.store_json.reembed_command(indexes.path)}"
        )
        raise StoreError(msg)
    rows = np.asarray(embedder.embed([passage.indexed for passage in passages]), np.float32)
    try:
        return check_vectors(rows, [f"passage {p.id!r}" for p in passages], dimension)
    except InvalidInputError as error:
        msg = f"The embedder {embedder.fingerprint!r} failed: {error} The old vectors are in use."
        raise StoreError(msg) from error


def _target(indexes: IndexSet, fingerprint: str) -> str:
    """Name of the collection to fill: that of an attempt that was cut short, or a new one."""
    known = indexes.store_json
    attempt = known.reembedding
    if attempt and attempt["fingerprint"] == fingerprint:
        return attempt["collection"]
    if attempt:
        indexes.vectors.drop(attempt["collection"])
    name = f"{known.collection[:40]}-{uuid.uuid4().hex[:12]}"
    indexes.update(reembedding={"fingerprint": fingerprint, "collection": name})
    return name


def fill_exact(indexes: IndexSet, progress: Progress | None) -> None:
    """Make the exact index anew from Chroma's vectors.

    Killed meanwhile it begins again: only the last commit names the collection. `settle` says
    which moment of the others it belongs to.
    """
    indexes.renew_exact()
    done, total = 0, indexes.vectors.count()
    for batch in indexes.vectors.scan(vectors=True):
        rows = [vector for _, vector, _ in batch if vector is not None]
        indexes.exact.add([passage.id for passage, _, _ in batch], np.stack(rows))
        indexes.exact.commit()
        done += len(batch)
        if progress is not None:
            progress(done, total)
    indexes.exact.commit(indexes.store_json.collection)


def fill_lexical(indexes: IndexSet, progress: Progress | None) -> None:
    """Fill an empty lexical index with what Chroma holds.

    Killed meanwhile it holds fewer passages than Chroma, which the next opening sees.
    """
    done, total = 0, indexes.vectors.count()
    for batch in indexes.vectors.scan(_FILL_BATCH):
        indexes.lexical.apply((), [passage for passage, _, _ in batch])
        done += len(batch)
        if progress is not None:
            progress(done, total)


def reconcile(indexes: IndexSet, ids: Sequence[str]) -> None:
    """Make the other indexes hold of these ids what Chroma holds of them."""
    indexes.begin_session()
    for start in range(0, len(ids), _READ_BATCH):
        batch = ids[start : start + _READ_BATCH]
        held = indexes.vectors.get(batch)
        gone = [passage_id for passage_id in batch if passage_id not in held]
        vectors = indexes.vectors.vectors(list(held))
        indexes.lexical.apply(gone, held.values())
        indexes.exact.remove(gone)
        indexes.exact.add(list(vectors), np.array(list(vectors.values())))
        indexes.exact.commit()
    indexes.exact.commit(indexes.mark().stamp)


def restore_lost(indexes: IndexSet) -> None:
    """Give a Chroma server again what it has lost, from the other indexes, which hold it all."""
    lost = indexes.vectors.lost()
    for start in range(0, len(lost), _BATCH):
        batch = lost[start : start + _BATCH]
        texts, rows = indexes.lexical.passages(batch), indexes.exact.vectors(batch)
        whole = [passage for key, passage in texts.items() if key in rows]
        if whole:
            indexes.vectors.write(records(whole, np.stack([rows[p.id] for p in whole])))
        gone = [key for key in batch if key not in texts or key not in rows]
        if gone:
            _log.warning("%s: lost, and in no other index: %s", indexes.path, gone)
            indexes.vectors.delete(gone)
