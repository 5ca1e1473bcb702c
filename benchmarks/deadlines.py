"""Whether `Reranker.score` keeps its budget: 500 queries, the first ones after opening included.

    python benchmarks/deadlines.py [--queries 500] [--engine openvino] [--shape tiny]

Random weights of a published shape, made-up passages, budgets of 50 to 400 ms. The reranker is
opened anew for every hundredth query.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from common import notes
from tars_rag import Reranker
from tars_rag.models.random_model import flashrank_name, write_random_model
from tars_rag.models.weights import BertConfig

SHAPES = {
    "tiny": ("ms-marco-TinyBERT-L-2-v2", BertConfig(2, 128, 2, 512, 30_522)),
    "L-12": ("ms-marco-MiniLM-L-12-v2", BertConfig(12, 384, 12, 1536, 30_522)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--engine", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--shape", choices=SHAPES, default="L-12")
    options = parser.parse_args()
    name, config = SHAPES[options.shape]
    choose = random.Random(0)
    over, none, used = [], 0, []
    with tempfile.TemporaryDirectory() as folder:
        ready = options.engine == "onnxruntime"  # FlashRank's kind of file; else the weights
        onnx = flashrank_name(name) if ready else None
        model = write_random_model(Path(folder) / name, config, onnx=onnx, quantised=ready)
        for number in range(options.queries):
            if number % 100 == 0:
                reranker = Reranker(model, engine=options.engine, cache_dir=folder)
            texts = [
                notes(choose, *choose.choice([(5, 30), (30, 100), (60, 240)]))
                for _ in range(choose.choice([5, 20, 50]))
            ]
            budget = choose.choice([50, 100, 200, 400])
            start = time.perf_counter()
            scores = reranker.score("wing lift at high mach number", texts, budget_ms=budget)
            share = (time.perf_counter() - start) * 1000 / budget
            over.append(share - 1)
            used.append(min(share, 1))
            none += not np.isfinite(scores).any()
    held = np.mean(np.array(over) <= 0.1)
    print(
        f"{options.shape}, {options.engine}: {held:.1%} of {len(over)} queries took at most 10 % "
        f"more than their budget, the worst {max(over):+.0%}; {np.mean(used):.0%} of the time was "
        f"used, {none} had no time for one passage; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
