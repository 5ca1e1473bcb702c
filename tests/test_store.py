"""HybridStore: every public method, and everything a caller can get wrong."""

from __future__ import annotations

import base64
import contextlib
import copy
import gc
import json
import multiprocessing
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import store_child
from conftest import HashEmbedder
from tars_rag.errors import (
    ConfigError,
    FingerprintError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
)
from tars_rag.retrieval.fusion import convex
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore

NOTES = [
    Passage("fan", "The fan cools the board when it is hot", {"topic": "cooling", "n": 1}),
    Passage("sink", "A heat sink cools without noise", {"topic": "cooling", "n": 2}),
    Passage("piano", "The piano is out of tune", {"topic": "music", "n": 3, "loud": True}),
    Passage("river", "The river rises in spring", {"topic": "nature", "n": 4.5}),
]


class CountingEmbedder(HashEmbedder):
    """Remembers what it was asked to embed."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.batches.append(list(texts))
        return super().embed(texts)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HybridStore]:
    with HybridStore(tmp_path / "store", CountingEmbedder()) as opened:
        yield opened


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HybridStore]:
    """A filled store, for tests that only read."""
    path = tmp_path_factory.mktemp("notes") / "store"
    with HybridStore(path, HashEmbedder()) as opened:
        opened.upsert(NOTES)
    with HybridStore(path, HashEmbedder(), read_only=True) as opened:
        yield opened


def ids(found: Sequence[Any]) -> list[str]:
    return [hit.id for hit in found]


# -- storing and getting back ---------------------------------------------------------------------


def test_nothing_stored_is_nothing_found(store: HybridStore) -> None:
    assert store.upsert([]) == store.upsert(iter(())) == 0
    assert store.count() == store.delete([]) == store.clear() == 0
    assert store.get() == store.get([]) == store.get(["unknown"]) == []
    assert store.vectors([]) == store.vectors(["unknown"]) == {}
    for strategy in ("hybrid", "naive", "lexical"):
        assert store.search("anything", strategy=strategy) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \t\n ",
        "NUL \0 inside\0",
        "lone \ud800 surrogates \udfff",
        "emoji \U0001f600\U0001f468\u200d\U0001f469 and e\u0301",
        "tars-b64:bm90IG91cnM=",
        "line\r\nends\rkept\u2028 \ufeff",
    ],
)
def test_any_text_and_id_comes_back_as_it_was(store: HybridStore, text: str) -> None:
    passage = Passage(f"id {text}", text, {f"key {text}": text})
    assert store.upsert([passage]) == 1
    assert store.get() == store.get([passage.id]) == [passage]
    assert store.search("x", strategy="naive")[0].passage == passage
    assert store.get(where={f"key {text}": text}) == [passage]
    assert list(store.vectors([passage.id])) == [passage.id]
    assert store.delete([passage.id]) == 1
    assert store.count() == 0


@pytest.mark.slow
def test_a_megabyte_of_text_comes_back_and_is_found(store: HybridStore) -> None:
    passage = Passage("long", "pebble-" * 150_000 + "zephyr")
    store.upsert([passage])
    assert store.get() == [passage]
    assert ids(store.search("zephyr", strategy="lexical")) == ["long"]
    assert ids(store.search(passage.text)) == ["long"]


METADATA: dict[str, Any] = {
    "none": None,
    "flag": True,
    "number": 7,
    "ratio": 0.1,
    "big": 2**80,
    "int64": -(2**63),
    "text": "tars-b64:",
    "": "empty key",
    "_tars": "reserved",
    "$gt": 1,
    "list": [1, 2.5, None, "x", [], {"deep": [True]}],
    "empty list": [],
    "nested": {"a": {"b": {"c": None}}, "\ud800": "\udc00"},
}


def test_metadata_comes_back_exactly(store: HybridStore, tmp_path: Path) -> None:
    store.upsert([Passage("p", "text", METADATA)])
    store.close()
    with HybridStore(tmp_path / "store", HashEmbedder()) as again:
        (passage,) = again.get()
        assert passage.metadata == METADATA
        assert list(passage.metadata) == list(METADATA)
        kinds = {key: type(value) for key, value in passage.metadata.items()}
        assert kinds == {key: type(value) for key, value in METADATA.items()}
        assert again.search("text")[0].metadata == METADATA


def test_replacing_a_passage_leaves_nothing_of_the_old_one(store: HybridStore) -> None:
    store.upsert([Passage("p", "walrus", {"old": 1, "kept": 1})])
    store.upsert([Passage("p", "badger", {"kept": 2})])
    assert store.get() == [Passage("p", "badger", {"kept": 2})]
    assert store.count() == 1
    assert store.get(where={"old": 1}) == store.search("walrus", strategy="lexical") == []
    assert ids(store.search("badger", strategy="lexical")) == ["p"]
    assert store.search("badger", strategy="naive")[0].score == pytest.approx(1, abs=1e-5)


def test_the_callers_objects_are_left_as_they_were(store: HybridStore) -> None:
    metadata = {"list": [1, {"x": None}], "text": "a"}
    passages = [Passage("a", "one two", metadata), Passage("b", "two", MappingProxyType({"n": 1}))]
    vectors = np.full((2, 32), 3, np.float32)
    query = np.full(32, 2, np.float32)
    where = {"$or": [{"text": {"$eq": "a"}}, {"n": 1}]}
    before = copy.deepcopy(metadata), list(passages), copy.deepcopy(where)
    store.upsert(passages, vectors)
    store.search("two", vector=query, where=where)
    store.get(["a"], where)[0].metadata["list"].append("mine")  # type: ignore[attr-defined]
    assert (metadata, passages, where) == before
    assert (vectors == 3).all()
    assert (query == 2).all()
    assert store.get(["a"]) == passages[:1]


def test_generators_are_read_in_batches_of_which_each_is_stored(store: HybridStore) -> None:
    seen: list[int] = []

    def passages() -> Iterator[Passage]:
        for n in range(300):
            seen.append(store.count())
            yield Passage(str(n), f"text {n}")

    told: list[tuple[int, int | None]] = []
    assert store.upsert(passages(), progress=lambda *at: told.append(at)) == 300
    assert seen == [0] * 256 + [256] * 44
    assert told == [(256, None), (300, None)]
    assert [len(batch) for batch in store.embedder.batches] == [256, 44]  # type: ignore[attr-defined]


def test_progress_of_a_list_knows_the_total(store: HybridStore) -> None:
    told: list[tuple[int, int | None]] = []
    store.upsert(NOTES, progress=lambda *at: told.append(at))
    assert told == [(4, 4)]


# -- what upsert refuses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (None, "NoneType"),
        ("a text", "got str"),
        (Passage("", "x"), "must be a string that is not empty"),
        (Passage(None, "x"), "got None"),  # type: ignore[arg-type]
        (Passage(7, "x"), "got 7"),  # type: ignore[arg-type]
        (Passage("x" * 5000, "x"), "longer than 4096 bytes"),
        (Passage("bad", None), "text of passage 'bad' must be a string"),  # type: ignore[arg-type]
        (Passage("bad", b"x"), "text of passage 'bad' must be a string"),  # type: ignore[arg-type]
        (Passage("bad", "x", None), "metadata of passage 'bad'"),  # type: ignore[arg-type]
        (Passage("bad", "x", {"key": {1, 2}}), "'key' of passage 'bad'"),
        (Passage("bad", "x", {"key": float("nan")}), "'key' of passage 'bad'"),
        (Passage("bad", "x", {"key": [float("inf")]}), "'key' of passage 'bad'"),
        (Passage("bad", "x", {"key": b"bytes"}), "'key' of passage 'bad'"),
        (Passage("bad", "x", {"key": {"deep": [{3: 1}]}}), "'key' of passage 'bad'.*the key 3"),
        (Passage("bad", "x", {3: 1}), "Metadata 3 of passage 'bad'"),  # type: ignore[dict-item]
        (Passage("first", "again"), "more than once in one upsert: 'first'"),
    ],
)
def test_a_bad_passage_is_named_and_nothing_of_the_list_stored(
    store: HybridStore, bad: Any, named: str
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        store.upsert([Passage("first", "good"), bad])
    assert store.count() == 0
    assert store.embedder.batches == []  # type: ignore[attr-defined]


def test_metadata_that_contains_itself_is_refused(store: HybridStore) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidInputError, match="'key' of passage 'bad'"):
        store.upsert([Passage("bad", "x", {"key": loop})])


def test_an_id_twice_is_found_across_batches(store: HybridStore) -> None:
    passages = (Passage(str(n % 256), "x") for n in range(257))
    with pytest.raises(InvalidInputError, match="more than once in one upsert: '0'"):
        store.upsert(passages)
    assert store.count() == 256


# -- vectors --------------------------------------------------------------------------------------


def test_given_vectors_are_used_and_come_back(store: HybridStore) -> None:
    given = [np.eye(32, dtype=np.float32)[0] * 5, list(np.eye(32)[1])]
    store.upsert(NOTES[:2], vectors=(row for row in given))
    assert store.embedder.batches == []  # type: ignore[attr-defined]
    kept = store.vectors(["sink", "unknown", "fan"])
    assert sorted(kept) == ["fan", "sink"]
    assert np.allclose(kept["sink"], given[1])
    (first, second) = store.search(None, 2, "naive", vector=given[0])
    assert (first.id, second.id) == ("fan", "sink")
    assert (first.score, second.score) == pytest.approx((1, 0), abs=1e-6)


def test_vectors_are_those_of_the_embedder(notes: HybridStore) -> None:
    made = HashEmbedder().embed([NOTES[2].text])[0]
    assert np.array_equal(notes.vectors(["piano"])["piano"], made)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (np.ones((1, 32)), "no vector for passage 'sink'"),
        (np.ones((3, 32)), r"more vectors than passages \(2\)"),
        (np.ones((2, 31)), r"shape \[2, 32\] are needed, got \[2, 31\].*hash:32"),
        (np.array([[1.0] * 32, [0.0] * 32]), "passage 'sink' is all zeros or not finite"),
        (np.array([[np.nan] + [1.0] * 31, [1.0] * 32]), "passage 'fan' is all zeros or not"),
        (np.array([[1.0] * 32, [np.inf] * 32]), "passage 'sink' is all zeros or not finite"),
    ],
)
def test_vectors_that_cannot_be_compared_are_refused(
    store: HybridStore, rows: NDArray[np.float64], named: str
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        store.upsert(NOTES[:2], rows)


@pytest.mark.parametrize(
    "vector", [np.ones(31), np.zeros(32), np.full(32, np.nan), np.array([np.inf] * 32)]
)
def test_a_query_vector_that_cannot_be_compared_is_refused(
    notes: HybridStore, vector: NDArray[np.float64]
) -> None:
    with pytest.raises(InvalidInputError, match=r"the query is all zeros|shape \[1, 32\]"):
        notes.search("x", vector=vector)


def test_an_embedder_that_gives_zeros_is_an_error_not_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = HashEmbedder()
    with HybridStore(tmp_path / "store", embedder) as store:
        monkeypatch.setattr(embedder, "embed", lambda texts: np.zeros((len(texts), 32), np.float32))
        with pytest.raises(InvalidInputError, match="passage 'fan' is all zeros"):
            store.upsert(NOTES)
        monkeypatch.setattr(embedder, "embed", lambda texts: np.ones((1, 32), np.float32))
        with pytest.raises(InvalidInputError, match=r"\[4, 32\] are needed, got \[1, 32\]"):
            store.upsert(NOTES)
        assert store.count() == 0


def test_the_dimension_is_the_embedders_or_that_of_the_first_vectors(tmp_path: Path) -> None:
    class Silent:
        fingerprint = "silent"

        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return HashEmbedder(8).embed(texts)

    with HybridStore(tmp_path / "store", Silent()) as store:
        assert store.dimension is None
        store.upsert(NOTES)
        assert store.dimension == 8
        assert ids(store.search("the river rises in spring", 1)) == ["river"]
        with pytest.raises(InvalidInputError, match=r"\[1, 8\] are needed, got \[1, 9\]"):
            store.upsert([Passage("x", "x")], np.ones((1, 9)))


# -- searching ------------------------------------------------------------------------------------


def test_a_hybrid_score_is_the_convex_combination_of_both_true_scores(notes: HybridStore) -> None:
    query = "the fan cools a river"
    naive = {hit.id: hit.score for hit in notes.search(query, 4, "naive")}
    lexical = {hit.id: hit.score for hit in notes.search(query, 4, "lexical")}
    assert set(lexical) == {"fan", "sink", "river"}
    shares = {hit.id: hit.lexical_share for hit in notes.search(query, 4, "lexical")}
    every = {key: lexical.get(key, 0.0) for key in naive}
    for weight in (None, 0.25, 0.75):
        found = notes.search(query, 4, weight=weight)
        expected = convex(naive, shares, weight=0.5 if weight is None else weight)
        assert [(hit.id, hit.score) for hit in found] == [
            (key, pytest.approx(score)) for key, score in expected
        ]
        for hit in found:
            assert hit.fused_score == hit.score
            assert hit.vector_score == pytest.approx(naive[hit.id])
            assert hit.lexical_score == pytest.approx(every[hit.id])
            assert hit.lexical_share == pytest.approx(shares.get(hit.id, 0.0))
            assert hit.rerank_score is None
            assert {type(s) for s in (hit.score, hit.vector_score, hit.lexical_score)} == {float}


def test_naive_and_lexical_say_only_what_they_know(notes: HybridStore) -> None:
    (near,) = notes.search("piano", 1, "naive")
    assert (near.vector_score, near.lexical_score, near.fused_score) == (near.score, None, None)
    (worded,) = notes.search("piano", 1, "lexical")
    assert (worded.vector_score, worded.lexical_score) == (None, worded.score)
    assert worded.fused_score is None
    assert (worded.id, worded.text, worded.metadata) == (
        NOTES[2].id,
        NOTES[2].text,
        worded.metadata,
    )


@pytest.mark.parametrize(("weight", "strategy"), [(0, "lexical"), (1, "naive")])
def test_all_weight_on_one_side_is_that_side(
    notes: HybridStore, weight: float, strategy: Any
) -> None:
    query = "cools the river"
    one_side = ids(notes.search(query, 4, strategy))
    assert ids(notes.search(query, 4, weight=weight)) == one_side


@pytest.mark.parametrize("query", ["", " \n", "?!", "\0", "\U0001f600", "\ud800"])
def test_a_query_without_words_is_searched_by_vectors_alone(notes: HybridStore, query: str) -> None:
    assert notes.search(query, strategy="lexical") == []
    assert ids(notes.search(query, 9)) == ids(notes.search(query, 9, "naive"))
    assert len(notes.search(query, 9)) == 4


def test_k_larger_than_the_store_gives_everything(notes: HybridStore) -> None:
    assert len(notes.search("fan", 10_000)) == len(notes.search("fan", 10_000, "naive")) == 4
    assert len(notes.search("fan", 2)) == 2


@pytest.mark.parametrize("k", [0, -1, 2.0, "5", None, True])
def test_a_k_that_is_none_is_refused(notes: HybridStore, k: Any) -> None:
    with pytest.raises(InvalidInputError, match="k must be a whole number of at least 1"):
        notes.search("x", k)


@pytest.mark.parametrize("query", [None, 7, b"x", ["x"]])
def test_a_query_that_is_no_text_is_refused(notes: HybridStore, query: Any) -> None:
    with pytest.raises(InvalidInputError, match="query must be a string"):
        notes.search(query)
    with pytest.raises(InvalidInputError, match="query must be a string"):
        notes.search(None, vector=np.ones(32))  # hybrid needs words


@pytest.mark.parametrize("strategy", ["bm25", "", None, "HYBRID"])
def test_an_unknown_strategy_is_refused_with_those_allowed(
    notes: HybridStore, strategy: Any
) -> None:
    with pytest.raises(InvalidInputError, match="hybrid, naive, lexical"):
        notes.search("x", strategy=strategy)


@pytest.mark.parametrize("weight", [-0.5, 1.5, float("nan"), "x"])
def test_a_weight_that_is_none_is_refused(notes: HybridStore, weight: Any) -> None:
    with pytest.raises(InvalidInputError, match="weight must be a number"):
        notes.search("x", weight=weight)


# -- filters --------------------------------------------------------------------------------------

FILTERS = [
    ({"topic": "cooling"}, {"fan", "sink"}),
    ({"n": {"$gt": 1}}, {"sink", "piano", "river"}),
    ({"loud": True}, {"piano"}),
    ({"topic": {"$ne": "cooling"}}, {"piano", "river"}),
    ({"topic": {"$in": ["music", "nature"]}}, {"piano", "river"}),
    ({"$and": [{"topic": "cooling"}, {"n": {"$lte": 1}}]}, {"fan"}),
    ({"$or": [{"loud": True}, {"n": 4.5}]}, {"piano", "river"}),
    ({"absent": 1}, set()),
    ({}, {"fan", "sink", "piano", "river"}),
    (None, {"fan", "sink", "piano", "river"}),
]


@pytest.mark.parametrize(("where", "expected"), FILTERS)
def test_a_filter_holds_for_both_sides_and_for_get(
    notes: HybridStore, where: Any, expected: set[str]
) -> None:
    assert set(ids(notes.get(where=where))) == expected
    query = "fan sink piano river"  # each passage has one of the words
    for strategy in ("hybrid", "naive", "lexical"):
        assert set(ids(notes.search(query, 9, strategy, where))) == expected  # type: ignore[arg-type]


def test_a_rare_match_is_found_below_many_better_ones(store: HybridStore) -> None:
    common = [Passage(f"c{n:03}", "kiwi kiwi kiwi", {"rare": False}) for n in range(250)]
    rare = [
        Passage(f"r{n}", "one kiwi " + "and other fruit " * (n + 1), {"rare": True}) for n in (1, 2)
    ]
    passages = common + rare
    store.upsert(passages, HashEmbedder().embed([passage.text for passage in passages]))
    assert ids(store.search("kiwi", 200, "lexical"))[-1].startswith("c")
    for strategy in ("lexical", "hybrid"):
        found = store.search("kiwi", 3, strategy, {"rare": True})  # type: ignore[arg-type]
        assert ids(found) == ["r1", "r2"]
        assert all(hit.lexical_score for hit in found)


@pytest.mark.parametrize(
    "where",
    [{"n": {"$near": 1}}, {"n": None}, {"$and": []}, {"n": {"$in": []}}, {"a": 1, "b": 2}, "n = 1"],
)
def test_a_filter_that_is_none_is_refused(notes: HybridStore, where: Any) -> None:
    for strategy in ("hybrid", "naive", "lexical"):
        with pytest.raises(InvalidInputError, match="filter"):
            notes.search("fan", strategy=strategy, where=where)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="filter"):
        notes.get(where=where)


# -- get and delete -------------------------------------------------------------------------------


def test_get_keeps_the_order_of_the_ids(notes: HybridStore) -> None:
    assert ids(notes.get(["river", "unknown", "fan", "river"])) == ["river", "fan"]
    assert ids(notes.get(["river", "fan", "sink"], limit=2)) == ["river", "fan"]
    assert ids(notes.get(["river", "fan"], {"topic": "cooling"})) == ["fan"]
    assert len(notes.get(limit=3)) == 3
    assert notes.get(limit=0) == notes.get(["fan"], limit=0) == []


@pytest.mark.parametrize("bad", ["fan", [None], [""], [7]])
def test_ids_that_are_none_are_refused(notes: HybridStore, bad: Any) -> None:
    for method in (notes.get, notes.vectors, notes.delete):
        with pytest.raises(InvalidInputError, match=r"ids must be a list|id must be a string"):
            method(bad)


@pytest.mark.parametrize("limit", [-1, 1.5, "2"])
def test_a_limit_that_is_none_is_refused(notes: HybridStore, limit: Any) -> None:
    with pytest.raises(InvalidInputError, match="limit must be a whole number"):
        notes.get(limit=limit)


def test_delete_by_id_by_filter_and_by_both(store: HybridStore) -> None:
    store.upsert(NOTES)
    assert store.delete(["unknown"]) == 0
    assert store.delete(["fan", "river"], {"topic": "cooling"}) == 1
    assert set(ids(store.get())) == {"sink", "piano", "river"}
    assert store.delete(where={"topic": {"$ne": "music"}}) == 2
    assert ids(store.search("fan sink piano river", 9, "lexical")) == ["piano"]
    assert store.delete(iter(["piano", "piano"])) == 1
    assert store.count() == 0


@pytest.mark.parametrize("where", [None, {}])
def test_delete_without_ids_or_filter_deletes_nothing(store: HybridStore, where: Any) -> None:
    store.upsert(NOTES)
    with pytest.raises(InvalidInputError, match="nothing was deleted"):
        store.delete(where=where)
    with pytest.raises(InvalidInputError, match="filter"):
        store.delete(where={"n": {"$near": 1}})
    assert store.count() == 4


def test_clear_empties_both_sides(store: HybridStore) -> None:
    store.upsert(NOTES)
    assert store.clear() == 4
    assert store.count() == 0
    assert store.search("fan river") == store.search("fan river", strategy="lexical") == []
    store.upsert(NOTES[:1])
    assert ids(store.search("fan river")) == ["fan"]


# -- opening, closing, sharing --------------------------------------------------------------------


def test_another_embedder_is_refused_and_both_are_named(notes: HybridStore, tmp_path: Path) -> None:
    with HybridStore(tmp_path / "store", HashEmbedder(name="first")) as store:
        store.upsert(NOTES)
        assert (store.fingerprint, store.dimension) == ("first:32", 32)
        assert store.path == tmp_path / "store"
        assert "first:32" in repr(store)
    with pytest.raises(FingerprintError, match=r"'first:32'.*'second:32'.*reembed") as caught:
        HybridStore(tmp_path / "store", HashEmbedder(name="second"))
    assert str(tmp_path / "store") in str(caught.value)
    with HybridStore(tmp_path / "store", HashEmbedder(name="first")) as store:
        assert store.count() == 4


@pytest.mark.slow
def test_a_read_only_store_reads_beside_another_and_writes_nothing(
    store: HybridStore, tmp_path: Path
) -> None:
    store.upsert(NOTES)
    store.close()
    path = tmp_path / "store"
    with (
        HybridStore(path, HashEmbedder(), read_only=True) as one,
        HybridStore(path, HashEmbedder(), read_only=True) as two,
    ):
        assert ids(one.search("fan", 1)) == ids(two.search("fan", 1)) == ["fan"]
        for write in (
            lambda: one.upsert(NOTES),
            lambda: one.delete(["fan"]),
            lambda: one.delete(where={"n": 1}),
            one.clear,
        ):
            with pytest.raises(StoreError, match="read-only"):
                write()
        with pytest.raises(StoreLockedError):
            HybridStore(path, HashEmbedder(), share=False)
        assert two.count() == 4


def test_a_read_only_store_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        HybridStore(tmp_path / "none", HashEmbedder(), read_only=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(StoreError, match="is not a store"):
        HybridStore(tmp_path, HashEmbedder(), read_only=True)


def test_a_second_object_in_this_process_is_refused(store: HybridStore, tmp_path: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(StoreLockedError, match="already open in this process"):
            HybridStore(tmp_path / "store", HashEmbedder(), read_only=read_only)
    assert store.count() == 0


def test_a_second_process_that_does_not_share_is_refused_and_told_the_pid(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    child = context.Process(
        target=store_child.open_and_report, args=(tmp_path / "store", theirs, False)
    )
    child.start()
    try:
        assert ours.poll(60), "the child did not report"
        assert ours.recv() == ("open", 0)
        for read_only in (False, True):
            with pytest.raises(StoreLockedError, match=rf"pid {child.pid}\b.*chroma run"):
                HybridStore(tmp_path / "store", HashEmbedder(), read_only=read_only, share=False)
        ours.send("go")
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        assert store.count() == 0


def test_a_closed_store_says_so(store: HybridStore) -> None:
    store.upsert(NOTES)
    store.close()
    store.close()
    for use in (
        store.count,
        store.get,
        store.clear,
        lambda: store.get(["fan"]),
        lambda: store.vectors(["fan"]),
        lambda: store.upsert(NOTES),
        lambda: store.delete(["fan"]),
        lambda: store.search("fan"),
    ):
        with pytest.raises(StoreError, match="is closed"):
            use()


def test_a_store_nobody_holds_any_more_lets_go_of_its_lock(tmp_path: Path) -> None:
    store = HybridStore(tmp_path / "store", HashEmbedder())
    store.upsert(NOTES)
    del store
    gc.collect()
    with HybridStore(tmp_path / "store", HashEmbedder()) as again:
        assert again.count() == 4


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/tars-rag-store")):
        with pytest.raises(StoreError, match="Check path and permissions") as caught:
            HybridStore(path, HashEmbedder())
        assert str(path) in str(caught.value)
    assert (tmp_path / "file").read_text() == "x"


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(StoreError, match=r"store \(it holds thesis\.txt\)"):
        HybridStore(tmp_path, HashEmbedder())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"format": "tars-rag-store", "version": 1}']
)
def test_a_damaged_manifest_is_named(store: HybridStore, tmp_path: Path, content: str) -> None:
    store.close()
    (tmp_path / "store" / "store.json").write_text(content)
    with pytest.raises(StoreError, match=r"store\.json"):
        HybridStore(tmp_path / "store", HashEmbedder())


@pytest.mark.parametrize(("version", "step"), [(1, "index the sources"), (9, "Update tars-rag")])
def test_a_store_of_another_version_is_refused(
    store: HybridStore, tmp_path: Path, version: int, step: str
) -> None:
    store.close()
    manifest = tmp_path / "store" / "store.json"
    manifest.write_text(manifest.read_text().replace('"version": 4', f'"version": {version}'))
    with pytest.raises(StoreError, match=f"version {version}.*{step}"):
        HybridStore(tmp_path / "store", HashEmbedder())


def test_a_store_of_version_3_is_read_and_becomes_one_of_today(
    store: HybridStore, tmp_path: Path
) -> None:
    """Version 3 kept the JSON as it is."""
    path = tmp_path / "store"
    long = Passage("long", "a text that is worth being compressed " * 20, {"n": 1})
    store.upsert([long])
    held = {passage.id: passage for passage in store.get()}
    store.close()
    with contextlib.closing(sqlite3.connect(path / "chroma" / "chroma.sqlite3")) as database:
        rows = database.execute(
            "SELECT id, string_value FROM embedding_metadata WHERE key = '_tars'"
        ).fetchall()
        assert any(not value.startswith("{") for _, value in rows)
        for key, value in rows:
            packed = value.removeprefix("tars-zlib:")
            data = zlib.decompress(base64.b64decode(packed)).decode() if packed != value else value
            database.execute(
                "UPDATE embedding_metadata SET string_value = ? WHERE id = ? AND key = '_tars'",
                (data, key),
            )
        database.commit()
    manifest = path / "store.json"
    manifest.write_text(manifest.read_text().replace('"version": 4', '"version": 3'))
    with HybridStore(path, HashEmbedder()) as opened:
        assert {passage.id: passage for passage in opened.get()} == held
        assert opened.search("worth being compressed", 1)[0].passage == long
        assert opened.vectors(["long"]).keys() == {"long"}
    assert json.loads(manifest.read_text())["version"] == 4


def test_a_server_is_no_substitute_for_the_embedded_chroma(
    store: HybridStore, tmp_path: Path
) -> None:
    store.close()
    with pytest.raises(ConfigError, match="embedded in its directory"):
        HybridStore(tmp_path / "store", HashEmbedder(), chroma_url="http://localhost:9")
    with pytest.raises(ConfigError, match="must look like http"):
        HybridStore(tmp_path / "other", HashEmbedder(), chroma_url="localhost:8000")
