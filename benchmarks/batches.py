"""How large batches on the CPU should be, how much of them padding, and what streams bring.

    python benchmarks/batches.py [--data DIR] [--seconds 120] [--passages 80]

Embedders of both engines take turns with each other: batches of other sizes, other limits of
padding, and without streams (one batch after the other with all threads).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from common import notes, passages, ratio
from peers_common import turns
from tars_rag import Embedder
from tars_rag.models import batching

EMBEDDERS = {
    "ONNX Runtime fp32": ("onnxruntime", "fp32"),
    "ONNX Runtime int8": ("onnxruntime", "int8"),
    "OpenVINO": ("openvino", "fp32"),
}
NO_LIMIT = 1 << 30


def run(embedder: Embedder, texts: list[str], tokens: int, padding: int, threads: int) -> None:
    """Embed with other constants than the package's; what it has of them is private."""
    embedder._tokens_per_batch = tokens
    embedder._runtime._streams._count = threads  # type: ignore[attr-defined]
    batching._MOST_PADDING = padding  # type: ignore[misc]
    embedder.embed(texts)


def compared(title: str, calls: Mapping[str, Callable[[], None]], seconds: float) -> None:
    """Times as fast as the first call, medians over rounds; all take turns."""
    times = turns(calls, seconds, most_rounds=100)
    first = next(iter(times.values()))
    told = [f"{name} {ratio(first, its):.2f}" for name, its in times.items()]
    print(f"{title}: {', '.join(told)} ({len(first)} rounds)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a BEIR folder, such as Cranfield")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--passages", type=int, default=80)
    options = parser.parse_args()
    choose, least = random.Random(3), batching._MOST_PADDING
    texts = passages(options.data, options.passages)
    mixed = {
        "20 notes of 5 to 30 words": [notes(choose, 5, 30) for _ in range(20)],
        "20 texts of 8 to 250 words": [notes(choose, 8, 250) for _ in range(20)],
    }
    share = options.seconds / (len(EMBEDDERS) * (1 + len(mixed)))
    for name, (engine, precision) in EMBEDDERS.items():
        embedder = Embedder(device="cpu", engine=engine, precision=precision)  # type: ignore[arg-type]
        threads = embedder._runtime.threads  # type: ignore[attr-defined]
        most = 1024 if engine == "openvino" else 2048
        one = partial(run, embedder)
        calls = {"one after the other": partial(one, texts, most, NO_LIMIT, 1)}
        for tokens in (256, 512, 1024, 2048):
            calls[f"{tokens} tokens"] = partial(one, texts, tokens, NO_LIMIT, threads)
        compared(f"{name}, {len(texts)} passages", calls, share)
        for kind, some in mixed.items():
            calls = {
                f"padding {'any' if limit == NO_LIMIT else limit}": partial(
                    one, some, batching.TOKENS_PER_BATCH, limit, threads
                )
                for limit in (NO_LIMIT, 0, least, 2 * least, 4 * least)
            }
            compared(f"{name}, {kind}", calls, share)


if __name__ == "__main__":
    main()
