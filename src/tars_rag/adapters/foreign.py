"""Embedding models of other libraries, kept from mixing with those a store was made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tars_rag.errors import FingerprintError, InvalidInputError
from tars_rag.retrieval.store import HybridStore
from tars_rag.runtimes.base import FloatArray

_PROBE_TEXT = "The quick brown fox jumps over the lazy dog, and 42 is the answer."
SAME_KIND = 0.99
"""The least cosine between two models' vectors of one text for both to be of one kind: what an
INT8 copy of a model must reach in docs/architecture.md."""
SAME_MODEL = 0.9
"""The least cosine between two vectors that one model made of one text, in different batches:
dynamically quantised ones came down to 0.955 (131 Cranfield texts)."""


class ForeignEmbedder:
    """Another library's embedding model in the shape that `HybridStore` takes.

    Its fingerprint is its class, its model's name and its dimension. As that says nothing of
    prompts or pooling, `check_probe` also compares what it makes of one fixed text.
    """

    device = "external"

    def __init__(
        self,
        model: object,
        embed_documents: Callable[[list[str]], list[list[float]]],
        embed_query: Callable[[str], list[float]],
    ) -> None:
        """Wrap a model, and embed one text with it to learn its dimension.

        Args:
            model: The object whose class and model name make the fingerprint.
            embed_documents: Texts to vectors.
            embed_query: One query to a vector.

        Raises:
            InvalidInputError: What comes back are not finite vectors of one length.
        """
        self._name = type(model).__name__
        self._embed_documents, self._embed_query = embed_documents, embed_query
        self.probe = self.embed([_PROBE_TEXT])[0]
        self.dimension = len(self.probe)
        labels = (getattr(model, name, None) for name in ("model_name", "model", "model_id"))
        label = next((label for label in labels if isinstance(label, str)), "")
        home = f"{type(model).__module__}.{type(model).__qualname__}"
        self.fingerprint = f"{home}:{label}:{self.dimension}"

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Vectors [n, dim] of unit length."""
        return self._unit(self._embed_documents(list(texts)), len(texts))

    def embed_query(self, text: str) -> FloatArray:
        """A vector [dim] of unit length."""
        row: FloatArray = self._unit([self._embed_query(text)], 1)[0]
        return row

    def _unit(self, rows: object, count: int) -> FloatArray:
        try:
            vectors = np.asarray(rows, np.float32)
        except (TypeError, ValueError) as error:
            msg = f"{self._name} did not return vectors of one length ({error})."
            raise InvalidInputError(msg) from error
        if count == 0:
            return vectors.reshape(0, 0)
        norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
        usable = np.isfinite(norms) & (norms > 0)
        if vectors.ndim != 2 or len(vectors) != count or not usable.all():
            msg = (
                f"{self._name} returned an array of shape {vectors.shape} for {count} texts, with "
                f"{int((~usable).sum())} rows that are all zeros or not finite: {count} vectors "
                "that can be compared were expected."
            )
            raise InvalidInputError(msg)
        unit: FloatArray = vectors / norms
        return unit


def check_probe(
    store: HybridStore,
    probe: FloatArray,
    embed: Callable[[list[str]], FloatArray] | None,
    *,
    read_only: bool,
) -> None:
    """Refuse a store whose vectors came from a model that embeds one fixed text differently.

    The first probe is recorded in store.json. Where there is none and the store holds passages, one
    of them is embedded again and compared instead.

    Args:
        store: Open.
        probe: `ForeignEmbedder.probe`, float32 [dim].
        embed: Texts to vectors; None: no model is at hand, so that nothing is recorded for a store
            that holds passages.
        read_only: Record nothing.

    Raises:
        FingerprintError: The recorded probe, or the stored vector, is another one.
        StoreError: The probe cannot be written.
    """
    recorded = store.probe
    if recorded is None and (embed is not None or store.count() == 0):
        if embed is not None:
            _compare_passage(store, embed)
        if not read_only:
            recorded = store.record_probe(probe)
    if recorded is not None:
        _require_same(store, cosine_of(recorded, probe))


def _compare_passage(store: HybridStore, embed: Callable[[list[str]], FloatArray]) -> None:
    for passage in store.get(limit=1):
        stored = store.vectors([passage.id]).get(passage.id)
        if stored is not None:
            cosine = cosine_of(stored, embed([passage.indexed])[0])
            _require_same(store, cosine, least=SAME_MODEL)


def cosine_of(one: FloatArray, other: FloatArray) -> float:
    """Of two vectors [dim]; 0 if their lengths differ."""
    if one.shape != other.shape:
        return 0.0
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def _require_same(store: HybridStore, cosine: float, least: float = SAME_KIND) -> None:
    if cosine < least:
        msg = (
            f"The store in {store.path} was made with embeddings that differ from these: the same "
            f"text has a cosine of {cosine:.3f} between them, {least} is needed. Use the "
            "embeddings it was made with, or index again into a new directory."
        )
        raise FingerprintError(msg)
