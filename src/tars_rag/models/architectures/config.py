"""The numbers of a ``config.json`` that a graph depends on, whichever the architecture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tars_rag.errors import ModelError, shown
from tars_rag.models.architectures.head import ACTIVATIONS
from tars_rag.models.catalog import fetch_again
from tars_rag.models.spec import Pooling

CONFIG_NAME: Final = "config.json"
COUNTED_FROM_PADDING: Final = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Architectures whose first token has the position behind that of the padding."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary positions, and which layers look at their neighbours only (ModernBERT).

    Attributes:
        local: Of each layer: it attends to `window` tokens around each token, not to all.
        window: Tokens that a local layer sees, half of them on either side.
        theta: Base of the rotation in layers that see all tokens.
        local_theta: The same in local layers.
    """

    local: tuple[bool, ...]
    window: int = 128
    theta: float = 160_000.0
    local_theta: float = 10_000.0


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The numbers of an encoder of BERT's family.

    Attributes:
        layers: Encoder layers.
        hidden: Width of a token.
        heads: Attention heads.
        intermediate: Width between the two linear layers after an attention.
        vocabulary: Words.
        positions: The longest text, in tokens.
        types: Token types; 0 where the architecture has none.
        epsilon: Of the layer norms.
        pad_id: The token that fills a batch up.
        architecture: ``model_type`` of its ``config.json``.
        first_position: The row of the position table that the first token gets.
        buckets: Of relative positions (MPNet); 0: there are none.
        rotary: Of ModernBERT; None: positions are a table.
        activation: Between the two linear layers after an attention.
        classifier_pooling: What a classification head is given.
        classifier_activation: Inside a classification head.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int = 512
    types: int = 2
    epsilon: float = 1e-12
    pad_id: int = 0
    architecture: str = "bert"
    first_position: int = 0
    buckets: int = 0
    rotary: Rotary | None = None
    activation: str = "gelu"
    classifier_pooling: Pooling = "cls"
    classifier_activation: str = "tanh"

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @classmethod
    def from_json(cls, path: Path) -> BertConfig:
        """Read ``config.json``.

        Raises:
            ModelError: It is missing or broken, or describes a network this package does not
                build; the message says which field and value.
        """
        raw = read_json(path)
        family = str(raw.get("model_type"))
        if family not in _FAMILIES:
            _refuse(path, "model_type", raw.get("model_type"), tuple(_FAMILIES))
        read, wanted = _FAMILIES[family]
        for key, (default, allowed) in wanted.items():
            if (value := raw.get(key, default)) not in allowed:
                _refuse(path, key, value, allowed)
        try:
            config = read(family, raw)
        except (KeyError, TypeError, ValueError, AttributeError, LookupError) as error:
            msg = f"{path} lacks or garbles {error}. {fetch_again(path.parent)}"
            raise ModelError(msg) from error
        if config.heads < 1 or config.hidden % config.heads:
            msg = f"{path}: hidden size {config.hidden} is not a multiple of {config.heads} heads."
            raise ModelError(msg)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The same as a Hugging Face ``config.json``."""
        if self.architecture == "distilbert":
            return {
                "model_type": "distilbert",
                "activation": "gelu",
                "n_layers": self.layers,
                "dim": self.hidden,
                "n_heads": self.heads,
                "hidden_dim": self.intermediate,
                "vocab_size": self.vocabulary,
                "max_position_embeddings": self.positions,
                "pad_token_id": self.pad_id,
            }
        shared = {
            "model_type": self.architecture,
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions + self.first_position,
            "pad_token_id": self.pad_id,
        }
        if self.rotary:
            kinds = {True: "sliding_attention", False: "full_attention"}
            return shared | {
                "hidden_activation": self.activation,
                "norm_eps": self.epsilon,
                "local_attention": self.rotary.window,
                "layer_types": [kinds[local] for local in self.rotary.local],
                "global_rope_theta": self.rotary.theta,
                "local_rope_theta": self.rotary.local_theta,
                "classifier_pooling": self.classifier_pooling,
            }
        own = {"relative_attention_num_buckets": self.buckets} if self.buckets else {}
        return shared | own | {
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "type_vocab_size": self.types,
            "layer_norm_eps": self.epsilon,
        }  # fmt: skip


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
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path} cannot be read ({error}). {fetch_again(path.parent)}"
        raise ModelError(msg) from error
    if not isinstance(raw, dict):
        msg = f"{path} does not hold a JSON object. {fetch_again(path.parent)}"
        raise ModelError(msg)
    return raw


def _refuse(path: Path, key: str, value: object, allowed: tuple[object, ...]) -> None:
    only = ", ".join(map(repr, allowed))
    msg = (
        f"{path} has {key}={shown(value)}; only {only} is supported. Use an encoder or "
        "cross-encoder such as those of `tars-rag models list`."
    )
    raise ModelError(msg)


def _bert(family: str, raw: Mapping[str, Any]) -> BertConfig:
    counted = family in COUNTED_FROM_PADDING
    pad = int(raw.get("pad_token_id", 1)) if counted else int(raw.get("pad_token_id") or 0)
    first = pad + 1 if counted else 0
    positions = int(raw.get("max_position_embeddings", 512))
    mpnet = family == "mpnet"
    return BertConfig(
        layers=int(raw["num_hidden_layers"]),
        hidden=int(raw["hidden_size"]),
        heads=int(raw["num_attention_heads"]),
        intermediate=int(raw["intermediate_size"]),
        vocabulary=int(raw["vocab_size"]),
        positions=positions - first,
        types=0 if mpnet else int(raw.get("type_vocab_size", 2)),
        epsilon=float(raw.get("layer_norm_eps", 1e-12)),
        pad_id=pad,
        architecture=family,
        first_position=first,
        buckets=int(raw.get("relative_attention_num_buckets", 32)) if mpnet else 0,
    )


def _distilbert(family: str, raw: Mapping[str, Any]) -> BertConfig:
    return BertConfig(
        layers=int(raw["n_layers"]),
        hidden=int(raw["dim"]),
        heads=int(raw["n_heads"]),
        intermediate=int(raw["hidden_dim"]),
        vocabulary=int(raw["vocab_size"]),
        positions=int(raw.get("max_position_embeddings", 512)),
        types=0,
        pad_id=int(raw.get("pad_token_id") or 0),
        architecture=family,
        classifier_activation="relu",
    )


def _modernbert(family: str, raw: Mapping[str, Any]) -> BertConfig:
    layers = int(raw["num_hidden_layers"])
    every = int(raw.get("global_attn_every_n_layers", 3))
    kinds = raw.get("layer_types") or [
        "sliding_attention" if layer % every else "full_attention" for layer in range(layers)
    ]
    if len(kinds) != layers or set(kinds) - {"sliding_attention", "full_attention"}:
        msg = f"'layer_types' ({shown(kinds)})"
        raise ValueError(msg)
    bases = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
    for kind, name in (
        ("full_attention", "global_rope_theta"),
        ("sliding_attention", "local_rope_theta"),
    ):
        newer = (raw.get("rope_parameters") or {}).get(kind) or {}
        if newer.get("rope_type", "default") != "default":
            msg = f"'rope_type' ({shown(newer['rope_type'])})"
            raise ValueError(msg)
        bases[kind] = float(newer.get("rope_theta") or raw.get(name) or bases[kind])
    pooling = raw.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        msg = f"'classifier_pooling' ({shown(pooling)})"
        raise ValueError(msg)
    return BertConfig(
        layers=layers,
        hidden=int(raw["hidden_size"]),
        heads=int(raw["num_attention_heads"]),
        intermediate=int(raw["intermediate_size"]),
        vocabulary=int(raw["vocab_size"]),
        positions=int(raw.get("max_position_embeddings", 8192)),
        types=0,
        epsilon=float(raw.get("norm_eps", 1e-5)),
        pad_id=int(raw.get("pad_token_id") or 0),
        architecture=family,
        rotary=Rotary(
            tuple(kind == "sliding_attention" for kind in kinds),
            int(raw.get("local_attention", 128)),
            bases["full_attention"],
            bases["sliding_attention"],
        ),
        activation=str(raw.get("hidden_activation", "gelu")),
        classifier_pooling=pooling,
        classifier_activation=str(raw.get("classifier_activation", "gelu")),
    )


_Wanted = Mapping[str, tuple[object, tuple[object, ...]]]
_COMMON: Final[_Wanted] = {
    "hidden_act": ("gelu", ("gelu",)),
    "position_embedding_type": ("absolute", ("absolute",)),
    "is_decoder": (False, (False,)),
}
_FAMILIES: Final[Mapping[str, tuple[Callable[[str, Mapping[str, Any]], BertConfig], _Wanted]]] = {
    "bert": (_bert, _COMMON),
    "roberta": (_bert, _COMMON),
    "xlm-roberta": (_bert, _COMMON),
    "camembert": (_bert, _COMMON),
    "mpnet": (_bert, _COMMON),
    "distilbert": (
        _distilbert,
        {"activation": ("gelu", ("gelu",)), "sinusoidal_pos_embds": (False, (False, True))},
    ),
    "modernbert": (
        _modernbert,
        {
            "hidden_activation": ("gelu", ("gelu", "silu")),
            "classifier_activation": ("gelu", ACTIVATIONS),
        },
    ),
}
"""By ``model_type``: how it is read; by field, what stands for none and what is supported."""
