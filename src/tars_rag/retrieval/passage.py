"""The words of this room: passages, rankings of them, and what makes vectors of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tars_rag.progress import Progress as Progress

Embed: TypeAlias = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts [n] to vectors [n, dim]."""
Ranking: TypeAlias = list[tuple[str, float]]
"""Ids with their scores, best first; equal scores are in the order of the ids."""

_NONE: Mapping[str, Any] = MappingProxyType({})
CONTEXT = "_tars:context"
"""Key of the metadata: where a text stands, such as its title and headings (see `indexed`)."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that can be found.

    Attributes:
        id: Unique in a store; upserting the same id replaces the passage.
        text: What is returned, unchanged, and what is embedded and indexed (see `indexed`).
        metadata: Any JSON-serialisable mapping. Top-level strings, numbers and booleans, and lists
            of one type of them, can be filtered on with `where`.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=lambda: _NONE, hash=False)

    @property
    def indexed(self) -> str:
        """What is embedded and what gives the words: the text, below its context if it has one.

        The context is a string under `CONTEXT` in the metadata, so that it is kept wherever the
        metadata is, and the text stays its author's own.
        """
        context = self.metadata.get(CONTEXT)
        return f"{context}\n{self.text}" if isinstance(context, str) and context else self.text


@dataclass(frozen=True, slots=True)
class FilePassage(Passage):
    """A passage on its way into a store that itself keeps from which file it was read.

    Attributes:
        origin: What the file is called.
        embedded: Names what is embedded of it; passages with the same name have the same vector.
    """

    origin: str = ""
    embedded: str = ""


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    """A passage found by a search.

    Attributes:
        passage: What was found.
        score: What it was ranked by; larger is better. Its scale depends on the strategy: cosine
            similarity (naive), BM25 (lexical), fused score (hybrid), or the cross-encoder's
            0-to-1 score once reranked.
        vector_score: Cosine similarity, where the vector side was asked.
        lexical_score: BM25, where the lexical side was asked; not comparable between queries.
        fused_score: The hybrid score, 0 to 1.
        rerank_score: The cross-encoder's score; None if it was not reranked.
        lexical_share: BM25 over what the query could reach, 0 to 1: how much of the query the
            passage matched, where the lexical side was asked.
    """

    passage: Passage
    score: float
    vector_score: float | None = None
    lexical_score: float | None = None
    fused_score: float | None = None
    rerank_score: float | None = None
    lexical_share: float | None = None

    @property
    def relevance(self) -> float:
        """How well it fits, 0 to 1, on the scale of `min_score`: the same in every query.

        The reranker's score, else the fused score (hybrid), else the cosine, not below 0 (naive),
        else the lexical share (lexical).
        """
        for score in (self.rerank_score, self.fused_score, self.vector_score, self.lexical_share):
            if score is not None:
                return min(max(score, 0.0), 1.0)
        return self.score

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


class TextEmbedder(Protocol):
    """What a store needs of an embedder; `embed_query(text)` is used where it is there."""

    @property
    def fingerprint(self) -> str:
        """Names the vectors' kind: equal fingerprints mean vectors that may be mixed."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, dim] of n texts."""


def ranked(scores: Mapping[str, float] | Iterable[tuple[str, float]]) -> Ranking:
    """Order ids by falling score, equal scores by id, so that the order never depends on luck."""
    items = scores.items() if isinstance(scores, Mapping) else scores
    return sorted(items, key=lambda item: (-item[1], item[0]))
