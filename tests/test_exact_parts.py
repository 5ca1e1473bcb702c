"""What the exactness of a search rests on: integer products, bounds, the table of ids, memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_rag.errors import DeviceError
from tars_rag.retrieval.indexes.exact import code_directory, id_table
from tars_rag.retrieval.indexes.exact.centres import new_centres, no_centres
from tars_rag.retrieval.indexes.exact.codes import Query, encode, unit_rows
from tars_rag.retrieval.indexes.exact.id_table import IdTable, hashes_of
from tars_rag.retrieval.indexes.exact.index import ExactIndex
from tars_rag.runtimes import integer_product as module
from tars_rag.runtimes.integer_product import LIMIT, OFFSET, PLANES, integer_product
from test_exact_oracle import KINDS, cosines, queries


@pytest.mark.parametrize("dim", [1, 2, 15, 16, 17, 127, 384, 1000, 4096])
@pytest.mark.parametrize("count", [1, 3, 65, 700])
def test_integer_products_are_exact(dim: int, count: int) -> None:
    rng = np.random.default_rng([dim, count])
    rows = rng.integers(1, 256, (count, dim)).astype(np.uint8)
    planes = rng.integers(-LIMIT, LIMIT + 1, (dim, PLANES)).astype(np.int8)
    rows[0], planes[:, 0] = 255, LIMIT  # where kernels of 16 bits would saturate
    rows.setflags(write=False)
    exact = (rows.astype(np.int64) - OFFSET) @ planes.astype(np.int64)
    for plane in range(PLANES):
        steps = np.zeros(PLANES, np.float32)
        steps[plane] = 1
        product = integer_product(rows, planes, steps)
        assert np.array_equal(product, exact[:, plane].astype(np.float32))


def test_a_product_that_is_not_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Saturating(onnxruntime.InferenceSession):  # type: ignore[misc,unused-ignore]
        """As kernels without a dot product in 32 bits do with larger numbers."""

        def run(self, names: object, feed: dict[str, Any], *_: object) -> list[Any]:
            (product,) = super().run(names, feed)
            return [np.clip(product, -(2**15), 2**15 - 1)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Saturating)
    module._session.cache_clear()
    with pytest.raises(DeviceError, match=r"not exact on this processor.*pip install"):
        integer_product(np.full((1, 1), 128, np.uint8), np.zeros((1, 3), np.int8), np.ones(3))
    module._session.cache_clear()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dim", [1, 2, 31, 384])
@pytest.mark.parametrize("count", [400, 700])  # computed in float64, and as whole numbers
def test_the_true_cosine_is_within_its_bounds(
    kind: Callable[..., Any], dim: int, count: int
) -> None:
    rng = np.random.default_rng(dim)
    rows = kind(rng, count, dim)
    codes = encode(rows, centres_of(rows))
    for vector in [*queries(rng, rows), np.eye(1, dim)[0], 1e30 * rng.standard_normal(dim)]:
        query = Query(vector, dim)
        upper = query.upper(codes)
        lower = query.lower(upper, codes)
        true = cosines(rows, vector)
        assert (lower <= true).all()
        assert (true <= upper).all()
        assert (upper - lower).max() < 0.1
        assert query.cosines(rows) == pytest.approx(true, abs=1e-12)


def test_bounds_are_narrow_on_embeddings() -> None:
    """0.02 and less: so that a few dozen of 100,000 vectors have to be read."""
    rows = np.random.default_rng(0).standard_normal((1000, 384)).astype(np.float32)
    codes, query = encode(rows, no_centres(384)), Query(rows[0], 384)
    upper = query.upper(codes)
    assert np.median(upper - query.lower(upper, codes)) < 0.02


def centres_of(rows: Any) -> Any:
    none = no_centres(rows.shape[1])
    return np.concatenate([none, new_centres(unit_rows(rows).astype(np.float32), none)])


CHANGES = st.lists(
    st.tuples(st.sets(st.integers(0, 40), max_size=8), st.sets(st.integers(0, 40), max_size=8)),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(changes=CHANGES, recent=st.sampled_from([0, 3, 1000]))
def test_the_table_of_ids_is_a_dict(changes: list[tuple[set[int], set[int]]], recent: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_table, "_RECENT", recent)
        table = IdTable.of(np.empty(0, np.int64), np.empty(0, np.uint32))
        model: dict[int, int] = {}
        tables, first = [(table, dict(model))], 0
        for removed, added in changes:
            for key in removed:
                model.pop(key, None)
            model.update(zip(sorted(added), range(first, first + len(added)), strict=True))
            table = table.changed(_keys(removed), _keys(added), first)
            first += len(added)
            tables.append((table, dict(model)))
        for held, expected in tables:  # the older ones are what they were
            for asked in (_keys(range(45)), _keys([7])):
                found = held.find(asked).tolist()
                assert found == [expected.get(key, -1) for key in asked.tolist()]


def _keys(values: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(sorted(values), np.int64)


def test_hashes_are_of_any_text() -> None:
    ids = ["", "a", "\ud800", "é", "x" * 10000]
    assert len(set(hashes_of(ids).tolist())) == 5


def test_memory_is_25_bytes_a_passage(tmp_path: Path) -> None:
    count = 50_000
    index = ExactIndex(tmp_path / "codes")
    rows = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    for start in range(0, count, 1000):
        ids = [f"a rather long name of passage {place}" for place in range(start, start + 1000)]
        index.add(ids, rows[start : start + 1000])
        index.commit()
    index.close()
    del index, rows, ids
    ExactIndex(tmp_path / "codes", read_only=True).nearest(np.ones(4), 3)  # imports, and so on
    tracemalloc.start()
    index = ExactIndex(tmp_path / "codes", read_only=True)
    index.nearest(np.ones(4), 3)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 30 * count  # arrays grow by an eighth at a time


def test_many_small_commits_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_directory, "_BATCHES", 20)
    index = ExactIndex(tmp_path / "codes", 3)
    for place in range(100):
        index.add([f"p{place}"], np.array([[1, place, 2]]))
        index.commit(str(place))
    assert index.generation == 100
    assert index.stamp == "99"
    assert index.ids() == [f"p{place}" for place in range(100)]
    (path,) = (tmp_path / "codes").glob("rows-*.log")
    assert int(path.stem.removeprefix("rows-")) > 3
    assert index.nearest(np.array([0, 1, 0]), 1)[0][0] == "p99"


def test_what_a_cluster_shares_is_kept_exactly(tmp_path: Path) -> None:
    """Bounds among log lines are as much narrower as the lines are near one another."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((1, 384)) + 0.1 * rng.standard_normal((4000, 384))).astype("f4")
    index = ExactIndex(tmp_path / "codes")
    for start in range(0, 4000, 200):
        index.add([f"p{place}" for place in range(start, start + 200)], rows[start : start + 200])
        index.commit()
    for opened in (index, ExactIndex(tmp_path / "codes", read_only=True)):
        snapshot = opened._snapshot()
        assert len(snapshot.codes.centres) == 2
        for vector in (rows[7] + 0.01, rng.standard_normal(384)):
            query = Query(vector, 384)
            slots, _ = snapshot._candidates(query, 10, None)
            assert len(slots) < 100
    # Made again from the vectors, the codes are what they were.
    (path,) = (tmp_path / "codes").glob("codes-*.bin")
    whole = path.read_bytes()
    path.write_bytes(whole[:384_000])
    again = ExactIndex(tmp_path / "codes")
    assert path.read_bytes()[: 4000 * 384] == whole[: 4000 * 384]
    assert again.nearest(rows[9], 50) == index.nearest(rows[9], 50)
    # One by one no centre is seen; a compaction looks for them.
    single = ExactIndex(tmp_path / "single")
    for place in range(100):
        single.add([f"p{place}"], rows[place : place + 1])
        single.commit()
    assert len(single._snapshot().codes.centres) == 1
    before = single.nearest(rows[3], 100)
    single.compact()
    assert len(single._snapshot().codes.centres) == 2
    assert single.nearest(rows[3], 100) == before
