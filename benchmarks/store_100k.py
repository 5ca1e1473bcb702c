"""A store of 100,000 passages: time and memory to write it, latency to search it.

    python benchmarks/store_100k.py [--data DIR] [--passages 100000] [--queries 300]

Texts are the abstracts with their words shuffled; vectors are random, so embedding is left out.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from common import passages, queries
from tars_rag import HybridStore, Passage
from tars_rag.files import size_of

DIMENSION = 384


class NoEmbedder:
    """A fingerprint; vectors are given."""

    fingerprint = "benchmark:384"
    dimension = DIMENSION

    def embed(self, texts: list[str]) -> np.ndarray:
        """Not called: every passage and query brings its vector."""
        raise NotImplementedError


def unit_rows(seed: int, count: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        row = rng.standard_normal(DIMENSION, np.float32)
        yield row / np.linalg.norm(row)


def shuffled(texts: list[str], count: int) -> Iterator[Passage]:
    choose = random.Random(0)
    for number in range(count):
        words = texts[number % len(texts)].split() or ["empty"]
        choose.shuffle(words)
        yield Passage(f"p{number}", " ".join(words), {"part": number % 10})


def percentile(seconds: list[float], share: int) -> float:
    return 1e3 * statistics.quantiles(seconds, n=100)[share - 1]


def resident_mb(process: psutil.Process) -> int:
    """Of the process and that of its Chroma."""
    everyone = [process, *process.children(recursive=True)]
    return sum(one.memory_info().rss for one in everyone) >> 20


def watch(stop: threading.Event, late: list[float]) -> None:
    """How much later than asked a short sleep ends: what an event loop would feel."""
    while not stop.is_set():
        began = time.perf_counter()
        time.sleep(0.002)
        late.append(time.perf_counter() - began - 0.002)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300)
    arguments = parser.parse_args()
    texts = passages(arguments.data, 1400)
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        start, last = time.perf_counter(), 0

        def progress(done: int, _: int | None) -> None:
            nonlocal last
            if done - last >= arguments.passages // 10 or done == arguments.passages:
                last = done
                memory, seconds = resident_mb(process), time.perf_counter() - start
                print(f"{done:>8} passages  {seconds:7.1f} s  {memory:>5} MB resident", flush=True)

        with HybridStore(Path(folder) / "store", NoEmbedder()) as store:
            stop, late = threading.Event(), list[float]()
            watcher = threading.Thread(target=watch, args=(stop, late))
            watcher.start()
            store.upsert(
                shuffled(texts, arguments.passages),
                vectors=unit_rows(0, arguments.passages),
                progress=progress,
            )
            stop.set()
            watcher.join()
        p99, worst = percentile(late, 99), 1e3 * max(late)
        print(f"another thread was late by {p99:.1f} ms (p99), {worst:.1f} ms at most")
        size = size_of(Path(folder)) >> 20
        start = time.perf_counter()
        with HybridStore(Path(folder) / "store", NoEmbedder()) as store:
            print(f"on disk {size} MB, opened again in {time.perf_counter() - start:.1f} s")
            asked = queries(arguments.data, 225)
            for strategy in ("hybrid", "naive", "lexical"):
                seconds = []
                rows = unit_rows(1, arguments.queries)
                for number, row in enumerate(rows):
                    query = asked[number % len(asked)]
                    began = time.perf_counter()
                    store.search(query, 5, strategy, vector=row)
                    seconds.append(time.perf_counter() - began)
                p50, p95 = percentile(seconds, 50), percentile(seconds, 95)
                print(f"{strategy:>8}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, k = 5")


if __name__ == "__main__":
    main()
