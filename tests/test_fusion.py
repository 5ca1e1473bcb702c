"""Fusion: by hand on small cases, and the properties that any fused ranking must have."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.fusion import convex, reciprocal_rank
from tars_rag.retrieval.passage import Ranking, ranked

Fuse = Callable[..., Ranking]
Side = dict[str, float]

# A busy machine is no failure: no deadline.
PROPERTY = settings(max_examples=60, deadline=None)
BOTH = pytest.mark.parametrize("fuse", [convex, reciprocal_rank])
IDS = st.text("abcé\U0001f600", min_size=1, max_size=2)
# Eighths: equal scores are frequent, and no rounding stands between equal and nearly equal.
SCORES = st.integers(-40, 40).map(lambda n: n / 8)
SIDES = st.dictionaries(IDS, SCORES, max_size=8)
WEIGHTS = st.floats(0, 1)
INNER_WEIGHTS = st.sampled_from([0.125, 0.25, 0.5, 0.75])


def shuffled(side: Side, seed: int) -> Side:
    items = list(side.items())
    random.Random(seed).shuffle(items)
    return dict(items)


def place(fused: Ranking, passage_id: str) -> int:
    return [key for key, _ in fused].index(passage_id)


def competition_ranks(side: Side) -> dict[str, int]:
    return {key: 1 + sum(other > score for other in side.values()) for key, score in side.items()}


def test_reciprocal_rank_by_hand() -> None:
    fused = reciprocal_rank({"a": 0.9, "b": 0.8, "c": 0.7}, {"b": 5.0, "d": 2.0})
    assert [key for key, _ in fused] == ["b", "a", "d", "c"]
    assert dict(fused) == pytest.approx(
        {"b": 0.5 / 62 + 0.5 / 61, "a": 0.5 / 61, "d": 0.5 / 62, "c": 0.5 / 63}
    )


def test_reciprocal_rank_takes_weight_and_constant() -> None:
    fused = reciprocal_rank({"a": 0.9, "b": 0.1}, {"b": 3.0}, weight=0.25, k=1)
    assert fused == [("b", pytest.approx(0.25 / 3 + 0.75 / 2)), ("a", pytest.approx(0.25 / 2))]


def test_equal_scores_share_a_rank_and_the_next_rank_is_left_out() -> None:
    fused = dict(reciprocal_rank({"a": 1.0, "b": 1.0, "c": 0.0}, {}, weight=1))
    assert fused == pytest.approx({"a": 1 / 61, "b": 1 / 61, "c": 1 / 63})


def test_convex_by_hand() -> None:
    vectors, lexical = {"a": 0.9, "b": 0.7, "c": 0.5}, {"b": 6.0, "c": 4.0, "d": 2.0}
    fused = convex(vectors, lexical)
    assert [key for key, _ in fused] == ["b", "a", "c", "d"]
    assert dict(fused) == pytest.approx({"b": 0.75, "a": 0.5, "c": 0.25, "d": 0.0})
    quarter = dict(convex(vectors, lexical, weight=0.25))
    assert quarter == pytest.approx({"b": 0.875, "c": 0.375, "a": 0.25, "d": 0.0})


def test_convex_of_scores_that_are_all_equal_prefers_them_to_absence() -> None:
    assert convex({"a": 0.3, "b": 0.3}, {"c": 1.0, "d": 0.0}) == [
        ("a", 0.5),
        ("b", 0.5),
        ("c", 0.5),
        ("d", 0.0),
    ]


def test_ranked_takes_pairs_and_mappings() -> None:
    assert ranked([("b", 1.0), ("c", 2.0), ("a", 1.0)]) == [("c", 2.0), ("a", 1.0), ("b", 1.0)]
    assert ranked({"b": 1.0, "a": 1.0}) == [("a", 1.0), ("b", 1.0)]


@BOTH
def test_nothing_fused_with_nothing_is_nothing(fuse: Fuse) -> None:
    assert fuse({}, {}) == []


@BOTH
@PROPERTY
@given(SIDES, SIDES, WEIGHTS)
def test_each_id_once_best_first_ties_by_id(
    fuse: Fuse, vectors: Side, lexical: Side, weight: float
) -> None:
    fused = fuse(vectors, lexical, weight=weight)
    asked = (vectors if weight > 0 else {}).keys() | (lexical if weight < 1 else {}).keys()
    assert sorted(key for key, _ in fused) == sorted(asked)
    assert fused == sorted(fused, key=lambda item: (-item[1], item[0]))
    assert all(type(score) is float for _, score in fused)


@BOTH
@PROPERTY
@given(SIDES, SIDES, WEIGHTS, st.integers(0, 99))
def test_the_order_of_the_input_does_not_matter(
    fuse: Fuse, vectors: Side, lexical: Side, weight: float, seed: int
) -> None:
    expected = fuse(vectors, lexical, weight=weight)
    again = fuse(shuffled(vectors, seed), shuffled(lexical, seed + 1), weight=weight)
    assert again == expected


@BOTH
@PROPERTY
@given(SIDES, SIDES)
def test_the_inputs_are_left_as_they_were(fuse: Fuse, vectors: Side, lexical: Side) -> None:
    before = list(vectors.items()), list(lexical.items())
    fuse(vectors, lexical)
    assert (list(vectors.items()), list(lexical.items())) == before


@BOTH
@PROPERTY
@given(SIDES, SIDES)
def test_a_side_of_no_weight_has_no_say(fuse: Fuse, vectors: Side, lexical: Side) -> None:
    for weight, side in ((1, vectors), (0, lexical)):
        fused = [key for key, _ in fuse(vectors, lexical, weight=weight)]
        assert fused == [key for key, _ in ranked(side)]


@BOTH
@PROPERTY
@given(SIDES, SIDES, WEIGHTS)
def test_the_sides_are_treated_alike(
    fuse: Fuse, vectors: Side, lexical: Side, weight: float
) -> None:
    assume(1 - (1 - weight) == weight)
    one = dict(fuse(vectors, lexical, weight=weight))
    assert dict(fuse(lexical, vectors, weight=1 - weight)) == pytest.approx(one)


@BOTH
@PROPERTY
@given(SIDES, SIDES, INNER_WEIGHTS, st.data())
def test_a_better_score_on_one_side_never_costs_a_place(
    fuse: Fuse, vectors: Side, lexical: Side, weight: float, data: st.DataObject
) -> None:
    assume(vectors or lexical)
    name, side = data.draw(
        st.sampled_from([(n, s) for n, s in (("v", vectors), ("l", lexical)) if s])
    )
    passage_id = data.draw(st.sampled_from(sorted(side)))
    gain = data.draw(st.integers(1, 80)) / 8
    better = side | {passage_id: side[passage_id] + gain}
    before = fuse(vectors, lexical, weight=weight)
    after = fuse(*((better, lexical) if name == "v" else (vectors, better)), weight=weight)
    assert place(after, passage_id) <= place(before, passage_id)


@PROPERTY
@given(SIDES, SIDES, WEIGHTS)
def test_reciprocal_rank_is_its_formula(vectors: Side, lexical: Side, weight: float) -> None:
    fused = dict(reciprocal_rank(vectors, lexical, weight=weight))
    for key, score in fused.items():
        expected = 0.0
        for share, side in ((weight, vectors), (1 - weight, lexical)):
            if key in side:
                expected += share / (60 + competition_ranks(side)[key])
        assert math.isclose(score, expected, rel_tol=1e-12)


@PROPERTY
@given(
    st.dictionaries(IDS, st.floats(-1, 1), max_size=8),
    st.dictionaries(IDS, st.floats(0, 1e3), max_size=8),
    WEIGHTS,
)
def test_convex_scores_are_within_0_and_1(vectors: Side, lexical: Side, weight: float) -> None:
    assert all(0 <= score <= 1 for _, score in convex(vectors, lexical, weight=weight))


@PROPERTY
@given(SIDES, SIDES, st.integers(1, 5), SCORES)
def test_convex_does_not_depend_on_the_scale_of_a_side(
    vectors: Side, lexical: Side, factor: int, offset: float
) -> None:
    scaled = {key: score * 2**factor + offset for key, score in lexical.items()}
    assert convex(vectors, scaled) == convex(vectors, lexical)


@BOTH
@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan, math.inf, -math.inf, "0.5", None, True])
def test_a_weight_outside_0_to_1_is_refused(fuse: Fuse, weight: Any) -> None:
    with pytest.raises(InvalidInputError, match="weight must be a number from 0") as caught:
        fuse({"a": 1.0}, {"a": 1.0}, weight=weight)
    assert repr(weight) in str(caught.value)
