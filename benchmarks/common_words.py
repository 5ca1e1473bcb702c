"""What it saves to look common words up instead of searching for them, in the word index alone.

    python benchmarks/common_words.py [--sizes 100000 1000000] [--rounds 5] [--kinds ...]

"made up" are 40 words of 20,000 by Zipf's law, and queries six words of one of them, as in
peers_search.py; "docstrings" those of the installed packages, as many as there are, and queries
the first eight words of one. Medians in milliseconds of 60 queries for 30 hits, in turn with and
without; both find the same scores, which is checked.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common import made_up, ratio
from first_look import docstrings
from peers_common import machine, ms
from tars_rag import Passage
from tars_rag.retrieval.indexes.words import top
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex

QUERIES, HITS, BATCH = 60, 30, 20_000
NEVER = 1 << 60


def texts_of(kind: str, count: int) -> Iterator[str]:
    if kind == "docstrings":
        yield from docstrings(count)
        return
    draw, words = np.random.default_rng(0), [made_up(n) for n in range(20_000)]
    for start in range(0, count, BATCH):
        picked = draw.zipf(1.3, (min(BATCH, count - start), 40))
        for row in np.minimum(picked, len(words)) - 1:
            yield " ".join(words[n] for n in row)


def queries_of(kind: str, texts: list[str]) -> list[str]:
    choose = random.Random(0)
    if kind == "docstrings":
        return [" ".join(text.split()[:8]) for text in choose.sample(texts, QUERIES)]
    return [" ".join(choose.sample(text.split(), 6)) for text in choose.sample(texts, QUERIES)]


def searched(index: LexicalIndex, query: str, quick: int) -> tuple[float, list[float]]:
    """Seconds and scores; up to `quick` places all words are searched for."""
    top._QUICK = quick
    start = time.perf_counter()
    found = index.search(query, HITS)
    return time.perf_counter() - start, [score for _, score in found]


def compared(index: LexicalIndex, queries: list[str], rounds: int) -> tuple[list[float], ...]:
    usual = top._QUICK
    seconds: dict[int, list[float]] = {NEVER: [], usual: []}
    for turn in range(rounds + 1):
        for query in queries:
            scores = []
            for quick in sorted(seconds, reverse=bool(turn % 2)):
                took, found = searched(index, query, quick)
                scores.append(found)
                if turn:  # the first one warms up
                    seconds[quick].append(took)
            np.testing.assert_allclose(*scores, rtol=1e-5)
    return seconds[NEVER], seconds[usual]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["made up", "docstrings"])
    options = parser.parse_args()
    print(machine("tantivy"))
    print("\n| words | passages | all at once, ms | common ones looked up, ms | times as fast |")
    print("|---|---|---|---|---|")
    for kind in options.kinds:
        for size in options.sizes:
            with (
                tempfile.TemporaryDirectory() as folder,
                LexicalIndex(Path(folder) / "words") as index,
            ):
                texts = list(texts_of(kind, size))
                for start in range(0, len(texts), BATCH):
                    part = enumerate(texts[start : start + BATCH], start)
                    index.apply((), (Passage(str(n), text) for n, text in part))
                before, after = compared(index, queries_of(kind, texts), options.rounds)
                print(
                    f"| {kind} | {len(texts):,} | {ms(before):.2f} | {ms(after):.2f} "
                    f"| {ratio(before, after):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
