"""What is only in the log is found as if it were in the indexes: as in the same store, flushed."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from conftest import HashEmbedder
from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.indexes.words import top
from tars_rag.retrieval.passage import Passage, ScoredPassage
from tars_rag.retrieval.store import HybridStore
from test_bm25 import Oracle

EMBEDDER = HashEmbedder()
# A store for each example takes a while: what fails is not made smaller.
PROPERTY = settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
IDS = [f"p{n}" for n in range(12)]
TEXTS = st.lists(
    st.sampled_from(["fan", "board", "E-1701", "E1701", "the", "rain", "raining", "猫", "C++"]),
    max_size=9,
).map(" ".join)
CONTENTS = st.dictionaries(st.sampled_from(IDS), st.tuples(TEXTS, st.integers(0, 3)), max_size=9)
QUERIES = ["fan", "the rain on the board", "E-1701 fan C++", "猫 raining", "unknown", "the"]
WHERE: list[dict[str, Any] | None] = [None, {"n": {"$gte": 2}}, {"n": {"$ne": 1}}]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tars-rag-test-"))
    yield path
    shutil.rmtree(path)


def passages(contents: dict[str, tuple[str, int]]) -> list[Passage]:
    return [Passage(key, text, {"n": n}) for key, (text, n) in contents.items()]


def found(store: HybridStore, query: str, where: dict[str, Any] | None) -> list[Any]:
    """Everything that a store answers to one query."""
    return [
        store.search(query, k, strategy, where)  # type: ignore[arg-type]
        for strategy in ("lexical", "naive", "hybrid")
        for k in (1, 3, 20)
    ]


def assert_same(one: list[list[ScoredPassage]], other: list[list[ScoredPassage]]) -> None:
    for left, right in zip(one, other, strict=True):
        assert [hit.passage for hit in left] == [hit.passage for hit in right]
        for a, b in zip(left, right, strict=True):
            for name in ("score", "vector_score", "lexical_score", "lexical_share"):
                value, expected = getattr(a, name), getattr(b, name)
                assert value == (expected and pytest.approx(expected, rel=2e-5, abs=1e-7))


def unmerged(store: HybridStore) -> int:
    """Removed passages that BM25 still reckons with."""
    words = store._directory._indexes.lexical
    return words.documents - words.count()


@pytest.mark.slow
@PROPERTY
@given(first=CONTENTS, then=CONTENTS, deleted=st.lists(st.sampled_from(IDS), max_size=4))
def test_the_tail_is_found_as_if_it_were_flushed(
    folder: Path,
    first: dict[str, tuple[str, int]],
    then: dict[str, tuple[str, int]],
    deleted: list[str],
) -> None:
    path = Path(tempfile.mkdtemp(dir=folder))
    with HybridStore(path, EMBEDDER) as store:
        store.upsert(passages({"seed": ("seed board", 0)} | first))
        store.flush()
        store.upsert(passages(then))
        store.delete(deleted)
        model = {"seed": ("seed board", 0)} | first | then
        for key in deleted:
            model.pop(key, None)
        stored = {p.id: p for p in passages(model)}
        assert {p.id: p for p in store.get()} == stored
        assert store.count() == len(stored)
        vectors = store.vectors(stored)
        before = {(q, n): found(store, q, w) for q in QUERIES for n, w in enumerate(WHERE)}
        listed = [{p.id for p in store.get(where=where)} for where in WHERE]
        store.flush()
        assert not store._directory.recent.tail
        assert {p.id: p for p in store.get()} == stored
        assert listed == [{p.id for p in store.get(where=where)} for where in WHERE]
        assert {key: row.tobytes() for key, row in store.vectors(stored).items()} == {
            key: row.tobytes() for key, row in vectors.items()
        }
        if not unmerged(store):
            for (query, n), answers in before.items():
                assert_same(answers, found(store, query, WHERE[n]))
    shutil.rmtree(path)


@PROPERTY
@given(first=CONTENTS, then=CONTENTS)
def test_scores_over_index_and_tail_are_those_of_the_formula(
    folder: Path, first: dict[str, tuple[str, int]], then: dict[str, tuple[str, int]]
) -> None:
    then = {f"t{key}": content for key, content in then.items()}  # nothing replaced: see above
    path = Path(tempfile.mkdtemp(dir=folder))
    with HybridStore(path, EMBEDDER) as store:
        store.upsert(passages({"seed": ("seed board", 0)} | first))
        store.flush()
        store.upsert(passages(then))
        model = {"seed": ("seed board", 0)} | first | then
        oracle = Oracle({key: text for key, (text, _) in model.items()})
        for query in QUERIES:
            hits = store.search(query, 50, "lexical")
            expected = oracle.scores(query)
            assert {hit.id: hit.score for hit in hits} == pytest.approx(expected, rel=1e-4)
            for k in (1, 2, 5):
                assert [hit.id for hit in store.search(query, k, "lexical")] == [
                    hit.id for hit in hits[:k]
                ]
    shutil.rmtree(path)


def test_equal_passages_are_in_the_order_of_their_ids_wherever_they_are(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "store", EMBEDDER) as store:
        store.upsert([Passage(f"p{n}", "the same words") for n in (1, 3, 5, 7)])
        store.flush()
        store.upsert([Passage(f"p{n}", "the same words") for n in (0, 2, 4, 6)])
        for strategy in ("lexical", "naive", "hybrid"):
            for k in (1, 3, 8):
                hits = store.search("same words", k, strategy)  # type: ignore[arg-type]
                assert [hit.id for hit in hits] == [f"p{n}" for n in range(k)]


def test_a_filter_refused_because_of_what_was_replaced_is_answered(tmp_path: Path) -> None:
    mixed = {"tags": [1, "a"]}
    with HybridStore(tmp_path / "store", EMBEDDER) as store:
        store.upsert([Passage("p", "text", mixed), Passage("q", "text", {"tags": ["a"]})])
        store.flush()
        with pytest.raises(InvalidInputError, match="'p'"):
            store.get(where={"tags": {"$contains": "a"}})
        store.upsert([Passage("p", "text", {"tags": ["b"]})])
        assert [p.id for p in store.get(where={"tags": {"$contains": "a"}})] == ["q"]
        store.upsert([Passage("r", "text", mixed)])
        with pytest.raises(InvalidInputError, match="'r'"):
            store.search("text", where={"tags": {"$contains": "a"}})
        with pytest.raises(InvalidInputError, match="'r'"):
            store.delete(where={"tags": {"$contains": "a"}})
        assert store.count() == 3


def test_what_is_stored_is_a_copy(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "store", EMBEDDER) as store:
        store.upsert([Passage("first", "first")])
        metadata: dict[str, Any] = {"tags": ["a"], "nested": {"x": (1, 2)}}
        vector = EMBEDDER.embed(["text"])
        store.upsert([Passage("p", "text", metadata)], vector)
        metadata["tags"].append("b")
        vector[:] = 1
        store.vectors(["p"])["p"][:] = 2
        (held,) = store.get(["p"])
        assert held.metadata == {"tags": ["a"], "nested": {"x": [1, 2]}}
        assert (store.vectors(["p"])["p"] == EMBEDDER.embed(["text"])[0]).all()


COMMON = ["kab", "kob", "kub", "bak", "bok"]
RARE = [f"{a}{b}ak" for a in "bdfgmpvz" for b in "dfgmpvz"]


def drawn(draw: random.Random) -> str:
    """A text of common words, and of one rare word in three texts."""
    words = draw.choices(COMMON, range(len(COMMON), 0, -1), k=draw.randint(3, 12))
    return " ".join(words + draw.choices(RARE, k=draw.randint(0, 3) // 3))


def test_common_words_are_looked_up_in_a_store_with_a_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New, replaced and deleted passages: the same hits as a search for all words at once."""
    monkeypatch.setattr(top, "_QUICK", 0)  # as in a store of tens of thousands
    narrowed, plain = top._Search.narrowed, [False]
    asked: list[bool] = []

    def as_told(search: top._Search, fetch: int) -> Any:
        answer = None if plain[0] else narrowed(search, fetch)
        asked.append(answer is not None)
        return answer

    monkeypatch.setattr(top._Search, "narrowed", as_told)
    draw = random.Random(0)
    queries = [" ".join([*draw.sample(RARE, 2), *draw.sample(COMMON, 3)]) for _ in range(12)]
    with HybridStore(tmp_path / "store", EMBEDDER) as store:
        store.upsert([Passage(f"p{n}", drawn(draw)) for n in range(1_500)])
        store.flush()
        for turn in range(3):
            store.upsert([Passage(f"p{n}", drawn(draw)) for n in draw.sample(range(1_700), 30)])
            store.delete([f"p{n}" for n in draw.sample(range(1_500), 20)])
            assert store._directory.recent.tail
            for query in queries:
                answers = []
                for plain[0] in (False, True):
                    answers.append([store.search(query, k, "lexical") for k in (1, 5, 40)])
                    answers[-1] += [store.search(query, k) for k in (1, 5)]
                assert_same(*answers)
            if turn == 1:
                store.flush()
    assert sum(asked) > len(asked) / 8, "nothing was looked up"
