"""The weights and configuration of a BERT model, read from safetensors and ``config.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import ModelError
from tars_rag.models.catalog import fetch_again

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The numbers of a BERT model's ``config.json`` that its graph depends on."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int = 512
    types: int = 2
    epsilon: float = 1e-12
    pad_id: int = 0

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @classmethod
    def from_json(cls, path: Path) -> BertConfig:
        """Read ``config.json``.

        Raises:
            ModelError: It is missing or broken, or describes a network this package does not
                build: not BERT, other than absolute positions, other than GELU, a decoder.
        """
        raw = read_json(path)
        wanted = {
            "model_type": ("bert",),
            "position_embedding_type": ("absolute",),
            "hidden_act": ("gelu",),
            "is_decoder": (False,),
        }
        defaults = {"position_embedding_type": "absolute", "hidden_act": "gelu"}
        for key, allowed in wanted.items():
            value = raw.get(key, defaults.get(key, False))
            if value not in allowed:
                msg = (
                    f"{path} has {key}={value!r}; only {allowed[0]!r} is supported. "
                    "Use a BERT encoder or cross-encoder, such as those of `tars-rag models list`."
                )
                raise ModelError(msg)
        try:
            config = cls(
                layers=int(raw["num_hidden_layers"]),
                hidden=int(raw["hidden_size"]),
                heads=int(raw["num_attention_heads"]),
                intermediate=int(raw["intermediate_size"]),
                vocabulary=int(raw["vocab_size"]),
                positions=int(raw.get("max_position_embeddings", 512)),
                types=int(raw.get("type_vocab_size", 2)),
                epsilon=float(raw.get("layer_norm_eps", 1e-12)),
                pad_id=int(raw.get("pad_token_id") or 0),
            )
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{path} lacks or garbles {error}. {fetch_again(path.parent)}"
            raise ModelError(msg) from error
        if config.heads < 1 or config.hidden % config.heads:
            msg = f"{path}: hidden size {config.hidden} is not a multiple of {config.heads} heads."
            raise ModelError(msg)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The same as a Hugging Face ``config.json``."""
        return {
            "model_type": "bert",
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "type_vocab_size": self.types,
            "layer_norm_eps": self.epsilon,
            "pad_token_id": self.pad_id,
        }

    def shapes(self, *, head: bool) -> dict[str, tuple[int, ...]]:
        """Every tensor the graph reads, by its name without ``bert.``, and its shape."""
        h, f = self.hidden, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocabulary, h),
            "embeddings.position_embeddings.weight": (self.positions, h),
            "embeddings.token_type_embeddings.weight": (self.types, h),
            **_norm("embeddings.LayerNorm", h),
        }
        for layer in range(self.layers):
            p = f"encoder.layer.{layer}."
            for name in ("query", "key", "value"):
                shapes |= _dense(f"{p}attention.self.{name}", h, h)
            shapes |= _dense(f"{p}attention.output.dense", h, h)
            shapes |= _norm(f"{p}attention.output.LayerNorm", h)
            shapes |= _dense(f"{p}intermediate.dense", f, h)
            shapes |= _dense(f"{p}output.dense", h, f)
            shapes |= _norm(f"{p}output.LayerNorm", h)
        if head:
            shapes |= _dense("pooler.dense", h, h) | _dense("classifier", 1, h)
        return shapes


@dataclass(frozen=True, slots=True)
class BertWeights:
    """A BERT encoder, or a single-logit cross-encoder, in float32.

    Attributes:
        config: Its sizes.
        arrays: The tensors by Hugging Face name, without the prefix ``bert.``; linear layers as
            stored there, [out, in].
        head: There is a pooler and a classifier with one logit.
    """

    config: BertConfig
    arrays: Arrays
    head: bool


def load_weights(directory: Path) -> BertWeights:
    """Read ``config.json`` and ``model.safetensors`` of a model directory.

    float16 and float32 are read, both into float32. Names may have the prefix ``bert.``.

    Raises:
        ModelError: A file is missing or damaged, a tensor is missing or of another shape, or
            the classifier has several logits.
    """
    from safetensors import SafetensorError, safe_open

    config = BertConfig.from_json(directory / CONFIG_NAME)
    path = directory / WEIGHTS_NAME
    if not path.is_file():
        msg = f"{directory} has no {WEIGHTS_NAME}. {fetch_again(directory)}"
        raise ModelError(msg)
    arrays: dict[str, NDArray[np.float32]] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            stored = {name.removeprefix("bert."): name for name in file.keys()}  # noqa: SIM118
            head = "classifier.weight" in stored
            if head and (logits := file.get_slice(stored["classifier.weight"]).get_shape()[0]) != 1:
                msg = (
                    f"{path} has {logits} logits; only cross-encoders with a single logit are "
                    "supported. Choose one that gives a single score for a pair; those of "
                    "`tars-rag models list` do."
                )
                raise ModelError(msg)
            for name, shape in config.shapes(head=head).items():
                if name not in stored:
                    msg = (
                        f"{path} lacks the tensor {name}, so it is not a complete BERT model. "
                        f"{fetch_again(directory)}"
                    )
                    raise ModelError(msg)
                array = file.get_tensor(stored[name])
                if array.shape != shape or array.dtype not in (np.float16, np.float32):
                    msg = (
                        f"{path}: {name} is {array.dtype} {array.shape}, where config.json asks "
                        f"for float16 or float32 {shape}."
                    )
                    raise ModelError(msg)
                arrays[name] = np.asarray(array, np.float32)
    except (SafetensorError, OSError, TypeError) as error:
        msg = f"{path} cannot be read ({error}). {fetch_again(directory)}"
        raise ModelError(msg) from error
    return BertWeights(config, arrays, head)


def random_weights(config: BertConfig, *, head: bool = True, seed: int = 0) -> BertWeights:
    """Seeded random weights, scaled so that outputs spread like a trained model's."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, shape in config.shapes(head=head).items():
        if name.endswith("LayerNorm.weight"):
            array = np.ones(shape)
        elif name.endswith("bias"):
            array = random.standard_normal(shape) * 0.02
        else:
            array = random.standard_normal(shape) / math.sqrt(shape[-1])
        arrays[name] = array.astype(np.float32)
    return BertWeights(config, arrays, head)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model directory.

    Raises:
        ModelError: Missing, unreadable or not an object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = (
            f"{path.parent} has no {path.name}, so it is not a complete model. "
            f"{fetch_again(path.parent)}"
        )
        raise ModelError(msg) from None
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read ({error}). {fetch_again(path.parent)}"
        raise ModelError(msg) from error
    if not isinstance(raw, dict):
        msg = f"{path} does not hold a JSON object. {fetch_again(path.parent)}"
        raise ModelError(msg)
    return raw


def _dense(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
