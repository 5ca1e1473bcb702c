"""The figures of docs/quantisation.md: one experiment a command, one JSON line a result.

    python benchmarks/quantisation.py rows all-MiniLM-L6-v2 --precisions fp16,hq --lengths 64,128
    python benchmarks/quantisation.py ladder
    python benchmarks/quantisation.py retrieval ../shared/data/cranfield --precisions hq,int8
    python benchmarks/quantisation.py collection ../shared/data/cranfield --every 12
    python benchmarks/quantisation.py sizes
    python benchmarks/quantisation.py shapes
    python benchmarks/quantisation.py plot            # needs matplotlib; reads the lines, draws

Lines are appended to quantisation.jsonl, beside this file. Everything is measured in the toolkit's
simulator.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tars_rag.bench.evaluate import load_collection, mean, score
from tars_rag.convert import environment, fidelity, toolkit
from tars_rag.convert.build import convert
from tars_rag.convert.plan import Plan
from tars_rag.convert.recipes import RECIPES, Recipe
from tars_rag.convert.source import open_source
from tars_rag.convert.statistics import observe
from tars_rag.convert.texts import Sample, sample
from tars_rag.models.bert_graph import LINEAR, build_graph, host_input_names
from tars_rag.models.weights import BertConfig, BertWeights, random_weights
from tars_rag.runtimes.npu.host_inputs import WORDS, device_inputs

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS = Path(__file__).with_name("quantisation.jsonl")
MIB = 2**20


def record(experiment: str, **result: Any) -> None:
    line = json.dumps({"experiment": experiment, **result})
    print(line, flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def one(experiment: str, model: str, recipe: Recipe, length: int, evaluation: Path | None) -> None:
    """Convert one length, whatever it is worth, and record what it was."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        _, made = convert(
            model,
            precision=recipe,
            lengths=[length],
            evaluation=evaluation,
            out=Path(folder) / "bundle",
            allow_degraded=True,
        )
    figures = made.recipe["lengths"][str(length)]
    record(
        experiment,
        model=made.model,
        precision=recipe.name,
        length=length,
        mib=round(made.graphs[0].bytes / MIB, 2),
        table_mib=round(made.word_table.bytes / MIB, 2) if made.word_table else 0,
        build_seconds=figures["build_seconds"],
        seconds=figures["seconds"],
        peak_mb=figures["peak_mb"],
        evaluation=made.recipe["evaluation"],
        **made.fidelity.model_dump(exclude_none=True, exclude={"threshold"}),
    )


def rows(options: argparse.Namespace) -> None:
    for precision in options.precisions.split(","):
        for length in map(int, options.lengths.split(",")):
            one("rows", options.model, RECIPES[precision], length, options.eval)


def collection(options: argparse.Namespace) -> None:
    """Texts of a collection, none of which the recipes were made with: every so many, or long."""
    texts = [" ".join(p.text.split()) for p in load_collection(options.path).passages]
    encodings = open_source("all-MiniLM-L6-v2").encode(Sample(tuple(texts), (), "given"), 512)
    tokens = [len(encoding.ids) for encoding in encodings]
    enough = [text for text, n in zip(texts, tokens, strict=True) if n >= options.tokens]
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder) / f"{options.path.name}-every-{options.every}-tokens-{options.tokens}"
        texts = enough[options.every - 1 :: options.every][: options.first]
        chosen.write_text("\n".join(texts), "utf-8")
        for precision in options.precisions.split(","):
            for length in map(int, options.lengths.split(",")):
                one("rows", "all-MiniLM-L6-v2", RECIPES[precision], length, chosen)


def ladder(_: argparse.Namespace) -> None:
    """From what the toolkit does when left alone to the int8 row, one change at a time."""
    naive, int8 = RECIPES["naive-int8"], RECIPES["int8"]
    steps = [
        naive,
        replace(naive, name="naive, mask -100", mask=None),
        replace(naive, name="naive, mask -20", mask=-20.0),
        replace(int8, name="only linear layers int8", equalise=False),
        int8,
    ]
    for step in steps:
        one("ladder", "all-MiniLM-L6-v2", step, 128, None)


def simulated(precision: str, texts: list[str], length: int) -> tuple[Any, Any]:
    """The embeddings of texts from the simulator, and from FP32."""
    source = open_source("all-MiniLM-L6-v2")
    row = RECIPES[precision]
    chosen = Sample(tuple(texts), (), "given")
    plan = Plan(
        source=source,
        recipe=row,
        target="rk3588",
        calibration=sample("embedder", "calibration") if row.calibrated else None,
        evaluation=chosen,
        table=source.word_table() if row.table == "host" else None,
    )
    prepared = plan.prepare(length, lambda *_: None)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        built = toolkit.run(
            plan.job(length, prepared),
            environment.toolkit_python(),
            Path(folder) / "m.rknn",
            Path(folder),
            lambda *_: None,
        )
    graph = build_graph(source.weights, output="pooled").SerializeToString()
    exact = fidelity.reference(graph, source.feeds(source.encode(chosen, length)))
    return built.outputs.reshape(exact.shape), exact


def retrieval(options: argparse.Namespace) -> None:
    """nDCG@10 by cosine over the whole collection, both sides simulated, against FP32."""
    found = load_collection(options.collection)
    documents = {passage.id: passage.text for passage in found.passages}
    queries = {name: text for name, text in found.queries.items() if name in found.judgements}
    names = list(documents)
    texts = [*documents.values(), *queries.values()]
    for precision in options.precisions.split(","):
        pair = simulated(precision, texts, options.length)
        scores = []
        for vectors in pair:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            split = len(names)
            best = np.argsort(-(vectors[split:] @ vectors[:split].T), axis=1, kind="stable")
            rankings = [[names[n] for n in row[:100]] for row in best]
            judged = zip(rankings, queries, strict=True)
            scores.append(mean([score(r, found.judgements[q]) for r, q in judged]).as_dict())
        cosine = (pair[0] * pair[1]).sum(axis=1) / np.linalg.norm(pair[0], axis=1)
        record(
            "retrieval",
            precision=precision,
            length=options.length,
            documents=len(names),
            queries=len(queries),
            simulated=scores[0],
            fp32=scores[1],
            mean_cosine=float(cosine.mean()),
            min_cosine=float(cosine.min()),
        )


def _write_model(weights: BertWeights, folder: Path) -> Path:
    """A model directory with random weights and the vocabulary of all-MiniLM-L6-v2."""
    from safetensors.numpy import save_file

    folder.mkdir()
    save_file(dict(weights.arrays), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(weights.config.to_dict()))
    tokenizer = open_source("all-MiniLM-L6-v2").directory / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return folder


def multiplications(config: BertConfig, length: int) -> int:
    """Multiply-accumulates of one pass through the encoder."""
    dense = config.hidden * (4 * config.hidden + 2 * config.intermediate)
    return config.layers * length * (dense + 2 * length * config.hidden)


def sizes(options: argparse.Namespace) -> None:
    """Rerankers whose weights could not be had: random ones tell size and work, not fidelity."""
    small = BertConfig(layers=2, hidden=128, heads=2, intermediate=512, vocabulary=30522)
    large = BertConfig(layers=12, hidden=384, heads=12, intermediate=1536, vocabulary=30522)
    for name, config in (("TinyBERT-L-2 (128 wide)", small), ("MiniLM-L-12 (384 wide)", large)):
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory(dir=".") as folder:
            model = _write_model(random_weights(config, seed=0), Path(folder) / "model")
            few = Path(folder) / "pairs.tsv"  # random weights: there is no fidelity to measure
            few.write_text("\n".join(f"query {n % 2}\tpassage {n}" for n in range(16)))
            for precision in options.precisions.split(","):
                for length in map(int, options.lengths.split(",")):
                    _, made = convert(
                        str(model),
                        precision=precision,
                        lengths=[length],
                        evaluation=few,
                        out=Path(folder) / f"{precision}-{length}",
                        allow_degraded=True,
                    )
                    record(
                        "sizes",
                        model=name,
                        precision=precision,
                        length=length,
                        mib=round(made.graphs[0].bytes / MIB, 2),
                        table_mib=round(made.word_table.bytes / MIB, 2) if made.word_table else 0,
                        build_seconds=made.recipe["lengths"][str(length)]["build_seconds"],
                        peak_mb=made.recipe["lengths"][str(length)]["peak_mb"],
                        million_macs=round(multiplications(config, length) / 1e6),
                    )


def shapes(_: argparse.Namespace) -> None:
    """Batches, and several lengths in one file, in fp16 and fp16-host."""
    source = open_source("all-MiniLM-L6-v2")
    texts = sample("embedder", "evaluation")
    exact_graph = build_graph(source.weights, output="pooled").SerializeToString()
    python = environment.toolkit_python()
    for host in (True, False):
        table = source.word_table() if host else None
        names = (
            host_input_names(source.weights, "pooled", source.pooling, scaled=False)
            if host
            else source.inputs
        )

        def run(
            name: str,
            batch: int,
            length: int,
            several: list[int],
            names: tuple[str, ...] = names,
            table: Any = table,
        ) -> None:
            feeds = source.feeds(source.encode(texts, length), length)[:64]
            columns = zip(*(device_inputs(names, f, table) for f in feeds), strict=True)
            arrays = dict(zip(names, map(np.concatenate, columns), strict=True))
            width = source.weights.config.hidden
            dynamic = [
                [[batch, n, width] if name == WORDS else [batch, n] for name in names]
                for n in several
            ]
            graph = build_graph(
                source.weights,
                output="pooled",
                shape=None if several else (batch, length),
                host_inputs=table is not None,
            )
            job = toolkit.Job(
                graph=graph.SerializeToString(),
                inputs=names,
                target="rk3588",
                custom_string="{}",
                quantise="none",
                evaluation=arrays,
                rows_per_run=batch,
                dynamic_input=dynamic or None,
            )
            with tempfile.TemporaryDirectory(dir=".") as folder:
                path = Path(folder) / "m.rknn"
                built = toolkit.run(job, python, path, Path(folder), lambda *_: None)
                size = path.stat().st_size
            exact = fidelity.reference(exact_graph, source.feeds(source.encode(texts, length)[:64]))
            answers = built.outputs.reshape(exact.shape)
            cosine = (answers * exact).sum(axis=1) / np.linalg.norm(answers, axis=1)
            record(
                "shapes",
                shape=name,
                precision="fp16-host" if table is not None else "fp16",
                mib=round(size / MIB, 2),
                build_seconds=built.build_seconds,
                mean_cosine=float(cosine.mean()),
                min_cosine=float(cosine.min()),
            )

        for length in (32, 64, 128, 256):
            run(f"[1, {length}]", 1, length, [])
        run("[4, 64]", 4, 64, [])
        run("32, 64, 128 and 256 in one file", 1, 64, [32, 64, 128, 256])


def activations() -> dict[str, Any]:
    """Largest magnitude per channel of the tensors that ruin naive INT8."""
    source = open_source("all-MiniLM-L6-v2")
    feeds = source.feeds(source.encode(sample("embedder", "calibration"), 128))
    linears = [(layer, key) for layer in range(source.weights.config.layers) for key in LINEAR]
    seen = observe(source.weights, feeds, linears)
    return {name: channels.largest for name, channels in seen.items()}


def plot(_: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "tars-rag", "font.size": 9, "svg.fonttype": "none"}
    largest = activations()
    figure, panels = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
    for panel, (name, title) in zip(
        panels,
        (
            ("l0.gelu", "GELU of layer 0 (into ff2)"),
            ("l0.ff2", "ff2 of layer 0 (out)"),
            ("l4.ff2", "ff2 of layer 4 (out)"),
        ),
        strict=True,
    ):
        values = np.sort(largest[name])[::-1]
        panel.semilogy(values)
        top = int(np.argmax(largest[name]))
        panel.set(title=title, xlabel="channels, largest first", ylabel="largest magnitude")
        panel.annotate(
            f"channel {top}: {values[0]:.0f}\nmedian {np.median(values):.2f}",
            (0.35, 0.8),
            xycoords="axes fraction",
        )
        panel.grid(alpha=0.3)
    save(figure, "quantisation-activations.svg")


def save(figure: Any, name: str) -> None:
    figure.savefig(DOCS / name, metadata={"Date": None}, bbox_inches="tight")
    print(DOCS / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)

    def command(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__)
        sub.set_defaults(run=run)
        return sub

    sub = command(rows)
    sub.add_argument("model")
    sub.add_argument("--precisions", default=",".join(RECIPES))
    sub.add_argument("--lengths", default="128")
    sub.add_argument("--eval", type=Path)
    sub = command(collection)
    sub.add_argument("path", type=Path)
    sub.add_argument("--precisions", default="fp16,fp16-host,hq,int8")
    sub.add_argument("--lengths", default="64,128,256")
    sub.add_argument("--every", type=int, default=1, help="take every so many texts")
    sub.add_argument("--tokens", type=int, default=0, help="only texts of as many tokens or more")
    sub.add_argument("--first", type=int, help="at most so many texts")
    command(ladder)
    sub = command(retrieval)
    sub.add_argument("collection", type=Path)
    sub.add_argument("--precisions", default="hq,int8")
    sub.add_argument("--length", type=int, default=256)
    sub = command(sizes)
    sub.add_argument("--precisions", default="fp16,fp16-host,hq,int8,naive-int8")
    sub.add_argument("--lengths", default="128,512")
    sub.add_argument("--only", default="", help="a part of the model's name")
    command(shapes)
    command(plot)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
