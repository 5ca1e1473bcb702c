"""The catalogue: every row is complete, and a wrong name is answered with the right ones."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError

import pytest

from tars_rag.errors import ModelError
from tars_rag.models.catalog import CATALOG, find_spec, get_spec


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
    if spec.kind == "weights":  # neither commit nor digests are known: said, not invented
        assert spec.revision == "main"
        assert not any(f.sha256 for f in files)
    else:
        assert re.fullmatch("[0-9a-f]{40}", spec.revision)
        assert spec.archive is None or spec.archive.sha256
        assert spec.archive or all(f.sha256 and f.bytes for f in spec.files)


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        CATALOG[0].revision = "main"  # type: ignore[misc]
