"""What a store in LanceDB takes to write and to search, beside one in a directory of its own.

    python benchmarks/lance_store.py --passages 1000 10000 50000 [--beside] [--uri lance+s3://...]

Vectors are random, of unit length; texts are 80 words drawn by Zipf's law from 30,000, so that
every query of four words meets frequent and rare ones. Nothing is embedded. The store is closed and
opened again between writing and searching; each figure is the median of so many calls, its minimum
beside it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tars_rag import HybridStore, Passage

DIMENSION = 384
WORDS = 30_000
SYLLABLES = [consonant + vowel for consonant in "bdfglmpr" for vowel in "aiou"]


class Random:
    """Embeds nothing: searches and writes are given their vectors."""

    fingerprint, dimension = "random:384", DIMENSION

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Never called."""
        raise NotImplementedError


def unit(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    rows = rng.standard_normal((count, DIMENSION)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def texts(rng: np.random.Generator, count: int, length: int) -> list[str]:
    shares = 1 / np.arange(1, WORDS + 1) ** 1.05
    drawn = rng.choice(WORDS, (count, length), p=shares / shares.sum())
    return [" ".join(map(spelled, row.tolist())) for row in drawn]


def spelled(number: int) -> str:
    """A number as a word of letters, which no analyser takes apart."""
    return "".join(SYLLABLES[number // 32**place % 32] for place in range(3)) + "k"


def batches(count: int) -> Iterator[tuple[list[Passage], NDArray[np.float32]]]:
    rng = np.random.default_rng(1)
    for start in range(0, count, 2560):
        made = texts(rng, min(2560, count - start), 80)
        passages = [
            Passage(f"p{start + n}", text, {"topic": f"t{(start + n) % 10}", "page": start + n})
            for n, text in enumerate(made)
        ]
        yield passages, unit(rng, len(passages))


def timed(name: str, times: int, call: Callable[[int], object]) -> None:
    taken = []
    for number in range(times):
        began = time.perf_counter()
        call(number)
        taken.append((time.perf_counter() - began) * 1e3)
    print(f"  {name:42} p50 {np.median(taken):8.1f} ms   min {min(taken):8.1f}", flush=True)


def measure(where: str, count: int) -> None:
    print(f"{where.partition(':')[0] if '://' in where else 'directory'}, {count} passages:")
    rng = np.random.default_rng(2)
    began = time.perf_counter()
    with HybridStore(where, Random()) as store:
        for passages, vectors in batches(count):
            store.upsert(passages, vectors)
        written = time.perf_counter() - began
    closed = time.perf_counter() - began - written
    print(f"  {'all written':42} {written:.1f} s, and {closed:.1f} s to close")
    began = time.perf_counter()
    with HybridStore(where, Random()) as store:
        store.count()
        print(f"  {'opened and counted':42} {(time.perf_counter() - began) * 1e3:.0f} ms")
        queries, vectors = texts(rng, 200, 4), unit(rng, 200)

        def ask(number: int, strategy: str, where: object = None) -> object:
            return store.search(
                queries[number],
                5,
                strategy,
                where,
                vector=vectors[number],  # type: ignore[arg-type]
            )

        timed("first hybrid search", 1, lambda n: ask(199, "hybrid"))
        for strategy in ("hybrid", "naive", "lexical"):
            timed(strategy, 40, lambda n, s=strategy: ask(n, s))  # type: ignore[misc]
        timed("hybrid, topic equals", 20, lambda n: ask(n, "hybrid", {"topic": f"t{n % 10}"}))
        half = {"page": {"$gte": count // 2}}
        timed("hybrid, page at least, first time", 1, lambda n: ask(n, "hybrid", half))
        timed("hybrid, page at least, again", 20, lambda n: ask(n, "hybrid", half))

        def write(number: int, size: int) -> None:
            made = texts(rng, size, 80)
            passages = [Passage(f"new{size}-{number}-{n}", text) for n, text in enumerate(made)]
            store.upsert(passages, unit(rng, size))

        timed("write 1 passage", 15, lambda n: write(n, 1))
        timed("write 256 passages", 5, lambda n: write(n, 256))

        def after(number: int) -> None:
            write(100 + number, 1)
            ask(number, "hybrid")

        timed("write 1, then hybrid", 10, after)
        began = time.perf_counter()
    print(f"  {'closed, indexes brought up to date':42} {time.perf_counter() - began:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--passages", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--beside", action="store_true", help="also a store without LanceDB")
    parser.add_argument("--uri", help="lance+s3://bucket/name-, instead of a temporary directory")
    options = parser.parse_args()
    for count in options.passages:
        folder = Path(tempfile.mkdtemp(prefix="lance-store-"))
        try:
            measure(f"{options.uri}{count}" if options.uri else f"lance://{folder}/lance", count)
            if options.beside:
                measure(str(folder / "own"), count)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
