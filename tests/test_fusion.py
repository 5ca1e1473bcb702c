"""Fusion: by hand on small cases, and the properties that any fused ranking must have."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conftest import HashEmbedder
from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.fusion import contenders, convex, evidence, nearness
from tars_rag.retrieval.passage import Passage, Ranking, ScoredPassage, ranked
from tars_rag.retrieval.pipeline import Pipeline
from tars_rag.retrieval.store import HybridStore

Side = dict[str, float]

# A busy machine is no failure: no deadline.
PROPERTY = settings(max_examples=60, deadline=None)
IDS = st.text("abcé\U0001f600", min_size=1, max_size=2)
# Eighths: equal scores are frequent, and no rounding stands between equal and nearly equal.
COSINES = st.dictionaries(IDS, st.integers(-8, 8).map(lambda n: n / 8), max_size=8)
SHARES = st.dictionaries(IDS, st.integers(0, 8).map(lambda n: n / 8), max_size=8)
WEIGHTS = st.floats(0, 1)
INNER_WEIGHTS = st.sampled_from([0.125, 0.25, 0.5, 0.75])


def shuffled(side: Side, seed: int) -> Side:
    items = list(side.items())
    random.Random(seed).shuffle(items)
    return dict(items)


def place(fused: Ranking, passage_id: str) -> int:
    return [key for key, _ in fused].index(passage_id)


def test_by_hand() -> None:
    cosines, shares = {"a": 0.9, "b": 0.7, "c": -0.5}, {"b": 0.5, "c": 1.0, "d": 0.25}
    fused = convex(cosines, shares)
    assert [key for key, _ in fused] == ["b", "c", "a", "d"]
    assert dict(fused) == pytest.approx(
        {"b": 0.35 + 0.2, "c": 0.5, "a": 0.45, "d": 0.125 / 1.0625 / 2}
    )
    quarter = dict(convex(cosines, shares, weight=0.25))
    assert quarter["b"] == pytest.approx(0.175 + 0.75 * 0.4)


def test_evidence_grows_faster_than_the_share_and_ends_at_1() -> None:
    values = [evidence(n / 100) for n in range(101)]
    assert values[0] == 0
    assert values[100] == 1
    assert values == sorted(set(values))
    assert all(evidence(share / 2) < evidence(share) / 2 for share in (0.1, 0.3, 0.5))


def test_equal_scores_are_in_the_order_of_the_cosine_and_only_then_of_the_id() -> None:
    assert [key for key, _ in convex({"a": -0.9, "b": -0.1, "c": 0.0}, {})] == ["c", "b", "a"]
    assert [key for key, _ in convex({"a": 0.1, "b": 0.9}, {}, weight=0)] == []
    shares = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}
    tied = convex({"a": 0.1, "b": 0.9, "c": 0.9}, shares, weight=0)
    assert [key for key, _ in tied] == ["b", "c", "a", "d"]


def test_ranked_takes_pairs_and_mappings() -> None:
    assert ranked([("b", 1.0), ("c", 2.0), ("a", 1.0)]) == [("c", 2.0), ("a", 1.0), ("b", 1.0)]
    assert ranked({"b": 1.0, "a": 1.0}) == [("a", 1.0), ("b", 1.0)]


def test_nothing_fused_with_nothing_is_nothing() -> None:
    assert convex({}, {}) == []


@PROPERTY
@given(COSINES, SHARES, WEIGHTS)
def test_each_id_once_best_first(cosines: Side, shares: Side, weight: float) -> None:
    fused = convex(cosines, shares, weight=weight)
    asked = (cosines if weight > 0 else {}).keys() | (shares if weight < 1 else {}).keys()
    assert sorted(key for key, _ in fused) == sorted(asked)
    key = {i: (-score, -cosines.get(i, -math.inf), i) for i, score in fused}
    assert [i for i, _ in fused] == sorted(key, key=key.__getitem__)
    assert all(type(score) is float and 0 <= score <= 1 for _, score in fused)


@PROPERTY
@given(COSINES, SHARES, WEIGHTS, st.integers(0, 99))
def test_the_order_of_the_input_does_not_matter(
    cosines: Side, shares: Side, weight: float, seed: int
) -> None:
    expected = convex(cosines, shares, weight=weight)
    again = convex(shuffled(cosines, seed), shuffled(shares, seed + 1), weight=weight)
    assert again == expected


@PROPERTY
@given(COSINES, SHARES)
def test_the_inputs_are_left_as_they_were(cosines: Side, shares: Side) -> None:
    before = list(cosines.items()), list(shares.items())
    convex(cosines, shares)
    assert (list(cosines.items()), list(shares.items())) == before


@PROPERTY
@given(COSINES, SHARES)
def test_a_side_of_no_weight_has_no_say(cosines: Side, shares: Side) -> None:
    assert [key for key, _ in convex(cosines, shares, weight=1)] == [
        key for key, _ in ranked(cosines)
    ]
    assert dict(convex(cosines, shares, weight=0)) == {
        key: evidence(share) for key, share in shares.items()
    }


@PROPERTY
@given(COSINES, SHARES, INNER_WEIGHTS, st.data())
def test_a_better_score_on_one_side_never_costs_a_place(
    cosines: Side, shares: Side, weight: float, data: st.DataObject
) -> None:
    assume(cosines or shares)
    name, side = data.draw(
        st.sampled_from([(n, s) for n, s in (("v", cosines), ("l", shares)) if s])
    )
    passage_id = data.draw(st.sampled_from(sorted(side)))
    gain = data.draw(st.integers(1, 8)) / 8
    better = side | {passage_id: min(side[passage_id] + gain, 1.0)}
    before = convex(cosines, shares, weight=weight)
    after = convex(*((better, shares) if name == "v" else (cosines, better)), weight=weight)
    assert place(after, passage_id) <= place(before, passage_id)


@PROPERTY
@given(COSINES, SHARES, COSINES, SHARES, INNER_WEIGHTS)
def test_a_passage_has_the_same_score_whatever_else_was_found(
    cosines: Side, shares: Side, more_cosines: Side, more_shares: Side, weight: float
) -> None:
    alone = dict(convex(cosines, shares, weight=weight))
    among = dict(convex(more_cosines | cosines, more_shares | shares, weight=weight))
    for key in cosines.keys() & shares.keys():
        assert among[key] == alone[key]


@given(
    scores=st.dictionaries(
        IDS, st.tuples(st.integers(-8, 8), st.integers(0, 8)), min_size=1, max_size=24
    ),
    asked=st.integers(1, 12),
    k=st.integers(1, 6),
    weight=WEIGHTS,
    floor=st.sampled_from([0.0, 0.25]),
)
@PROPERTY
def test_contenders_are_all_that_can_be_among_the_first(
    scores: dict[str, tuple[int, int]], asked: int, k: int, weight: float, floor: float
) -> None:
    cosines = {key: cosine / 8 for key, (cosine, _) in scores.items()}
    shares = {key: share / 8 for key, (_, share) in scores.items() if share}
    near, words = dict(ranked(cosines)[:asked]), dict(ranked(shares)[:asked])
    kept = contenders(near, words, k, asked=asked, weight=weight, floor=floor)
    everyone = near.keys() | words.keys()
    full = convex(
        {key: cosines[key] for key in everyone},
        {key: shares.get(key, 0.0) for key in everyone},
        weight=weight,
        floor=floor,
    )
    assert {key for key, _ in full[:k]} <= kept <= everyone


def test_contenders_by_hand() -> None:
    near, words = {"a": 0.9, "b": 0.8, "c": 0.3}, {"a": 0.5, "d": 0.4, "e": 0.1}
    # a has 0.45 + 0.2, b at least 0.4; c comes to 0.15 + 0.01 at most, d to 0.14 + 0.15.
    assert contenders(near, words, 2, asked=3) == {"a", "b"}
    assert contenders(near, words, 1, asked=3) == {"a"}
    near["c"] = 0.27  # now it has 0.135, and comes to 0.145 with as much as e; d has 0.138
    assert contenders(near, words, 3, asked=3) == {"a", "b", "c", "d", "e"}
    # Fewer words were found than were asked for: there are no others, and c stays at 0.135.
    assert contenders(near, words, 3, asked=4) == {"a", "b", "d", "e"}
    assert contenders(near, words, 6, asked=3) == {"a", "b", "c", "d", "e"}
    assert contenders({}, words, 1, asked=3) == {"a", "d", "e"}


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan, math.inf, -math.inf, "0.5", None, True])
def test_a_weight_outside_0_to_1_is_refused(weight: Any) -> None:
    with pytest.raises(InvalidInputError, match="weight must be a number from 0") as caught:
        convex({"a": 1.0}, {"a": 1.0}, weight=weight)
    assert repr(weight) in str(caught.value)


# -- through the store ----------------------------------------------------------------------------


class Meaning:
    """An embedder that is told how near texts are: each text lies at an angle of its own."""

    fingerprint = "meaning:2"
    dimension = 2

    def __init__(self, cosines: dict[str, float]) -> None:
        self.cosines = cosines

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        angles = np.arccos([self.cosines.get(text, 0.1) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


QUERY = "how can I make my computer faster"
RIGHT = "Close programs that you do not need to speed up the PC."
STRAY = "The faster train leaves at nine."


@pytest.mark.parametrize("size", [2, 3, 8, 60])
def test_one_stray_word_does_not_outrank_what_vectors_put_first(tmp_path: Path, size: int) -> None:
    embedder = Meaning({QUERY: 1.0, RIGHT: 0.58, STRAY: 0.16})
    fill = [Passage(f"x{n}", f"Copper conducts heat, note {n}.") for n in range(size - 2)]
    with HybridStore(tmp_path / "store", embedder) as store:
        store.upsert([*fill, Passage("b", RIGHT), Passage("a", STRAY)])
        first, *_ = store.search(QUERY, 2)
        assert first.id == "b"
        (stray,) = [hit for hit in store.search(QUERY, size) if hit.id == "a"]
        assert 0 < stray.lexical_share < 0.3
        assert stray.score < 0.2


@pytest.mark.slow
def test_a_share_means_the_same_in_a_small_store_and_in_a_large_one(tmp_path: Path) -> None:
    texts = {"all": "a fan cools the board", "half": "a fan in the window"}
    shares: dict[str, list[float]] = {key: [] for key in texts}
    for size in (2, 20, 2000):
        with HybridStore(tmp_path / f"{size}", HashEmbedder()) as store:
            store.upsert([Passage(key, text) for key, text in texts.items()])
            store.upsert([Passage(f"x{n}", "rain falls on a hill") for n in range(size - 2)])
            for hit in store.search("fan cools board", 2, "lexical"):
                shares[hit.id].append(hit.lexical_share or 0.0)
    assert all(0.4 < share < 0.7 for share in shares["all"]), shares
    assert all(0.05 < share < 0.3 for share in shares["half"]), shares


def test_words_that_no_passage_holds_count_against_a_match(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([Passage("a", "copper wire"), Passage("b", "wooden floor")])
        shares = [
            store.search(query, 1, "lexical")[0].lexical_share
            for query in ("copper", "copper zeppelin", "copper zeppelin submarine")
        ]
    assert shares[0] == pytest.approx(2 * shares[1], rel=1e-5)
    assert shares[0] == pytest.approx(3 * shares[2], rel=1e-5)


@pytest.mark.parametrize("query", ["", " \n", "?!", "...", "()"])
def test_a_query_without_words_is_answered_by_vectors(tmp_path: Path, query: str) -> None:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([Passage(f"{n}", f"text {n} of some") for n in range(20)])
        near = store.search(query, 5, "naive")
        both = store.search(query, 5)
        assert [(h.id, h.score) for h in both] == [
            (h.id, pytest.approx(max(h.score, 0))) for h in near
        ]
        assert store.search(query, 5, "lexical") == []


@pytest.mark.parametrize("strategy", ["hybrid", "naive", "lexical"])
def test_a_least_score_cuts_off_what_does_not_fit(tmp_path: Path, strategy: Any) -> None:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([Passage("fan", "the fan cools the board"), Passage("x", "a grand piano")])
        every = store.search("fan cools board", 5, strategy)
        best = every[0].relevance
        assert 0 < best <= 1
        kept = store.search("fan cools board", 5, strategy, min_score=best)
        assert [hit.id for hit in kept] == [every[0].id]
        assert store.search("fan cools board", 5, strategy, min_score=0.999) == []
        if strategy != "naive":
            assert store.search("zeppelin", 5, "lexical", min_score=0) == []


@pytest.mark.parametrize("least", [-0.1, 1.1, math.nan, "0.5", True])
def test_a_least_score_outside_0_to_1_is_refused(tmp_path: Path, least: Any) -> None:
    with (
        HybridStore(tmp_path / "store", HashEmbedder()) as store,
        pytest.raises(InvalidInputError, match="min_score must be a number from 0 to 1"),
    ):
        store.search("text", min_score=least)


def test_relevance_is_the_last_word_on_a_hit() -> None:
    hit = ScoredPassage(Passage("a", "text"), -0.25, vector_score=-0.25)
    assert hit.relevance == 0
    assert (
        ScoredPassage(Passage("a", "text"), 7.5, lexical_score=7.5, lexical_share=0.4).relevance
        == 0.4
    )
    fused = ScoredPassage(Passage("a", "text"), 0.3, 0.5, 7.5, 0.3, lexical_share=0.2)
    assert fused.relevance == 0.3
    assert fused.reranked(0.9).relevance == 0.9


def test_a_pipeline_judges_by_the_reranker(tmp_path: Path) -> None:
    class ByLength:
        def score(self, query: str, texts: Any, budget_ms: float | None = None) -> Any:
            return np.array([len(text) / 100 for text in texts], np.float32)

    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([Passage("short", "fan"), Passage("long", "fan " * 20)])
        pipeline = Pipeline(store, ByLength())
        assert [p.id for p in pipeline.search("fan", min_score=0.5).passages] == ["long"]
        assert pipeline.search("fan", min_score=0.99).passages == []
        assert [p.id for p in pipeline.search("fan", rerank=False, min_score=0.99).passages] == []


class Narrow(HashEmbedder):
    """An embedder that finds everything near: its cosines are those of another, from 0.8 to 1."""

    unrelated_cosine = 0.8

    def embed(self, texts: Any) -> NDArray[np.float32]:
        rows = HashEmbedder(32).embed(texts) * np.float32(math.sqrt(0.2))
        same = np.full((len(rows), 1), math.sqrt(0.8), np.float32)
        return np.concatenate([same, rows], 1)


def test_cosines_count_from_where_the_scale_of_the_embedder_begins(tmp_path: Path) -> None:
    found = []
    for name, embedder in (("wide", HashEmbedder(32)), ("narrow", Narrow(33, "narrow"))):
        with HybridStore(tmp_path / name, embedder) as store:
            store.upsert([Passage(f"{n}", f"text {n} of {n % 3} fans") for n in range(9)])
            found.append({hit.id: hit.score for hit in store.search("text 4 fans", 9)})
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_nearness_by_hand() -> None:
    assert nearness(0.5) == 0.5
    assert nearness(-0.5) == 0
    assert nearness(0.85, 0.7) == pytest.approx(0.5)
    assert nearness(0.6, 0.7) == 0
    assert nearness(1.0, 0.7) == 1
