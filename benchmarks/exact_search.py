"""The exact index alone: writing, opening, searching, memory, on data of several kinds.

    python benchmarks/exact_search.py [--rows 100000] [--dim 384] [--kinds random cluster ...]

Every answer is compared with brute force in float64 before anything is timed. Milliseconds are
medians; "processor" is the time of all processors together, which other work disturbs less.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.exact.index import ExactIndex

Rows = NDArray[np.float32]
BATCH = 256


def random(rng: np.random.Generator, n: int, dim: int) -> Rows:
    return rng.standard_normal((n, dim), np.float32)


def clusters(rng: np.random.Generator, n: int, dim: int) -> Rows:
    """40 clusters, cosine about 0.9 within one."""
    return random(rng, 40, dim)[rng.integers(0, 40, n)] + 0.3 * random(rng, n, dim)


def log_lines(rng: np.random.Generator, n: int, dim: int) -> Rows:
    """One cluster, and every thousandth row elsewhere."""
    rows = random(rng, 1, dim) + 0.3 * random(rng, n, dim)
    rows[::1000] = random(rng, len(rows[::1000]), dim)
    return rows


def tight_cluster(rng: np.random.Generator, n: int, dim: int) -> Rows:
    """One cluster, cosine about 0.99, and every thousandth row elsewhere."""
    rows = random(rng, 1, dim) + 0.1 * random(rng, n, dim)
    rows[::1000] = random(rng, len(rows[::1000]), dim)
    return rows


def copies(rng: np.random.Generator, n: int, dim: int) -> Rows:
    """One vector, and every thousandth row elsewhere."""
    rows = np.repeat(random(rng, 1, dim), n, axis=0)
    rows[::1000] = random(rng, len(rows[::1000]), dim)
    return rows


def near_copies(rng: np.random.Generator, n: int, dim: int) -> Rows:
    """All within 1e-6 of one vector, none equal: nothing can be left out."""
    return random(rng, 1, dim) + np.float32(1e-6) * random(rng, n, dim)


KINDS = {
    kind.__name__: kind
    for kind in (random, clusters, log_lines, tight_cluster, copies, near_copies)
}


def timed(run: Callable[[], object], rounds: int = 30) -> str:
    run()
    wall, cpu = [], []
    for _ in range(rounds):
        clock, processor = time.perf_counter(), time.process_time()
        run()
        cpu.append(time.process_time() - processor)
        wall.append(time.perf_counter() - clock)
    return (
        f"{1e3 * statistics.median(wall):8.2f} ms (fastest {1e3 * min(wall):.2f}, "
        f"processor {1e3 * min(cpu):.2f})"
    )


def memory() -> dict[str, float]:
    """Resident MB: of the process alone, and of mapped files."""
    status = Path("/proc/self/status").read_text()
    kinds = ("Anon", "File")
    return {name: int(re.findall(rf"Rss{name}:\s+(\d+)", status)[0]) / 1024 for name in kinds}


def settle(index: ExactIndex, query: NDArray[np.float64]) -> None:
    """Search until what a repeated search prepares is there: a second for each 100,000 rows."""
    end = time.perf_counter() + 1 + index.count() / 100_000
    while time.perf_counter() < end:
        index.nearest(query, 1)


def print_memory(path: Path) -> None:
    """In a fresh process: what it takes to open the index and search it 200 times."""
    with tempfile.TemporaryDirectory() as folder:  # what one index needs, whatever its size
        small = ExactIndex(Path(folder) / "small")
        small.add(["a"], np.ones((1, 8)))
        small.commit()
        small.nearest(np.ones(8), 1)
    before = memory()
    index = ExactIndex(path, read_only=True)
    rng = np.random.default_rng(1)
    settle(index, rng.standard_normal(index.dimension))
    for _ in range(200):
        index.nearest(rng.standard_normal(index.dimension), 10)
    after = memory()
    codes = index.count() * (index.dimension or 0) / 2**20
    print(
        f"  memory: {after['Anon'] - before['Anon']:.1f} MB of its own, "
        f"{after['File'] - before['File']:.1f} MB mapped (codes: {codes:.1f})",
        flush=True,
    )


def check(index: ExactIndex, rows: Rows, query: NDArray[np.float64], k: int) -> None:
    scores = np.concatenate(
        [
            piece @ query / np.linalg.norm(piece, axis=1) / np.linalg.norm(query)
            for piece in (rows[i : i + 4096].astype(np.float64) for i in range(0, len(rows), 4096))
        ]
    )
    found = index.nearest(query, k)
    last = np.sort(scores)[-k]
    assert abs(found[-1][1] - last) < 1e-9
    assert {f"p{i}" for i in np.flatnonzero(scores > last + 1e-9)} <= {key for key, _ in found}


def measure(kind: str, n: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    rows = KINDS[kind](rng, n, dim)
    near = rows[rng.integers(0, n, 40)].astype(np.float64)
    spread = np.abs(near).mean() * rng.standard_normal((40, dim))
    near += 0.5 * spread
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes"
        index = ExactIndex(path, dim)
        clock, processor = time.perf_counter(), time.process_time()
        for start in range(0, n, BATCH):
            ids = [f"p{place}" for place in range(start, min(n, start + BATCH))]
            index.add(ids, rows[start : start + BATCH])
            index.commit()
        print(
            f"{kind}, {n} x {dim}\n"
            f"  write, {BATCH} a commit{time.perf_counter() - clock:11.2f} s  "
            f"(processor {time.process_time() - processor:.2f})"
        )
        for query in near[:3]:
            for k in (1, 10, 100):
                check(index, rows, query, k)
        index.close()
        del index, rows
        print("  open               ", timed(lambda: ExactIndex(path, dim, read_only=True), 5))
        subprocess.run([sys.executable, __file__, "--memory", str(path)], check=True)
        index = ExactIndex(path, dim, read_only=True)
        settle(index, near[0])
        for k in (1, 10, 100):
            queries = iter(np.tile(near, (2, 1)))
            run = lambda k=k, queries=queries: index.nearest(next(queries), k)  # noqa: E731
            print(f"  nearest {k:3d}        ", timed(run))
        for share in (0.01, 0.1, 0.5):
            some = [f"p{place}" for place in rng.choice(n, int(n * share), replace=False)]
            run = lambda some=some: index.nearest(near[0], 10, some)  # noqa: E731
            print(f"  nearest 10 of {share:4.0%}", timed(run, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print_memory(args.memory)
        return
    for kind in args.kinds:
        measure(kind, args.rows, args.dim)


if __name__ == "__main__":
    main()
