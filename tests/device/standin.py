"""The stand-in's tiny model, once more in NumPy, and the files that script it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tars_rag.runtimes.npu.spec import KnownAnswer, NpuSpec, RknnFile

TWO = ("input_ids", "attention_mask")
THREE = (*TWO, "token_type_ids")
HOST = ("word_embeddings", "attention_mask")
FLOATS = ("word_embeddings", "additive_mask", "pooling_weights", "live_one")
FLOATS_OF_PAIRS = ("word_embeddings", "additive_mask", "token_types")


def words(ids: np.ndarray, dim: int) -> np.ndarray:
    """The word embedding of `standin.c`."""
    x = ids.astype(np.uint32)[..., None] * np.uint32(2654435761)
    x = x + np.arange(dim, dtype=np.uint32) * np.uint32(2246822519)
    x ^= x >> np.uint32(15)
    x = x * np.uint32(3266489917)
    x ^= x >> np.uint32(13)
    return (x & np.uint32(0xFFFF)).astype(np.float64) / 32768 - 1


def expected(
    feed: dict[str, np.ndarray], kind: str, dim: int, inputs: tuple[str, ...]
) -> np.ndarray:
    """What a session must return for this feed."""
    width = 1 if kind == "logit" else dim
    hidden = words(feed["input_ids"], width)
    hidden *= 1 + 0.125 * (np.arange(hidden.shape[1]) % 5)[:, None]
    if "token_type_ids" in inputs:
        hidden += 0.25 * feed["token_type_ids"][..., None]
    total = (hidden * feed["attention_mask"][..., None]).sum(axis=1)
    return total if kind == "logit" else total / np.linalg.norm(total)


def feed(*ids: int, length: int = 32, types: int = 0) -> dict[str, np.ndarray]:
    """One text; the last `types` tokens are of type 1."""
    arrays = {name: np.zeros((1, length), np.int64) for name in THREE}
    arrays["input_ids"][0, : len(ids)] = ids
    arrays["attention_mask"][0, : len(ids)] = 1
    arrays["token_type_ids"][0, len(ids) - types : len(ids)] = 1
    return arrays


class Bench:
    """A directory with model files, a fault script and the library's call log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log_file = folder / "calls.log"
        self.script_file = folder / "script"
        self.script_file.write_text("")
        os.environ["STANDIN_LOG"] = str(self.log_file)
        os.environ["STANDIN_SCRIPT"] = str(self.script_file)

    def model(
        self,
        kind: str = "pooled",
        dim: int = 8,
        inputs: tuple[str, ...] = TWO,
        lengths: tuple[int, ...] = (32,),
        name: str = "model.rknn",
    ) -> Path:
        path = self.folder / name
        path.write_text(
            f"STANDIN\ninputs {' '.join(inputs)}\nlengths {' '.join(map(str, lengths))}\n"
            f"output {kind} {dim}\n"
        )
        return path

    def spec(self, *, lengths: tuple[int, ...] = (32, 64), known: bool = True) -> NpuSpec:
        """A pooled model, one file a length, with known answers."""
        graphs = tuple(
            RknnFile(str(self.model(lengths=(n,), name=f"m{n}.rknn")), (n,)) for n in lengths
        )
        texts = [(2, 11, 12, 3), (2, 13, 3)]
        answers = tuple(
            KnownAnswer(t, None, tuple(expected(feed(*t), "pooled", 8, TWO)[0]), 1e-5)
            for t in texts
        )
        return NpuSpec(graphs, TWO, "pooled", answers=answers if known else ())

    def script(self, *lines: str) -> None:
        self.script_file.write_text("".join(f"{line}\n" for line in lines))

    def calls(self, name: str) -> int:
        if not self.log_file.exists():
            return 0
        return sum(line.split()[1] == name for line in self.log_file.read_text().splitlines())
