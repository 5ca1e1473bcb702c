"""CPU engines side by side: ONNX Runtime, this package's OpenVINO runtime, OpenVINO itself.

    python benchmarks/engines.py [--rounds 7]

Models with random weights of the shapes of all-MiniLM-L6-v2 and ms-marco-MiniLM-L-12-v2; made-up
texts. All take turns, round by round. Beside the time of the clock stands that of the processor,
which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tars_rag.models.batching import OPENVINO_TOKENS, feed, plan, run_batched
from tars_rag.models.bert_graph import Output, build_graph
from tars_rag.models.tokenizer import Encoding
from tars_rag.models.weights import BertConfig, random_weights
from tars_rag.runtimes.onnx import OnnxRuntime
from tars_rag.runtimes.openvino import OpenVinoRuntime

RNG = np.random.default_rng(0)


def texts(*lengths: int) -> list[Encoding]:
    return [Encoding(RNG.integers(5, 30_000, n), np.zeros(n, np.int64)) for n in lengths]


def raw(path: Path, hint: str, encodings: list[Encoding], tokens: int) -> Callable[[], object]:
    """OpenVINO with a hint of its own, as many requests at once as it says are best."""
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"PERFORMANCE_HINT": hint})
    names = [port.any_name for port in compiled.inputs]
    queue = openvino.AsyncInferQueue(compiled)
    batches = plan([len(e) for e in encodings], tokens_per_batch=tokens)

    def run() -> object:
        rows: dict[int, Any] = {}
        queue.set_callback(
            lambda request, n: rows.__setitem__(n, request.get_output_tensor(0).data.copy())
        )
        for number, batch in enumerate(batches):
            queue.start_async(feed(batch, encodings, names), number)
        queue.wait_all()
        return rows

    return run


def compare(what: str, output: Output, layers: int, calls: dict[str, Any], rounds: int) -> None:
    config = BertConfig(layers, 384, 12, 1536, 30_522)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        graph = build_graph(random_weights(config, head=output == "logit"), output=output)
        path.write_bytes(graph.SerializeToString())
        ort, ours = OnnxRuntime(path), OpenVinoRuntime(path)
        for name, encodings in calls.items():
            usual = 2048 if output == "pooled" else 256
            jobs: dict[str, Callable[[], object]] = {
                f"ONNX Runtime fp32, {usual} tokens a batch": lambda e=encodings, n=usual: (
                    run_batched(ort, e, tokens_per_batch=n)
                ),
                **{
                    f"OpenVINO {ours.arithmetic}, {n}": lambda e=encodings, n=n: run_batched(
                        ours, e, tokens_per_batch=n
                    )
                    for n in (256, OPENVINO_TOKENS, 2048)
                },
                **{
                    f"OpenVINO itself, {hint}": raw(path, hint, encodings, OPENVINO_TOKENS)
                    for hint in ("LATENCY", "THROUGHPUT")
                },
            }
            taken: dict[str, list[tuple[float, float]]] = {job: [] for job in jobs}
            for number in range(rounds + 1):
                for job, run in jobs.items():
                    wall, cpu = time.perf_counter(), time.process_time()
                    run()
                    if number:  # the first is to warm up
                        spent = time.perf_counter() - wall, time.process_time() - cpu
                        taken[job].append(spent)
            first = next(iter(taken.values()))
            print(f"\n{what}, {name}: milliseconds, times as fast as the first; processor: same")
            for job, spent in taken.items():
                columns = []
                for kind in (0, 1):
                    ratios = [a[kind] / b[kind] for a, b in zip(first, spent, strict=True)]
                    median = statistics.median(one[kind] for one in spent) * 1000
                    columns.append(f"{median:9.1f} {statistics.median(ratios):6.2f}")
                print(f"  {job:42} {'  '.join(columns)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    calls = {
        "80 texts of 60 to 255 tokens": texts(*RNG.integers(60, 256, 80).tolist()),
        "one query of 12": texts(12),
    }
    compare("all-MiniLM-L6-v2's shape", "pooled", 6, calls, rounds)
    calls = {
        "5 abstracts": texts(130, 160, 180, 200, 240),
        "20 abstracts": texts(*[130, 160, 180, 200, 240] * 4),
        "5 notes": texts(20, 24, 28, 32, 40),
    }
    compare("ms-marco-MiniLM-L-12-v2's shape", "logit", 12, calls, rounds)
    print(f"\nload of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
