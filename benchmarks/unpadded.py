"""What a graph of its own for batches without padding saves, in an INT8 embedder and reranker.

    python benchmarks/unpadded.py [--rounds 30]

Random weights of all-MiniLM-L6-v2's and ms-marco-MiniLM-L-12-v2's shape, in turns: the graph as it
is, and the one in which nothing is masked and each attention is one operator. With all threads, as
a query is run, and with one, as bulk work is. And what the second form costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import numpy as np
import onnxruntime

from common import ratio, warm
from tars_rag.models import attention
from tars_rag.models.bert_graph import build_graph
from tars_rag.models.graphs import quantise
from tars_rag.models.weights import BertConfig, random_weights
from tars_rag.runtimes.onnx import OnnxRuntime

SHAPES = ((1, 9), (1, 20), (1, 45), (8, 64), (1, 128), (2, 256), (1, 300), (1, 512))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    print(f"ONNX Runtime {onnxruntime.__version__}; time with the graph of its own / without\n")
    shapes = [f"{rows} x {tokens}" for rows, tokens in SHAPES]
    print(f"| rows x tokens | {' | '.join(shapes)} |")
    print("|---" * (len(SHAPES) + 1) + "|")
    costs = []
    for name, layers, head in (("embedder", 6, False), ("reranker", 12, True)):
        weights = random_weights(BertConfig(layers, 384, 12, 1536, 30_522), head=head)
        model = build_graph(weights, output="logit" if head else "pooled")
        graph = quantise(model, per_channel=not head)
        begun = time.perf_counter()
        other = attention.fused(graph)
        made = time.perf_counter() - begun
        opened: list[float] = []
        for threads in (None, 1):
            begun = time.perf_counter()
            plain = OnnxRuntime(graph, threads=threads)
            opened.append(begun - time.perf_counter())
            begun = time.perf_counter()
            own = OnnxRuntime(graph, unpadded=other, threads=threads)
            opened[-1] += time.perf_counter() - begun
            cells = [f"{compared(plain, own, shape, rounds):.2f}" for shape in SHAPES]
            told = "one thread" if threads else f"{plain.threads} threads"
            print(f"| {name}, {told} | {' | '.join(cells)} |", flush=True)
        costs.append(
            f"{name}: {len(graph) / 1e6:.0f} MB, made in {made:.2f} s, opening takes "
            f"{statistics.mean(opened):.2f} s longer"
        )
    print("\n" + "\n".join(costs))


def compared(plain: OnnxRuntime, own: OnnxRuntime, shape: tuple[int, int], rounds: int) -> float:
    ids = np.random.default_rng(0).integers(5, 30_000, shape)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}
    feeds = {name: feeds[name] for name in plain.input_names}
    without, with_own = warm([partial(one.run, [feeds]) for one in (plain, own)], rounds)
    return ratio(with_own, without)


if __name__ == "__main__":
    main()
