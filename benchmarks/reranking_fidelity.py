"""How far FlashRank's INT8 scores, and this package's of the same file, are from FP32.

    python benchmarks/reranking_fidelity.py --model DIR --data DIR [--queries 50]

A cross-encoder in safetensors is quantised as FlashRank's models are. Both programs score 20
passages for each of the last judged queries of a BEIR collection: up to eight that are judged
relevant, and others at random. FP32 is the same weights, not quantised.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
from flashrank import Ranker, RerankRequest

from tars_rag import Reranker
from tars_rag.bench.evaluate import load_collection, score
from tars_rag.models.bert_graph import build_graph
from tars_rag.models.graphs import quantise
from tars_rag.models.random_model import flashrank_name
from tars_rag.models.weights import load_weights

NAME = "ms-marco-MiniLM-L-12-v2"  # FlashRank takes directories of its models' names alone
PASSAGES, RELEVANT = 20, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=50)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    shutil.copytree(options.model, root / NAME)
    graph = build_graph(load_weights(options.model), output="logit")
    (root / NAME / flashrank_name(NAME)).write_bytes(quantise(graph, per_channel=False))
    logging.disable(logging.INFO)  # FlashRank sets up logging for the whole process
    theirs, ours = Ranker(NAME, cache_dir=str(root)), Reranker(NAME, cache_dir=root)
    exact = Reranker(options.model, cache_dir=root, engine="onnxruntime")

    collection = load_collection(options.data)
    texts = {passage.id: passage.text for passage in collection.passages}
    choose = random.Random(0)
    gaps: dict[str, list[np.ndarray]] = {"FlashRank": [], "tars-rag": []}
    ndcg: dict[str, list[float]] = {"FlashRank": [], "tars-rag": [], "FP32": []}
    between: list[np.ndarray] = []
    for key in list(collection.queries)[-options.queries :]:
        grades = collection.judgements[key]
        ids = [one for one, grade in grades.items() if grade > 0 and one in texts][:RELEVANT]
        others = sorted(texts.keys() - ids)
        ids += choose.sample(others, PASSAGES - len(ids))
        query, passages = collection.queries[key], [texts[one] for one in ids]
        rows = [{"id": number, "text": text} for number, text in enumerate(passages)]
        ranked = theirs.rerank(RerankRequest(query, rows))
        scores = {
            "FlashRank": np.array([r["score"] for r in sorted(ranked, key=lambda r: r["id"])]),
            "tars-rag": ours.score(query, passages),
            "FP32": exact.score(query, passages),
        }
        between.append(np.abs(scores["tars-rag"] - scores["FlashRank"]))
        for name, found in scores.items():
            ranking = [ids[place] for place in np.argsort(-found, kind="stable")]
            ndcg[name].append(score(ranking, {one: grades.get(one, 0) for one in ids}).ndcg_10)
            if name in gaps:
                gaps[name].append(np.abs(found - scores["FP32"]))

    print("| scores of | from FP32, mean | largest | nDCG@10 |\n|---|---|---|---|")
    for name, found in gaps.items():
        off = np.concatenate(found)
        print(
            f"| {name} | {off.mean():.4f} | {off.max():.3f} | {statistics.mean(ndcg[name]):.3f} |"
        )
    print(f"| FP32 | 0 | 0 | {statistics.mean(ndcg['FP32']):.3f} |")
    off = np.concatenate(between)
    print(f"\nbetween the two: mean {off.mean():.4f}, largest {off.max():.3f}")


if __name__ == "__main__":
    main()
