"""Embedding with all-MiniLM-L6-v2: this package beside those that people would take instead.

    python benchmarks/peers_embedding.py [--data DIR] [--minutes 4] [--passages 160] [--queries 20]
        [--programs NAME ...]

Everything takes turns. All read 256 tokens (fastembed cuts at 128 by itself: its cosine shows it).
Peers at their best: sentence-transformers on torch in FP32 and BF16, on ONNX Runtime and on
OpenVINO, sorted by length by itself, batches of 16; OpenVINO itself is fed this package's graph,
longest first, at both hints. Where Chroma's own file cannot be had its function runs this
package's graph. Needs benchmarks/peers_requirements.txt.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from common import passages, queries, ratio
from embedding import chroma
from peers_common import attempted, built, machine, ms, turns
from tars_rag import Embedder
from tars_rag.bench.work import work
from tars_rag.models.batching import feed, plan
from tars_rag.models.bert_graph import build_graph
from tars_rag.models.cache import ModelCache
from tars_rag.models.tokenizer import Tokenizer
from tars_rag.models.weights import load_weights

Embed = Callable[[list[str]], np.ndarray]
EXACT = 0.9999


def sentence_transformers(model: Path, backend: str, **arguments: object) -> Embed:
    from sentence_transformers import SentenceTransformer, models

    # Exported models are written beside the weights, so it gets a copy.
    folder = Path(tempfile.mkdtemp()) / "all-MiniLM-L6-v2"
    shutil.copytree(model, folder)
    body = models.Transformer(str(folder), max_seq_length=256, backend=backend, **arguments)
    pool = models.Pooling(body.get_word_embedding_dimension())
    network = SentenceTransformer(modules=[body, pool, models.Normalize()], device="cpu")
    return lambda texts: np.asarray(
        network.encode(texts, batch_size=16, show_progress_bar=False), np.float32
    )


def torch_bf16(model: Path) -> Embed:
    import torch

    return sentence_transformers(model, "torch", model_args={"torch_dtype": torch.bfloat16})


def fastembed(model: Path, graph: Path) -> Embed:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="local/all-MiniLM-L6-v2",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local/all-MiniLM-L6-v2"),
        dim=384,
        model_file="model.onnx",
    )
    folder = Path(tempfile.mkdtemp())
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(model / name, folder / name)
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 256, "pad_token": "[PAD]"}')
    shutil.copyfile(graph, folder / "model.onnx")
    network = TextEmbedding("local/all-MiniLM-L6-v2", specific_model_path=str(folder))
    return lambda texts: np.array(list(network.embed(texts, batch_size=16)), np.float32)


def raw_openvino(model: Path, hint: str) -> Embed:
    """OpenVINO as it is, over a graph that pools; as many requests at once as it likes best."""
    import openvino

    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(_pooled(model).read_bytes(), b""),
        "CPU",
        {"PERFORMANCE_HINT": hint},
    )
    tokenizer = Tokenizer(model, 256)
    names = [port.any_name for port in compiled.inputs]
    queue = openvino.AsyncInferQueue(compiled)

    def embed(texts: list[str]) -> np.ndarray:
        encodings = tokenizer.encode(texts)
        rows = np.empty((len(texts), 384), np.float32)

        def done(request: object, at: list[int]) -> None:
            rows[at] = request.get_output_tensor(0).data  # type: ignore[attr-defined]

        queue.set_callback(done)
        for batch in plan([len(e) for e in encodings], tokens_per_batch=2048):
            queue.start_async(feed(batch, encodings, names), list(batch.rows))
        queue.wait_all()
        return rows

    return embed


def _pooled(model: Path) -> Path:
    path = Path(tempfile.mkdtemp()) / "pooled.onnx"
    path.write_bytes(build_graph(load_weights(model), output="pooled").SerializeToString())
    return path


def _tokens(model: Path) -> Path:
    from onnx import TensorProto, helper

    graph = build_graph(load_weights(model), output="tokens")
    if "token_type_ids" not in [i.name for i in graph.graph.input]:
        graph.graph.input.append(
            helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["batch", "tokens"])
        )
    path = Path(tempfile.mkdtemp()) / "tokens.onnx"
    path.write_bytes(graph.SerializeToString())
    return path


def limits(seconds: float) -> dict[str, float]:
    """The machine's own matrix multiply, GFLOP/s by precision: the best of several runs."""
    import time

    import torch

    found = {}
    for name in ("float32", "bfloat16", "int8"):
        if name == "int8":
            a = torch.randint(-9, 9, (2048, 2048), dtype=torch.int8)
            multiply = partial(torch._int_mm, a, a)
        else:
            a = torch.randn(2048, 2048, dtype=getattr(torch, name))
            multiply = partial(torch.matmul, a, a)
        best, begun = 1e9, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            multiply()
            best = min(best, time.perf_counter() - start)
        found[name] = 2 * 2048**3 / best / 1e9
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a BEIR folder, such as Cranfield")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--passages", type=int, default=160)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--programs", nargs="+", help="these alone, and this package's fp32")
    options = parser.parse_args()
    texts = passages(options.data, options.passages)
    asked = queries(options.data, options.queries)
    model = ModelCache().get("all-MiniLM-L6-v2").directory
    packages = (
        "openvino",
        "onnxruntime",
        "torch",
        "sentence-transformers",
        "fastembed",
        "chromadb",
    )
    print(machine(*packages))

    def ours(engine: str, precision: str = "fp32") -> Embed:
        return Embedder(device="cpu", engine=engine, precision=precision).embed  # type: ignore[arg-type]

    exact_one = "tars-rag, ONNX Runtime fp32"
    makers: dict[str, Callable[[], Embed]] = {
        exact_one: lambda: ours("onnxruntime"),
        "tars-rag, ONNX Runtime int8": lambda: ours("onnxruntime", "int8"),
        "tars-rag, OpenVINO": lambda: ours("openvino"),
        "tars-rag, OpenVINO int8": lambda: ours("openvino", "int8"),
        "OpenVINO itself, latency": lambda: raw_openvino(model, "LATENCY"),
        "OpenVINO itself, throughput": lambda: raw_openvino(model, "THROUGHPUT"),
        "sentence-transformers, torch fp32": lambda: sentence_transformers(model, "torch"),
        "sentence-transformers, torch bf16": lambda: torch_bf16(model),
        "sentence-transformers, ONNX": lambda: sentence_transformers(model, "onnx"),
        "sentence-transformers, OpenVINO": lambda: sentence_transformers(model, "openvino"),
        "fastembed": lambda: fastembed(model, _tokens(model)),
        "Chroma ONNXMiniLM_L6_V2": lambda: chroma(model),
    }
    asked_for = {exact_one, *(options.programs or makers)}
    engines = built({name: make for name, make in makers.items() if name in asked_for})
    reference = engines[exact_one](texts)
    rows = {name: attempted(name, partial(embed, texts)) for name, embed in engines.items()}
    cosines = {
        name: (found * reference).sum(1) / np.linalg.norm(found, axis=1)
        for name, found in rows.items()
        if found is not None
    }
    engines = {name: embed for name, embed in engines.items() if name in cosines}
    share = options.minutes * 60
    bulk = turns({n: partial(e, texts) for n, e in engines.items()}, share * 0.6)

    def one_by_one(embed: Embed) -> None:
        for query in asked:
            embed([query])

    single = turns({n: partial(one_by_one, e) for n, e in engines.items()}, share * 0.25)

    exact = [n for n in engines if cosines[n].mean() >= EXACT]
    base = min((n for n in exact if not n.startswith("tars")), key=lambda n: ms(bulk[n]))
    quick = min((n for n in engines if not n.startswith("tars")), key=lambda n: ms(single[n]))
    print(f"{len(texts)} passages, {len(asked)} queries; x: times faster than {base} / {quick}")
    print("| program | passages/s | x | one query, ms | x | mean cosine | least |")
    print("|---|---|---|---|---|---|---|")
    for name in engines:
        print(
            f"| {name} | {1000 * len(texts) / ms(bulk[name]):.0f} "
            f"| {ratio(bulk[base], bulk[name]):.2f} | {ms(single[name]) / len(asked):.1f} "
            f"| {ratio(single[quick], single[name]):.2f} "
            f"| {cosines[name].mean():.5f} | {cosines[name].min():.4f} |"
        )
    tokens = [len(e) for e in Tokenizer(model, 256).encode(texts)]
    gflop = 2 * work(tokens, None) / 1e9
    print("\n| precision | matrix multiply, GFLOP/s | so at most passages/s | tars-rag's share |")
    print("|---|---|---|---|")
    names = {"float32": "ONNX Runtime fp32", "bfloat16": "OpenVINO", "int8": "ONNX Runtime int8"}
    peaks = attempted("matrix multiply", partial(limits, share * 0.03)) or {}
    for precision, peak in peaks.items():
        name = f"tars-rag, {names[precision]}"
        most = len(texts) * peak / gflop
        if name in bulk:
            reached = 1000 * len(texts) / ms(bulk[name]) / most
            print(f"| {precision} | {peak:.0f} | {most:.0f} | {reached:.0%} ({name}) |")


if __name__ == "__main__":
    main()
