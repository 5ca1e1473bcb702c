"""Models of the right shape with random weights, where the published ones cannot be had.

Their scores mean nothing; the time of a model does not depend on what its weights are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tars_rag.models.architectures.config import BertConfig, Rotary
from tars_rag.models.cache import ModelCache
from tars_rag.models.catalog import find_spec
from tars_rag.models.random_model import write_random_model
from tars_rag.models.tokenizer import TOKENIZER_NAME

_ETTIN_17M: Final = BertConfig(
    layers=7,
    hidden=256,
    heads=4,
    intermediate=384,
    vocabulary=50368,
    types=0,
    architecture="modernbert",
    rotary=Rotary(local=tuple(layer % 3 != 0 for layer in range(7))),
)

SHAPES: Final = {
    "ettin-reranker-17m-v1": _ETTIN_17M,
    "ms-marco-MiniLM-L-12-v2": BertConfig(12, 384, 12, 1536, 30522),
    "ms-marco-MiniLM-L-12-v2-fp32": BertConfig(12, 384, 12, 1536, 30522),
    "ms-marco-MiniLM-L6-v2": BertConfig(6, 384, 12, 1536, 30522),
    "ms-marco-TinyBERT-L-2-v2": BertConfig(2, 128, 2, 512, 30522),
    "ms-marco-TinyBERT-L-2-v2-fp32": BertConfig(2, 128, 2, 512, 30522),
    "all-MiniLM-L6-v2": BertConfig(6, 384, 12, 1536, 30522),
    "all-MiniLM-L12-v2": BertConfig(12, 384, 12, 1536, 30522),
    "snowflake-arctic-embed-xs": BertConfig(6, 384, 12, 1536, 30522),
}
"""Layers, width, heads, width of the feed-forward part, vocabulary: from the models' cards."""


def write(name: str, folder: Path, cache: ModelCache) -> Path | None:
    """Write a model of the shape of a catalogue's model; None where its shape is not known here.

    Args:
        name: Of the catalogue.
        folder: Where.
        cache: Its English word pieces are used if any model there has them, so that texts are of
            as many tokens as for the published model.
    """
    spec = find_spec(name)
    if spec is None or spec.name not in SHAPES:
        return None
    config = SHAPES[spec.name]
    known = cache.root / "all-MiniLM-L6-v2" / TOKENIZER_NAME
    onnx = next((file.name for file in spec.files if file.name.endswith(".onnx")), None)
    return write_random_model(
        folder / spec.name,
        config,
        head=spec.kind != "embedder",
        tokenizer=known if known.is_file() else None,
        onnx=onnx,
        quantised=onnx is not None,
    )
