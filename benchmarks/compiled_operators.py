"""What the toolkit compiles a model to: operators on the CPU, integer inputs, what is not fused.

    python benchmarks/compiled_operators.py --lengths 32,64,128,256,512

Converts with every toolkit, for RK3588 and RK3576, with attention fused and split, and appends one
line a file to compiled_operators.jsonl, beside this script. Some of the texts that are simulated
fill the length.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

from tars_rag.convert.build import convert
from tars_rag.convert.texts import sample
from tars_rag.runtimes.npu.library import TOOLKITS

RESULTS = Path(__file__).with_suffix(".jsonl")


def texts(path: Path) -> Path:
    """Every fifth of the bundled ones, and two that fill any length."""
    bundled = sample("embedder", "evaluation").texts
    long = [" ".join(bundled[start::2]) for start in (0, 1)]
    lines = [" ".join(text.split()) for text in (*bundled[::5], *long)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="all-MiniLM-L6-v2")
    parser.add_argument("--precision", default="fp16-host")
    parser.add_argument("--lengths", default="32,64,96,128,192,256,384,512")
    parser.add_argument("--toolkits", default=",".join(TOOLKITS))
    parser.add_argument("--targets", default="rk3588,rk3576")
    parser.add_argument("--attention", default="fused,split")
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    kinds = (options.toolkits, options.targets, options.attention)
    # All of a length before the next one: the first lines come soon, and none is for one kind only.
    for length, *kind in itertools.product(lengths, *(k.split(",") for k in kinds)):
        toolkit, target, attention = kind
        with tempfile.TemporaryDirectory(dir=".") as folder:
            _, made = convert(
                options.model,
                precision=options.precision,
                lengths=[length],
                target=target,
                toolkit=toolkit,
                attention=attention,
                evaluation=texts(Path(folder) / "texts.txt"),
                out=Path(folder) / "bundle",
                allow_degraded=True,
            )
        [graph] = made.graphs
        line = {
            "model": made.model,
            "precision": options.precision,
            "toolkit": toolkit,
            "target": target,
            "attention": attention,
            "length": length,
            "inputs": made.inputs,
            "operators": graph.operators.model_dump() if graph.operators else None,
            "mib": round(graph.bytes / 2**20, 2),
            "texts": made.fidelity.texts,
            "mean_cosine": made.fidelity.mean_cosine,
            "min_cosine": made.fidelity.min_cosine,
        }
        print(json.dumps(line), flush=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
