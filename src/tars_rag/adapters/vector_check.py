"""Vectors that a caller brings along, compared with what the store's own model makes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tars_rag.adapters.foreign import SAME_MODEL, cosine_of
from tars_rag.errors import FingerprintError
from tars_rag.runtimes.base import FloatArray

_EXACT: Final = 0.998
"""Least cosine for models of the class `exact` (FP32, or FP16 on the NPU): they agree to
0.999999, while INT8 vectors of the same model reach 0.9964 at most (131 Cranfield texts)."""
_UNRELATED: Final = 0.2
"""A query's vector may be made from other words than the query (HyDE), but a vector of another
model is as good as random: with 384 numbers its cosine has a standard deviation of 0.05."""


class VectorCheck:
    """Embeds one text of many anew, to see that the vectors come from the expected model.

    Copies share it; pickles of its owner are made without it, because a model may be large.
    """

    def __init__(
        self,
        embed: Callable[[list[str]], FloatArray],
        embed_query: Callable[[str], FloatArray],
        fingerprint: str,
    ) -> None:
        """Name the model.

        Args:
            embed: Texts to vectors [n, dim].
            embed_query: A query to a vector [dim].
            fingerprint: Of the model; says how close its vectors have to be.
        """
        self._embed, self._embed_query = embed, embed_query
        self._fingerprint = fingerprint
        self._least = _EXACT if fingerprint.endswith(":exact") else SAME_MODEL
        self._queries = 0
        self._lock = threading.Lock()

    def passages(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        vectors: FloatArray,
        bare: Callable[[int], str],
    ) -> None:
        """Embed the shortest text that is not blank, and compare.

        Args:
            ids: For the message.
            texts: What the vectors were made from.
            vectors: float32 [n, dim].
            bare: Row to the text without the metadata in front, which some of a framework's own
                indexes embed instead; asked for only where the whole text does not agree.

        Raises:
            FingerprintError: The vector is of another length or points elsewhere.
        """
        rows = [row for row, text in enumerate(texts) if text.strip()]
        if not rows:
            return
        row = min(rows, key=lambda row: len(texts[row]))
        given, text, alone = vectors[row], texts[row], bare(row)
        difference = _difference(given, self._embed([text])[0], self._least)
        if difference and alone.strip() and alone != text:
            difference = _difference(given, self._embed([alone])[0], self._least) and difference
        if difference:
            self._refuse(
                f"the embedding of {ids[row]!r}: it {difference}",
                "If its text or metadata was changed after it was embedded, embed it again (in a "
                "pipeline, extractors belong before the model). If the vectors are meant to come "
                "from elsewhere, name what makes them: TarsVectorStore(path, fingerprint=NAME) "
                "does not compare.",
            )

    def query(self, text: str | None, vector: FloatArray) -> None:
        """Embed the query and compare, for the first query and each time their number doubled.

        Args:
            text: The query; without any there is nothing to compare.
            vector: float32 [dim].

        Raises:
            FingerprintError: The vector is of another length or has nothing to do with the text.
        """
        if not text or not text.strip():
            return
        with self._lock:
            self._queries += 1
            number = self._queries
        if number & (number - 1):
            return
        difference = _difference(vector, self._embed_query(text), _UNRELATED)
        if difference:
            self._refuse(
                f"the query's embedding ({text!r:.60}): it {difference}",
                "Give the index, or Settings.embed_model, the model that the store was made with.",
            )

    def _refuse(self, what: str, advice: str) -> None:
        msg = (
            f"The store's embedding model did not make {what}. Vectors of different models do not "
            f"mix; nothing was stored or searched. {advice} The store's model: {self._fingerprint}"
        )
        raise FingerprintError(msg)

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> VectorCheck:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VectorCheck) and self._fingerprint == other._fingerprint

    def __hash__(self) -> int:
        return hash(self._fingerprint)


def _difference(given: FloatArray, own: FloatArray, least: float) -> str:
    """How a vector differs from the one it should be; empty if it does not."""
    if given.shape != own.shape:
        return f"has {given.size} numbers and not {own.size}"
    if not 0 < np.linalg.norm(given) < np.inf:
        return ""  # the store says what is wrong with it
    cosine = cosine_of(given, own)
    if cosine >= least:
        return ""
    return f"has a cosine of {cosine:.3f} with its own for that text ({least} is needed)"


def _nothing() -> None:
    """What a pickled check becomes."""
