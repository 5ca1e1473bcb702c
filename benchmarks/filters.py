"""How long it takes to find the passages that pass a filter: the first time, and again.

python benchmarks/filters.py [--passages 100000]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from tars_rag import HybridStore, Passage

WIDTH = 32
FILTERS: dict[str, Any] = {
    "1 %": {"n": 7},
    "10 %": {"n": {"$lt": 10}},
    "50 %": {"lang": "de"},
    "50 % (not)": {"lang": {"$ne": "de"}},
    "a list's value, 10 %": {"tags": {"$contains": "t3"}},
    "one passage": {"source": "file-000777.md"},
}


class Vectors:
    """Vectors are given."""

    fingerprint, dimension = f"none:{WIDTH}", WIDTH

    def embed(self, texts: Any) -> Any:
        """Never called."""
        raise NotImplementedError


def passages(count: int) -> Iterator[Passage]:
    for n in range(count):
        metadata = {
            "n": n % 100,
            "lang": ("en", "de")[n % 2],
            "tags": [f"t{n % 10}", f"u{n % 7}"],
            "source": f"file-{n:06d}.md",
        }
        yield Passage(f"p{n}", f"passage number {n}", metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=100_000)
    count = parser.parse_args().passages
    rows = np.random.default_rng(1).standard_normal((count, WIDTH)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, HybridStore(f"{folder}/s", Vectors()) as store:
        start = time.perf_counter()
        store.upsert(passages(count), rows)
        print(f"written in {time.perf_counter() - start:.0f} s")
        extra = Passage("extra", "one more", {})
        for name, where in FILTERS.items():
            first, again = [], []
            for _ in range(5):
                store.upsert([extra], rows[:1])  # what was remembered is forgotten
                store.delete(["extra"])
                for times in (first, again):
                    start = time.perf_counter()
                    store.search("passage", 5, "naive", where, vector=rows[0])
                    times.append(1e3 * (time.perf_counter() - start))
            print(f"{name:22} {statistics.median(first):8.1f} ms  {statistics.median(again):6.1f}")


if __name__ == "__main__":
    main()
