"""The tensors of each architecture: their names in a file, their shapes, and the modules of a head.

Where an architecture differs from BERT only in names, its tensors go by BERT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tars_rag.models.architectures.config import BertConfig
from tars_rag.models.architectures.head import Dense, LayerNorm, Module

WORDS: Final = "embeddings.word_embeddings.weight"
"""The word table, in every architecture."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Names:
    """What the files of an architecture call BERT's tensors.

    Attributes:
        prefix: Before the encoder's tensors in the files of a model with a head.
        parts: Parts of names: what this package calls them, and what the file does. The first
            that fits counts.
        classifier: The dense layer and the classifier of a head.
    """

    prefix: str
    parts: Mapping[str, str] = field(default_factory=dict)
    classifier: tuple[str, str] = ("pooler.dense", "classifier")

    def stored(self, name: str) -> str:
        """What the file calls a tensor, without the prefix."""
        for ours, theirs in self.parts.items():
            if ours in name:
                name = name.replace(ours, theirs)
                break
        return name


_ROBERTA: Final = Names("roberta.", classifier=("classifier.dense", "classifier.out_proj"))
NAMES: Final[Mapping[str, Names]] = {
    "bert": Names("bert."),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": Names(
        "mpnet.",
        {
            "attention.self.query": "attention.attn.q",
            "attention.self.key": "attention.attn.k",
            "attention.self.value": "attention.attn.v",
            "attention.output.dense": "attention.attn.o",
            "attention.output.LayerNorm": "attention.LayerNorm",
        },
        ("classifier.dense", "classifier.out_proj"),
    ),
    "distilbert": Names(
        "distilbert.",
        {
            "attention.self.query": "attention.q_lin",
            "attention.self.key": "attention.k_lin",
            "attention.self.value": "attention.v_lin",
            "attention.output.dense": "attention.out_lin",
            "attention.output.LayerNorm": "sa_layer_norm",
            "intermediate.dense": "ffn.lin1",
            "output.dense": "ffn.lin2",
            "output.LayerNorm": "output_layer_norm",
        },
        ("pre_classifier", "classifier"),
    ),
    "modernbert": Names(
        "model.",
        {"embeddings.word_embeddings": "embeddings.tok_embeddings"},
        ("head.dense", "classifier"),
    ),
}


def stored_name(config: BertConfig, name: str) -> str:
    """What the file calls a tensor of this package, without the architecture's prefix."""
    stored = NAMES[config.architecture].stored(name)
    if config.architecture == "distilbert":
        stored = stored.replace("encoder.layer.", "transformer.layer.")
    return stored


def classifier(config: BertConfig) -> tuple[Module, ...]:
    """The modules of the architecture's own classification head, after its pooling."""
    dense, last = NAMES[config.architecture].classifier
    first = Dense(dense, config.classifier_activation)
    norm = (LayerNorm("head.norm", config.epsilon),) if config.rotary else ()
    return (first, *norm, Dense(last))


def shapes(config: BertConfig, *, head: bool) -> Shapes:
    """Every tensor the graph must have, and its shape; see `optional` for the others."""
    found = _modernbert(config) if config.rotary else _bert(config)
    if head:
        h = config.hidden
        first, *_, last = classifier(config)
        found |= _linear(first.name, h, h) | _linear(last.name, 1, h)
        if config.rotary:
            del found[f"{first.name}.bias"]
            found["head.norm.weight"] = (h,)
    return found


def optional(config: BertConfig, *, head: bool) -> Shapes:
    """Tensors that are read where the file has them: ModernBERT's biases are a setting."""
    if not config.rotary:
        return {}
    names = shapes(config, head=head)
    biases = {
        f"{name.removesuffix('.weight')}.bias": shape[:1]
        for name, shape in names.items()
        if name != WORDS and name.endswith(".weight")
    }
    return {name: shape for name, shape in biases.items() if name not in names}


def _bert(config: BertConfig) -> Shapes:
    h, f = config.hidden, config.intermediate
    found: Shapes = {
        WORDS: (config.vocabulary, h),
        "embeddings.position_embeddings.weight": (config.positions + config.first_position, h),
    }
    if config.types:
        found["embeddings.token_type_embeddings.weight"] = (config.types, h)
    found |= _norm("embeddings.LayerNorm", h)
    if config.buckets:
        found["encoder.relative_attention_bias.weight"] = (config.buckets, config.heads)
    for layer in range(config.layers):
        p = f"encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            found |= _linear(f"{p}attention.self.{name}", h, h)
        found |= _linear(f"{p}attention.output.dense", h, h)
        found |= _norm(f"{p}attention.output.LayerNorm", h)
        found |= _linear(f"{p}intermediate.dense", f, h)
        found |= _linear(f"{p}output.dense", h, f)
        found |= _norm(f"{p}output.LayerNorm", h)
    return found


def _modernbert(config: BertConfig) -> Shapes:
    h, f = config.hidden, config.intermediate
    found: Shapes = {WORDS: (config.vocabulary, h), "embeddings.norm.weight": (h,)}
    for layer in range(config.layers):
        p = f"layers.{layer}."
        if layer:  # the first layer follows the norm of the embeddings
            found[f"{p}attn_norm.weight"] = (h,)
        found[f"{p}attn.Wqkv.weight"] = (3 * h, h)
        found[f"{p}attn.Wo.weight"] = (h, h)
        found[f"{p}mlp_norm.weight"] = (h,)
        found[f"{p}mlp.Wi.weight"] = (2 * f, h)
        found[f"{p}mlp.Wo.weight"] = (h, f)
    return found | {"final_norm.weight": (h,)}


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
