"""Writing passages into a store, wherever it is: checked, in batches, embedded if changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.indexes import checks
from tars_rag.retrieval.indexes.chroma.filters import Where
from tars_rag.retrieval.passage import Passage, Progress, TextEmbedder
from tars_rag.retrieval.sharing.access import StoreAccess

_BATCH = 256


def dimension_of(access: StoreAccess, embedder: TextEmbedder) -> int | None:
    """Length of a store's vectors; None while it is empty and the embedder does not say."""
    own = access.store_json.dimension
    return own if own is not None else getattr(embedder, "dimension", None)


def advice_of(access: StoreAccess) -> str:
    """What to do about vectors of another embedder."""
    return f"Use the embedder that made the store: {access.store_json.embedder}"


def upsert(
    access: StoreAccess,
    embedder: TextEmbedder,
    passages: Iterable[Passage],
    vectors: Iterable[ArrayLike] | None,
    progress: Progress | None,
) -> int:
    """See `HybridStore.upsert`."""
    access.check_writable()
    total = len(passages) if isinstance(passages, list | tuple) else None
    if isinstance(passages, list | tuple):
        checks.check_passages(passages, set())
        if isinstance(vectors, Sequence | np.ndarray):
            dimension = dimension_of(access, embedder)
            checks.check_given(passages, vectors, dimension, advice_of(access))
    rows = None if vectors is None else iter(vectors)
    done, seen = 0, set[str]()
    source = iter(passages)
    while batch := list(islice(source, _BATCH)):
        checks.check_passages(batch, seen)
        changed = batch if rows is not None else access.changed(batch)
        if changed:
            access.upsert(changed, _vectors_of(access, embedder, changed, rows))
        done += len(batch)
        if progress is not None:
            progress(done, total)
    if rows is not None and next(rows, None) is not None:
        msg = f"There are more vectors than passages ({done}). Give one for each."
        raise InvalidInputError(msg)
    return done


def delete(access: StoreAccess, wanted: list[str] | None, where: Where | None) -> int:
    """Delete those of the ids (None: all) that pass the filter, and say how many they were."""
    access.check_writable()
    found = access.matching(wanted, where)
    # Someone may write meanwhile, so the filter holds for each batch anew.
    batches = (found[start : start + _BATCH] for start in range(0, len(found), _BATCH))
    return sum(access.delete(batch, where) for batch in batches)


def _vectors_of(
    access: StoreAccess,
    embedder: TextEmbedder,
    batch: Sequence[Passage],
    rows: Iterator[ArrayLike] | None,
) -> NDArray[np.float32]:
    names = [f"passage {p.id!r}" for p in batch]
    if rows is None:
        made = np.asarray(embedder.embed([p.indexed for p in batch]), np.float32)
    else:
        made = checks.matrix(list(islice(rows, len(batch))), names)
    return checks.check_vectors(made, names, dimension_of(access, embedder), advice_of(access))
