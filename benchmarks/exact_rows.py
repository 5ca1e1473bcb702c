"""Where the float32 vectors of candidates come from: Chroma's process by id, or the row file.

    python benchmarks/exact_rows.py [--rows 100000]

One store of random vectors; the same ids are read both ways in turn, in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from common import interleaved
from store_100k import DIMENSION, NoEmbedder
from tars_rag import HybridStore, Passage

_BATCH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    count = parser.parse_args().rows
    rng = np.random.default_rng(0)
    with (
        tempfile.TemporaryDirectory() as folder,
        HybridStore(Path(folder) / "store", NoEmbedder()) as store,
    ):
        for start in range(0, count, _BATCH):
            ids = [f"p{place}" for place in range(start, min(count, start + _BATCH))]
            rows = rng.standard_normal((len(ids), DIMENSION), np.float32)
            store.upsert([Passage(key, key) for key in ids], rows)
        with store._directory.reading() as indexes:
            ways = {"Chroma": indexes.vectors.vectors, "row file": indexes.exact.vectors}
            for wanted in (10, 100, 1000):
                chosen = [f"p{place}" for place in rng.choice(count, wanted, replace=False)]
                seconds = interleaved({n: partial(way, chosen) for n, way in ways.items()}, 20)
                chroma, own = (1e3 * statistics.median(seconds[name]) for name in ways)
                print(f"{wanted} of {count}: Chroma {chroma:.2f} ms, row file {own:.2f} ms")


if __name__ == "__main__":
    main()
