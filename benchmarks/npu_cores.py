"""Passages per second and query latency with one, two and three NPU cores. Run it on a board.

    python benchmarks/npu_cores.py --rknn-path BUNDLE [--data DIR] [--texts 300]

`--device cpu` runs the same measurement on the CPU, for comparison.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from common import passages, queries
from tars_rag import Embedder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rknn-path")
    parser.add_argument("--device", default="npu", choices=("npu", "cpu"))
    parser.add_argument("--data", type=Path, help="a BEIR directory; else made-up texts")
    parser.add_argument("--texts", type=int, default=300)
    options = parser.parse_args()
    texts, asked = passages(options.data, options.texts), queries(options.data, 50)
    for mask in ("0", "0_1", "0_1_2") if options.device == "npu" else ("auto",):
        with Embedder(device=options.device, rknn_path=options.rknn_path, core_mask=mask) as found:
            found.embed(texts[:10])
            start = time.perf_counter()
            found.embed(texts)
            rate = len(texts) / (time.perf_counter() - start)
            took = []
            for query in asked:
                start = time.perf_counter()
                found.embed_query(query)
                took.append((time.perf_counter() - start) * 1000)
            print(
                f"{options.device} cores {mask}: {rate:.1f} passages/s, "
                f"query p50 {statistics.median(took):.1f} ms, fingerprint {found.fingerprint}"
            )


if __name__ == "__main__":
    main()
