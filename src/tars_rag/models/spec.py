"""What a row of the catalogue says of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tars_rag.models.prompts import NO_PROMPTS, Prompts

Pooling = Literal["mean", "cls", "max", "lasttoken"]
CatalogueKind = Literal["embedder", "reranker", "weights"]

# Of files whose size no row tells: a tokenizer of 250,000 words has 17 MB, the largest of the
# models in float32 130 MB.
_LITTLE: Final = 1 << 20
_MOST_JSON_BYTES: Final = 1 << 25
_MOST_WEIGHT_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of a model.

    Attributes:
        name: Its name in the repository and on disk.
        sha256: What it must hash to. None: not known beforehand; the digest is recorded when the
            file is first fetched, and checked from then on.
        bytes: Its size, where known.
    """

    name: str
    sha256: str | None = None
    bytes: int | None = None

    @property
    def most_bytes(self) -> int:
        """What is read of a foreign file of this name, before its digest can tell what it is."""
        if self.bytes is not None:
            return max(self.bytes, _LITTLE)
        return _MOST_JSON_BYTES if self.name.endswith(".json") else _MOST_WEIGHT_BYTES


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on the package index that holds the same files, byte for byte."""

    requirement: str
    folder: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model.

    Attributes:
        name: What the user calls it, and its directory in the cache.
        kind: ``embedder``, ``reranker`` (FlashRank's files, ready to run) or ``weights`` (a
            cross-encoder in float32: the source for conversion; it reranks as well).
        repository: On the model hub.
        revision: A commit of it; ``main`` where none could be pinned.
        licence: As the model card says.
        dimension: Width of an embedding, and of the encoder's layers.
        layers: Number of encoder layers.
        max_length: Longest text, or query and passage together, in tokens.
        files: What is kept on disk.
        archive: The zip in the repository that holds `files`, in a folder of the model's name.
        wheel: Another source of the same bytes.
        aliases: Other names it goes by.
        pooling: Of an embedder: how the tokens' vectors become the text's.
        prompts: What it was trained to see before a query and before a passage.
        languages: ISO 639-1 codes; ``multi`` for many.
        score: A published nDCG@10, in percent; None where there is none for these languages.
        score_of: What it was measured on, and where it is published.
        layer_cost: Multiplications for a token in the linear parts of a layer, in squares of the
            width: 12 for BERT.
    """

    name: str
    kind: CatalogueKind
    repository: str
    revision: str
    licence: str
    dimension: int
    layers: int
    max_length: int
    files: tuple[ModelFile, ...]
    archive: ModelFile | None = None
    wheel: Wheel | None = None
    aliases: tuple[str, ...] = ()
    pooling: Pooling = "mean"
    prompts: Prompts = NO_PROMPTS
    languages: tuple[str, ...] = ("en",)
    score: float | None = None
    score_of: str = "MTEB retrieval (BEIR), model card"
    layer_cost: float = 12

    @property
    def cost(self) -> float:
        """The work for one token in the encoder's layers, that of all-MiniLM-L6-v2 being 1."""
        return self.layers * self.layer_cost * self.dimension**2 / (6 * 12 * 384**2)

    @property
    def bytes(self) -> int | None:
        """What has to be fetched from the hub, where known."""
        files = (self.archive,) if self.archive else self.files
        large = [file.bytes for file in files if not file.name.endswith(".json")]
        if None in large or not large:
            return None  # of the small ones alone it would say 1 MB
        return sum(file.bytes or 0 for file in files)


BERT_TOKENIZER: Final = (
    "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
    711_396,
)
"""The ``tokenizer.json`` that several models share: its sha256 and size."""


def three_files(
    config: tuple[str, int] | None = None,
    weights: tuple[str, int] | None = None,
    tokenizer: tuple[str, int] | None = None,
) -> tuple[ModelFile, ...]:
    """The three files of a model, with digest and size where two independent sources agree."""
    known = {"config.json": config, "model.safetensors": weights, "tokenizer.json": tokenizer}
    return tuple(ModelFile(name, *(what or ())) for name, what in known.items())
