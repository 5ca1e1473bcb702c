"""Precisions as rows of data: what is quantised, where the word table lives, what is good enough.

A new precision is a new row; nothing else in the converter knows their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tars_rag.errors import InvalidInputError
from tars_rag.models.architectures.bert import LINEAR
from tars_rag.runtimes.npu.manifest import ModelKind

Quantise = Literal["none", "chosen", "everything"]
Table = Literal["float16", "int8", "host"]


@dataclass(frozen=True, slots=True)
class Threshold:
    """The least fidelity at which a bundle is kept.

    Attributes:
        mean: Mean cosine to FP32 (embedder) or mean per-query Spearman (cross-encoder).
        least: The same of the worst text or query.
    """

    mean: float
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """One precision.

    Attributes:
        name: What ``--precision`` says.
        summary: One line for people.
        thresholds: The fidelity gate, by kind of model.
        quantise: ``none`` is float16 throughout, ``chosen`` quantises the layers of `int8` and the
            word table only, ``everything`` is what the toolkit does when left alone.
        int8: The linear layers (keys of `bert_graph.LINEAR`) in int8, in every encoder layer.
        table: The word table: in the file as float16 or int8, or float16 on the host.
        equalise: Balance the channels of the chosen layers before they are quantised.
        mask: The additive attention mask, where it is not the graph's own.
    """

    name: str
    summary: str
    thresholds: Mapping[ModelKind, Threshold]
    quantise: Quantise = "none"
    int8: tuple[str, ...] = ()
    table: Table = "float16"
    equalise: bool = True
    mask: float | None = None

    @property
    def calibrated(self) -> bool:
        """Whether the result depends on calibration texts."""
        return self.quantise != "none"


_LOSSLESS: Final[Mapping[ModelKind, Threshold]] = {
    "embedder": Threshold(0.9999, 0.999),
    "cross-encoder": Threshold(0.999),
}
_HQ: Final[Mapping[ModelKind, Threshold]] = {
    "embedder": Threshold(0.9985, 0.99),
    "cross-encoder": Threshold(0.99),
}
_INT8: Final[Mapping[ModelKind, Threshold]] = {
    "embedder": Threshold(0.995),
    "cross-encoder": Threshold(0.985),
}

_ROWS: Final = (
    Recipe("fp16", "float16 throughout; indistinguishable from FP32", _LOSSLESS),
    Recipe(
        "fp16-host",
        "float16, word table on the host and shared by all lengths: half the size, as exact",
        _LOSSLESS,
        table="host",
    ),
    Recipe(
        "int8-table",
        "int8 word table, float16 encoder",
        {"embedder": Threshold(0.9995, 0.995), "cross-encoder": Threshold(0.995)},
        quantise="chosen",
        table="int8",
    ),
    Recipe(
        "hq",
        "int8 word table and q, k, o, ff1; v, ff2 and everything that is not linear in float16",
        _HQ,
        quantise="chosen",
        int8=("q", "k", "o", "ff1"),
        table="int8",
    ),
    Recipe(
        "hq-host",
        "as hq, word table on the host",
        _HQ,
        quantise="chosen",
        int8=("q", "k", "o", "ff1"),
        table="host",
    ),
    Recipe(
        "int8",
        "int8 word table and all linear layers; everything else in float16",
        _INT8,
        quantise="chosen",
        int8=tuple(LINEAR),
        table="int8",
    ),
    Recipe(
        "int8-host",
        "as int8, word table on the host",
        _INT8,
        quantise="chosen",
        int8=tuple(LINEAR),
        table="host",
    ),
    Recipe(
        "naive-int8",
        "what the toolkit makes when left alone; refused, kept here to show why",
        _INT8,
        quantise="everything",
        int8=tuple(LINEAR),
        table="int8",
        equalise=False,
        mask=-10000.0,  # the toolkit's own stand-in for the usual -3.4e38
    ),
)

RECIPES: Final[Mapping[str, Recipe]] = {row.name: row for row in _ROWS}


def recipe(name: str) -> Recipe:
    """The row called `name`.

    Raises:
        InvalidInputError: There is none; the message lists those there are.
    """
    if name not in RECIPES:
        msg = f"No precision is called {name!r}. Choose one of: {', '.join(RECIPES)}."
        raise InvalidInputError(msg)
    return RECIPES[name]
