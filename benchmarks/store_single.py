"""One sentence at a time: what a durable upsert of a single passage costs.

    python benchmarks/store_single.py [--passages 5000] [--dir DIR]

Vectors of 384 numbers are given, so embedding is left out. Bytes are the kernel's count of what a
process has put into the page cache to be written (write_bytes of /proc/PID/io), of both processes
and with the closing of the store; the file system's own journal comes on top.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from common import interleaved, notes
from store_100k import DIMENSION, NoEmbedder, percentile
from tars_rag import HybridStore, Passage

ROUNDS, THREADS, TAIL = 300, 8, 200


def written() -> int:
    """Bytes, of this process and that of its Chroma."""
    process = psutil.Process()
    return sum(one.io_counters().write_bytes for one in [process, *process.children()])


def sentences(count: int) -> list[Passage]:
    choose = random.Random(0)
    return [Passage(f"p{n}", notes(choose, 15, 40), {"turn": n}) for n in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=5000)
    parser.add_argument("--dir", type=Path, help="on the disk that is to be measured")
    arguments = parser.parse_args()
    made = sentences(arguments.passages + ROUNDS + 1)
    rows = np.random.default_rng(0).standard_normal((len(made), DIMENSION)).astype(np.float32)
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        path = Path(folder) / "store"
        with HybridStore(path, NoEmbedder()) as store:
            store.upsert(made[-1:], rows[-1:])
            before, began, seconds = written(), time.perf_counter(), list[float]()
            for number in range(arguments.passages):
                start = time.perf_counter()
                store.upsert(made[number : number + 1], rows[number : number + 1])
                seconds.append(time.perf_counter() - start)
            total = time.perf_counter() - began
            store.flush()
            size = (written() - before) / arguments.passages
        shares = ", ".join(f"p{share} {percentile(seconds, share):.2f}" for share in (50, 95, 99))
        print(f"{arguments.passages} one by one: {total:.1f} s; ms: {shares}")
        print(f"the longest took {1e3 * max(seconds):.0f} ms")
        print(f"written: {size / 1000:.1f} kB a passage")
        against_sqlite(path, made[-ROUNDS - 1 :], rows[-ROUNDS - 1 :])
        at_once(path, made[: arguments.passages // 2], rows)
        beside_a_tail(path, made[:TAIL], rows)


def against_sqlite(path: Path, made: list[Passage], rows: np.ndarray) -> None:
    """The same content into SQLite with a write-ahead log, in turn."""
    database = sqlite3.connect(path.with_name("sqlite"), isolation_level=None)
    database.execute("pragma journal_mode = wal")
    database.execute("pragma synchronous = full")
    database.execute("create table passage (id text primary key, text text, vector blob)")
    counts = {"store": 0, "SQLite": 0}

    def of(name: str) -> tuple[Passage, np.ndarray]:
        counts[name] += 1
        number = counts[name] - 1
        return made[number], rows[number : number + 1]

    with HybridStore(path, NoEmbedder()) as store:

        def into_store() -> None:
            passage, row = of("store")
            store.upsert([passage], row)

        def into_sqlite() -> None:
            passage, row = of("SQLite")
            values = (passage.id, passage.text, row.tobytes())
            database.execute("insert or replace into passage values (?, ?, ?)", values)

        took = interleaved({"store": into_store, "SQLite": into_sqlite}, ROUNDS)
    database.close()
    for name, seconds in took.items():
        print(f"in turn, {name}: median {1e3 * statistics.median(seconds):.2f} ms")


def at_once(path: Path, made: list[Passage], rows: np.ndarray) -> None:
    with HybridStore(path, NoEmbedder()) as store, ThreadPoolExecutor(THREADS) as pool:
        began = time.perf_counter()
        list(pool.map(lambda n: store.upsert(made[n : n + 1], rows[n : n + 1]), range(len(made))))
        rate = len(made) / (time.perf_counter() - began)
    print(f"{THREADS} threads at once: {rate:.0f} passages a second")


def beside_a_tail(path: Path, made: list[Passage], rows: np.ndarray) -> None:
    """A search of a store whose indexes have everything, and of its copy with a full tail."""
    other = path.with_name("tailed")
    shutil.copytree(path, other)
    choose = random.Random(1)
    with HybridStore(path, NoEmbedder()) as flushed, HybridStore(other, NoEmbedder()) as tailed:
        for number, passage in enumerate(made):
            new = Passage(f"new{number}", passage.text, passage.metadata)
            tailed.upsert([new], rows[number : number + 1])

        def searching(store: HybridStore) -> None:
            store.search(notes(choose, 8, 12), vector=rows[choose.randrange(len(rows))])

        took = interleaved(
            {
                "indexes alone": lambda: searching(flushed),
                f"{TAIL} in the tail": lambda: searching(tailed),
            },
            ROUNDS,
        )
        held = flushed.count()
    for name, seconds in took.items():
        print(f"hybrid, {held} passages, {name}: median {1e3 * statistics.median(seconds):.2f} ms")


if __name__ == "__main__":
    main()
