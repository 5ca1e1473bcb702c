"""Writes an exact index for ever, as tests of kills and power cuts want it.

    python exact_child.py DIRECTORY LOG SEED COMMITS

Each commit is announced by a line "begin N" in LOG, and acknowledged by "end N", N its generation.
What it holds then follows from the seed alone (see `history`).
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.exact.index import ExactIndex, code_directory

DIM = 24
Change = dict[str, NDArray[np.float32] | None]


def history(seed: int) -> Iterator[Change]:
    """What each commit changes."""
    rng = np.random.default_rng(seed)
    while True:
        change: Change = {}
        for place in rng.integers(0, 60, rng.integers(1, 30)).tolist():
            gone = rng.random() < 0.3
            row = rng.standard_normal(DIM).astype(np.float32)
            change[f"passage {place}"] = None if gone else row
        yield change


def state(seed: int, generation: int) -> dict[str, bytes]:
    """What an index of that generation holds."""
    held: dict[str, bytes] = {}
    for change in itertools.islice(history(seed), generation):
        for key, row in change.items():
            held.pop(key, None)
            if row is not None:
                held[key] = row.tobytes()
    return held


def main(directory: str, log: str, seed: int, commits: int) -> None:
    code_directory._DEAD = 40  # so that it is compacted every few commits
    lines = os.open(log, os.O_WRONLY | os.O_CREAT)
    index = ExactIndex(Path(directory), DIM)
    done = index.generation
    for number, change in enumerate(itertools.islice(history(seed), commits), 1):
        if number <= done:
            continue
        rows = {key: row for key, row in change.items() if row is not None}
        index.remove([key for key, row in change.items() if row is None])
        if rows:
            index.add(list(rows), np.stack(list(rows.values())))
        os.write(lines, f"begin {number}\n".encode())
        index.commit(f"stamp {number}")
        os.write(lines, f"end {number}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
