"""The exact index as its users see it: one example of everything. See test_exact_oracle too."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.retrieval.indexes.exact.index import ExactIndex

ROWS = np.array([[1, 0], [0, 2], [-3, 0], [1, 1]], np.float32)
IDS = ["east", "north", "west", "north-east"]


@pytest.fixture
def index(tmp_path: Path) -> ExactIndex:
    index = ExactIndex(tmp_path / "codes", 2)
    index.add(IDS, ROWS)
    index.commit("one")
    return index


def test_nearest_is_ordered_by_cosine_and_then_by_id(index: ExactIndex) -> None:
    found = index.nearest(np.array([0.1, 0.1]), 3)
    assert [key for key, _ in found] == ["north-east", "east", "north"]
    assert [score for _, score in found] == pytest.approx([1, 0.5**0.5, 0.5**0.5], abs=1e-12)
    assert found[1][1] == found[2][1]


def test_only_some(index: ExactIndex) -> None:
    query = np.array([1.0, 0.0])
    assert index.nearest(query, 9, ["west", "north", "nobody", "west"]) == [
        ("north", 0.0),
        ("west", -1.0),
    ]
    assert index.nearest(query, 9, []) == []
    assert index.scores(query, ["west", "nobody"]) == {"west": -1.0}
    assert index.vectors(["north"])["north"].tolist() == [0, 2]


def test_nothing_is_seen_before_the_commit(index: ExactIndex) -> None:
    index.add(["south"], np.array([[0, -1]], np.float32))
    index.remove(["east"])
    assert index.count() == 4
    index.commit()
    assert index.ids() == ["north", "west", "north-east", "south"]
    assert index.stamp == "one"
    index.remove(["south"])
    index.rollback()
    index.commit()
    assert index.count() == 4


def test_an_id_is_replaced(index: ExactIndex) -> None:
    index.add(["east"], np.array([[-1, -1]], np.float32))
    index.commit()
    assert index.count() == 4
    assert index.nearest(np.array([-1.0, -1.0]), 1) == [("east", pytest.approx(1.0))]


def test_it_is_there_again_after_reopening(index: ExactIndex, tmp_path: Path) -> None:
    again = ExactIndex(tmp_path / "codes", read_only=True)
    assert again.dimension == 2
    assert (again.generation, again.digest, again.stamp) == (1, index.digest, "one")
    query = np.array([0.3, -0.4])
    assert again.nearest(query, 4) == index.nearest(query, 4)
    index.remove(["east"])
    index.commit("two")
    assert again.count() == 4
    again.refresh()
    assert (again.count(), again.stamp, again.digest) == (3, "two", index.digest)


def test_what_cannot_be_compared_is_refused(index: ExactIndex) -> None:
    for vector in ([0, 0], [np.nan, 1], [np.inf, 1], [1, 2, 3], [[1, 2]], 1.0):
        with pytest.raises(InvalidInputError, match="vector"):
            index.nearest(np.array(vector), 1)
        with pytest.raises(InvalidInputError, match="vector"):
            index.add(["x"], np.array([vector], np.float32))
    with pytest.raises(InvalidInputError, match="2 ids and 1 vectors"):
        index.add(["x", "y"], ROWS[:1])
    assert index.nearest(np.array([1.0, 0.0]), 0) == []


def test_an_empty_index_answers(tmp_path: Path) -> None:
    index = ExactIndex(tmp_path / "codes")
    assert index.dimension is None
    assert index.nearest(np.array([1.0, 0.0]), 5) == []
    index.commit("nothing")
    index.add(["a"], np.ones((1, 3)))
    index.commit()
    assert (index.dimension, index.stamp, index.generation) == (3, "nothing", 2)
    with pytest.raises(StoreError, match="vectors of 3 numbers, not of 4"):
        ExactIndex(tmp_path / "codes", 4)


def test_read_only_and_closed(index: ExactIndex, tmp_path: Path) -> None:
    again = ExactIndex(tmp_path / "codes", read_only=True)
    with pytest.raises(StoreError, match="read-only"):
        again.add(["x"], ROWS[:1])
    index.close()
    with pytest.raises(StoreError, match="closed"):
        index.count()
    with pytest.raises(StoreError, match="missing"):
        ExactIndex(tmp_path / "nowhere", read_only=True)


def test_removed_rows_are_compacted_away(index: ExactIndex, tmp_path: Path) -> None:
    index.remove(["east"])
    index.commit("two")
    before = index.nearest(np.array([0.3, -0.4]), 9), index.digest, index.generation
    index.compact()
    for opened in (index, ExactIndex(tmp_path / "codes", 2)):
        assert (opened.nearest(np.array([0.3, -0.4]), 9), opened.digest, 2) == before
        assert (opened.ids(), opened.stamp) == (["north", "west", "north-east"], "two")
    assert sorted(path.name for path in (tmp_path / "codes").iterdir()) == [
        "codes-2.bin",
        "rows-2.log",
    ]


def test_a_forked_process_searches_too(index: ExactIndex, tmp_path: Path) -> None:
    """The pool of threads that multiplies does not survive a fork; the child makes its own."""
    query = np.array([0.3, -0.4])
    expected = index.nearest(query, 4)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            again = ExactIndex(tmp_path / "codes", read_only=True)
            os._exit(0 if again.nearest(query, 4) == expected else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
