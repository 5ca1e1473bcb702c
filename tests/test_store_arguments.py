"""What is no argument is refused as one, however deep, long or odd it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import HashEmbedder
from store_child import passage
from tars_rag.errors import InvalidInputError, TarsRagError
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.pipeline import Pipeline
from tars_rag.retrieval.store import HybridStore


def deep() -> list[Any]:
    outer: list[Any] = []
    inner = outer
    for _ in range(50_000):
        inner.append([])
        inner = inner[0]
    return outer


DEEP = deep()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HybridStore]:
    with HybridStore(tmp_path_factory.mktemp("arguments") / "store", HashEmbedder()) as store:
        store.upsert([passage("a", 1)])
        yield store


CALLS: list[Callable[[HybridStore], Any]] = [
    lambda store: store.get(where={"a": DEEP}),
    lambda store: store.get(where=DEEP),  # type: ignore[arg-type]
    lambda store: store.get(ids=DEEP),
    lambda store: store.get(ids=[DEEP]),  # type: ignore[list-item]
    lambda store: store.get(limit=DEEP),  # type: ignore[arg-type]
    lambda store: store.search("x", k=DEEP),  # type: ignore[arg-type]
    lambda store: store.search(DEEP),  # type: ignore[arg-type]
    lambda store: store.search("x", strategy=DEEP),  # type: ignore[arg-type]
    lambda store: store.search("x", weight=DEEP),  # type: ignore[arg-type]
    lambda store: store.search("x", vector=DEEP),
    lambda store: store.search("x", vector="no vector"),
    lambda store: store.upsert([passage("b", 1)], [DEEP]),
    lambda store: store.upsert([Passage("b", "t", {"m": DEEP})]),
    lambda store: store.upsert(DEEP),
    lambda store: Pipeline(store, candidates=DEEP).search("x"),  # type: ignore[arg-type]
    lambda store: HybridStore(DEEP, HashEmbedder()),  # type: ignore[arg-type]
    lambda store: HybridStore("x", HashEmbedder(), language=DEEP),  # type: ignore[arg-type]
    lambda store: HybridStore("x", HashEmbedder(), chroma_url=DEEP),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("call", CALLS)
def test_an_argument_that_is_none_is_refused(
    store: HybridStore,
    call: Callable[[HybridStore], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TarsRagError) as caught:
        call(store)
    assert len(str(caught.value)) < 1000
    assert store.count() == 1


@pytest.mark.parametrize("many", [sys.maxsize, 2**70, 10**30])
def test_as_many_as_there_are(store: HybridStore, many: int) -> None:
    assert len(store.get(limit=many)) == 1
    assert len(store.get(where={"version": 1}, limit=many)) == 1
    assert len(store.search("filler", many)) == 1
    assert len(Pipeline(store, candidates=many).search("filler", many).passages) == 1


@pytest.mark.parametrize("length", [490, 1000, 3040])
def test_a_path_that_is_too_long_for_chroma_is_not_called_damage(
    tmp_path: Path, length: int
) -> None:
    path = tmp_path
    while len(os.fsencode(path)) < length:
        path /= "x" * 200
    with pytest.raises(InvalidInputError, match=r"has \d+ bytes.*takes 480"):
        HybridStore(path, HashEmbedder())


def test_a_path_that_is_not_utf_8_is_not_called_damage(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is not UTF-8"):
        HybridStore(tmp_path / os.fsdecode(b"caf\xe9"), HashEmbedder())
