"""Reranking on the CPU: this package beside FlashRank itself, with the same model files.

    python benchmarks/reranking.py [--data DIR] [--cache DIR] [--rounds 5] [--counts 5 20 50]

Without --cache (a FlashRank cache directory) the model is one with random weights, of the size,
files and quantisation of ms-marco-MiniLM-L-12-v2: its scores mean nothing, its speed does.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import tempfile
from pathlib import Path

import numpy as np
from flashrank import Ranker, RerankRequest

from common import interleaved, notes, passages, queries, ratio
from tars_rag import Reranker
from tars_rag.models.cache import ModelCache
from tars_rag.models.random_model import flashrank_name, write_random_model
from tars_rag.models.weights import BertConfig

NAME = "ms-marco-MiniLM-L-12-v2"


def random_cache() -> Path:
    root = Path(tempfile.mkdtemp())
    write_random_model(
        root / NAME,
        BertConfig(layers=12, hidden=384, heads=12, intermediate=1536, vocabulary=30522),
        tokenizer=ModelCache().get("all-MiniLM-L6-v2").directory / "tokenizer.json",
        onnx=flashrank_name(NAME),
        quantised=True,
    )
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a BEIR folder, such as Cranfield")
    parser.add_argument("--cache", type=Path, help="a FlashRank cache directory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="+", default=[5, 20, 50])
    options = parser.parse_args()
    cache = options.cache or random_cache()
    logging.disable(logging.INFO)  # FlashRank sets up logging for the whole process
    theirs, ours = Ranker(NAME, cache_dir=str(cache)), Reranker(NAME, cache_dir=cache)

    choose = random.Random(2)
    kinds = {
        "abstracts": passages(options.data, 50),
        "mixed, 8 to 300 words": [notes(choose, 8, 300) for _ in range(50)],
        "notes, 5 to 30 words": [notes(choose, 5, 30) for _ in range(50)],
    }
    query = queries(options.data, 1)[0]
    print("| passages | number | FlashRank ms | tars-rag ms | ratio | largest score gap |")
    print("|---|---|---|---|---|---|")
    for kind, texts in kinds.items():
        for count in options.counts:
            batch = texts[:count]

            def flashrank(batch: list[str] = batch) -> list[float]:
                request = RerankRequest(query, [{"id": n, "text": t} for n, t in enumerate(batch)])
                return [p["score"] for p in sorted(theirs.rerank(request), key=lambda p: p["id"])]

            def tars(batch: list[str] = batch) -> np.ndarray:
                return ours.score(query, batch)

            gap = np.abs(np.array(flashrank()) - tars()).max()
            seconds = interleaved({"flashrank": flashrank, "tars": tars}, options.rounds)
            print(
                f"| {kind} | {count} | {1000 * statistics.median(seconds['flashrank']):.0f} "
                f"| {1000 * statistics.median(seconds['tars']):.0f} "
                f"| {ratio(seconds['flashrank'], seconds['tars']):.2f} | {gap:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
