"""Every architecture through the toolkit's simulator, in the shape of a published model.

    python benchmarks/architectures.py --precisions fp16-host,fp16
    python benchmarks/architectures.py --small --precisions fp16-host,fp16 --length 48
    python benchmarks/architectures.py --trained --precisions hq-host,int8-host --length 64
    python benchmarks/architectures.py --table

The first two have random weights; the third the trained ones of all-MiniLM-L6-v2, written in the
tensors of each architecture that can hold them (the same function, so int8 and hq mean something).
Each conversion appends one line to architectures.jsonl, beside this script; the last prints them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tars_rag.convert.build import convert
from tars_rag.errors import ConversionError
from tars_rag.models.architectures.config import BertConfig, Rotary
from tars_rag.models.cache import ModelCache
from tars_rag.models.random_model import stored_arrays, write_random_model
from tars_rag.models.weights import BertWeights, load_weights

RESULTS = Path(__file__).with_suffix(".jsonl")
TRAINED = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Shape:
    """A published model whose sizes are taken.

    Attributes:
        like: Its name.
        config: Its sizes.
        tail: The modules behind the pooling: none, or Ettin's, without the last layer or with it.
    """

    like: str
    config: BertConfig
    tail: str = "none"


def roberta(architecture: str, layers: int, hidden: int, words: int) -> BertConfig:
    heads = hidden // (64 if hidden == 768 else 32)
    return BertConfig(
        layers, hidden, heads, 4 * hidden, words, 512, 1, 1e-5, 1, architecture, first_position=2
    )


def modern(layers: int, hidden: int, heads: int, wide: int, words: int, act: str) -> BertConfig:
    local = tuple(bool(layer % 3) for layer in range(layers))
    return BertConfig(
        layers, hidden, heads, wide, words, 512, 0, 1e-5, 0, "modernbert",
        rotary=Rotary(local, 128), activation=act, classifier_activation="gelu",
    )  # fmt: skip


ETTIN = modern(7, 256, 4, 384, 50_368, "gelu")
SHAPES = (
    Shape("all-MiniLM-L6-v2", BertConfig(6, 384, 12, 1536, 30_522)),
    Shape("all-distilroberta-v1", roberta("roberta", 6, 768, 50_265)),
    Shape("mmarco-mMiniLMv2-L12-H384-v1", roberta("xlm-roberta", 12, 384, 250_002)),
    Shape("sentence-camembert-base", roberta("camembert", 12, 768, 32_005)),
    Shape(
        "msmarco-distilbert-base-v4",
        BertConfig(6, 768, 12, 3072, 30_522, types=0, architecture="distilbert"),
    ),
    Shape(
        "all-mpnet-base-v2",
        replace(roberta("mpnet", 12, 768, 30_527), types=0, buckets=32),
    ),
    Shape("ettin-reranker-17m-v1, without its last layer", ETTIN, "ettin"),
    Shape("ettin-reranker-17m-v1", ETTIN, "ettin-reranker"),
    Shape("a 97 M ModernBERT with SiLU", modern(12, 384, 12, 1536, 180_000, "silu")),
)


def small(shape: Shape) -> Shape:
    """Three narrow layers of the same kind: seconds instead of minutes."""
    rotary = shape.config.rotary
    config = replace(
        shape.config, layers=3, hidden=64, heads=4, intermediate=128, vocabulary=300,
        rotary=replace(rotary, local=rotary.local[:3], window=16) if rotary else None,
    )  # fmt: skip
    return replace(shape, config=config, like=f"{shape.like}; three layers, 64 wide")


def ettin_modules(folder: Path, width: int, *, last: bool) -> None:
    """The files of ``Dense -> LayerNorm`` behind a CLS pooling, and of ``Dense`` to one logit."""
    random = np.random.default_rng(6)
    gelu = "torch.nn.modules.activation.GELU"
    dense = {"in_features": width, "out_features": width, "bias": False}
    parts: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("Transformer", "", {}, {}),
        ("Pooling", "1_Pooling", {"pooling_mode_cls_token": True}, {}),
        (
            "Dense",
            "2_Dense",
            dense | {"activation_function": gelu},
            {"linear.weight": random.normal(size=(width, width)) / width**0.5},
        ),
        (
            "LayerNorm",
            "3_LayerNorm",
            {"dimension": width},
            {
                "norm.weight": random.normal(1, 0.2, width),
                "norm.bias": random.normal(0, 0.2, width),
            },
        ),
    ]
    if last:
        identity = "torch.nn.modules.linear.Identity"
        said = dense | {"out_features": 1, "bias": True, "activation_function": identity}
        drawn = {"linear.weight": random.normal(size=(1, width)) / width**0.5}
        parts.append(("Dense", "4_Dense", said, drawn | {"linear.bias": np.zeros(1)}))
    rows = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path, _, _) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(rows), encoding="utf-8")
    for _, path, settings, arrays in parts[1:]:
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        if arrays:
            stored = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
            save_file(stored, folder / path / "model.safetensors")


def random_model(shape: Shape, folder: Path) -> Path:
    write_random_model(folder, shape.config, head=False, seed=3)
    if shape.tail != "none":
        ettin_modules(folder, shape.config.hidden, last=shape.tail == "ettin-reranker")
    return folder


def written_as(weights: BertWeights, architecture: str) -> BertWeights:
    """The same function in the tensors of another architecture of BERT's family.

    The one token type that an embedder uses is added to the positions where there are no types; the
    positions begin behind the padding where they do; MPNet's relative positions weigh nothing.
    """
    arrays = dict(weights.arrays)
    types = arrays.pop("embeddings.token_type_embeddings.weight")[:1]
    config = replace(weights.config, architecture=architecture, types=0)
    positions = "embeddings.position_embeddings.weight"
    if architecture in ("roberta", "xlm-roberta", "camembert"):
        config = replace(config, types=1)
        arrays["embeddings.token_type_embeddings.weight"] = types
    else:
        arrays[positions] = arrays[positions] + types
    if architecture != "distilbert":
        config = replace(config, pad_id=1, first_position=2)
        arrays[positions] = np.pad(arrays[positions], ((2, 0), (0, 0)))
    if architecture == "mpnet":
        config = replace(config, buckets=32)
        arrays["encoder.relative_attention_bias.weight"] = np.zeros((32, config.heads), np.float32)
    return replace(weights, config=config, arrays=arrays)


Case = tuple[str, str, str, Callable[[], Path]]
"""Architecture, whose shape, whose weights, and what writes the model directory."""


def random_cases(root: Path, shapes: Sequence[Shape]) -> list[Case]:
    return [
        (one.config.architecture, one.like, "random", partial(random_model, one, root / str(n)))
        for n, one in enumerate(shapes)
    ]


def trained_cases(root: Path) -> list[Case]:
    found = ModelCache().get(TRAINED)
    weights = load_weights(found.directory)

    def write(architecture: str) -> Path:
        folder = root / architecture
        small = BertConfig(1, 8, 1, 8, 99)  # for the files of a tokenizer
        write_random_model(folder, small, tokenizer=found.directory / "tokenizer.json")
        given = weights if architecture == "bert" else written_as(weights, architecture)
        save_file(stored_arrays(given), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(given.config.to_dict()), encoding="utf-8")
        return folder

    names = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet")
    return [(name, TRAINED, f"{TRAINED}'s", partial(write, name)) for name in names]


def measured(model: Path, precision: str, length: int, **what: object) -> dict[str, object]:
    """One conversion; a refusal is told as such."""
    out = model.parent / "bundle"
    began = time.monotonic()
    line: dict[str, object] = {**what, "precision": precision, "length": length}
    try:
        _, made = convert(
            str(model), precision=precision, lengths=[length], out=out, allow_degraded=True
        )
    except ConversionError as error:
        return line | {"refused": str(error).partition("\n")[0]}
    seconds = time.monotonic() - began
    table = made.word_table.bytes if made.word_table else 0
    operators = made.graphs[0].operators
    return line | {
        "toolkit": made.toolkit,
        "fidelity": made.fidelity.model_dump(exclude_none=True),
        "rknn_mib": round(made.graphs[0].bytes / 2**20, 1),
        "table_mib": round(table / 2**20, 1),
        "on_cpu": list(operators.on_cpu) if operators else None,
        "peak_mb": made.recipe["lengths"][str(length)]["peak_mb"],  # type: ignore[index]
        "seconds": round(seconds),
    }


def table(lines: list[dict[str, Any]]) -> str:
    head = "| architecture | in the shape of | weights | precision | length | mean cosine | worst |"
    rows = [f"{head} MiB | word table, MiB |", "|---|---|---|---|---|---|---|---|---|"]
    for line in lines:
        cells = [line["architecture"], line["like"], line["weights"], line["precision"]]
        cells.append(str(line["length"]))
        if "refused" in line:
            cells += ["refused", "", "", ""]
        else:
            judged = line["fidelity"]
            kind, digits = ("cosine", 7) if "mean_cosine" in judged else ("spearman", 4)
            mark = "" if kind == "cosine" else " (Spearman)"
            gate = ", below the gate" if judged["degraded"] else ""
            cells.append(f"{judged[f'mean_{kind}']:.{digits}f}{mark}{gate}")
            cells.append(f"{judged[f'min_{kind}']:.{digits}f}")
            cells.append(f"{line['rknn_mib']:.1f}")
            cells.append(f"{line['table_mib']:.0f}" if line["table_mib"] else "in the file")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precisions", default="fp16-host,fp16")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--only", default="", help="architectures, by commas; all if none is given")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        lines = RESULTS.read_text(encoding="utf-8").splitlines()
        print(table([json.loads(line) for line in lines]))
        return
    only = options.only.split(",") if options.only else None
    for precision in options.precisions.split(","):
        with tempfile.TemporaryDirectory(dir=".") as place:
            root = Path(place)
            shapes = [small(shape) for shape in SHAPES] if options.small else SHAPES
            cases = trained_cases(root) if options.trained else random_cases(root, shapes)
            for architecture, like, weights, make in cases:
                if only and architecture not in only:
                    continue
                model = make()
                what = {"architecture": architecture, "like": like, "weights": weights}
                line = measured(model, precision, options.length, **what)
                print(json.dumps(line), flush=True)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                for leftover in (model, root / "bundle"):
                    shutil.rmtree(leftover, ignore_errors=True)


if __name__ == "__main__":
    main()
