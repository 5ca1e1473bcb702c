"""How a store grows: load, open, search, memory and disk at several numbers of passages.

    python benchmarks/growth.py [--rows 10000 100000 1000000] [--queries 100] [--folder DIR]
                                [--lance]

Loaded from a Parquet file with its vectors (`parquet_memory.py`: random vectors of 384 numbers,
texts of 40 words), so that embedding is left out. Loading and searching are processes of their
own. Memory is that of the process and, apart, of the one in which it runs Chroma. With --lance
the store is a table of LanceDB.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from parquet_memory import DIMENSION, write
from peers_common import machine
from tars_rag import HybridStore
from tars_rag.files import size_of
from tars_rag.ingest.vector_files import load_parquet

FINGERPRINT = "random:384"
STRATEGIES = ("hybrid", "naive", "lexical")


class Vectors:
    """The embedder of the store: random unit vectors, one for each query."""

    fingerprint, dimension = FINGERPRINT, DIMENSION

    def __init__(self) -> None:
        self._random = np.random.default_rng(2)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """A random vector for each text."""
        rows = self._random.standard_normal((len(texts), DIMENSION)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_query(self, text: str) -> np.ndarray:
        """One."""
        return self.embed([text])[0]


def memory() -> list[float]:
    """MB of this process, and of its children."""
    own, children = psutil.Process(), psutil.Process().children(recursive=True)
    everyone = [own.memory_info().rss, sum(one.memory_info().rss for one in children)]
    return [each / 1e6 for each in everyone]


def load(file: str, store: str) -> dict[str, object]:
    """Seconds, and the memory at each fifth of the way."""
    fifths: list[list[float]] = []
    began = time.perf_counter()

    def progress(done: int, total: int | None) -> None:
        while total and len(fifths) < 5 * done // total:
            fifths.append(memory())

    load_parquet(file, store, progress=progress)
    return {"seconds": time.perf_counter() - began, "memory": fifths}


def search(store: str, queries: int) -> dict[str, object]:
    """Seconds to open and to the first answer, medians of searches, and the memory afterwards."""
    choose = random.Random(3)
    asked = [" ".join(f"word{choose.randrange(5000)}" for _ in range(6)) for _ in range(queries)]
    began = time.perf_counter()
    with HybridStore(store, Vectors(), read_only=True) as opened:
        seconds = {"open": time.perf_counter() - began}
        opened.search(asked[0], 5)
        seconds["first answer"] = time.perf_counter() - began
        times: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
        for query in asked:
            for strategy in STRATEGIES:
                start = time.perf_counter()
                opened.search(query, 5, strategy)
                times[strategy].append(1e3 * (time.perf_counter() - start))
        medians = {strategy: statistics.median(found) for strategy, found in times.items()}
        return {"seconds": seconds, "ms": medians, "memory": memory()}


def in_process(*arguments: object) -> dict[str, object]:
    command = [sys.executable, __file__, "--step", *map(str, arguments)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, object] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where there is room (5 GB for a million)")
    parser.add_argument("--lance", action="store_true")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        what, *rest = options.step
        found = load(*rest) if what == "load" else search(rest[0], int(rest[1]))
        print(json.dumps(found))
        return
    print(machine("lancedb") if options.lance else machine("chromadb", "tantivy"))
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            file, place = Path(folder, "vectors.parquet"), Path(folder, "store")
            store = f"lance://{place}" if options.lance else place
            write(file, rows)
            print(f"\n{rows} passages, {file.stat().st_size / 1e6:.0f} MB of Parquet", flush=True)
            print("  load:", shown(in_process("load", file, store)), flush=True)
            print(f"  disk: {size_of(place) / 1e6:.0f} MB", flush=True)
            print("  search:", shown(in_process("search", store, options.queries)), flush=True)


def shown(found: object) -> str:
    """Numbers with one digit after the point."""
    if isinstance(found, dict):
        return ", ".join(f"{name} ({shown(value)})" for name, value in found.items())
    if isinstance(found, list):
        return "; ".join(map(shown, found))
    return f"{found:.1f}"


if __name__ == "__main__":
    main()
