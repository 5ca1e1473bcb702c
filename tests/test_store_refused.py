"""An upsert that is refused has written nothing, and says which passage it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import HashEmbedder
from store_child import passage
from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore

COUNT = 600


def passages() -> list[Passage]:
    return [passage(f"p{n}", 1) for n in range(COUNT)]


def rows() -> list[list[float]]:
    return np.random.default_rng(0).standard_normal((COUNT, 32)).astype(np.float32).tolist()


def changed(row: int, value: Any) -> list[Any]:
    made: list[Any] = rows()
    made[row] = value
    return made


def shortened(row: int) -> list[Any]:
    return [vector[:31] if n >= row else vector for n, vector in enumerate(rows())]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HybridStore]:
    with HybridStore(tmp_path_factory.mktemp("refused") / "store", HashEmbedder()) as store:
        yield store


@pytest.mark.parametrize("kind", [list, tuple, "array"])
@pytest.mark.parametrize(
    ("vectors", "told"),
    [
        (changed(550, [float("nan")] * 32), "passage 'p550' is all zeros or not finite"),
        (changed(550, [0.0] * 32), "passage 'p550' is all zeros or not finite"),
        (changed(550, [1e39] + [0.0] * 31), "passage 'p550' is all zeros or not finite"),
        (rows() + rows()[:1], r"more vectors than passages \(600\)"),
        (rows()[:599], "no vector for passage 'p599'"),
        ([vector[:31] for vector in rows()], r"shape \[256, 32\] are needed, got \[256, 31\]"),
        (shortened(300), "passage 'p300' has 31 numbers, that of passage 'p256' has 32"),
        (shortened(256), r"shape \[256, 32\] are needed, got \[256, 31\]"),
        (changed(400, None), "passage 'p400'"),
        (changed(400, ["a"] * 32), "passage 'p400' is no list of numbers"),
        (changed(400, {"a": 1}), "passage 'p400' is no list of numbers"),
        (changed(400, [10**400] * 32), "passage 'p400'"),
    ],
)
def test_a_refused_vector_leaves_nothing_behind(
    store: HybridStore, vectors: list[Any], told: str, kind: Any
) -> None:
    given: Any = vectors
    if kind != "array":
        given = kind(vectors)
    else:
        try:
            with np.errstate(over="ignore"):
                given = np.asarray(vectors, np.float32)
        except (TypeError, ValueError, OverflowError):
            pytest.skip("no array can be made of these")
    with pytest.raises(InvalidInputError, match=told):
        store.upsert(passages(), given)
    assert store.count() == 0


@pytest.mark.parametrize("make", [iter, lambda found: (row for row in found)])
def test_of_an_iterator_the_batches_before_are_stored(
    tmp_path: Path, make: Callable[[list[Any]], Any]
) -> None:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        with pytest.raises(InvalidInputError, match="passage 'p550'"):
            store.upsert(passages(), make(changed(550, [float("nan")] * 32)))
        assert store.count() == 512
        with pytest.raises(InvalidInputError, match="passage 'p300' has 31 numbers"):
            store.upsert(passages(), make(shortened(300)))
        assert store.count() == 512
