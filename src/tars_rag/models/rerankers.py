"""The rerankers of the catalogue, in FlashRank's files and in float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tars_rag.models.spec import BERT_TOKENIZER, ModelFile, ModelSpec, three_files

_RERANKED: Final = "MTEB(eng, v2) retrieval, six first stages reranked; release of the Ettin models"
_TREC: Final = "TREC Deep Learning 2019, model card"


def _flashrank(
    name: str,
    onnx: ModelFile,
    archive: ModelFile,
    dimension: int,
    layers: int,
    score: float,
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
        score=score,
        score_of=_TREC,
    )


def _cross_encoder(name: str, folder: str, dimension: int, layers: int, score: float) -> ModelSpec:
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
        score=score,
        score_of=_TREC,
    )


def _ettin(
    size: str,
    revision: str,
    dimension: int,
    layers: int,
    score: float,
    known: Mapping[str, tuple[str, int]],
) -> ModelSpec:
    """A reranker whose head is modules of sentence-transformers behind a ModernBERT."""
    modules = ("2_Dense", "3_LayerNorm", "4_Dense")
    names = ("modules.json", "1_Pooling/config.json", *(f"{m}/config.json" for m in modules))
    names += tuple(f"{module}/model.safetensors" for module in modules)
    name = f"ettin-reranker-{size}-v1"
    return ModelSpec(
        name=name,
        kind="weights",
        repository=f"cross-encoder/{name}",
        revision=revision,
        licence="Apache-2.0",
        dimension=dimension,
        layers=layers,
        max_length=512,
        files=(*three_files(), *(ModelFile(name, *known.get(name, ())) for name in names)),
        aliases=(f"cross-encoder/{name}",),
        score=score,
        score_of=_RERANKED,
        layer_cost=8.5,
    )


_ETTIN_17M: Final[Mapping[str, tuple[str, int]]] = {
    "2_Dense/model.safetensors": (
        "85e9596d9250a871deb159fb5db6979e910b4cf181d05c806733c49bc43d47c8",
        262_232,
    ),
    "3_LayerNorm/model.safetensors": (
        "de99fa351fb4badb74b56e85fa70b5bbd3fcf4d0e74de79eb749dba1e9e28b4a",
        2_200,
    ),
    "4_Dense/model.safetensors": (
        "654827171b89c76d19d663162243f38d63d1ba812ac1ec9c1b36512f1a8e9ce8",
        1_172,
    ),
}

RERANKERS: Final[tuple[ModelSpec, ...]] = (
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
        score=74.31,
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
        score=69.84,
    ),
    _cross_encoder("ms-marco-MiniLM-L-12-v2", "ms-marco-MiniLM-L12-v2", 384, 12, 74.31),
    _cross_encoder("ms-marco-TinyBERT-L-2-v2", "ms-marco-TinyBERT-L2-v2", 128, 2, 69.84),
    ModelSpec(
        name="ms-marco-MiniLM-L6-v2",
        kind="weights",
        repository="cross-encoder/ms-marco-MiniLM-L6-v2",
        revision="c5ee24cb16019beea0893ab7796b1df96625c6b8",
        licence="Apache-2.0",
        dimension=384,
        layers=6,
        max_length=512,
        files=three_files(
            ("380e02c93f431831be65d99a4e7e5f67c133985bf2e77d9d4eba46847190bacc", 794),
            ("821d1aa69520101d6e0737f78a042ae25b19e5cb9160701909d10434f4aeb0ae", 90_870_598),
            BERT_TOKENIZER,
        ),
        aliases=(
            "ms-marco-MiniLM-L-6-v2",
            "cross-encoder/ms-marco-MiniLM-L6-v2",
            "cross-encoder/ms-marco-MiniLM-L-6-v2",
        ),
        score=50.82,
        score_of=_RERANKED,
    ),
    _ettin("17m", "9e4aa35321a6dd1a43ca313f500c4b4f7cfb5cc6", 256, 7, 55.76, _ETTIN_17M),
    _ettin("32m", "b33e5ceb5110773ea9cf5e00c9bedc83a8c2afdd", 384, 10, 57.79, {}),
    ModelSpec(
        name="mmarco-mMiniLMv2-L12-H384-v1",
        kind="weights",
        repository="cross-encoder/mmarco-mMiniLMv2-L12-H384-v1",
        revision="1427fd652930e4ba29e8149678df786c240d8825",
        licence="Apache-2.0",
        dimension=384,
        layers=12,
        max_length=512,
        files=three_files(
            ("cc2cfe51aa3fd759d21d21acf5dfd6994aa67a3c9210636d22e143699d336c77", 891),
            ("5daeca2481a76b5976a2bdc32f0a78532b6716da4f8cd3ff59460ef8d2f359b4", 470_592_698),
            ("62c24cdc13d4c9952d63718d6c9fa4c287974249e16b7ade6d5a85e7bbb75626", 17_082_660),
        ),
        aliases=("cross-encoder/mmarco-mMiniLMv2-L12-H384-v1",),
        languages=("multi",),
    ),
)
