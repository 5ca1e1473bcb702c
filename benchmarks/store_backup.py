"""What a backup costs, and how long writers wait for it.

    python benchmarks/store_backup.py --rows 20000

A store of random vectors of 384 numbers; one thread writes single passages all the time, and the
waits of its writes are compared, with and without a backup beside them.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from tars_rag.retrieval.maintenance import restore
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore

DIMENSION = 384


class Given:
    """Vectors are given: nothing is embedded."""

    fingerprint = "given:384"
    dimension = DIMENSION

    def embed(self, texts: object) -> np.ndarray:
        """Never called."""
        raise NotImplementedError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    rows = parser.parse_args().rows
    base = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(1)
    words = np.array([f"word{n}" for n in range(5000)])
    texts = [" ".join(rng.choice(words, 100)) for _ in range(rows)]
    try:
        with HybridStore(base / "store", Given()) as store:
            vectors = rng.standard_normal((rows, DIMENSION)).astype(np.float32)
            store.upsert((Passage(f"p{n}", text) for n, text in enumerate(texts)), vectors)
            waits: list[float] = []
            stop = threading.Event()

            def write() -> None:
                number = 0
                while not stop.is_set():
                    began = time.perf_counter()
                    store.upsert([Passage(f"p{number % rows}", f"new {number}")], vectors[:1])
                    waits.append(time.perf_counter() - began)
                    number += 1
                    time.sleep(0.005)

            thread = threading.Thread(target=write)
            thread.start()
            for name in ("first", "second", "third"):
                time.sleep(10)
                alone, waits = waits[:], []
                began = time.perf_counter()
                done = store.backup(base / "file")
                seconds = time.perf_counter() - began
                beside, waits = waits[:], []
                print(
                    f"{name} backup: {seconds:.1f} s, {done.written} of {done.passages} passages "
                    f"written, {done.size / 1e6:.0f} MB"
                )
                for what, those in (("alone", alone), ("beside it", beside)):
                    ms = np.array(those) * 1e3
                    p50, p99 = np.percentile(ms, [50, 99])
                    print(f"  {what}: {len(ms)} writes, {p50:.1f} / {p99:.1f} / {ms.max():.1f} ms")
            stop.set()
            thread.join()
        began = time.perf_counter()
        count = restore(base / "file", base / "restored")
        print(f"restored: {count} passages in {time.perf_counter() - began:.1f} s")
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
