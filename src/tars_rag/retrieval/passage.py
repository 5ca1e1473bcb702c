"""A passage, and a passage with the scores that ranked it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that can be found.

    Attributes:
        id: Unique in a store; upserting the same id replaces the passage.
        text: What is embedded, indexed and returned, unchanged.
        metadata: Any JSON-serialisable mapping. Top-level strings, numbers and booleans can be
            filtered on with `where`.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=lambda: _NONE, hash=False)


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    """A passage found by a search.

    Attributes:
        passage: What was found.
        score: What it was ranked by; larger is better. Its scale depends on the strategy: cosine
            similarity (naive), BM25 (lexical), fused score (hybrid), or the cross-encoder's
            0-to-1 score once reranked.
        vector_score: Cosine similarity, where the vector side returned it.
        lexical_score: BM25, where the lexical side returned it.
        fused_score: The hybrid score.
        rerank_score: The cross-encoder's score; None if it was not reranked.
    """

    passage: Passage
    score: float
    vector_score: float | None = None
    lexical_score: float | None = None
    fused_score: float | None = None
    rerank_score: float | None = None

    @property
    def id(self) -> str:
        """The passage's id."""
        return self.passage.id

    @property
    def text(self) -> str:
        """The passage's text."""
        return self.passage.text

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The passage's metadata."""
        return self.passage.metadata

    def reranked(self, score: float) -> ScoredPassage:
        """A copy ranked by the cross-encoder's score."""
        return replace(self, score=score, rerank_score=score)
