"""A store in LanceDB gives what one in a directory gives, and its errors say what to do."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage
from tars_rag.errors import (
    ConfigError,
    FingerprintError,
    InvalidInputError,
    StoreError,
)
from tars_rag.retrieval.lance import upkeep, writing
from tars_rag.retrieval.timing import Stopwatch

pytestmark = pytest.mark.lance
pytest.importorskip("lancedb")

TEXT = (
    "pump cooling sailing boats kettle kitchen table é cafe\u0301 naïve 北京 大学 東京都に住む "
    "C++ foo_bar v2.3.1 12 kg ὕδωρ мотор alpha beta gamma running ran the of Vitamin A"
)
WORDS = TEXT.split()
FILTERS: list[dict[str, Any]] = [
    {"topic": "pump"},
    {"topic": {"$ne": "pump"}},
    {"topic": {"$in": ["boats", "sailing"]}},
    {"topic": {"$nin": ["boats", "sailing"]}},
    {"n": 7},
    {"n": 7.0},
    {"half": 3},
    {"n": {"$gte": 40}},
    {"half": {"$lt": 10.5}},
    {"even": True},
    {"even": {"$ne": True}},
    {"even": 1},
    {"tags": {"$contains": "kettle"}},
    {"tags": {"$not_contains": "kettle"}},
    {"numbers": {"$contains": 3}},
    {"numbers": {"$contains": 3.0}},
    {'it\'s a "key" -- %': "o'clock\n\x00"},
    {"no such key": {"$ne": 1}},
    {"$and": [{"topic": "pump"}, {"n": {"$lt": 30}}]},
    {"$or": [{"topic": "pump"}, {"$and": [{"even": False}, {"half": {"$gt": 30.0}}]}]},
    {"n": {"$in": list(range(0, 5000, 3))}},
    {"n": {"$nin": list(range(0, 5000, 3))}},
]
QUERIES = ["pump boats", "cafe\u0301", "café", "北京大学", "東京", "C++ 12 kg", "run the A", "?"]


def passage(number: int, rng: np.random.Generator) -> Passage:
    text = " ".join(rng.choice(WORDS, int(rng.integers(3, 30))))
    metadata: dict[str, Any] = {
        "n": number,
        "half": number / 2,
        "even": number % 2 == 0,
        "topic": WORDS[number % 5],
        "tags": [WORDS[number % 3], WORDS[number % 7]],
        "numbers": [number % 4, 9],
        "nested": {"kept": [1, None, {"é": "\ud800"}]},
    }
    if number % 9 == 0:
        metadata |= {'it\'s a "key" -- %': "o'clock\n\x00", "_tars:context": "Boats > Engines"}
    return Passage(f"id {number}'\"é\n", text, metadata)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"lance://{tmp_path}/shared"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HybridStore, HybridStore]]:
    """The same 300 passages in LanceDB and in a directory."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(3)
    made = [passage(number, rng) for number in range(300)]
    with (
        HybridStore(f"lance://{folder}/lance", HashEmbedder()) as ours,
        HybridStore(folder / "own", HashEmbedder()) as theirs,
    ):
        for store in (ours, theirs):
            store.upsert(made)
            store.flush()
        yield ours, theirs


def same(ours: HybridStore, theirs: HybridStore, *asked: Any, **more: Any) -> None:
    found, wanted = ours.search(*asked, **more), theirs.search(*asked, **more)
    assert [hit.id for hit in found] == [hit.id for hit in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.passage == other.passage
        for name in ("score", "vector_score", "lexical_score", "fused_score", "lexical_share"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4), name


@pytest.mark.parametrize("strategy", ["hybrid", "naive", "lexical"])
@pytest.mark.parametrize("query", QUERIES)
def test_searches_like_a_directory(
    pair: tuple[HybridStore, HybridStore], query: str, strategy: str
) -> None:
    same(*pair, query, 9, strategy)
    same(*pair, query, 200, strategy)
    same(*pair, query, 9, strategy, min_score=0.3)


@pytest.mark.parametrize("where", FILTERS, ids=str)
def test_filters_mean_the_same(
    pair: tuple[HybridStore, HybridStore], where: dict[str, Any]
) -> None:
    ours, theirs = pair
    assert sorted(ours.matching(None, where)) == sorted(theirs.matching(None, where))
    some = [f"id {number}'\"é\n" for number in range(0, 400, 7)]
    assert sorted(ours.matching(some, where)) == sorted(theirs.matching(some, where))
    assert {p.id: p for p in ours.get(where=where)} == {p.id: p for p in theirs.get(where=where)}
    assert len(ours.get(where=where, limit=3)) == len(theirs.get(where=where, limit=3))
    for strategy in ("hybrid", "naive", "lexical"):
        same(ours, theirs, "pump boats kettle", 5, strategy, where)


def test_filters_that_are_refused_are_refused_alike(tmp_path: Path) -> None:
    odd = [
        Passage("a", "one", {"mixed": [1, "two"], "whole": 4, "large": 1 << 70}),
        Passage("b", "two", {"mixed": ["x"], "whole": 4.0}),
    ]
    with (
        HybridStore(f"lance://{tmp_path}/lance", HashEmbedder()) as ours,
        HybridStore(tmp_path / "own", HashEmbedder()) as theirs,
    ):
        for store in (ours, theirs):
            store.upsert(odd)
        for where in (
            {"mixed": {"$contains": "x"}},
            {"whole": {"$gte": 4.5}},
            {"whole": {"$in": [4.5]}},
            {"whole": None},
            {"n": {"$regex": "a"}},
        ):
            errors = []
            for store in (ours, theirs):
                with pytest.raises(InvalidInputError) as caught:
                    store.search("one", where=where)
                errors.append(str(caught.value))
            assert errors[0] == errors[1]
        for where in ({"large": {"$gt": 5}}, {"whole": {"$gte": 4.0}}, {"whole": 4.0}):
            assert sorted(ours.matching(None, where)) == sorted(theirs.matching(None, where))


@pytest.mark.parametrize("optimised", [False, True])
def test_many_pass_a_filter_and_ties_are_in_the_order_of_ids(
    tmp_path: Path, optimised: bool
) -> None:
    """More than are named by their ids; half of them the same text and vector."""
    made = [
        Passage(f"p{n:04d}", "pump" if n % 2 else f"pump boats {WORDS[n % 20]} {n % 37}", {"n": n})
        for n in range(1500)
    ]
    with (
        HybridStore(f"lance://{tmp_path}/lance", HashEmbedder()) as ours,
        HybridStore(tmp_path / "own", HashEmbedder()) as theirs,
    ):
        for store in (ours, theirs):
            store.upsert(reversed(made))
            store.flush()
        if optimised:
            ours.compact()
        for where in (None, {"n": {"$ne": 3}}, {"n": {"$lt": 1200}}):
            for strategy in ("hybrid", "naive", "lexical"):
                for query in ("pump", "boats", "boats 12 kettle"):
                    same(ours, theirs, query, 5, strategy, where)
                    same(ours, theirs, query, 40, strategy, where)


def test_everything_comes_back_as_it_was(address: str) -> None:
    rng = np.random.default_rng(1)
    made = [passage(number, rng) for number in range(40)]
    made += [
        Passage("lone \ud800", "text \udfff cafe\u0301", {"k\ud800": "\ud800"}),
        Passage("e", ""),
    ]
    given = rng.standard_normal((len(made), 32)).astype(np.float32)
    with HybridStore(address, HashEmbedder()) as store:
        assert store.upsert(made, given) == 42
        ids = [one.id for one in made]
        assert store.get([*ids, "unknown"]) == made
        kept = store.vectors(ids)
        assert all((kept[key] == row).all() for key, row in zip(ids, given, strict=True))
        assert store.search("cafe\u0301", strategy="lexical")[0].id == "lone \ud800"
        assert store.get(where={"k\ud800": "\ud800"})[0].id == "lone \ud800"
    with HybridStore(address, HashEmbedder(), read_only=True) as store:
        assert store.get(ids) == made
        assert (store.dimension, store.language, store.count()) == (32, "en", 42)
        assert store.path == address


class Counting(HashEmbedder):
    made = 0

    def embed(self, texts: Sequence[str]) -> Any:
        self.made += len(texts)
        return super().embed(texts)


def test_what_is_there_is_not_embedded_again(address: str) -> None:
    embedder = Counting()
    with HybridStore(address, embedder) as store:
        store.upsert([Passage("a", "x", {"n": 1}), Passage("b", "y")])
        store.upsert([Passage("a", "x", {"n": 1.0}), Passage("b", "y")])
    assert embedder.made == 3  # 1 is not 1.0


def test_replaced_and_deleted_passages_are_never_found(address: str) -> None:
    with HybridStore(address, HashEmbedder()) as store:
        store.upsert([Passage(f"p{n}", f"pump {n}", {"n": n}) for n in range(50)])
        store.upsert([Passage("p1", "kettle", {"n": 1})])
        assert "p1" not in [hit.id for hit in store.search("pump", 60, "lexical")]
        assert [hit.id for hit in store.search("kettle", 3, "lexical")] == ["p1"]
        assert store.delete(["p1", "none"]) == 1
        assert store.delete(where={"n": {"$gte": 25}}) == 25
        assert store.delete(["p2", "p3"], {"n": 3}) == 1
        assert (store.count(), store.search("kettle", 3, "lexical")) == (23, [])
        assert len(store.search("pump", 60)) == 23
        store.compact()
        assert len(store.search("pump", 60)) == 23
        assert store.clear() == 23
        assert store.search("pump") == []


def test_one_search_is_of_one_version_and_the_next_sees_the_newest(address: str) -> None:
    with HybridStore(address, HashEmbedder()) as one, HybridStore(address, HashEmbedder()) as two:
        one.upsert([Passage("a", "pump")])
        watch = Stopwatch()
        assert [hit.id for hit in two.search("pump", watch=watch)] == ["a"]
        assert next(step for step in watch.steps if step.name == "version").note
        two.upsert([Passage("b", "pump")])
        assert [hit.id for hit in one.search("pump")] == ["a", "b"]
        two.delete(["a"])
        assert [hit.id for hit in one.search("pump")] == ["b"]


def test_a_store_without_a_dimension_is_made_by_its_first_passage(address: str) -> None:
    class Silent:
        fingerprint = "silent"

        def embed(self, texts: Sequence[str]) -> Any:
            return HashEmbedder().embed(texts)

    with HybridStore(address, Silent(), language="de") as store:
        assert (store.dimension, store.count(), store.search("x"), store.delete(["a"])) == (
            None,
            0,
            [],
            0,
        )
        assert store.probe is None
        first = store.record_probe(np.ones(32, np.float32))
        assert (store.record_probe(np.zeros(32, np.float32)) == first).all()
        store.upsert([Passage("a", "Häuser")])
        assert store.search("Haus", strategy="lexical")[0].id == "a"
        assert (store.dimension, store.language) == (32, "de")
    with HybridStore(address, Silent()) as store:
        assert store.language == "de"
        assert store.probe is not None


def test_errors_say_what_to_do(address: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"There is no store at lance://.*--from-parquet"):
        HybridStore(address, HashEmbedder(), read_only=True)
    store = HybridStore(address, HashEmbedder())
    store.upsert([Passage("a", "x")])
    with pytest.raises(FingerprintError, match=r"was made with 'hash:32'.*other:32"):
        HybridStore(address, HashEmbedder(name="other"))
    with pytest.raises(ConfigError, match="read in 'en', not 'de'"):
        HybridStore(address, HashEmbedder(), language="de")
    with pytest.raises(InvalidInputError, match="chroma_url is for a store in a directory"):
        HybridStore(address, HashEmbedder(), chroma_url="http://127.0.0.1:1")
    with pytest.raises(InvalidInputError, match="AWS_"):
        HybridStore(address, HashEmbedder(), api_key="x")
    with pytest.raises(InvalidInputError, match="needs its embedder"):
        HybridStore(address)
    with pytest.raises(ConfigError, match="is a string, not a Path: 'lance:///"):
        HybridStore(Path(address), HashEmbedder())
    for wrong in ("lance://data/x", "lance:///", "lance+s3://bucket", "lance+gs://b/c"):
        with pytest.raises(ConfigError, match="three slashes"):
            HybridStore(wrong, HashEmbedder())
    with pytest.raises(StoreError, match="store export"):
        store.backup(tmp_path / "x")
    with pytest.raises(InvalidInputError, match="Scale the vectors"):
        store.upsert([Passage("b", "x")], [np.full(32, 1e18, np.float32)])
    with pytest.raises(InvalidInputError, match=r"\[1, 32\] are needed"):
        store.upsert([Passage("b", "x")], [np.ones(3, np.float32)])
    with pytest.raises(InvalidInputError, match="not in a directory"):
        _ = store.local_path
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.count()
    with (
        HybridStore(address, HashEmbedder(), read_only=True) as reader,
        pytest.raises(StoreError, match="read-only"),
    ):
        reader.upsert([Passage("b", "x")])
    with HybridStore(tmp_path / "own", HashEmbedder()):
        pass
    with pytest.raises(StoreError, match="without LanceDB"):
        HybridStore(f"lance://{tmp_path}/own", HashEmbedder())
    shutil.rmtree(tmp_path / "shared" / "passages.lance" / "data")
    with (
        HybridStore(address, HashEmbedder(), read_only=True) as reader,
        pytest.raises(StoreError, match=r"cannot be read: .*repeat the call"),
    ):
        reader.get()


def test_a_reader_outlives_the_removal_of_its_version(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "OLD", timedelta(0))
    with HybridStore(address, HashEmbedder()) as store:
        store.upsert([Passage("a", "pump")])
        with HybridStore(address, HashEmbedder(), read_only=True) as reader:
            assert reader.search("pump")[0].id == "a"
            for number in range(5):
                store.upsert([Passage(f"b{number}", "pump boats")])
                store.compact()
            assert reader.count() == 6
            assert len(reader.search("boats", 9, "lexical")) == 5
            assert len(reader.get()) == 6


def test_a_writer_that_is_never_first_says_so(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lancedb

    tries = []

    def conflict(*_: object) -> None:
        tries.append(1)
        raise RuntimeError("lance error: Retryable commit conflict for version 7")

    monkeypatch.setattr(writing, "_LONGEST_WAIT", 0.0)
    with HybridStore(address, HashEmbedder()) as store:
        store.upsert([Passage("a", "pump")])
        with monkeypatch.context() as patched:
            patched.setattr(lancedb.merge.LanceMergeInsertBuilder, "execute", conflict)
            with pytest.raises(StoreError, match=r"so many at once that 30 tries.*Repeat the call"):
                store.upsert([Passage("b", "pump")])
        assert (len(tries), store.count()) == (30, 1)


def test_indexes_are_brought_up_to_date_by_the_writes(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_MOST_ROWS", 100)
    with HybridStore(address, HashEmbedder()) as store:
        store.upsert([Passage(f"p{n}", f"pump {n}") for n in range(300)])
    import lancedb

    held = lancedb.connect(address.removeprefix("lance://")).open_table("passages")
    assert held.index_stats("terms_idx").num_unindexed_rows == 0
    with HybridStore(address, HashEmbedder()) as store:
        store.upsert([Passage("new", "kettle"), Passage("p7", "kettle")])
        assert [hit.id for hit in store.search("kettle", 5, "lexical")] == ["new", "p7"]
        assert "p7" not in [hit.id for hit in store.search("7", 5, "lexical")]


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    import lancedb

    lancedb.connect(tmp_path / "db").create_table("passages", data=[{"id": "a"}])
    with pytest.raises(StoreError, match="is not that of a store"):
        HybridStore(f"lance://{tmp_path}/db", HashEmbedder())


SOME = st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True)


class BesideADirectory(RuleBasedStateMachine):
    """Any order of writes; then everything is as in a directory to which the rest was written."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.held: dict[str, Passage] = {}
        self.address = f"lance://{self.folder}/lance"
        self.store = HybridStore(self.address, HashEmbedder())
        self.rounds = 0

    @rule(
        numbers=st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True),
        seed=st.integers(0, 99),
    )
    def upsert(self, numbers: list[int], seed: int) -> None:
        made = [passage(number, np.random.default_rng(seed + number)) for number in numbers]
        self.store.upsert(made)
        self.held |= {one.id: one for one in made}

    @rule(numbers=st.lists(st.integers(0, 35), max_size=9, unique=True))
    def delete(self, numbers: list[int]) -> None:
        ids = [f"id {number}'\"é\n" for number in numbers]
        gone = [key for key in ids if self.held.pop(key, None) is not None]
        assert self.store.delete(ids) == len(gone)

    @rule(where=st.sampled_from(FILTERS))
    def delete_by_filter(self, where: dict[str, Any]) -> None:
        gone = self.store.matching(None, where)
        assert self.store.delete(where=where) == len(gone)
        for key in gone:
            del self.held[key]

    @rule()
    def optimise(self) -> None:
        self.store.compact()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = HybridStore(self.address, HashEmbedder())

    @rule(query=st.sampled_from(QUERIES), where=st.sampled_from([None, *FILTERS]))
    def search(self, query: str, where: dict[str, Any] | None) -> None:
        self.rounds += 1
        with HybridStore(self.folder / f"own{self.rounds}", HashEmbedder()) as own:
            own.upsert(list(self.held.values()))
            for strategy in ("hybrid", "naive", "lexical"):
                same(self.store, own, query, 5, strategy, where)
            assert sorted(self.store.matching(None, where)) == sorted(own.matching(None, where))

    @invariant()
    def holds_what_was_written(self) -> None:
        assert self.store.count() == len(self.held)
        assert {one.id: one for one in self.store.get()} == self.held

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)


TestBesideADirectory = BesideADirectory.TestCase
TestBesideADirectory.settings = settings(max_examples=8, stateful_step_count=12, deadline=None)
