"""The measures against values computed by hand, their invariants, and BEIR's files."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from conftest import HashEmbedder
from tars_rag.bench.comparison import differences, distinct, reference, rows_of
from tars_rag.bench.evaluate import (
    Collection,
    Scores,
    evaluate,
    fill,
    load_collection,
    mean,
    query_vectors,
    score,
)
from tars_rag.bench.significance import paired_bootstrap
from tars_rag.bench.tuning import ndcg_by_weight, tune
from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore

# --- measures ---


def test_by_hand() -> None:
    """Ranks 1, 3 and 11 are relevant with grades 1, 3 and 2; one more (grade 2) is not found."""
    ranking = ["a", "x", "b", *(f"x{n}" for n in range(7)), "c"]
    found = score(ranking, {"a": 1, "b": 3, "c": 2, "d": 2, "x": 0, "x1": -1})
    dcg = 1 / 1 + 3 / 2  # log2(2) = 1, log2(4) = 2; rank 11 is beyond the cut
    ideal = 3 + 2 / math.log2(3) + 2 / 2 + 1 / math.log2(5)
    assert found.ndcg_10 == pytest.approx(dcg / ideal)
    assert found.mrr_10 == 1.0
    assert found.recall_100 == 3 / 4


def test_the_gain_is_the_grade_itself_as_in_trec_eval() -> None:
    # With gains of 2^grade - 1 it would be (1 + 7 / log2(3)) / (7 + 1 / log2(3)) = 0.7098
    found = score(["a", "b"], {"a": 1, "b": 3})
    assert found.ndcg_10 == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))
    assert found.ndcg_10 == pytest.approx(0.796708, abs=1e-6)


def test_reciprocal_rank_stops_at_ten() -> None:
    fillers = [f"x{n}" for n in range(9)]
    assert score([*fillers, "a"], {"a": 1}).mrr_10 == pytest.approx(1 / 10)
    assert score([*fillers, "x9", "a"], {"a": 1}).mrr_10 == 0


def test_recall_stops_at_a_hundred() -> None:
    fillers = [f"x{n}" for n in range(99)]
    assert score([*fillers, "a"], {"a": 1}).recall_100 == 1
    assert score([*fillers, "x99", "a"], {"a": 1}).recall_100 == 0


@pytest.mark.parametrize("grades", [{}, {"a": 0}, {"a": -1, "b": 0}])
def test_a_query_with_nothing_relevant_scores_zero(grades: dict[str, int]) -> None:
    assert score(["a", "b"], grades) == Scores(0, 0, 0)


def test_mean_and_names() -> None:
    means = mean([Scores(1, 1, 0), Scores(0, 0.5, 1), Scores(0, 0, 0)])
    assert means.as_dict() == {"ndcg@10": 0.33333, "mrr@10": 0.5, "recall@100": 0.33333}


documents = st.lists(st.integers(0, 150).map(str), unique=True, max_size=130)
graded = st.dictionaries(st.integers(0, 150).map(str), st.integers(-1, 4), max_size=60)


@given(documents, graded)
def test_every_measure_is_a_share(ranking: list[str], grades: dict[str, int]) -> None:
    found = score(ranking, grades)
    for value in found.as_dict().values():
        assert 0 <= value <= 1


@given(graded)
def test_the_ideal_order_is_perfect(grades: dict[str, int]) -> None:
    assume(any(grade > 0 for grade in grades.values()))
    found = score(sorted(grades, key=lambda key: -grades[key]), grades)
    assert found.ndcg_10 == pytest.approx(1)
    assert found.mrr_10 == 1
    assert found.recall_100 == 1


@given(documents, graded, st.data())
def test_moving_a_better_document_up_never_hurts(
    ranking: list[str], grades: dict[str, int], data: st.DataObject
) -> None:
    assume(len(ranking) > 1)
    i = data.draw(st.integers(0, len(ranking) - 2))
    j = data.draw(st.integers(i + 1, len(ranking) - 1))
    assume(grades.get(ranking[j], 0) >= grades.get(ranking[i], 0))
    before = score(ranking, grades)
    ranking[i], ranking[j] = ranking[j], ranking[i]
    after = score(ranking, grades)
    assert after.ndcg_10 >= before.ndcg_10 - 1e-12
    assert after.mrr_10 >= before.mrr_10
    assert after.recall_100 >= before.recall_100


# --- files ---


def write_collection(
    directory: Path,
    corpus: Sequence[dict[str, Any]],
    queries: dict[str, str],
    qrels: Sequence[tuple[str, str, int]],
) -> Path:
    (directory / "qrels").mkdir(parents=True)
    lines = [json.dumps(row) for row in corpus]
    (directory / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [json.dumps({"_id": key, "text": text}) for key, text in queries.items()]
    (directory / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = "".join(f"{q}\t{d}\t{grade}\n" for q, d, grade in qrels)
    (directory / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return directory


CORPUS = [
    {"_id": "d1", "title": "Boards", "text": "a small board with a cooling fan"},
    {"_id": "d2", "title": "", "text": "bread rises because of yeast"},
    {"_id": "d3", "text": "sails pull a boat to windward"},
    {"_id": "d4", "title": "", "text": "", "metadata": {}},
]
QUERIES = {"q1": "cooling fan", "q2": "yeast bread", "q3": "never judged"}
QRELS = [("q1", "d1", 2), ("q1", "d4", 1), ("q2", "d2", 1), ("q2", "d1", 0)]


def test_a_collection_is_read_as_beir_reads_it(tmp_path: Path) -> None:
    collection = load_collection(write_collection(tmp_path / "c", CORPUS, QUERIES, QRELS))
    assert [(p.id, p.text) for p in collection.passages] == [
        ("d1", "Boards a small board with a cooling fan"),
        ("d2", "bread rises because of yeast"),
        ("d3", "sails pull a boat to windward"),
    ]
    assert list(collection.queries) == ["q1", "q2"]
    assert collection.judgements["q1"] == {"d1": 2, "d4": 1}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("corpus.jsonl", None, r"corpus\.jsonl cannot be read"),
        ("corpus.jsonl", "{", r"corpus\.jsonl, line 1"),
        ("corpus.jsonl", '{"_id": "a"}', r"corpus\.jsonl, line 1"),
        ("corpus.jsonl", "[1]", r"corpus\.jsonl, line 1"),
        ("corpus.jsonl", '{"_id": 1, "text": "x"}\n' * 2, "line 2: the id '1' is there twice"),
        ("corpus.jsonl", '{"_id": 1, "text": " "}', "no documents"),
        ("queries.jsonl", '{"_id": "q1", "text": "x"}', "lacks judged queries: q2"),
        ("qrels/test.tsv", "q1\td1\tmuch\n", r"test\.tsv, line 1"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "no judgements"),
        ("qrels/test.tsv", "q1 0 d1 1\n", r"test\.tsv, line 1"),
    ],
)
def test_what_is_wrong_with_a_collection_is_named(
    tmp_path: Path, name: str, content: str | None, reason: str
) -> None:
    directory = write_collection(tmp_path / "c", CORPUS, QUERIES, QRELS)
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_text(content)
    with pytest.raises(InvalidInputError, match=reason):
        load_collection(directory)


# --- the whole ---


class Reverser:
    """A reranker that prefers what comes last."""

    def score(self, query: str, texts: Sequence[str], budget_ms: float | None = None) -> Any:
        return np.arange(len(texts), dtype=np.float32)


def test_strategies_side_by_side(tmp_path: Path, hash_embedder: HashEmbedder) -> None:
    collection = load_collection(write_collection(tmp_path / "c", CORPUS, QUERIES, QRELS))
    with HybridStore(tmp_path / "s", hash_embedder) as store:
        assert fill(store, collection) == 3
        assert fill(store, collection) == 0  # the second time all is there
        scores = evaluate(store, collection)
        assert list(scores) == ["naive", "lexical", "hybrid"]
        assert scores["lexical"].mrr_10 == 1
        assert scores["lexical"].recall_100 == pytest.approx((1 / 2 + 1) / 2)
        reranked = evaluate(store, collection, Reverser(), rerank_depth=3)  # type: ignore[arg-type]
        assert list(reranked) == ["naive", "lexical", "hybrid", "hybrid+rerank"]
        assert reranked["hybrid"] == scores["hybrid"]
        assert reranked["hybrid+rerank"].mrr_10 < scores["hybrid"].mrr_10
        one = evaluate(store, collection, Reverser(), rerank_depth=1)  # type: ignore[arg-type]
        assert one["hybrid+rerank"] == one["hybrid"]
        assert list(evaluate(store, collection, strategies=["lexical"])) == ["lexical"]


def test_a_query_that_is_a_document_does_not_find_itself(
    tmp_path: Path, hash_embedder: HashEmbedder
) -> None:
    """As BEIR has it for ArguAna. Cranfield's query 1 is not its document 1, and may find it."""
    corpus = [
        {"_id": "same", "text": "a claim about boats"},
        {"_id": "counter", "text": "a counterclaim about boats"},
        {"_id": "other", "text": "something about boats"},
    ]
    queries = {"same": "a claim about boats", "other": "about boats counterclaim"}
    qrels = [("same", "counter", 1), ("other", "other", 1)]
    collection = load_collection(write_collection(tmp_path / "c", corpus, queries, qrels))
    with HybridStore(tmp_path / "s", hash_embedder) as store:
        fill(store, collection)
        scores = evaluate(store, collection, strategies=["naive"])["naive"]
    assert scores.recall_100 == 1  # "other" is found by the query of the same id, other text
    assert scores.mrr_10 > 1 / 3


def test_another_collections_store_is_refused(tmp_path: Path, hash_embedder: HashEmbedder) -> None:
    one = load_collection(write_collection(tmp_path / "c", CORPUS, QUERIES, QRELS))
    corpus = [{"_id": "e1", "text": "another collection"}]
    two = load_collection(write_collection(tmp_path / "d", corpus, QUERIES, [("q1", "e1", 1)]))
    with HybridStore(tmp_path / "s", hash_embedder) as store:
        fill(store, one)
        with pytest.raises(InvalidInputError, match="3 passages that are not of this collection"):
            fill(store, two)


class Asked:
    """An embedder with prompts: a query is not embedded as a passage is."""

    def __init__(self, embedder: HashEmbedder) -> None:
        self.fingerprint = embedder.fingerprint
        self.embed = embedder.embed
        self.model = "asked"
        self.queries: list[str] = []

    def embed_query(self, text: str) -> np.ndarray:
        self.queries.append(text)
        return self.embed([text])[0]


def test_queries_are_embedded_as_queries(tmp_path: Path, hash_embedder: HashEmbedder) -> None:
    """As passages they would lack the prompt that e5, arctic and bge were trained with."""
    collection = load_collection(write_collection(tmp_path / "c", CORPUS, QUERIES, QRELS))
    embedder = Asked(hash_embedder)
    with HybridStore(tmp_path / "store", embedder) as store:
        fill(store, collection)
        evaluate(store, collection, strategies=("naive",))
    assert embedder.queries == list(collection.queries.values())


def test_each_reranker_stands_beside_none(tmp_path: Path, hash_embedder: HashEmbedder) -> None:
    collection = load_collection(write_collection(tmp_path / "c", CORPUS, QUERIES, QRELS))
    with HybridStore(tmp_path / "store", Asked(hash_embedder)) as store:
        fill(store, collection)
        rerankers = {"one": Reverser(), "two": Reverser()}
        rows = rows_of(store, collection, rerankers)  # type: ignore[arg-type]
    names = [(row.strategy, row.reranker) for row in rows]
    assert names == [
        *(("naive", None), ("lexical", None), ("hybrid", None)),
        *(("hybrid", "one"), ("hybrid", "two")),
    ]
    assert [row.model for row in rows] == ["asked", None, "asked", "asked", "asked"]
    assert rows[0].language is None
    assert reference(rows[3], rows) is rows[2]
    assert reference(rows[2], rows) is None
    assert rows[3].scores == rows[4].scores
    same = rows[4].over(rows[3])
    assert (same.mean, same.low, same.high, same.beyond_chance) == (0, 0, 0, False)
    assert [(a, b) for a, b, _ in differences(rows)][:2] == [(1, 0), (2, 0)]
    assert len(distinct([*rows, *rows])) == 5


def test_a_difference_is_told_from_chance() -> None:
    random = np.random.default_rng(0)
    queries = random.uniform(size=200)  # some are harder than others: that is why it is paired
    better = queries + random.normal(0.05, 0.1, 200)
    noise = queries + random.normal(0, 0.1, 200)
    found = paired_bootstrap(better.tolist(), queries.tolist())
    assert found.beyond_chance
    assert found.low < 0.05 < found.high
    assert found.low == pytest.approx(found.mean - 1.96 * 0.1 / 200**0.5, abs=0.004)
    assert not paired_bootstrap(noise.tolist(), queries.tolist()).beyond_chance
    back = paired_bootstrap(queries.tolist(), better.tolist())
    assert back.high < 0
    assert back.mean == pytest.approx(-found.mean)
    for wrong in ([], [1.0]):
        with pytest.raises(ValueError, match="cannot be compared"):
            paired_bootstrap(wrong, [])


@pytest.mark.slow
def test_the_interval_holds_the_truth_in_95_of_100() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        values = random.normal(0.02, 0.2, 60)
        found = paired_bootstrap(values.tolist(), [0.0] * 60)
        held += found.low <= 0.02 <= found.high
    assert 0.90 <= held / 200 <= 0.98


def test_a_weight_is_judged_on_queries_it_was_not_fitted_on(
    tmp_path: Path, hash_embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where half of the queries want words alone, and the other half vectors alone."""
    numbers = range(12)
    collection = Collection(
        [Passage(f"d{n}", f"word{n} common") for n in numbers],
        {f"q{n}": f"word{n}" for n in numbers},
        {f"q{n}": {f"d{n}": 1} for n in numbers},
    )
    with HybridStore(tmp_path / "store", Asked(hash_embedder)) as store:
        fill(store, collection)
        real = tune(store, collection)
        assert (real.fitted_on, real.judged_on) == (6, 6)
        assert real.weight == 0.5  # all are as good: the default stays

        def made_up(*given: Any) -> dict[float, list[float]]:
            fitted, judged = random_halves(len(collection.queries))
            special = dict.fromkeys(fitted, 1.0) | dict.fromkeys(judged, 0.2)
            return {
                weight: [special[n] if weight == 0.8 else 0.5 for n in range(12)]
                for weight in given[2]
            }

        monkeypatch.setattr("tars_rag.bench.tuning.ndcg_by_weight", made_up)
        found = tune(store, collection)
    assert found.weight == 0.8  # the best of the first half
    assert (found.ndcg_10, found.default_ndcg_10) == pytest.approx((0.2, 0.5))
    assert found.difference.beyond_chance  # and worse where it counts: it is told
    assert found.difference.high < 0
    few = Collection(collection.passages, dict(list(collection.queries.items())[:3]), {})
    with pytest.raises(InvalidInputError, match="4 judged queries"):
        tune(store, few)


def test_a_weight_is_judged_by_what_a_search_with_it_returns(
    tmp_path: Path, hash_embedder: HashEmbedder
) -> None:
    """One search a query, and the same figures as a search with each weight."""
    draw = random.Random(4)
    words = [f"w{n}" for n in range(40)]
    texts = [" ".join(draw.choices(words, k=draw.randint(2, 9))) for _ in range(400)]

    def grades() -> dict[str, int]:
        return {f"d{n}": draw.randint(1, 3) for n in draw.sample(range(400), 60)}

    collection = Collection(
        [Passage(f"d{n}", text) for n, text in enumerate(texts)],
        {f"d{n}": " ".join(draw.sample(words, 3)) for n in range(8)} | {"d9": texts[9]},
        {f"d{n}": grades() for n in range(8)} | {"d9": {"d9": 3, "d10": 1}},
    )
    embedder = Asked(hash_embedder)
    with HybridStore(tmp_path / "store", embedder) as store:
        fill(store, collection)
        searches = []

        class Counting:
            embedder = store.embedder

            def search(self, *given: Any, **named: Any) -> Any:
                searches.append(given)
                return store.search(*given, **named)

        weights = (0.1, 0.5, 0.9)
        vectors = query_vectors(store, collection)
        found = ndcg_by_weight(Counting(), collection, weights, vectors)  # type: ignore[arg-type]
        assert len(searches) == len(collection.queries)
        for weight in weights:
            for n, (key, text) in enumerate(collection.queries.items()):
                hits = store.search(text, 101, vector=vectors[n], weight=weight)
                ranking = [hit.id for hit in hits if key != "d9" or hit.id != "d9"]
                right = score(ranking, collection.judgements[key]).ndcg_10
                assert found[weight][n] == pytest.approx(right)
        assert len({tuple(values) for values in found.values()}) == 3
        every = store.search(texts[0], 3, every=True)
        assert len(every) > 30
        assert [hit.id for hit in every[:3]] == [hit.id for hit in store.search(texts[0], 3)]


def random_halves(queries: int) -> tuple[list[int], list[int]]:
    order = random.Random(0).sample(range(queries), queries)
    return order[: queries // 2], order[queries // 2 :]
