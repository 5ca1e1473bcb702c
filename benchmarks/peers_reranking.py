"""Reranking: this package beside FlashRank, both frameworks' wrappers of it, and CrossEncoder.

    python benchmarks/peers_reranking.py [--minutes 5] [--counts 1 2 5 ...] [--words 10 30 ...]

One model of random weights in the shape, files and quantisation of ms-marco-MiniLM-L-12-v2 (times
mean something, scores do not): FlashRank's INT8 file for FlashRank and its wrappers, the FP32
weights of the same for sentence-transformers' CrossEncoder. Everything takes turns; ratios are
medians over rounds. Then the peak memory of 200 passages of 512 tokens, each in a process of its
own. What this package's own wrappers cost is measured by wrappers.py. Needs
benchmarks/peers_requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from common import notes, ratio
from peers_common import RERANKER, built, machine, ms, random_reranker, turns
from tars_rag import Reranker

QUERY = "what lifts a wing at low speed?"
Rank = Callable[[Sequence[str]], object]


def flashrank(cache: Path) -> Rank:
    from flashrank import Ranker, RerankRequest

    ranker = Ranker(RERANKER, cache_dir=str(cache))
    return lambda texts: ranker.rerank(
        RerankRequest(QUERY, [{"id": n, "text": text} for n, text in enumerate(texts)])
    )


def langchain_flashrank(cache: Path) -> Rank:
    from flashrank import Ranker
    from langchain_community.document_compressors import FlashrankRerank
    from langchain_core.documents import Document

    ranker = Ranker(RERANKER, cache_dir=str(cache))
    wrapped = FlashrankRerank(client=ranker, model=RERANKER, top_n=1000)
    return lambda texts: wrapped.compress_documents(
        [Document(page_content=text) for text in texts], QUERY
    )


def llama_index_flashrank(cache: Path) -> Rank:
    from flashrank import Ranker
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.postprocessor.flashrank_rerank import base

    base.Ranker = partial(Ranker, cache_dir=str(cache))  # it takes no directory itself
    wrapped = base.FlashRankRerank(model=RERANKER, top_n=1000)
    return lambda texts: wrapped.postprocess_nodes(
        [NodeWithScore(node=TextNode(text=text), score=0.0) for text in texts], QueryBundle(QUERY)
    )


def cross_encoder(cache: Path, backend: str) -> Rank:
    from sentence_transformers import CrossEncoder

    folder = Path(tempfile.mkdtemp()) / RERANKER
    shutil.copytree(cache / RERANKER, folder, ignore=shutil.ignore_patterns("*.onnx"))
    config = folder / "config.json"
    known = json.loads(config.read_text())
    config.write_text(json.dumps(known | {"id2label": {"0": "LABEL_0"}}))  # one logit
    model = CrossEncoder(str(folder), max_length=512, backend=backend, device="cpu")
    return lambda texts: model.predict(
        [(QUERY, text) for text in texts], batch_size=16, show_progress_bar=False
    )


def ours(cache: Path, engine: str) -> Rank:
    if engine == "file":
        reranker = Reranker(RERANKER, cache_dir=cache, engine="onnxruntime")
    else:
        folder = Path(tempfile.mkdtemp()) / "weights"
        shutil.copytree(cache / RERANKER, folder, ignore=shutil.ignore_patterns("*.onnx"))
        reranker = Reranker(folder, cache_dir=cache, engine=engine)  # type: ignore[arg-type]
    return partial(reranker.score, QUERY)


def texts_of(words: str, count: int) -> list[str]:
    choose = random.Random(f"{words} {count}")
    least, most = (8, 500) if words == "mixed" else (int(words), int(words))
    return [notes(choose, least, most) for _ in range(count)]


def grid(cache: Path, counts: list[int], words: list[str], seconds: float) -> None:
    programs = built(
        {
            "FlashRank": lambda: flashrank(cache),
            "tars-rag, the same file": lambda: ours(cache, "file"),
            "LangChain FlashrankRerank": lambda: langchain_flashrank(cache),
            "LlamaIndex FlashRankRerank": lambda: llama_index_flashrank(cache),
            "CrossEncoder, torch": lambda: cross_encoder(cache, "torch"),
            "CrossEncoder, OpenVINO": lambda: cross_encoder(cache, "openvino"),
            "tars-rag, OpenVINO, the weights": lambda: ours(cache, "openvino"),
        }
    )
    print("\nmilliseconds; in brackets FlashRank's time over it\n")
    print(f"| passages | {' | '.join(programs)} |")
    print("|---" * (len(programs) + 1) + "|")
    # The wrappers and frameworks in the middle of the grid; FlashRank and this package everywhere.
    middle = {(5, "250"), (20, "250"), (20, "mixed"), (50, "mixed")}
    cells = [(count, kind) for kind in words for count in counts]
    costs = {c: c[0] * (250 if c[1] == "mixed" else int(c[1])) + 50 for c in cells}
    for count, kind in cells:
        batch = texts_of(kind, count)
        everyone = (count, kind) in middle
        calls = {
            name: partial(rank, batch)
            for number, (name, rank) in enumerate(programs.items())
            if number < 2 or everyone
        }
        # Half of the time for all alike: a short call needs many rounds to be told from noise.
        share = seconds / 2 * (1 / len(cells) + costs[count, kind] / sum(costs.values()))
        times = turns(calls, share, most_rounds=100)
        base = times[next(iter(times))]
        told = [
            f"{ms(times[name]):.1f} ({ratio(base, times[name]):.2f})" if name in times else ""
            for name in programs
        ]
        print(f"| {count} x {kind} words | {' | '.join(told)} |", flush=True)


def memory(cache: Path) -> None:
    """Peak memory of 200 passages of 512 tokens, over what an open model takes."""
    print("\n| 200 passages of 512 tokens | peak over the open model, MB |\n|---|---|")
    found = {}
    for who in ("FlashRank", "tars-rag"):
        command = [sys.executable, __file__, "--memory-of", who, "--cache", str(cache)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        found[who] = float(ran.stdout.split()[-1])
        print(f"| {who} | {found[who]:.0f} |", flush=True)
    print(f"\ntars-rag / FlashRank: 1 / {found['FlashRank'] / max(found['tars-rag'], 1):.1f}")


def memory_of(who: str, cache: Path) -> None:
    rank = flashrank(cache) if who == "FlashRank" else ours(cache, "file")
    rank(texts_of("10", 1))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here, not from opening
    rank(texts_of("600", 200))
    print(resident("VmHWM") - before)


def resident(field: str) -> float:
    """A line of the kernel's on this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 5, 10, 20, 50, 100])
    parser.add_argument("--words", nargs="+", default=["10", "30", "100", "250", "500", "mixed"])
    parser.add_argument("--cache", type=Path, help="a FlashRank cache directory with the model")
    parser.add_argument("--no-memory", action="store_true", help="it takes gigabytes and minutes")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # of peers among themselves
    logging.disable(logging.INFO)  # FlashRank sets up logging for the whole process
    if options.memory_of:
        memory_of(options.memory_of, options.cache)
        return
    print(machine("openvino", "onnxruntime", "flashrank", "sentence-transformers", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or random_reranker(Path(folder))
        grid(cache, options.counts, options.words, options.minutes * 60 * 0.85)
        if not options.no_memory:
            memory(cache)


if __name__ == "__main__":
    main()
