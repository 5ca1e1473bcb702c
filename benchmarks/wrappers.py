"""What the classes for LangChain and LlamaIndex cost over the package's own calls.

    python benchmarks/wrappers.py [--passages 64] [--rounds 15]

Within one and the same call: the seconds that the wrapped class takes, and of these the ones that
its embedder or reranker takes. So what else runs on the machine meets both. A model of random
weights in the shape of ms-marco-MiniLM-L-12-v2 (times mean something, scores do not), and
all-MiniLM-L6-v2. Needs the extras langchain and llama-index.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

import tars_rag.langchain
import tars_rag.llama_index
from common import notes
from peers_common import RERANKER, machine, random_reranker
from tars_rag import Embedder, Reranker

QUERY = "what lifts a wing at low speed?"


class Inside:
    """Counts the seconds that calls of a method take, whoever makes them."""

    def __init__(self, owner: type, method: str) -> None:
        self.seconds = 0.0
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def counted(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - start

        setattr(owner, method, counted)


def cost(call: Callable[[], object], inside: Inside, rounds: int) -> tuple[float, float, float]:
    """Medians: milliseconds of the whole call, of its core, and what the rest is of the core."""
    whole, core = [], []
    for round_number in range(rounds + 1):
        inside.seconds, start = 0.0, time.perf_counter()
        call()
        if round_number:  # the first opens the model
            whole.append(time.perf_counter() - start)
            core.append(inside.seconds)
    share = statistics.median(w / c - 1 for w, c in zip(whole, core, strict=True))
    return 1e3 * statistics.median(whole), 1e3 * statistics.median(core), share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    choose = random.Random(0)
    texts = [notes(choose, 90, 110) for _ in range(options.passages)]
    documents = [Document(page_content=text) for text in texts]
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in texts]
    embedding, scoring = Inside(Embedder, "embed"), Inside(Reranker, "score")
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        cache = random_reranker(Path(folder))
        reranker = {"model": RERANKER, "cache_dir": str(cache), "top_n": options.passages}
        chain = tars_rag.langchain.TarsRerank(**reranker)
        index = tars_rag.llama_index.TarsRerank(**reranker)
        chain_embeddings = tars_rag.langchain.TarsEmbeddings(device="cpu")
        index_embedding = tars_rag.llama_index.TarsEmbedding(device="cpu", embed_batch_size=64)
        calls: dict[str, tuple[Callable[[], object], Inside]] = {
            "TarsEmbeddings (LangChain)": (
                lambda: chain_embeddings.embed_documents(texts),
                embedding,
            ),
            "TarsEmbedding (LlamaIndex)": (
                lambda: index_embedding.get_text_embedding_batch(texts),
                embedding,
            ),
            "TarsRerank (LangChain)": (
                lambda: chain.compress_documents(documents, QUERY),
                scoring,
            ),
            "TarsRerank (LlamaIndex)": (
                lambda: index.postprocess_nodes(nodes, QueryBundle(QUERY)),
                scoring,
            ),
        }
        print(f"\n| class, {options.passages} passages | call, ms | core in it, ms | cost |")
        print("|---|---|---|---|")
        for name, (call, inside) in calls.items():
            whole, core, share = cost(call, inside, options.rounds)
            print(f"| {name} | {whole:.1f} | {core:.1f} | {share:.2%} |", flush=True)


if __name__ == "__main__":
    main()
