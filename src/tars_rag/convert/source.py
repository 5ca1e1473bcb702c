"""The FP32 model that a conversion starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tars_rag.convert.texts import Sample
from tars_rag.errors import ConversionError, InvalidInputError, ModelError
from tars_rag.models import layout
from tars_rag.models.architectures.tensors import WORDS
from tars_rag.models.batching import Batch, feed
from tars_rag.models.bert_graph import takes_types
from tars_rag.models.cache import ModelCache
from tars_rag.models.catalog import find_spec
from tars_rag.models.local import WEIGHTS_NAME, LocalModel, weight_files
from tars_rag.models.spec import Pooling
from tars_rag.models.tokenizer import Encoding, Tokenizer
from tars_rag.models.weights import BertWeights, load_weights
from tars_rag.progress import NamedProgress
from tars_rag.runtimes.base import Feeds
from tars_rag.runtimes.npu.manifest import ModelKind

INPUTS: Final = ("input_ids", "attention_mask")


@dataclass(frozen=True, slots=True)
class Source:
    """A model directory, read.

    Attributes:
        name: Catalogue name, or the directory's name.
        directory: Where ``tokenizer.json`` is.
        weights: In float32.
        weights_sha256: Of ``model.safetensors``.
        pooling: How an embedder pools.
    """

    name: str
    directory: Path
    weights: BertWeights
    weights_sha256: str
    pooling: Pooling

    @property
    def kind(self) -> ModelKind:
        """A classifier makes a cross-encoder."""
        return "cross-encoder" if self.weights.head else "embedder"

    @property
    def dimension(self) -> int:
        """Width of an embedding; of a cross-encoder's layers."""
        return self.weights.config.hidden if self.weights.head else self.weights.width

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs, all int64 [1, tokens]."""
        typed = self.kind == "cross-encoder" and takes_types(self.weights)
        return (*INPUTS, "token_type_ids") if typed else INPUTS

    def encode(self, sample: Sample, length: int) -> list[Encoding]:
        """The texts or pairs as tokens, cut at `length`."""
        tokenizer = Tokenizer(self.directory, length)
        if self.kind == "embedder":
            return tokenizer.encode(sample.texts)
        pairs = zip(sample.queries, sample.texts, strict=True)
        return [tokenizer.encode_pairs(query, [text])[0] for query, text in pairs]

    def feeds(self, encodings: Sequence[Encoding], length: int | None = None) -> list[Feeds]:
        """One [1, tokens] feed per encoding, padded to `length`; None: not padded."""
        return [
            feed(
                Batch((row,), length or len(encoding)),
                encodings,
                self.inputs,
                self.weights.config.pad_id,
            )
            for row, encoding in enumerate(encodings)
        ]

    def word_table(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        """The word embeddings in float16, [vocabulary, hidden].

        Raises:
            ConversionError: A value does not fit into float16.
        """
        with np.errstate(over="ignore"):
            table = self.weights.arrays[WORDS].astype(np.float16)
        if not np.isfinite(table).all():
            msg = (
                f"The word embeddings of {self.name} do not fit into float16, which the NPU "
                "computes in. The weights are damaged, or this model cannot be converted."
            )
            raise ConversionError(msg)
        return table


def open_source(
    model: str, *, cache_dir: Path | None = None, progress: NamedProgress | None = None
) -> Source:
    """Find, or fetch, a model and read its weights.

    Args:
        model: A catalogue name, or a directory with ``config.json``, ``tokenizer.json`` and
            ``model.safetensors``.
        cache_dir: Where models are kept.
        progress: Told about a download.

    Raises:
        InvalidInputError: It is an ONNX file, or a directory with an ONNX model only.
        ModelError: Unknown, damaged, not to be had, of no supported architecture, or with more
            than two logits.
    """
    path = Path(model).expanduser()
    spec = find_spec(model)
    if spec and spec.kind == "reranker":
        spec = find_spec(f"{spec.name}-fp32")  # FlashRank's files are quantised already
        if spec is None:
            _refuse_onnx(model)
    if spec is None and path.is_file():
        if path.name != WEIGHTS_NAME:
            _refuse_onnx(model)
        path = path.parent
    if spec is None and path.is_dir() and not weight_files(path):
        _refuse_onnx(model)
    found = ModelCache(cache_dir).get(spec.name if spec else str(path), progress)
    return Source(
        name=found.name.removesuffix("-fp32"),
        directory=found.directory,
        weights=load_weights(found.directory),
        weights_sha256=found.weights_digest,
        pooling=_pooling(found),
    )


def _refuse_onnx(model: str) -> None:
    msg = (
        f"{model} has no FP32 weights to start from. Conversion starts from {WEIGHTS_NAME} with "
        "config.json and tokenizer.json, not from ONNX: quantised exports (DynamicQuantizeLinear) "
        "are refused by the toolkit, and others lack the layer names and the attention mask that "
        "the recipes need. Give the directory the model was published in, or a name from "
        "`tars-rag models list`."
    )
    raise InvalidInputError(msg)


def _pooling(model: LocalModel) -> Pooling:
    """As sentence-transformers records it; the mean where nothing is recorded."""
    try:
        return layout.pooling(model)
    except ModelError as error:
        raise ConversionError(str(error)) from error
