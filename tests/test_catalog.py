"""The catalogue: every row is complete, and a wrong name is answered with the right ones."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError

import pytest

from tars_rag.errors import ModelError
from tars_rag.models.catalog import CATALOG, find_spec, get_spec
from tars_rag.models.prompts import Prompts

SEARCH = "Represent this sentence for searching relevant passages: "


def test_the_default_models_are_there() -> None:
    kinds = {spec.name: spec.kind for spec in CATALOG}
    assert kinds["all-MiniLM-L6-v2"] == "embedder"
    assert kinds["ms-marco-MiniLM-L-12-v2"] == "reranker"
    assert kinds["ms-marco-TinyBERT-L-2-v2"] == "reranker"


@pytest.mark.parametrize(
    "name",
    [
        "all-MiniLM-L6-v2",
        "ALL-minilm-l6-V2",
        "sentence-transformers/all-MiniLM-L6-v2",
    ],
)
def test_a_model_goes_by_several_names(name: str) -> None:
    assert get_spec(name).name == "all-MiniLM-L6-v2"


def test_the_hub_name_of_a_cross_encoder_is_its_float_weights() -> None:
    spec = get_spec("cross-encoder/ms-marco-MiniLM-L-12-v2")
    assert (spec.name, spec.kind) == ("ms-marco-MiniLM-L-12-v2-fp32", "weights")


def test_no_two_models_share_a_name() -> None:
    names = [name.lower() for spec in CATALOG for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    assert find_spec("all-MiniLM") is None
    with pytest.raises(ModelError, match=r"'all-MiniLM'.*all-MiniLM-L6-v2.*ms-marco-MiniLM-L-12"):
        get_spec("all-MiniLM")


@pytest.mark.parametrize("spec", CATALOG, ids=lambda spec: spec.name)
def test_what_is_pinned_is_pinned_whole(spec) -> None:  # type: ignore[no-untyped-def]
    files = [*spec.files, *([spec.archive] if spec.archive else [])]
    assert all(f.sha256 is None or re.fullmatch("[0-9a-f]{64}", f.sha256) for f in files)
    assert {"config.json", "tokenizer.json"} <= {f.name for f in spec.files}
    if spec.revision == "main":  # neither commit nor digests are known: said, not invented
        assert not any(f.sha256 for f in files)
    else:
        assert re.fullmatch("[0-9a-f]{40}", spec.revision)
        assert spec.archive is None or spec.archive.sha256


def test_the_default_embedder_is_pinned_whole() -> None:
    assert all(file.sha256 and file.bytes for file in get_spec("all-MiniLM-L6-v2").files)


@pytest.mark.parametrize(
    ("name", "pooling", "query", "passage", "languages", "cost"),
    [
        ("all-MiniLM-L6-v2", "mean", "", "", ("en",), 1),
        ("all-MiniLM-L12-v2", "mean", "", "", ("en",), 2),
        ("snowflake-arctic-embed-xs", "cls", SEARCH, "", ("en",), 1),
        ("snowflake-arctic-embed-s", "cls", SEARCH, "", ("en",), 2),
        ("bge-small-en-v1.5", "cls", SEARCH, "", ("en",), 2),
        ("bge-small-zh-v1.5", "cls", "为这个句子生成表示以用于检索相关文章：", "", ("zh",), 1.19),  # noqa: RUF001
        ("gte-small", "mean", "", "", ("en",), 2),
        ("e5-small-v2", "mean", "query: ", "passage: ", ("en",), 2),
        ("multilingual-e5-small", "mean", "query: ", "passage: ", ("multi",), 2),
        ("paraphrase-multilingual-MiniLM-L12-v2", "mean", "", "", ("multi",), 2),
        ("granite-embedding-small-english-r2", "cls", "", "", ("en",), 2.67),
        ("granite-embedding-97m-multilingual-r2", "cls", "", "", ("multi",), 2.67),
    ],
)
def test_how_each_embedder_is_used(
    name: str,
    pooling: str,
    query: str,
    passage: str,
    languages: tuple[str, ...],
    cost: float,
) -> None:
    """As the model cards say: a wrong prompt or pooling costs more than a smaller model does."""
    spec = get_spec(name)
    assert spec.kind == "embedder"
    assert (spec.pooling, spec.prompts, spec.languages) == (
        pooling,
        Prompts(query, passage),
        languages,
    )
    assert spec.cost == pytest.approx(cost, abs=0.01)


@pytest.mark.parametrize(
    ("name", "repository", "languages", "cost"),
    [
        ("ms-marco-MiniLM-L6-v2", "cross-encoder/ms-marco-MiniLM-L6-v2", "en", 1),
        ("ettin-reranker-17m-v1", "cross-encoder/ettin-reranker-17m-v1", "en", 0.37),
        ("ettin-reranker-32m-v1", "cross-encoder/ettin-reranker-32m-v1", "en", 1.18),
        (
            "mmarco-mMiniLMv2-L12-H384-v1",
            "cross-encoder/mmarco-mMiniLMv2-L12-H384-v1",
            "multi",
            2,
        ),
    ],
)
def test_the_rerankers_in_float(name: str, repository: str, languages: str, cost: float) -> None:
    spec = get_spec(repository)
    assert (spec.name, spec.kind, spec.languages) == (name, "weights", (languages,))
    assert spec.cost == pytest.approx(cost, abs=0.01)
    assert (spec.score is None) == (languages == "multi")


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        CATALOG[0].revision = "main"  # type: ignore[misc]


def test_a_size_is_told_only_where_that_of_the_weights_is_known() -> None:
    sizes = {row.name: row.bytes for row in CATALOG}
    assert sizes["snowflake-arctic-embed-s"] is None  # its tokenizer and configuration are known
    assert sizes["ettin-reranker-17m-v1"] is None
    assert sizes["gte-small"] == 66_746_168
    assert all(size is None or size > 3_000_000 for size in sizes.values())
