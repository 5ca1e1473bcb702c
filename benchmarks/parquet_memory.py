"""How much memory it takes to load a Parquet file into a store, and to export the store.

    python benchmarks/parquet_memory.py --rows 20000 60000

Random vectors of 384 numbers, texts of 40 words. Each step is a process of its own: its peak
resident memory is told, apart from that of the process in which it runs Chroma.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tars_rag.ingest.parquet import About, ParquetWriter
from tars_rag.ingest.vector_files import export_parquet, load_parquet
from tars_rag.retrieval.passage import Passage

DIMENSION = 384
BATCH = 1000


def write(path: Path, rows: int) -> None:
    rng = np.random.default_rng(1)
    words = np.array([f"word{n}" for n in range(5000)])
    with ParquetWriter(path, About("random:384"), DIMENSION) as writer:
        for start in range(0, rows, BATCH):
            numbers = range(start, min(start + BATCH, rows))
            vectors = rng.standard_normal((len(numbers), DIMENSION)).astype(np.float32)
            texts = [" ".join(rng.choice(words, 40)) for _ in numbers]
            made = [
                Passage(f"p{n}", text, {"n": n}) for n, text in zip(numbers, texts, strict=True)
            ]
            writer.write(made, vectors)


def step(what: str, file: str, store: str) -> None:
    began = time.perf_counter()
    if what == "load":
        load_parquet(file, store)
    elif what == "export":
        export_parquet(store, file)
    peaks = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    seconds = time.perf_counter() - began
    print(json.dumps([seconds, *(peak / 1024 for peak in peaks)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 60_000])
    parser.add_argument("--step", nargs=3)
    given = parser.parse_args()
    if given.step:
        step(*given.step)
        return
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as base:
            source, store, out = Path(base, "in"), Path(base, "store"), Path(base, "out")
            write(source, rows)
            for what, file in (("nothing", source), ("load", source), ("export", out)):
                command = [sys.executable, __file__, "--step", what, str(file), str(store)]
                told = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds, own, chroma = json.loads(told.stdout)
                print(
                    f"{rows} rows, {what}: {seconds:.0f} s, peak {own:.0f} MiB, "
                    f"Chroma's process {chroma:.0f} MiB",
                    flush=True,
                )
            print(f"{rows} rows: file {out.stat().st_size / 2**20:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
