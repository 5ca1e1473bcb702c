"""Texts to measure with: of an exact number of tokens, or the user's own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tars_rag.models.tokenizer import Tokenizer

PUBLISHED_TOKENS: Final = 122
"""Query and passage together, without padding, in the published measurement."""

QUERY: Final = "what lifts a wing at low speed?"

_WORDS: Final = (
    *("the", "of", "a", "to", "and", "in", "wing", "flow", "pressure", "layer", "boundary"),
    *("heat", "transfer", "number", "lift", "drag", "theory", "results", "method", "surface"),
    *("temperature", "plate", "cylinder", "velocity", "gas", "stress", "model", "analysis"),
)
_FILLER: Final = "a"  # one token in every vocabulary


@dataclass(frozen=True, slots=True)
class Sample:
    """A query and passages of like length.

    Attributes:
        name: ``122 tokens``, ``own p50``.
        tokens: Of the longest, as the model reads it, without padding.
        query: Empty for an embedder.
        passages: At least one.
    """

    name: str
    tokens: int
    query: str
    passages: tuple[str, ...]


def made_up(tokenizer: Tokenizer, tokens: int, count: int, query: str = "") -> Sample:
    """Passages that are `tokens` long, each with the query if there is one.

    Where the query alone is longer, or the model reads less, they are as near as can be; `tokens`
    of the sample says what they are.
    """
    choose = random.Random(tokens)
    passages = tuple(_exactly(tokenizer, tokens, query, choose) for _ in range(count))
    longest = max(_lengths(tokenizer, passages, query))
    return Sample(f"{longest} tokens", longest, query, passages)


def own(
    tokenizer: Tokenizer, texts: Sequence[str], count: int, query: str = ""
) -> tuple[Sample, ...]:
    """Of the user's texts those about the median length, and those about the 90th percentile."""
    kept = [text for text in texts if text.strip()]
    if not kept:
        return ()
    lengths = _lengths(tokenizer, kept, query)
    order = sorted(range(len(kept)), key=lambda n: lengths[n])
    samples = []
    for name, share in (("own p50", 0.5), ("own p90", 0.9)):
        middle = int(share * (len(order) - 1))
        start = max(0, min(middle - count // 2, len(order) - count))
        rows = order[start : start + count]
        passages = tuple(kept[row] for row in rows)
        longest = max(lengths[row] for row in rows)
        samples.append(Sample(name, longest, query, passages))
    return tuple(samples)


def notes(count: int, words: int, seed: int = 0) -> list[str]:
    """Made-up passages of that many words."""
    choose = random.Random(seed)
    return [" ".join(choose.choices(_WORDS, k=words)) for _ in range(count)]


def _lengths(tokenizer: Tokenizer, texts: Sequence[str], query: str) -> list[int]:
    found = tokenizer.encode_pairs(query, texts) if query else tokenizer.encode(texts)
    return [len(encoding) for encoding in found]


def _exactly(tokenizer: Tokenizer, tokens: int, query: str, choose: random.Random) -> str:
    words: list[str] = []
    while _lengths(tokenizer, [" ".join(words)], query)[0] < tokens:
        before = len(words)
        # A word has a token at least, so this many are never too many to take back below.
        words += choose.choices(_WORDS, k=max(1, tokens - before))
        if before >= tokens:
            break  # the model cuts what it reads below `tokens`
    while words and _lengths(tokenizer, [" ".join(words)], query)[0] > tokens:
        words.pop()
    short = tokens - _lengths(tokenizer, [" ".join(words)], query)[0]
    return " ".join([*words, *[_FILLER] * max(short, 0)])
