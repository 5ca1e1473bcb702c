"""The exact index against brute force in float64, on the data that approximate indexes lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.exact.index import ExactIndex

Rows = NDArray[np.float32]
EPSILON = 1e-12


def gaussian(rng: np.random.Generator, n: int, dim: int) -> Rows:
    return rng.standard_normal((n, dim)).astype(np.float32)


def copies(rng: np.random.Generator, n: int, dim: int) -> Rows:
    rows = gaussian(rng, n, dim)
    rows[: n * 9 // 10] = rows[0]
    return rng.permutation(rows)


def near_copies(rng: np.random.Generator, n: int, dim: int) -> Rows:
    return (gaussian(rng, 1, dim) + 1e-6 * gaussian(rng, n, dim)).astype(np.float32)


def clusters(rng: np.random.Generator, n: int, dim: int) -> Rows:
    centres = gaussian(rng, 7, dim)[rng.integers(0, 7, n)]
    return (centres + 0.05 * gaussian(rng, n, dim)).astype(np.float32)


def one_cluster_and_outliers(rng: np.random.Generator, n: int, dim: int) -> Rows:
    rows = gaussian(rng, 1, dim) + 0.1 * gaussian(rng, n, dim)
    rows[: n // 20] = gaussian(rng, n // 20, dim)
    return rng.permutation(rows.astype(np.float32))


def constant_dimensions(rng: np.random.Generator, n: int, dim: int) -> Rows:
    rows = gaussian(rng, n, dim)
    rows[:, : dim // 2] = 0
    rows[:, -1] = 3
    return rows


def whole_numbers(rng: np.random.Generator, n: int, dim: int) -> Rows:
    rows = rng.integers(-1, 2, (n, dim)).astype(np.float32)
    rows[~rows.any(axis=1), 0] = 1
    return rows


def any_scale(rng: np.random.Generator, n: int, dim: int) -> Rows:
    return (gaussian(rng, n, dim) * 10.0 ** rng.integers(-30, 36, (n, 1))).astype(np.float32)


def spikes(rng: np.random.Generator, n: int, dim: int) -> Rows:
    rows = (1e-3 * gaussian(rng, n, dim)).astype(np.float32)
    rows[np.arange(n), rng.integers(0, dim, n)] = rng.choice([-1, 1], n)
    return rows


KINDS: list[Callable[[np.random.Generator, int, int], Rows]] = [
    gaussian,
    copies,
    near_copies,
    clusters,
    one_cluster_and_outliers,
    constant_dimensions,
    whole_numbers,
    any_scale,
    spikes,
]


def cosines(rows: Rows, query: NDArray[np.floating]) -> NDArray[np.float64]:
    wide, unit = rows.astype(np.float64), np.asarray(query, np.float64)
    return wide @ (unit / np.linalg.norm(unit)) / np.linalg.norm(wide, axis=1)


def check(
    index: ExactIndex,
    held: Mapping[str, Rows],
    query: NDArray[np.floating],
    k: int,
    among: Sequence[str] | None = None,
) -> None:
    """Raise if the index's answer is not brute force's, but for the last bits of float64."""
    found = index.nearest(query, k, among)
    chosen = held.keys() if among is None else held.keys() & set(among)
    ids = [key for key in held if key in chosen]
    assert len(found) == min(k, len(ids))
    assert found == sorted(found, key=lambda item: (-item[1], item[0]))
    if not found:
        return
    exact = dict(zip(ids, cosines(np.stack([held[key] for key in ids]), query), strict=True))
    for key, score in found:
        assert score == pytest.approx(exact[key], abs=EPSILON)
    last = found[-1][1]
    returned = {key for key, _ in found}
    assert {key for key, score in exact.items() if score > last + EPSILON} <= returned
    assert index.scores(query, [key for key, _ in found]) == dict(found)
    # Of equal vectors the smallest ids are returned, with equal scores.
    scores: dict[bytes, tuple[float, str]] = {}
    for key, score in found:
        assert scores.setdefault(held[key].tobytes(), (score, key))[0] == score
        scores[held[key].tobytes()] = score, key
    for key in ids:
        if key not in returned and held[key].tobytes() in scores:
            assert key > scores[held[key].tobytes()][1]


def queries(rng: np.random.Generator, rows: Rows) -> list[NDArray[np.floating]]:
    """One of the rows, one near a row, one anywhere, and one that is opposite."""
    row = rows[rng.integers(len(rows))].astype(np.float64)
    row /= np.linalg.norm(row)
    noise = rng.standard_normal(rows.shape[1])
    return [row, row + 0.1 * noise / np.linalg.norm(noise), noise, -row]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("n", "dim"), [(1, 1), (64, 3), (700, 31), pytest.param(5000, 64, marks=pytest.mark.slow)]
)
def test_every_kind_of_data(
    kind: Callable[[np.random.Generator, int, int], Rows], n: int, dim: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng([n, dim])
    rows = kind(rng, n, dim)
    ids = [f"{value:x}" for value in rng.permutation(n)]
    held = dict(zip(ids, rows, strict=True))
    index = ExactIndex(tmp_path / "codes", dim)
    index.add(ids, rows)
    index.commit()
    for query in queries(rng, rows):
        for k in (1, 2, 10, 100, n + 1):
            check(index, held, query, k)
        for share in (0.01, 0.1, 0.5, 1):
            among = [str(key) for key in rng.choice(ids, int(n * share), replace=False)]
            check(index, held, query, 10, [*among, "nobody"])


@pytest.mark.parametrize("dim", [1, 2, 5, 100, 1023, 4096])
def test_every_dimension(dim: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(dim)
    index = ExactIndex(tmp_path / "codes")
    held: dict[str, Rows] = {}
    for kind in KINDS:
        rows = kind(rng, 40, dim)
        names = [f"{kind.__name__} {place}" for place in range(len(rows))]
        held |= dict(zip(names, rows, strict=True))
        index.add(names, rows)
    index.commit()
    for query in queries(rng, np.stack(list(held.values()))):
        for k in (1, 7, 50, len(held)):
            check(index, held, query, k)


def test_ties_are_exact_wherever_a_vector_stands(tmp_path: Path) -> None:
    """10,000 copies of a few vectors, in odd dimensions, committed in pieces of every size."""
    rng = np.random.default_rng(0)
    for dim in (3, 17, 383):
        rows = gaussian(rng, 5, dim)[rng.integers(0, 5, 4000)]
        index = ExactIndex(tmp_path / str(dim), dim)
        for start in range(0, 4000, 500):
            index.add([f"{place:04}" for place in range(start, start + 500)], rows[start:][:500])
            index.commit()
        query = rng.standard_normal(dim)
        found = index.nearest(query, 4000)
        assert len({score for _, score in found}) == 5
        for key, score in found[::97]:
            assert index.nearest(query, 1, [key]) == [(key, score)]


def test_a_dominant_cluster_hides_nothing(tmp_path: Path) -> None:
    """The kind of data on which Chroma's HNSW loses most (1,000 copies beside 50 others)."""
    rng = np.random.default_rng(5)
    others, copy = gaussian(rng, 50, 384), gaussian(rng, 1, 384)
    rows = np.concatenate([np.repeat(copy, 1000, axis=0), others])
    names = [*(f"copy {place}" for place in range(1000)), *(f"other {i}" for i in range(50))]
    index = ExactIndex(tmp_path / "codes", 384)
    index.add(names, rows)
    index.commit()
    for place, vector in enumerate(others):
        assert index.nearest(vector, 1) == [(f"other {place}", pytest.approx(1))]


class Model:
    """An index, and what it should hold."""

    def __init__(self, path: Path, dim: int) -> None:
        self.path, self.dim = path, dim
        self.index = ExactIndex(path, dim)
        self.held: dict[str, Rows] = {}
        self.next: dict[str, Rows] = {}

    def add(self, ids: Sequence[str], rows: Rows) -> None:
        self.index.add(ids, rows)
        for key, row in zip(ids, rows, strict=True):
            self.next.pop(key, None)
            self.next[key] = row.copy()

    def remove(self, ids: Sequence[str]) -> None:
        self.index.remove(ids)
        for key in ids:
            self.next.pop(key, None)

    def commit(self) -> None:
        self.index.commit()
        self.held = dict(self.next)

    def reopen(self) -> None:
        self.index.close()
        self.index = ExactIndex(self.path, self.dim)
        self.next = dict(self.held)


IDS = st.sampled_from(
    ["a", "b", "é", "e\u0301", "\ud800", "\U0001f600", "0" * 300, "x\0y", "z", " "]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(IDS, min_size=1, max_size=6), st.integers(0, 8)),
        st.tuples(st.just("many"), st.integers(1, 300), st.integers(0, 8)),
        st.tuples(st.just("remove"), st.lists(IDS, max_size=3), st.just(0)),
        st.tuples(st.just("few"), st.integers(0, 300), st.just(0)),
        st.tuples(
            st.sampled_from(["commit", "reopen", "rollback", "compact", "look"]),
            st.just(0),
            st.just(0),
        ),
    ),
    max_size=25,
)


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, seed=st.integers(0, 2**32 - 1), dim=st.sampled_from([1, 2, 9, 48]))
def test_any_history(
    steps: list[tuple[str, object, int]],
    seed: int,
    dim: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    live(Model(tmp_path_factory.mktemp("history") / "codes", dim), steps, seed)


def live(
    model: Model,
    steps: Sequence[tuple[str, object, int]],
    seed: int,
    look: Callable[[Model, np.random.Generator], None] | None = None,
) -> None:
    """Do the steps, and look at what is found."""
    rng, dim, look = np.random.default_rng(seed), model.dim, look or agrees
    for name, what, kind in steps:
        if name == "add":
            assert isinstance(what, list)
            model.add(what, KINDS[kind](rng, 40, dim)[: len(what)])
        elif name == "many":
            assert isinstance(what, int)
            rows = KINDS[kind](rng, what, dim)
            model.add([str(place) for place in rng.permutation(400)[:what]], rows)
        elif name == "remove":
            assert isinstance(what, list)
            model.remove(what)
        elif name == "few":
            model.remove([str(place) for place in range(what if isinstance(what, int) else 0)])
        elif name == "commit":
            model.commit()
        elif name == "reopen":
            model.reopen()
        elif name == "rollback":
            model.index.rollback()
            model.next = dict(model.held)
        elif name == "compact":
            model.index.compact()
        else:
            look(model, rng)
    model.commit()
    look(model, rng)
    model.reopen()
    look(model, rng)


def agrees(model: Model, rng: np.random.Generator) -> None:
    index, held = model.index, model.held
    assert index.count() == len(held)
    assert sorted(index.ids()) == sorted(held)
    vectors = index.vectors([*held, "nobody"])
    assert {key: row.tobytes() for key, row in vectors.items()} == {
        key: row.tobytes() for key, row in held.items()
    }
    query = rng.standard_normal(model.dim)
    for k in (1, 3, 100):
        check(index, held, query, k)
    some = [key for key in held if rng.random() < 0.3]
    check(index, held, query, 5, some)
