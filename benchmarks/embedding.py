"""Embedding on the CPU: this package beside Chroma's ONNX function and sentence-transformers.

    python benchmarks/embedding.py [--data DIR] [--passages 160] [--queries 20] [--rounds 5]

Chroma downloads its own copy of the model from a bucket. Where there is none, its function is
given this package's graph: the same network and weights, run by Chroma's code, which pads
everything to 256 tokens. sentence-transformers is measured where it is installed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from common import interleaved, passages, queries, ratio
from tars_rag import Embedder
from tars_rag.models.bert_graph import build_graph
from tars_rag.models.cache import ModelCache
from tars_rag.models.weights import load_weights

Embed = Callable[[list[str]], np.ndarray]


def chroma(model: Path) -> Embed:
    from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2
    from onnx import TensorProto, helper

    if not (ONNXMiniLM_L6_V2.DOWNLOAD_PATH / "onnx" / "model.onnx").exists():
        print("Chroma's own model file is not here: its function runs this package's graph.")
        folder = Path(tempfile.mkdtemp())
        ONNXMiniLM_L6_V2.DOWNLOAD_PATH = folder
        (folder / "onnx").mkdir()
        for name in ("config", "special_tokens_map", "tokenizer_config"):
            (folder / "onnx" / f"{name}.json").write_text("{}")
        (folder / "onnx" / "vocab.txt").touch()
        (folder / "onnx" / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
        graph = build_graph(load_weights(model), output="tokens")
        shape = ["batch", "tokens"]  # Chroma feeds token types; the graph has them built in
        graph.graph.input.append(
            helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, shape)
        )
        (folder / "onnx" / "model.onnx").write_bytes(graph.SerializeToString())
    function = ONNXMiniLM_L6_V2()
    return lambda texts: np.array(function(texts))


def sentence_transformers(model: Path) -> Embed:
    from sentence_transformers import SentenceTransformer, models

    # The store keeps the three files that matter; pooling and length are said here.
    body = models.Transformer(str(model), max_seq_length=256)
    pool = models.Pooling(body.get_word_embedding_dimension())
    network = SentenceTransformer(modules=[body, pool, models.Normalize()], device="cpu")
    return lambda texts: network.encode(texts, show_progress_bar=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a BEIR folder, such as Cranfield")
    parser.add_argument("--passages", type=int, default=160)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    texts = passages(options.data, options.passages)
    asked = queries(options.data, options.queries)

    folder = ModelCache().get("all-MiniLM-L6-v2").directory
    exact, small = (Embedder(device="cpu", precision=p) for p in ("fp32", "int8"))
    engines: dict[str, Embed] = {
        "tars-rag fp32": exact.embed,
        "tars-rag int8": small.embed,
        "Chroma ONNXMiniLM_L6_V2": chroma(folder),
    }
    if find_spec("sentence_transformers"):
        engines["sentence-transformers"] = sentence_transformers(folder)
    else:
        print("sentence-transformers is not installed.")

    seconds = interleaved(
        {name: lambda embed=embed: embed(texts) for name, embed in engines.items()},
        options.rounds,
    )
    single: dict[str, list[float]] = {name: [] for name in engines}
    for query in asked:
        for name, embed in engines.items():
            start = time.perf_counter()
            embed([query])
            single[name].append(time.perf_counter() - start)

    reference = exact.embed(texts)
    print(f"{len(texts)} passages, {len(asked)} queries, {options.rounds} rounds, interleaved")
    print("| engine | passages/s | x Chroma | query p50 ms | x Chroma | mean cosine | min |")
    print("|---|---|---|---|---|---|---|")
    base = "Chroma ONNXMiniLM_L6_V2"
    for name, embed in engines.items():
        cosine = (embed(texts) * reference).sum(1)
        print(
            f"| {name} | {len(texts) / statistics.median(seconds[name]):.0f} "
            f"| {ratio(seconds[base], seconds[name]):.2f} "
            f"| {1000 * statistics.median(single[name]):.1f} "
            f"| {ratio(single[base], single[name]):.1f} "
            f"| {cosine.mean():.5f} | {cosine.min():.4f} |"
        )


if __name__ == "__main__":
    main()
