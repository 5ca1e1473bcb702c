"""What ONNX Runtime's waiting threads take from the work after a run: by default, and as set here.

    python benchmarks/idle_threads.py [--rounds 4] [--passages 20000] [--precision int8]

An embedder of random weights in all-MiniLM-L6-v2's shape embeds a query, and a store of clustered
vectors is searched for another one of its own, every 100 ms. Both settings in processes of their
own that take turns. Processor time is that of the whole process, waiting threads included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from peers_search import Data, Known
from tars_rag import HybridStore, Passage
from tars_rag.models.bert_graph import build_graph
from tars_rag.models.graphs import quantise
from tars_rag.models.weights import BertConfig, random_weights
from tars_rag.runtimes.onnx import OnnxRuntime

QUERIES, TOKENS, PAUSE = 40, 14, 0.1


def child(folder: Path, passages: int) -> None:
    """Embed and search; one line of JSON."""
    default = os.environ["SETTING"] == "default"
    runtime = OnnxRuntime(folder / "model.onnx", as_others=default)
    ids = np.full((1, TOKENS), 1012, np.int64)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    data = Data(passages, QUERIES)
    embedded, both = [], []
    with HybridStore(folder / "store", Known(data), read_only=True) as store:
        for query in data.queries[:5]:
            runtime.run([feed])
            store.search(query, 5)
        begun = time.process_time()
        for query in data.queries:
            time.sleep(PAUSE)
            start = time.perf_counter()
            runtime.run([feed])
            embedded.append(time.perf_counter() - start)
            store.search(query, 5)
            both.append(time.perf_counter() - start)
        spent = (time.process_time() - begun) / QUERIES
    times = [statistics.median(embedded), statistics.median(both), spent]
    print(json.dumps([1000 * seconds for seconds in times]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--precision", choices=("fp32", "int8"), default="int8")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.passages)
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.passages} passages")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = random_weights(BertConfig(6, 384, 12, 1536, 30_522), head=False)
        graph = build_graph(weights, output="pooled")
        int8 = options.precision == "int8"
        content = quantise(graph, per_channel=True) if int8 else graph.SerializeToString()
        (folder / "model.onnx").write_bytes(content)
        data = Data(options.passages, 1)
        with HybridStore(folder / "store", Known(data)) as store:
            passages = (Passage(str(n), text) for n, text in enumerate(data.texts))
            store.upsert(passages, vectors=iter(data.vectors))
        found: dict[str, list[list[float]]] = {"default": [], "as set here": []}
        command = [sys.executable, __file__, "--child", name, "--passages", str(options.passages)]
        for _ in range(options.rounds):
            for setting, rows in found.items():
                environment = os.environ | {"SETTING": setting}
                done = subprocess.run(command, env=environment, capture_output=True, check=True)
                rows.append(json.loads(done.stdout))
    print("| ONNX Runtime's threads | embed ms | embed and search ms | processor ms a query |")
    print("|---|---|---|---|")
    for setting, rows in found.items():
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        print(f"| {setting} | " + " | ".join(f"{ms:.1f}" for ms in medians) + " |")


if __name__ == "__main__":
    main()
