"""Every operator on every type of value, beside a plain Chroma collection that holds the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from operator import eq, ge, gt, le, lt
from pathlib import Path
from typing import Any, get_args

import chromadb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage, Pipeline
from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.retrieval.storage.check import check_store
from tars_rag.settings import Strategy

pytestmark = pytest.mark.slow

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
OPERATORS = (
    *("$eq", "$ne", "$gt", "$gte", "$lt", "$lte"),
    *("$in", "$nin", "$contains", "$not_contains"),
)

# What metadata may hold and Chroma too, under the key "v"; no whole number here is the integer part
# of a fraction (see test_a_fraction_that_chroma_cuts_...).
HELD: dict[str, Any] = {
    "str": "a",
    "str other": "b",
    "str empty": "",
    "str digits": "3",
    "str accents": "Grüße, 世界 \U0001f600",
    "str NUL": "a\0b",
    "str long": "long " * 2000,
    "true": True,
    "false": False,
    "int zero": 0,
    "int one": 1,
    "int three": 3,
    "int negative": -7,
    "int largest": 2**63 - 1,
    "int smallest": -(2**63),
    "int huge": 2**70,
    "float zero": 0.0,
    "float one": 1.0,
    "float fraction": 2.5,
    "float negative": -4.25,
    "float tiny": 1e-300,
    "float large": 1e300,
    "strs": ["a", "b"],
    "str alone": ["a"],
    "strs twice": ["b", "b", ""],
    "ints": [1, 3],
    "floats": [1.0, 2.5],
    "bools": [True, False],
    "bool alone": [False],
    "strs many": [str(n) for n in range(2000)],
}
# What metadata may hold and Chroma may not; to each the metadata that answers every test the same.
UNHELD: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "dict": ({"a": 1}, None),
    "list empty": ([], None),
    "lists": ([["a"], ["b"]], None),
    "list of none": ([None], None),
    "list with none": (["a", None, "c"], ["a", "c"]),
    "dicts": ([{"a": "b"}], None),
}
MISSING = ("missing", "missing too")
OPERANDS: list[Any] = [
    *("a", "b", "", "3", "Grüße, 世界 \U0001f600", "a\0b", "long " * 2000, "1999", "c", "z"),
    *(True, False),
    *(0, 1, 3, -7, 2**63 - 1, -(2**63), 2**63, 42),
    *(0.0, -0.0, 1.0, 2.5, -4.25, 1e-300, 1e300, 1.18e21, float(2**70)),
    *(float("nan"), float("inf")),
    *(["a"], ["a", "b"], ["z"], [1], [1, 3], [1.0], [2.5, 9.75], [True], [True, False]),
    *([], ["a", 1], [1, 2.5], [1, True], [True, 1], [None], [["a"]], [2**63]),
    *(None, {"a": 1}, {}),
]


class Vectors(HashEmbedder):
    """Any text has the same vector, so that every passage is found."""

    def embed(self, texts: Any) -> NDArray[np.float32]:
        return np.ones((len(texts), self.dimension), np.float32)


def passages() -> list[Passage]:
    metadata = {name: {"v": value} for name, value in HELD.items()}
    metadata |= {name: {"v": value} for name, (value, _) in UNHELD.items()}
    metadata |= {name: {} for name in MISSING}
    return [Passage(name, f"alpha {name}", {**m, "all": 1}) for name, m in metadata.items()]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HybridStore]:
    with HybridStore(tmp_path_factory.mktemp("ours") / "store", Vectors(4)) as opened:
        opened.upsert(passages())
        yield opened


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    client = chromadb.PersistentClient(tmp_path_factory.mktemp("theirs"))
    collection = client.create_collection("plain", embedding_function=None)
    held = HELD | {name: value for name, (_, value) in UNHELD.items()} | dict.fromkeys(MISSING)
    collection.add(
        ids=list(held),
        embeddings=[[1.0] * 4] * len(held),
        metadatas=[{"all": 1} if v is None else {"v": v, "all": 1} for v in held.values()],
    )
    return collection


def theirs(plain: Any, where: Any) -> set[str] | None:
    """What Chroma itself answers; None: it refuses."""
    try:
        return set(plain.get(where=where, include=[])["ids"])
    except (ValueError, TypeError, chromadb.errors.InvalidArgumentError):
        return None


def ours(store: HybridStore, where: Any) -> set[str] | None:
    """What every way of asking answers, which is the same; None: all refuse."""
    everything = [passage.id for passage in store.get()]
    ways: list[Any] = [lambda: store.get(where=where), lambda: store.get(everything, where)]
    search = partial(store.search, "alpha", len(everything))
    ways.extend(partial(search, strategy, where) for strategy in STRATEGIES)
    answers = {_answer(way) for way in ways}
    assert len(answers) == 1, answers
    (answer,) = answers
    return None if answer is None else set(answer)


def _answer(way: Any) -> frozenset[str] | None:
    try:
        return frozenset(hit.id for hit in way())
    except InvalidInputError:
        return None


def meant(where: Any, metadata: Any) -> bool:
    """What a filter means, in plain Python."""
    ((key, value),) = where.items()
    if key in ("$and", "$or"):
        return (all if key == "$and" else any)(meant(part, metadata) for part in value)
    ((operator, operand),) = (value if isinstance(value, dict) else {"$eq": value}).items()
    return _meant(operator, operand, metadata.get(key))


def _meant(operator: str, operand: Any, value: Any) -> bool:
    if operator in ("$ne", "$nin", "$not_contains"):
        positive = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains"}[operator]
        return not _meant(positive, operand, value)
    if operator == "$in":
        return any(_meant("$eq", one, value) for one in operand)
    if operator == "$contains":
        elements = value if isinstance(value, list) else []
        return any(type(one) is type(operand) and one == operand for one in elements)
    if isinstance(value, list | dict | None) or _sort(value) != _sort(operand):
        return False
    return bool(COMPARE[operator](value, operand))


def _sort(value: Any) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


COMPARE = {
    "$eq": eq,
    "$gt": gt,
    "$gte": ge,
    "$lt": lt,
    "$lte": le,
}


def filters(operator: str | None) -> Iterator[Any]:
    for operand in OPERANDS:
        yield {"v": operand if operator is None else {operator: operand}}


@pytest.mark.parametrize("operator", [None, *OPERATORS])
def test_every_operator_on_every_type_answers_as_chroma_itself(
    store: HybridStore, plain: Any, operator: str | None
) -> None:
    """Refused although Chroma answers: only what it answers wrongly (it cuts 1e-300 to 0)."""
    wrong = {}
    answered = 0
    for where in filters(operator):
        found, expected = ours(store, where), theirs(plain, where)
        answered += found is not None
        if found != expected and (found is not None or _right(where, expected)):
            wrong[repr(where)[:80]] = (found, expected)
    assert not wrong
    assert answered > 5


def _right(where: Any, found: set[str] | None) -> bool:
    return found == {p.id for p in passages() if meant(where, p.metadata)}


# -- what must be right where Chroma is not --------------------------------------------------------

PRICES = {"whole": 4, "half": 4.5, "five": 5, "minus": -4, "minus half": -4.5, "word": "4.5"}


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HybridStore]:
    with HybridStore(tmp_path_factory.mktemp("prices") / "store", Vectors(4)) as opened:
        opened.upsert([Passage(name, f"alpha {name}", {"v": v}) for name, v in PRICES.items()])
        yield opened


@pytest.mark.parametrize("number", [4.5, -4.5, 4.0, 6.5, 3.25, -3.75, -0.5])
@pytest.mark.parametrize("operator", OPERATORS[:8])
def test_a_fraction_that_chroma_cuts_to_a_whole_number_is_answered_rightly_or_refused(
    prices: HybridStore, operator: str, number: float
) -> None:
    """Chroma finds a price of 4 for {"$gte": 4.5}, and does not find it for {"$lt": 4.5}."""
    where = {"v": {operator: [number, 77.5] if operator in ("$in", "$nin") else number}}
    expected = {name for name, v in PRICES.items() if meant(where, {"v": v})}
    found = ours(prices, where)
    if found is None:
        with pytest.raises(
            InvalidInputError, match=r"as -?\d+, which is wrong.*Store every"
        ) as caught:
            prices.delete(where=where)
        told = str(caught.value)
        if "means the same: " in told:
            exact = eval(told.split("means the same: ")[1].rstrip("."))
            assert ours(prices, exact) == expected
    else:
        assert found == expected
    cut = abs(number) == 4.5 and operator not in ("$lte", "$gt") and number > 0
    cut |= number == -4.5 and operator not in ("$gte", "$lt")
    assert (found is None) == cut


MIXED = {
    "mixed": {"tags": ["a", 1], "n": 1, "k": 1},
    "two kinds of numbers": {"tags": [1, 2.5], "n": 2, "k": 1},
    "long": {"parts": ["a"] * 6000, "n": 3, "k": 1},
    "huge": {"sizes": [2**64], "n": 4, "k": 1},
    "plain": {"tags": ["a"], "parts": ["a"], "sizes": [1], "n": 5, "k": 1},
}


def test_a_list_that_chroma_cannot_hold_is_kept_and_never_answered_wrongly(tmp_path: Path) -> None:
    """A list of 5,462 values, written as it is, would end the collection for good."""
    passages = [Passage(name, f"alpha {name}", m) for name, m in MIXED.items()]
    with HybridStore(tmp_path / "store", Vectors(4)) as store:
        store.upsert(passages)
        assert sorted(store.get(), key=lambda p: p.id) == sorted(passages, key=lambda p: p.id)
        for key, named in (("tags", "mixed|two kinds"), ("parts", "long"), ("sizes", "huge")):
            for operator in ("$contains", "$not_contains"):
                touching = [{key: {operator: "a"}}, {"$or": [{"n": 1}, {key: {operator: "b"}}]}]
                for where in touching:
                    with pytest.raises(InvalidInputError, match=rf"'({named}).*'{key}'.*one type"):
                        store.delete(where=where)
                    assert ours(store, where) is None
            assert ours(store, {key: {"$ne": "a"}}) == set(MIXED)
            assert ours(store, {key: {"$in": ["a", "b"]}}) == set()
        assert ours(store, {"n": {"$gt": 2}}) == {"long", "huge", "plain"}
        store.delete(["mixed", "two kinds of numbers"])
        assert ours(store, {"tags": {"$contains": "a"}}) == {"plain"}
        store.upsert([Passage("mixed", "alpha", {"tags": ["a", 1]})])
        assert ours(store, {"tags": {"$contains": "a"}}) is None
        store.upsert([Passage("mixed", "alpha", {"tags": ["a", "1"]})])
        assert ours(store, {"tags": {"$contains": "a"}}) == {"plain", "mixed"}


@pytest.mark.parametrize("key", ["\ud800 tags", "tars-b64:dGFncw=="])
def test_such_a_list_is_refused_under_a_key_that_is_stored_as_another(
    tmp_path: Path, key: str
) -> None:
    with HybridStore(tmp_path / "store", Vectors(4)) as store:
        for written in ("in the log", "in the indexes"):
            store.upsert([Passage("mixed", f"alpha {written}", {key: ["a", 1]})])
            assert ours(store, {key: {"$contains": "a"}}) is None, written
            assert ours(store, {key: {"$ne": "a"}}) == {"mixed"}
            store.flush()
        store.upsert([Passage("mixed", "alpha", {key: ["a", "1"]})])
        assert ours(store, {key: {"$contains": "a"}}) == {"mixed"}


def test_what_is_forgotten_of_a_list_is_not_found_again(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "store", Vectors(4)) as store:
        for tags, found in (["a", "b"], {"x"}), (["b"], set()), ("a", set()), (["a"], {"x"}):
            store.upsert([Passage("x", "alpha", {"tags": tags})])
            assert ours(store, {"tags": {"$contains": "a"}}) == found
        store.delete(["x"])
        store.upsert([Passage("x", "alpha", {})])
        assert ours(store, {"tags": {"$contains": "a"}}) == set()


# -- any filter ------------------------------------------------------------------------------------

_WORDS = st.sampled_from(["a", "b", "c", ""])
_WHOLE = st.integers(-3, 3)
_FLOATS = st.sampled_from([-2.5, -1.0, 0.0, 0.5, 1.0, 2.5])
_SCALARS = st.one_of(_WORDS, _WHOLE, _FLOATS, st.booleans())
_LISTS = st.one_of(*(st.lists(kind, max_size=3) for kind in (_WORDS, _WHOLE, _FLOATS)))
_KEYS = st.sampled_from(["s", "n", "mixed", "list"])


def _metadata(number: int) -> dict[str, Any]:
    """Passages of every kind: fractions only where there are no whole numbers, except `mixed`."""
    random = np.random.default_rng(number)
    pick = {
        "s": ["a", "b", "c", "", True, False],
        "n": [-3, -2, -1, 0, 1, 2, 3],
        "mixed": [-2, -1, 0, 1, 2, 0.5, -2.5, 1.0, "a", True],
        "list": [["a"], ["a", "b"], [""], [1, 2], [0.5, 1.0], [True], [], ["c", "a"], "a"],
    }
    return {
        key: values[int(random.integers(len(values)))]
        for key, values in pick.items()
        if random.random() < 0.8
    }


ANY = {f"p{n}": _metadata(n) for n in range(60)}


def _tests() -> st.SearchStrategy[Any]:
    order = st.tuples(_KEYS, st.sampled_from(OPERATORS[2:6]), st.one_of(_WHOLE, _FLOATS))
    equal = st.tuples(_KEYS, st.sampled_from(("$eq", "$ne", *OPERATORS[8:])), _SCALARS)
    lists = st.tuples(_KEYS, st.sampled_from(("$in", "$nin")), _LISTS.filter(bool))
    return st.one_of(order, equal, lists).map(lambda t: {t[0]: {t[1]: t[2]}})


FILTERS = st.recursive(
    _tests(),
    lambda inner: st.builds(
        lambda word, parts: {word: parts},
        st.sampled_from(("$and", "$or")),
        st.lists(inner, min_size=2, max_size=4),
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HybridStore, Any]]:
    folder = tmp_path_factory.mktemp("any")
    collection = chromadb.PersistentClient(folder / "theirs").create_collection(
        "plain", embedding_function=None
    )
    held = [{k: v for k, v in m.items() if v != []} or None for m in ANY.values()]
    collection.add(ids=list(ANY), embeddings=[[1.0] * 4] * len(ANY), metadatas=held)
    with HybridStore(folder / "ours", Vectors(4)) as store:
        store.upsert([Passage(name, f"alpha {name}", m) for name, m in ANY.items()])
        yield store, collection


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=FILTERS)
def test_any_filter_is_answered_as_it_is_meant_and_as_chroma_does_or_refused(
    both: tuple[HybridStore, Any], where: Any
) -> None:
    store, plain = both
    found, expected = ours(store, where), theirs(plain, where)
    right = {name for name, metadata in ANY.items() if meant(where, metadata)}
    if found is not None:
        assert found == right == expected
    else:
        assert _cuts(where)


def _cuts(where: Any) -> bool:
    """Whether a fraction is compared under the one key that has whole numbers, too."""
    ((key, value),) = where.items()
    if key in ("$and", "$or"):
        return any(_cuts(part) for part in value)
    ((operator, operand),) = value.items()
    operands = operand if isinstance(operand, list) else [operand]
    fraction = any(isinstance(one, float) and not one.is_integer() for one in operands)
    return fraction and key in ("n", "mixed") and operator not in OPERATORS[8:]


# -- delete ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operand", ["a", True, 3, 2.5, ["a", "b"], [1, 3], [2.5, 9.75], "c"], ids=repr
)
def test_delete_deletes_what_get_returns_and_nothing_else(store: HybridStore, operand: Any) -> None:
    for where in (w for op in OPERATORS if (w := {"v": {op: operand}})):
        found = ours(store, where)
        if found is None:
            with pytest.raises(InvalidInputError):
                store.delete(where=where)
            assert store.count() == len(passages())
            continue
        before = {passage.id: passage for passage in store.get()}
        assert store.delete(where=where) == len(found)
        assert {passage.id for passage in store.get()} == set(before) - found
        store.upsert([before[name] for name in found])
        assert {passage.id: passage for passage in store.get()} == before


# -- large filters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "count"), [(str, 33_000), (int, 33_000), (int, 200_000)])
def test_any_number_of_values(both: tuple[HybridStore, Any], count: int, kind: type) -> None:
    store, _ = both
    key, wanted = ("s", ["a", "b"]) if kind is str else ("n", [1, 2])
    values = [*wanted, *map(kind, range(1_000, 1_000 + count))]
    few = {name for name, metadata in ANY.items() if meant({key: {"$in": wanted}}, metadata)}
    one_of, none_of = {key: {"$in": values}}, {key: {"$nin": values}}
    nested = {"$and": [one_of, {"$or": [{"n": 1}, none_of]}]}
    ask = ours if count < 100_000 else lambda store, where: {p.id for p in store.get(where=where)}
    assert ask(store, one_of) == few
    assert ask(store, none_of) == set(ANY) - few
    assert ask(store, nested) == {name for name in few if ANY[name].get("n") == 1}
    assert {hit.id for hit in store.search("alpha", 60, where=one_of)} == few
    assert store.get(["p1"], none_of) == ([] if "p1" in few else store.get(["p1"]))
    assert len(store.get(where=one_of, limit=2)) == 2


def test_any_number_of_conditions(both: tuple[HybridStore, Any]) -> None:
    """Ten thousand of them end Chroma's process."""
    store, _ = both
    ones = {name for name, metadata in ANY.items() if metadata.get("n") == 1}
    assert ours(store, {"$or": [{"n": n} for n in range(1, 4000, 4)]}) == ones
    assert ours(store, {"$and": [{"n": {"$ne": n}} for n in range(4000)]}) == {
        name for name, metadata in ANY.items() if metadata.get("n", -1) < 0
    }


# -- as many as there are --------------------------------------------------------------------------


@pytest.mark.parametrize("many", [10**9, 10**10, sys.maxsize, 10**30])
def test_more_than_there_are_is_all(both: tuple[HybridStore, Any], many: int) -> None:
    store, _ = both
    for strategy in STRATEGIES:
        assert len(store.search("alpha", many, strategy)) == len(ANY)
    negative = {name for name, metadata in ANY.items() if metadata.get("n", 0) < 0}
    assert {hit.id for hit in store.search("alpha", many, where={"n": {"$lt": 0}})} == negative
    assert len(store.get(limit=many)) == len(ANY)
    assert {hit.id for hit in store.get(where={"n": {"$lt": 0}}, limit=many)} == negative


DEEP: Any = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize("value", [DEEP, {"a": DEEP}, -(10**5000)], ids=["list", "dict", "number"])
def test_what_cannot_be_shown_is_refused_all_the_same(
    both: tuple[HybridStore, Any], value: Any
) -> None:
    store, _ = both
    calls: list[Any] = [
        lambda: store.upsert([Passage("a", "x", {"k": value})]),
        lambda: store.upsert([Passage("a", value, {})]),
        lambda: store.upsert([Passage("a", "x", value if isinstance(value, list) else 7)]),  # type: ignore[arg-type]
        lambda: store.upsert([Passage(value, "x", {})]),
        lambda: store.get([value]),
        lambda: store.get(limit=value),
        lambda: store.search(value),
        lambda: store.search("x", value),
        lambda: store.search("x", strategy=value),
        lambda: store.search("x", weight=value),
        lambda: store.search("x", min_score=value),
        lambda: store.search("x", where={"a": value}),
        lambda: store.search("x", where={"a": {"$in": [value]}}),
        lambda: store.search("x", where=[value]),  # type: ignore[arg-type]
        lambda: Pipeline(store, candidates=value),
        lambda: Pipeline(store).search("x", budget_ms=value),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert len(str(caught.value)) < 700, number


# -- stores of earlier versions --------------------------------------------------------------------


def test_a_store_that_kept_lists_from_chroma_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with HybridStore(path, Vectors(4)) as store:
        store.upsert([Passage(name, f"alpha {name}", m) for name, m in ANY.items()])
    _as_before_lists(path)
    with HybridStore(path, Vectors(4), read_only=True) as store:
        assert {p.id for p in store.get(where={"n": 1})} == {
            name for name, m in ANY.items() if m.get("n") == 1
        }
        for where in (
            {"list": {"$contains": "a"}},
            {"$or": [{"n": 1}, {"list": {"$not_contains": 1}}]},
        ):
            with pytest.raises(StoreError, match=r"cannot be answered yet.*store check .*--repair"):
                store.get(where=where)
    for _ in range(2):
        with HybridStore(path, Vectors(4)) as store:
            for where in ({"list": {"$contains": "a"}}, {"list": {"$not_contains": 2}}):
                expected = {name for name, m in ANY.items() if meant(where, m)}
                assert ours(store, where) == expected
            assert {p.id: p.metadata for p in store.get()} == ANY
    assert check_store(path).problems == []  # vectors are what was sketched


def _as_before_lists(path: Path) -> None:
    """The store as an earlier version would have written it: no lists, no mark."""
    client = chromadb.PersistentClient(path / "chroma")
    (collection,) = client.list_collections()
    rows = collection.get(include=["metadatas"])
    for key, metadata in zip(rows["ids"], rows["metadatas"], strict=True):
        lists = {name: None for name, value in metadata.items() if isinstance(value, list)}
        if lists:
            collection.update(ids=[key], metadatas=[lists])
    collection.modify(metadata={"other": 1})
    client.close()
