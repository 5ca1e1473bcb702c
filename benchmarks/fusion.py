"""What fuses two searches best, on a judged collection and on small parts of it.

    python benchmarks/fusion.py DIR [--model all-MiniLM-L6-v2] [--depth 200] [--narrow 0.75]

DIR is a collection in BEIR's layout. Every way gets the same candidates, with the true score of
both sides: the best `depth` of each. Halves: the queries with even and with odd numbers. Small
parts are drawn at random (seed 1), half of each being passages that some query asks for. --narrow
moves every cosine to between that and 1, as those of some models are.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tars_rag import Embedder
from tars_rag.bench.evaluate import Collection, load_collection, score
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex

Fuse = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""Cosines [n], BM25 [n] and its reach to scores [n]."""


def min_max(values: np.ndarray) -> np.ndarray:
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.ones_like(values)


def deviations(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() or 1)


def ranks(values: np.ndarray) -> np.ndarray:
    return 1 / (60 + 1 + (values[:, None] < values).sum(1))


def share(bm25: np.ndarray, reach: float) -> np.ndarray:
    return np.minimum(bm25 / reach, 1) if reach else np.zeros_like(bm25)


def ways(floor: float) -> dict[str, Fuse]:
    """What is compared; `floor` is the cosine of texts that have nothing to do with each other."""

    def near(cosine: np.ndarray) -> np.ndarray:
        return np.maximum(cosine - floor, 0) / (1 - floor)

    def worth(bm25: np.ndarray, reach: float) -> np.ndarray:
        square = share(bm25, reach) ** 2
        return 2 * square / (1 + square)

    return {
        "vectors alone": lambda c, b, r: c,
        "words alone": lambda c, b, r: b,
        "reciprocal ranks, k = 60": lambda c, b, r: ranks(c) + ranks(b) * (b > 0),
        "min-max of each (before)": lambda c, b, r: min_max(c) + min_max(b),
        "mean and deviation of each": lambda c, b, r: deviations(c) + deviations(b),
        "cosine + share / 2": lambda c, b, r: near(c) + share(b, r) / 2,
        "cosine + share": lambda c, b, r: near(c) + share(b, r),
        "cosine + 2 share": lambda c, b, r: near(c) + 2 * share(b, r),
        "cosine + 2 share^2": lambda c, b, r: near(c) + 2 * share(b, r) ** 2,
        "cosine + 8 share^3": lambda c, b, r: near(c) + 8 * share(b, r) ** 3,
        "cosine + evidence(share) (now)": lambda c, b, r: near(c) + worth(b, r),
        "the same, floor 0": lambda c, b, r: np.maximum(c, 0) + worth(b, r),
        "the same, weight 0.4": lambda c, b, r: 0.4 * near(c) + 0.6 * worth(b, r),
        "the same, weight 0.6": lambda c, b, r: 0.6 * near(c) + 0.4 * worth(b, r),
    }


class Part:
    """Some passages of a collection, every query asked of them."""

    def __init__(
        self, collection: Collection, chosen: Sequence[int], cosines: np.ndarray, depth: int
    ) -> None:
        passages = [collection.passages[number] for number in chosen]
        self.names = [passage.id for passage in passages]
        place = {name: number for number, name in enumerate(self.names)}
        self.queries: list[tuple[dict[str, int], np.ndarray, np.ndarray, np.ndarray, float]] = []
        with (
            tempfile.TemporaryDirectory() as folder,
            LexicalIndex(Path(folder) / "lexical") as index,
        ):
            index.apply((), passages)
            for row, (key, text) in zip(cosines, collection.queries.items(), strict=True):
                grades = {i: g for i, g in collection.judgements[key].items() if i in place}
                if max(grades.values(), default=0) < 1:
                    continue
                cosine, bm25 = row[list(chosen)], np.zeros(len(chosen))
                for name, value in index.search(text, len(chosen)):
                    bm25[place[name]] = value
                best = {*np.argsort(-cosine)[:depth], *np.argsort(-bm25)[:depth]}
                kept = np.array(sorted(best))
                reach = index.reach(text)
                self.queries.append((grades, kept, cosine[kept], bm25[kept], reach))

    def ndcg(self, fuse: Fuse) -> np.ndarray:
        """nDCG@10 [queries]."""
        values = []
        for grades, kept, cosine, bm25, reach in self.queries:
            order = kept[np.lexsort((kept, -cosine, -fuse(cosine, bm25, reach)))]
            values.append(score([self.names[n] for n in order], grades).ndcg_10)
        return np.array(values)


def small_parts(collection: Collection, size: int, count: int) -> list[list[int]]:
    choose = random.Random(1)
    place = {passage.id: number for number, passage in enumerate(collection.passages)}
    wanted = [
        place[i] for g in collection.judgements.values() for i in g if g[i] > 0 and i in place
    ]
    parts = []
    for _ in range(count):
        part: set[int] = set()
        while len(part) < max(1, size // 2):
            part.add(choose.choice(wanted))
        while len(part) < size:
            part.add(choose.randrange(len(collection.passages)))
        parts.append(sorted(part))
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--narrow", type=float, default=0.0)
    arguments = parser.parse_args()
    collection = load_collection(arguments.data)
    with_model = Embedder(arguments.model, device="cpu")
    documents = with_model.embed([passage.text for passage in collection.passages])
    asked = np.stack([with_model.embed_query(text) for text in collection.queries.values()])
    cosines = asked @ documents.T
    # A model that puts everything near: a constant component added to this one's vectors.
    cosines = arguments.narrow + (1 - arguments.narrow) * cosines
    floor = arguments.narrow + (1 - arguments.narrow) * with_model.unrelated_cosine
    whole = Part(collection, range(len(collection.passages)), cosines, arguments.depth)
    sizes = {2: 60, 8: 40, 30: 20, 100: 10, 300: 6}
    small = {
        size: [
            Part(collection, part, cosines, arguments.depth)
            for part in small_parts(collection, size, count)
        ]
        for size, count in sizes.items()
    }
    print("| nDCG@10 | all | even | odd |", *(f" {size} passages |" for size in sizes))
    print("|---|" + "---|" * (3 + len(sizes)))
    for name, fuse in ways(floor).items():
        values = whole.ndcg(fuse)
        row = [values.mean(), values[::2].mean(), values[1::2].mean()]
        row += [
            np.concatenate([part.ndcg(fuse) for part in parts]).mean() for parts in small.values()
        ]
        print(f"| {name} |", *(f"{value:.4f} |" for value in row), flush=True)


if __name__ == "__main__":
    main()
