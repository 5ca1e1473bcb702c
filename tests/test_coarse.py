"""The first look at half a byte a number: its bounds, its thread, and that it changes no answer."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tars_rag.errors import DeviceError
from tars_rag.retrieval.indexes.exact import coarse as module
from tars_rag.retrieval.indexes.exact.coarse import coarse
from tars_rag.retrieval.indexes.exact.codes import Query, encode
from tars_rag.retrieval.indexes.exact.index import ExactIndex
from tars_rag.runtimes import four_bit_product
from tars_rag.runtimes.four_bit_product import (
    BFLOAT16,
    BLOCK,
    FourBitProduct,
    FourBitRows,
    packed,
    to_bfloat16,
)
from test_exact_oracle import (
    KINDS,
    STEPS,
    Model,
    agrees,
    check,
    clusters,
    cosines,
    gaussian,
    live,
    queries,
)
from test_exact_parts import centres_of


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarse rows for any number of rows, and however long their product takes."""
    monkeypatch.setattr(module, "_LEAST", 1)
    monkeypatch.setattr(module, "_require_faster", lambda *_: None)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were searched by coarse rows, each time."""
    seen: list[int] = []
    bounds = module.CoarseRows.bounds

    def counted(rows: Any, query: Any, codes: Any) -> Any:
        seen.append(len(codes.rows))
        return bounds(rows, query, codes)

    monkeypatch.setattr(module.CoarseRows, "bounds", counted)
    return seen


def ready(index: ExactIndex) -> None:
    """Search until there are coarse rows."""
    for _ in range(module._SEARCHES):
        index.nearest(np.ones(index.dimension or 1), 1)
    index._snapshot().coarse.wait()


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 127, 384, 1000])
def test_products_are_those_of_the_vector_that_was_taken(dim: int) -> None:
    rng = np.random.default_rng(dim)
    rows = FourBitRows(70, dim)
    numbers = np.full((70, rows.blocks * BLOCK), 8, np.uint8)
    numbers[:, :dim] = rng.integers(0, 16, (70, dim))
    rows.nibbles[:] = packed(numbers)
    drawn = rng.standard_normal((70, rows.blocks)).astype(np.float32)
    rows.scales[:] = to_bfloat16(drawn)
    assert (np.abs(rows.scales - drawn) <= BFLOAT16 * np.abs(drawn)).all()
    meant = (numbers.astype(np.float64) - 8) * rows.scales.repeat(BLOCK, axis=1)
    product = FourBitProduct(rows)
    del rows  # whose memory may go
    for vector in (
        rng.standard_normal(dim),
        np.abs(rng.standard_normal(dim)),
        -np.eye(1, dim, dim // 2)[0],
        np.eye(1, dim)[0] + 1e-3 * rng.standard_normal(dim),
    ):
        given = vector.astype(np.float32)
        products, taken = product(given)
        assert np.abs(taken - given).max() <= np.abs(given).max() / 120
        off = np.abs(products - meant[:, :dim] @ taken.astype(np.float64))
        assert off.max() <= product.rounding * np.linalg.norm(given)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dim", [1, 2, 31, 200, 384])
@pytest.mark.usefixtures("always")
def test_the_true_cosine_is_within_coarse_bounds(kind: Callable[..., Any], dim: int) -> None:
    rng = np.random.default_rng(dim)
    rows = kind(rng, 400, dim)
    codes = encode(rows, centres_of(rows))
    made = coarse(codes, 0)
    assert made is not None
    for vector in [*queries(rng, rows), np.eye(1, dim)[0], 1e30 * rng.standard_normal(dim)]:
        query = Query(vector, dim)
        upper, lower = made.bounds(query, codes)
        true = cosines(rows, vector)
        assert (lower <= true).all()
        assert (true <= upper).all()


@pytest.mark.usefixtures("always")
def test_bounds_leave_few_of_embeddings() -> None:
    """0.12 at most: unrelated texts are farther than that from the nearest ones."""
    rows = np.random.default_rng(0).standard_normal((1000, 384)).astype(np.float32)
    codes = encode(rows, centres_of(rows))
    made = coarse(codes, 0)
    assert made is not None
    upper, lower = made.bounds(Query(rows[0], 384), codes)
    assert np.median(upper - lower) < 2 * 0.12


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("n", [3, 700, pytest.param(9000, marks=pytest.mark.slow)])
def test_answers_are_those_of_brute_force(
    kind: Callable[..., Any], n: int, tmp_path: Path, searched: list[int]
) -> None:
    dim = 130
    rng = np.random.default_rng(n)
    rows = kind(rng, n, dim)
    ids = [f"{value:x}" for value in rng.permutation(n)]
    held = dict(zip(ids, rows, strict=True))
    index = ExactIndex(tmp_path / "codes", dim)
    index.add(ids, rows)
    index.commit()
    ready(index)
    for query in queries(rng, rows):
        for k in (1, 10, 100, n + 1):
            check(index, held, query, k)
        check(index, held, query, 10, [str(key) for key in rng.choice(ids, n // 2, replace=False)])
        gone = set(ids[: n // 3])
        left = {key: row for key, row in held.items() if key not in gone}
        found = index.nearest(query, 5, without=gone)
        best = np.sort(cosines(np.stack(list(left.values())), query))[::-1][:5]
        assert [score for _, score in found] == pytest.approx(best, abs=1e-12)
    assert searched
    assert set(searched) == {n}


@pytest.mark.slow
@pytest.mark.usefixtures("always")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, seed=st.integers(0, 2**32 - 1), dim=st.sampled_from([1, 9, 140]))
def test_any_history(
    steps: list[tuple[str, object, int]],
    seed: int,
    dim: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    live(Model(tmp_path_factory.mktemp("history") / "codes", dim), steps, seed, _agrees_soon)


def _agrees_soon(model: Model, rng: np.random.Generator) -> None:
    """With coarse rows that are there, or being made, or only of the first rows."""
    agrees(model, rng)
    if rng.random() < 0.5:
        model.index._snapshot().coarse.wait()
    for query in (rng.standard_normal(model.dim), *list(model.held.values())[:2]):
        for k in (1, 3, 50):
            check(model.index, model.held, query, k)


def filled(path: Path, count: int, dim: int = 64) -> tuple[ExactIndex, dict[str, Any]]:
    rows = clusters(np.random.default_rng(count), count, dim)
    held = {str(place): row for place, row in enumerate(rows)}
    index = ExactIndex(path / "codes", dim)
    index.add(list(held), rows)
    index.commit()
    return index, held


@pytest.mark.usefixtures("always")
def test_one_search_makes_none(tmp_path: Path, searched: list[int]) -> None:
    index, held = filled(tmp_path, 500)
    index.nearest(np.ones(64), 1)
    index._snapshot().coarse.wait()
    assert not index._snapshot().coarse._rows
    index.nearest(np.ones(64), 1)
    index._snapshot().coarse.wait()
    assert not searched
    check(index, held, held["7"], 10)
    assert searched == [500]


@pytest.mark.usefixtures("always")
def test_rows_that_came_later_get_theirs_when_they_are_many(
    tmp_path: Path, searched: list[int]
) -> None:
    index, held = filled(tmp_path, 400)
    ready(index)
    more = gaussian(np.random.default_rng(1), 150, 64)
    for start, stop in ((0, 50), (50, 150)):
        added = {f"new {place}": more[place] for place in range(start, stop)}
        index.add(list(added), more[start:stop])
        index.commit()
        held |= added
        ready(index)
        check(index, held, more[start], 10)
    assert [(rows.start, rows.stop) for rows in index._snapshot().coarse._rows] == [
        (0, 400),
        (400, 550),
    ]
    assert searched[-2:] == [400, 150]


@pytest.mark.usefixtures("always")
def test_large_rows_are_made_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 64 * 100 // 2)
    index, held = filled(tmp_path, 950)
    ready(index)
    assert len(index._snapshot().coarse._rows) == 10
    check(index, held, held["949"], 20)


@pytest.mark.usefixtures("always")
def test_an_older_state_is_searched_as_it_was(tmp_path: Path) -> None:
    index, held = filled(tmp_path, 300)
    before = index._snapshot()
    more = gaussian(np.random.default_rng(1), 300, 64)
    index.add([f"new {place}" for place in range(300)], more)
    index.commit()
    ready(index)
    found = before.nearest(Query(more[0], 64), 3)
    best = np.sort(cosines(np.stack(list(held.values())), more[0]))[::-1][:3]
    assert [score for _, score in found] == pytest.approx(best, abs=1e-12)


@pytest.mark.usefixtures("always")
def test_a_reader_follows_one_who_writes(tmp_path: Path, searched: list[int]) -> None:
    """As another process does: what is added, removed, and compacted into other files."""
    writer, held = filled(tmp_path, 400)
    reader = ExactIndex(tmp_path / "codes", read_only=True)
    ready(reader)
    more = gaussian(np.random.default_rng(1), 40, 64)
    for turn in range(4):
        writer.remove([str(place) for place in range(turn * 50, turn * 50 + 50)])
        held = {key: row for key, row in held.items() if int(key) >= turn * 50 + 50}
        added = {str(1000 + 10 * turn + place): more[10 * turn + place] for place in range(10)}
        writer.add(list(added), np.stack(list(added.values())))
        writer.commit()
        held |= added
        if turn == 2:
            writer.compact()
        reader.refresh()
        check(reader, held, more[10 * turn], 20)
        ready(reader)
        check(reader, held, more[10 * turn], 20)
    assert {400, 280} <= set(searched)  # before it was compacted and after


def test_a_product_that_is_no_faster_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searched: list[int]
) -> None:
    monkeypatch.setattr(module, "_LEAST", 1)
    call = FourBitProduct.__call__

    def slow(product: FourBitProduct, vector: Any) -> Any:
        time.sleep(0.05)
        return call(product, vector)

    monkeypatch.setattr(FourBitProduct, "__call__", slow)
    index, held = filled(tmp_path, 300)
    ready(index)
    ready(index)
    check(index, held, held["3"], 10)
    assert not searched


@pytest.mark.usefixtures("always")
def test_a_product_that_is_wrong_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searched: list[int]
) -> None:
    class Wrong(onnxruntime.InferenceSession):  # type: ignore[misc,unused-ignore]
        def run(self, names: object, feed: dict[str, Any], *_: object) -> list[Any]:
            (product,) = super().run(names, feed)
            return [product**3 if "vector" in feed else product]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    index, held = filled(tmp_path, 300)
    ready(index)
    check(index, held, held["3"], 10)
    assert not searched
    with pytest.raises(DeviceError, match="wrong on this processor"):
        coarse(index._snapshot().codes, 0)


@pytest.mark.usefixtures("always")
def test_without_the_operator_searches_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searched: list[int]
) -> None:
    def missing(*_: object) -> Any:
        msg = "MatMulNBits is not a registered function/op"
        raise RuntimeError(msg)

    monkeypatch.setattr(four_bit_product, "_session", missing)
    index, held = filled(tmp_path, 300)
    ready(index)
    check(index, held, held["3"], 10)
    assert not searched


@pytest.mark.usefixtures("always")
def test_a_small_memory_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searched: list[int]
) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 16 * 10, "SC_PAGE_SIZE": 1000}.get)
    index, held = filled(tmp_path, 300)  # 12 kB of 160
    ready(index)
    check(index, held, held["3"], 10)
    assert not searched
    index.close()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("what", ["thread", "memory"])
def test_what_cannot_be_had_fails_no_search(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searched: list[int]
) -> None:
    def refuse(*_: object) -> Any:
        raise RuntimeError("can't start new thread") if what == "thread" else OSError(12, "no room")

    index, held = filled(tmp_path, 300)
    with monkeypatch.context() as patch:
        if what == "thread":
            patch.setattr(module.threading.Thread, "start", refuse)
        else:
            patch.setattr("mmap.mmap", refuse)
        ready(index)
    check(index, held, held["3"], 10)
    assert not searched


def _search(index: ExactIndex, held: dict[str, Any]) -> None:
    check(index, held, held["3"], 10)


@pytest.mark.usefixtures("always")
def test_a_fork_does_without(tmp_path: Path) -> None:
    """It has none of the threads that the products would wait for."""
    index, held = filled(tmp_path, 3000)
    ready(index)
    check(index, held, held["3"], 10)
    child = multiprocessing.get_context("fork").Process(target=_search, args=(index, held))
    child.start()
    child.join(30)
    hung = child.is_alive()
    child.kill()
    assert not hung
    assert child.exitcode == 0


@pytest.mark.usefixtures("always")
def test_closing_ends_the_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded, pieces = module._rounded, []

    def slow(*args: Any) -> Any:
        pieces.append(1)
        time.sleep(0.05)
        return rounded(*args)

    monkeypatch.setattr(module, "_rounded", slow)
    monkeypatch.setattr(module, "_PIECE", 64)
    index, _ = filled(tmp_path, 1000)
    making = index._snapshot().coarse
    for _ in range(module._SEARCHES):
        index.nearest(np.ones(64), 1)
    index.close()
    making.wait()
    assert len(pieces) < 100


def test_a_program_may_end_while_they_are_made(tmp_path: Path) -> None:
    index, _ = filled(tmp_path, 60_000)
    index.close()
    program = f"""
        import numpy as np
        from pathlib import Path
        from tars_rag.retrieval.indexes.exact.index import ExactIndex

        index = ExactIndex(Path({str(tmp_path / "codes")!r}), read_only=True)
        for _ in range(2):
            print(index.nearest(np.ones(64), 1)[0][0])
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, timeout=60, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.split()) == 2
