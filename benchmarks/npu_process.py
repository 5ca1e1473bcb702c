"""What a process per NPU core costs: one round trip with a child that computes nothing.

    python benchmarks/npu_process.py

Prints medians of the round trip per length, the child's start-up time and its resident memory.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tars_rag.runtimes.base import Feeds, FloatArray
from tars_rag.runtimes.npu.isolate import IsolatedSession
from tars_rag.runtimes.npu.spec import NpuSpec, RknnFile, SessionInfo

LENGTHS = (32, 128, 256)


class _Nothing:
    info = SessionInfo(("input_ids", "attention_mask"), LENGTHS)

    def __init__(self, spec: NpuSpec, core_mask: int) -> None:
        self.row = np.zeros((1, 384), np.float32)

    def run(self, feed: Feeds) -> FloatArray:
        return self.row

    def close(self) -> None: ...


def main() -> None:
    start = time.perf_counter()
    session = IsolatedSession(NpuSpec((RknnFile("none"),)), 1, backend="npu_process:_Nothing")
    print(f"start-up: {(time.perf_counter() - start) * 1000:.0f} ms")
    for length in LENGTHS:
        feed = {n: np.ones((1, length), np.int64) for n in _Nothing.info.input_names}
        took = []
        for _ in range(2000):
            start = time.perf_counter()
            session.run(feed)
            took.append(time.perf_counter() - start)
        print(f"round trip, {length} tokens: {statistics.median(took) * 1e6:.0f} us")
    memory = psutil.Process(session.pid).memory_full_info()
    print(f"child: {memory.rss / 1e6:.0f} MB resident, {memory.uss / 1e6:.0f} MB of its own")
    session.close()


if __name__ == "__main__":
    main()
