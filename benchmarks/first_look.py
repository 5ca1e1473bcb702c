"""What the first look at four bits a number is worth: an index with and one without it, in turn.

    python benchmarks/first_look.py [--rows 100000] [--kinds random docstrings ...] [--rounds 60]

"neighbours" are clusters of 250 (cosine 0.67), as in peers_search.py; "docstrings" those of the
installed packages, embedded, as many as there are; the other kinds are those of exact_search.py.
Queries lie near one of the vectors; those for docstrings are 60 characters of other ones. Medians
in milliseconds; both indexes give the same answers, which is checked.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exact_search import KINDS, Rows, settle
from peers_common import machine, ms
from tars_rag import Embedder
from tars_rag.retrieval.indexes.exact.index import ExactIndex

DIM, QUERIES = 384, 20
COUNTS = (5, 30, 100)


def neighbours(rng: np.random.Generator, n: int) -> Rows:
    centres = rng.standard_normal((max(8, n // 250), DIM), np.float32)
    rows = centres[rng.integers(len(centres), size=n)]
    return rows + np.float32(0.7) * rng.standard_normal((n, DIM), np.float32)


def docstrings(most: int) -> list[str]:
    """Of installed packages, those of more than a dozen words, 60 words of each."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(errors="ignore"))
        except (SyntaxError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = (ast.get_docstring(node) or "").split()[:60]
                if len(words) > 12:
                    found[" ".join(words)] = None
    texts = list(found)
    np.random.default_rng(0).shuffle(texts)
    return texts[:most]


def data(kind: str, n: int) -> tuple[Rows, NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    if kind == "docstrings":
        texts = docstrings(n)
        vectors = Embedder(precision="int8").embed([*texts, *(t[:60] for t in texts[:QUERIES])])
        return vectors[QUERIES : len(texts)], vectors[len(texts) :].astype(np.float64)
    rows = neighbours(rng, n) if kind == "neighbours" else KINDS[kind](rng, n, DIM)
    near = rows[rng.integers(0, n, QUERIES)].astype(np.float64)
    return rows, near + 0.5 * np.abs(near).mean() * rng.standard_normal((QUERIES, DIM))


def measure(kind: str, n: int, rounds: int) -> None:
    rows, queries = data(kind, n)
    with tempfile.TemporaryDirectory() as folder:
        index = ExactIndex(Path(folder) / "codes", DIM)
        for start in range(0, len(rows), 2000):
            piece = rows[start : start + 2000]
            index.add([f"p{start + place}" for place in range(len(piece))], piece)
            index.commit()
        index.close()
        indexes = [ExactIndex(Path(folder) / "codes", DIM, read_only=True) for _ in range(2)]
        indexes[1]._snapshot().coarse.stop()
        settle(indexes[0], queries[0])
        for k in COUNTS:
            seconds: list[list[float]] = [[], []]
            for turn in range(rounds):
                query = queries[turn % len(queries)]
                found = [[], []]
                for which in (turn % 2, 1 - turn % 2):
                    start = time.perf_counter()
                    found[which] = indexes[which].nearest(query, k)
                    seconds[which].append(time.perf_counter() - start)
                assert found[0] == found[1]
            looked, scanned = map(ms, seconds)
            print(
                f"| {kind} | {len(rows)} | {k} | {looked:.1f} | {scanned:.1f} "
                f"| {scanned / looked:.2f} |",
                flush=True,
            )


def main() -> None:
    kinds = ["neighbours", "docstrings", *KINDS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args()
    print(machine("onnxruntime"))
    print("\n| data | rows | k | with, ms | without, ms | ratio |\n|---|---|---|---|---|---|")
    for kind in options.kinds:
        measure(kind, options.rows, options.rounds)


if __name__ == "__main__":
    main()
