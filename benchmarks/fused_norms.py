"""What leaving out ONNX Runtime's fused sum and layer norm saves in an INT8 embedder.

    python benchmarks/fused_norms.py [--rounds 40]

Random weights of all-MiniLM-L6-v2's shape, one thread, in turns. Processor time, which other work
on the machine changes less than that of the clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import numpy as np
import onnxruntime

from common import warm
from tars_rag.models.bert_graph import build_graph
from tars_rag.models.graphs import quantise
from tars_rag.models.weights import BertConfig, random_weights
from tars_rag.runtimes.onnx import OnnxRuntime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    weights = random_weights(BertConfig(6, 384, 12, 1536, 30_522), head=False)
    graph = quantise(build_graph(weights, output="pooled"), per_channel=True)
    runtimes = [OnnxRuntime(graph, threads=1, as_others=others) for others in (True, False)]
    print(f"ONNX Runtime {onnxruntime.__version__}: fused, apart (ms, least); apart / fused")
    for shape in ((1, 9), (1, 20), (1, 36), (8, 64), (2, 256)):
        ids = np.random.default_rng(0).integers(5, 30_000, shape)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        runs = [partial(runtime.run, [feed]) for runtime in runtimes]
        taken = warm(runs, rounds, time.thread_time)
        fused, apart = (1000 * min(one) for one in taken)
        median = statistics.median(taken[1]) / statistics.median(taken[0])
        print(
            f"  {shape[0]} x {shape[1]:3} tokens {fused:8.2f} {apart:8.2f}   "
            f"least {apart / fused:.2f}, median {median:.2f}"
        )


if __name__ == "__main__":
    main()
