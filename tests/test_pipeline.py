"""The pipeline: which steps ran where, what the deadline leaves, and what a reranker may do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import HashEmbedder
from tars_rag.errors import DeviceError, InvalidInputError, StoreError
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.pipeline import Pipeline
from tars_rag.retrieval.store import HybridStore

QUERY = "kiwi melon"
WORDS = ["kiwi", "melon", "board", "fan", "river", "tune"]
PASSAGES = [
    Passage(f"p{n}", " ".join(WORDS[: n % 6 + 1]) + f" number{n}", {"even": n % 2 == 0})
    for n in range(12)
]


class FakeReranker:
    """Stands in for the device: scores rows by a function, remembers what it was asked."""

    device = "npu"

    def __init__(self, score: Callable[[int], float], *, seconds: float = 0) -> None:
        self.rule = score
        self.seconds = seconds
        self.calls: list[tuple[str, list[str], float | None]] = []

    def score(
        self, query: str, texts: Sequence[str], budget_ms: float | None = None
    ) -> NDArray[np.float32]:
        self.calls.append((query, list(texts), budget_ms))
        time.sleep(self.seconds)
        return np.array([self.rule(row) for row in range(len(texts))], np.float32)


class Answering:
    """A reranker without a device that gives whatever it was told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def score(self, query: str, texts: Sequence[str], budget_ms: float | None = None) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class SlowEmbedder(HashEmbedder):
    """A device that takes its time for a query."""

    def __init__(self) -> None:
        super().__init__()
        self.device = "npu"

    def embed_query(self, text: str) -> NDArray[np.float32]:
        time.sleep(0.05)
        return super().embed_query(text)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HybridStore]:
    with HybridStore(tmp_path_factory.mktemp("pipeline") / "store", SlowEmbedder()) as opened:
        opened.upsert(PASSAGES)
        yield opened


def backwards(row: int) -> float:
    return row / 100


def test_each_step_says_what_it_did_where_and_how_long(store: HybridStore) -> None:
    answer = Pipeline(store, FakeReranker(backwards, seconds=0.03)).search(QUERY)
    steps = {step.name: step for step in answer.steps}
    assert list(steps) == ["embed", "lexical", "vectors", "fuse", "rerank"]
    assert [step.device for step in answer.steps] == ["npu", "cpu", "cpu", "cpu", "npu"]
    assert all(step.milliseconds >= 0 for step in answer.steps)
    assert steps["embed"].milliseconds >= 50
    assert steps["rerank"].milliseconds >= 30
    assert answer.milliseconds == pytest.approx(sum(s.milliseconds for s in answer.steps))
    assert steps["lexical"].note == "12 hits"
    assert steps["vectors"].note == "12 hits"
    assert steps["fuse"].note == "12 candidates"
    assert steps["rerank"].note == "12 of 12"


@pytest.mark.parametrize(
    ("strategy", "names"),
    [
        ("naive", ["embed", "vectors", "rerank"]),
        ("lexical", ["lexical", "rerank"]),
        ("hybrid", ["embed", "lexical", "vectors", "fuse", "rerank"]),
    ],
)
def test_only_the_steps_of_the_strategy_run(
    store: HybridStore, strategy: Any, names: list[str]
) -> None:
    reranker = FakeReranker(backwards)
    own = Pipeline(store, reranker, strategy=strategy).search(QUERY, 3)
    asked = Pipeline(store, reranker).search(QUERY, 3, strategy=strategy)
    for answer in (own, asked):
        assert [step.name for step in answer.steps] == names
    assert asked.passages == own.passages


def test_without_a_reranker_the_answer_is_the_stores(store: HybridStore) -> None:
    expected = store.search(QUERY, 4)
    for pipeline, rerank in ((Pipeline(store), True), (Pipeline(store, Answering(None)), False)):
        answer = pipeline.search(QUERY, 4, rerank=rerank, budget_ms=0.001)
        assert answer.passages == expected
        assert "rerank" not in [step.name for step in answer.steps]
        assert all(hit.rerank_score is None for hit in answer.passages)


def test_the_candidates_are_reranked_best_first_and_k_of_them_returned(store: HybridStore) -> None:
    reranker = FakeReranker(backwards)
    answer = Pipeline(store, reranker, candidates=6).search(QUERY, 2)
    found = store.search(QUERY, 6)
    assert reranker.calls == [(QUERY, [hit.text for hit in found], None)]
    assert [hit.id for hit in answer.passages] == [found[5].id, found[4].id]
    first = answer.passages[0]
    assert first.score == first.rerank_score == pytest.approx(0.05)
    assert type(first.score) is float
    assert first.fused_score == found[5].score  # earlier scores survive
    assert (first.vector_score, first.lexical_score) == (
        found[5].vector_score,
        found[5].lexical_score,
    )


def test_k_larger_than_the_candidates_reranks_k(store: HybridStore) -> None:
    answer = Pipeline(store, FakeReranker(backwards), candidates=3).search(QUERY, 8)
    assert answer.steps[-1].note == "8 of 8"
    assert len(answer.passages) == 8


def test_equal_scores_keep_the_order_of_the_search(store: HybridStore) -> None:
    answer = Pipeline(store, FakeReranker(lambda row: 0.5)).search(QUERY, 12)
    assert [hit.id for hit in answer.passages] == [hit.id for hit in store.search(QUERY, 12)]


def test_what_there_was_no_time_for_follows_in_the_order_of_the_search(store: HybridStore) -> None:
    scores = {0: 0.1, 2: 0.9, 3: 0.5}
    reranker = FakeReranker(lambda row: scores.get(row, math.nan))
    answer = Pipeline(store, reranker, candidates=7).search(QUERY, 6, budget_ms=60_000)
    found = store.search(QUERY, 7)
    assert [hit.id for hit in answer.passages] == [found[row].id for row in (2, 3, 0, 1, 4, 5)]
    assert answer.passages[3:] == [found[1], found[4], found[5]]  # untouched: no made-up score
    assert [hit.rerank_score for hit in answer.passages[:3]] == pytest.approx([0.9, 0.5, 0.1])
    assert answer.steps[-1].note.startswith("3 of 7 within the budget")


def test_the_reranker_is_told_what_is_left_of_the_budget(store: HybridStore) -> None:
    reranker = FakeReranker(backwards)
    Pipeline(store, reranker).search(QUERY, budget_ms=10_000)
    ((_, _, left),) = reranker.calls
    assert left is not None
    assert 0 < left <= 9_950  # embedding the query alone took 50 ms


def test_a_budget_the_search_used_up_leaves_the_fused_order_and_says_so(store: HybridStore) -> None:
    reranker = FakeReranker(backwards)
    answer = Pipeline(store, reranker).search(QUERY, 4, budget_ms=1)
    assert answer.passages == store.search(QUERY, 4)
    assert reranker.calls == []
    assert answer.steps[-1].name == "rerank"
    assert answer.steps[-1].note.startswith("0 of 12")


@pytest.mark.parametrize("error", [DeviceError("core 1 is gone"), RuntimeError("boom")])
def test_an_error_of_the_reranker_is_the_callers(store: HybridStore, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        Pipeline(store, Answering(error)).search(QUERY)
    assert caught.value is error


@pytest.mark.parametrize("shape", [(11,), (13,), (12, 1), (), (0,)])
def test_scores_of_a_wrong_shape_are_refused(store: HybridStore, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match=r"scores of shape .* for 12 passages"):
        Pipeline(store, Answering(np.zeros(shape, np.float32))).search(QUERY)


@pytest.mark.parametrize(
    ("score", "budget"), [(math.nan, None), (math.inf, None), (-math.inf, 1e6)]
)
def test_a_score_that_is_no_number_is_an_error_unless_time_ran_out(
    store: HybridStore, score: float, budget: float | None
) -> None:
    reranker = FakeReranker(lambda row: score if row == 3 else 0.5)
    with pytest.raises(DeviceError, match=r"1 of 12 passages .* not a finite number"):
        Pipeline(store, reranker).search(QUERY, budget_ms=budget)


@pytest.mark.slow
def test_nothing_found_is_nothing_reranked(store: HybridStore, tmp_path: Path) -> None:
    reranker = FakeReranker(backwards)
    assert Pipeline(store, reranker).search("zephyr", strategy="lexical").passages == []
    with HybridStore(tmp_path / "empty", HashEmbedder()) as empty:
        assert Pipeline(empty, reranker).search(QUERY).passages == []
    assert reranker.calls == []


def test_the_filter_holds_for_what_is_reranked(store: HybridStore) -> None:
    reranker = FakeReranker(backwards)
    where = {"even": True}
    answer = Pipeline(store, reranker).search(QUERY, 12, where)
    assert len(answer.passages) == len(reranker.calls[0][1]) == 6
    assert all(hit.metadata["even"] for hit in answer.passages)
    assert where == {"even": True}


@pytest.mark.parametrize("with_reranker", [True, False])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"k": 0}, "k must be"),
        ({"k": -3}, "k must be"),
        ({"k": None}, "k must be"),
        ({"k": True}, "k must be"),
        ({"k": "5"}, "k must be"),
        ({"query": None}, "query must be a string"),
        ({"strategy": "bm25"}, "strategy must be one of"),
        ({"where": {"even": {"$near": 1}}}, "filter"),
        ({"budget_ms": 0}, "budget_ms must be"),
        ({"budget_ms": -1}, "budget_ms must be"),
        ({"budget_ms": math.nan}, "budget_ms must be"),
        ({"budget_ms": "50"}, "budget_ms must be"),
    ],
)
def test_arguments_that_are_none_are_refused(
    store: HybridStore, with_reranker: bool, arguments: dict[str, Any], named: str
) -> None:
    reranker = FakeReranker(backwards) if with_reranker else None
    with pytest.raises(InvalidInputError, match=named):
        Pipeline(store, reranker).search(**{"query": QUERY} | arguments)


@pytest.mark.parametrize("candidates", [0, -1, 2.5, "20", None, True])
def test_candidates_must_be_a_number(store: HybridStore, candidates: Any) -> None:
    with pytest.raises(InvalidInputError, match="candidates must be a whole number"):
        Pipeline(store, candidates=candidates)


def test_an_error_of_the_store_is_the_callers(tmp_path: Path) -> None:
    store = HybridStore(tmp_path / "store", HashEmbedder())
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        Pipeline(store, FakeReranker(backwards)).search(QUERY)
