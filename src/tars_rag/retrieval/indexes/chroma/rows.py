"""What goes into Chroma, and what comes back, as this package's own."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes import codec
from tars_rag.retrieval.indexes.chroma.errors import check_of
from tars_rag.retrieval.indexes.chroma.predicates import Predicate
from tars_rag.retrieval.passage import Passage

Record: TypeAlias = dict[str, Any]
"""What Chroma keeps of a passage, as JSON: id, metadata (see codec), vector (base64 float32)."""


def records(passages: Sequence[Passage], vectors: NDArray[np.float32]) -> list[Record]:
    """Checked passages and their vectors [n, dim] as Chroma will hold them."""
    return [
        {
            "id": codec.encode(passage.id),
            "metadata": codec.pack_metadata(passage, vector),
            "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii"),
        }
        for passage, vector in zip(passages, vectors, strict=True)
    ]


def vector_of(record: Record) -> NDArray[np.float32]:
    """The vector [dim] of a record."""
    return np.frombuffer(base64.b64decode(record["vector"]), "<f4")


def passages_of(rows: Any, place: str) -> dict[str, Passage]:
    """Passages by id, of an answer with metadatas.

    Raises:
        StoreError: A record is not one of this package.
    """
    passages = {}
    for row in zip(rows["ids"], rows["metadatas"], strict=True):
        try:
            passage = codec.unpack(*row)
        except (KeyError, ValueError, TypeError) as error:
            msg = (
                f"The record {row[0]!r} in Chroma ({place}) is damaged or was not written by "
                f"tars-rag. See: {check_of(place)}"
            )
            raise StoreError(msg) from error
        passages[passage.id] = passage
    return passages


def vectors_of(rows: Any) -> dict[str, NDArray[np.float32]]:
    """Vectors [dim] by id, of an answer with embeddings."""
    return {
        codec.decode(key): np.asarray(vector, np.float32)
        for key, vector in zip(rows["ids"], rows["embeddings"], strict=True)
    }


def selected(rows: Any, passes: Predicate) -> Any:
    """Of an answer with metadatas, the rows whose metadata pass."""
    kept = [n for n, metadata in enumerate(rows["metadatas"]) if passes(metadata or {})]
    names = [name for name in ("ids", "metadatas", "embeddings") if rows.get(name) is not None]
    return {name: [rows[name][n] for n in kept] for name in names}
