"""What use costs a store in the long run: replacements, or mixed work for some minutes.

    python benchmarks/store_years.py replace --replacements 200000
    python benchmarks/store_years.py soak --minutes 10

`replace`: 1,000 passages are replaced again and again, in batches and one by one; what a search, a
replacement, the disk and the memory cost is printed as it goes on. `soak`: writes of every size,
deletions, searches with and without filters, reading back, closing and opening; samples of memory,
descriptors, threads, disk and latency, and how the last third of them compares with the first.
Vectors are random and given, so that nothing is embedded.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from tars_rag import HybridStore, Passage
from tars_rag.files import size_of

DIMENSION = 384
LIVING = 1000
_WORDS = ["river", "fan", "clock", "memory", "board", "invoice", "engine", "paper", "green"]


class NoEmbedder:
    """Every passage and query brings its vector."""

    fingerprint = f"benchmark:{DIMENSION}"
    dimension = DIMENSION

    def embed(self, texts: list[str]) -> np.ndarray:
        """Not called."""
        raise NotImplementedError


class Work:
    """A store that is used, and what it should hold."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.path = path
        self.store = HybridStore(path, NoEmbedder())
        self.versions: dict[str, int] = {}
        self._rng = np.random.default_rng(seed)
        self._random = random.Random(seed)
        self._count = 0

    def close(self) -> None:
        """Release the store."""
        self.store.close()

    def rows(self, count: int) -> np.ndarray:
        """Random vectors."""
        return self._rng.standard_normal((count, DIMENSION)).astype(np.float32)

    def write(self, names: list[str]) -> None:
        """Store or replace passages."""
        self._count += 1
        passages = []
        for name in names:
            words = " ".join(self._random.choices(_WORDS, k=80))
            metadata = {"version": self._count, "part": self._random.randrange(10)}
            passages.append(Passage(name, f"{name} {words}", metadata))
        self.store.upsert(passages, vectors=self.rows(len(names)))
        self.versions.update(dict.fromkeys(names, self._count))

    def delete(self, names: list[str]) -> None:
        """Delete passages."""
        self.store.delete(names)
        for name in names:
            self.versions.pop(name, None)

    def search(self) -> None:
        """Search in one of the ways there are, and check that it is one of the present passages."""
        strategy = self._random.choice(["hybrid", "naive", "lexical"])
        where = self._random.choice([None, None, {"part": self._random.randrange(10)}])
        query = " ".join(self._random.choices(_WORDS, k=4))
        for hit in self.store.search(query, 5, strategy, where=where, vector=self.rows(1)[0]):
            if self.versions.get(hit.id) != hit.metadata["version"]:
                raise AssertionError(f"{hit.id}: {hit.metadata['version']} is not the present one")

    def step(self) -> None:
        """Something that a user does; the number of passages stays about the same."""
        choice = self._random.random()
        known = list(self.versions)
        if choice < 0.5 and known:
            self.search()
        elif choice < 0.75 or len(known) < LIVING // 2:
            count = self._random.choice([1, 1, 1, 5, 80])
            if len(known) > LIVING:
                self.write(self._random.sample(known, min(count, len(known))))
            else:
                self.write([f"p{self._random.randrange(10**9)}" for _ in range(count)])
        elif choice < 0.9 and len(known) > LIVING // 2:
            self.delete(
                self._random.sample(known, min(len(known) // 4, self._random.choice([1, 5, 80])))
            )
        elif choice < 0.998:
            for passage in self.store.get(self._random.sample(known, min(10, len(known)))):
                if self.versions[passage.id] != passage.metadata["version"]:
                    raise AssertionError(f"{passage.id} is not the present one")
        else:
            self.store.close()
            self.store = HybridStore(self.path, NoEmbedder())
            if self.store.count() != len(self.versions):
                raise AssertionError(f"{self.store.count()} passages, not {len(self.versions)}")

    def sample(self) -> dict[str, float]:
        """What it costs now: memory and descriptors of all processes, threads, disk, latency."""
        everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
        return {
            "memory MB": sum(one.memory_info().rss for one in everyone) / 1e6,
            "descriptors": sum(one.num_fds() for one in everyone),
            "threads": sum(one.num_threads() for one in everyone),
            "disk MB": size_of(self.path) / 1e6,
            "search ms": 1e3 * _median_seconds(self.search, 30),
            "write of 1 ms": 1e3 * _median_seconds(self._replace_one, 10),
        }

    def _replace_one(self) -> None:
        self.write([next(iter(self.versions), "p0")])


def _median_seconds(work: Callable[[], None], times: int) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def soak(path: Path, seconds: float, samples: int = 12) -> dict[str, list[float]]:
    """Mixed work for some time; the samples taken, by what was measured."""
    work = Work(path)
    found: dict[str, list[float]] = {}
    try:
        work.write([f"first{n}" for n in range(LIVING)])
        for number in range(samples):
            end = time.monotonic() + seconds / samples
            while time.monotonic() < end:
                work.step()
            work.store.flush()
            for name, value in work.sample().items():
                found.setdefault(name, []).append(value)
            shown = "  ".join(f"{name} {values[-1]:.1f}" for name, values in found.items())
            print(f"{(number + 1) * seconds / samples:6.0f} s  {shown}", flush=True)
    finally:
        work.close()
    return found


def growth(values: list[float]) -> float:
    """The median of the last third of the samples, as a share of that of the first."""
    third = max(1, len(values) // 3)
    return statistics.median(values[-third:]) / statistics.median(values[:third])


def replace(path: Path, replacements: int) -> None:
    """Replace 1,000 passages again and again, nine in ten of them in batches of 100."""
    work = Work(path)
    names = [f"p{n}" for n in range(LIVING)]
    try:
        work.write(names)
        process = psutil.Process()
        done, spent = 0, 0.0
        marks = sorted({max(1000, replacements * share // 8) for share in (0, 1, 2, 4, 6, 8)})
        for mark in marks:
            everyone = [process, *process.children(recursive=True)]
            began = sum(sum(one.cpu_times()[:2]) for one in everyone)
            before = done
            while done < mark:
                for _ in range(9):
                    work.write(random.sample(names, 100))
                for name in random.sample(names, 100):
                    work.write([name])
                done += 1000
            spent = sum(sum(one.cpu_times()[:2]) for one in everyone) - began
            work.store.flush()
            shown = "  ".join(f"{name} {value:.2f}" for name, value in work.sample().items())
            print(
                f"{done:>7}  cpu ms each {1e3 * spent / (done - before):.2f}  {shown}", flush=True
            )
    finally:
        work.close()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["replace", "soak"])
    parser.add_argument("--replacements", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        if arguments.what == "replace":
            replace(path, arguments.replacements)
            return
        for name, values in soak(path, 60 * arguments.minutes).items():
            print(f"{name}: last third / first third = {growth(values):.2f}")


if __name__ == "__main__":
    sys.exit(main())
