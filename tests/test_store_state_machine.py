"""Any sequence of calls, against a plain dict: the two indexes hold the same, and only that."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from conftest import HashEmbedder
from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore

IDS = ["a", "b", "é\U0001f600", "tars-b64:YQ==", "\ud800", "a b\0\n"]
WORDS = ["kilo", "tango", "zulu"]
TEXTS = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join),
    st.sampled_from(["", "kilo\ud800tango", "\U0001f600 zulu\0"]),
)
METADATA = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"n": st.integers(0, 2)}, optional={"more": st.sampled_from([None, [1, {"x": "y"}], "z"])}
    ),
)
EMBEDDER = HashEmbedder()


def words(text: str) -> set[str]:
    return {word for word in WORDS if word in text}


def matches(metadata: Mapping[str, Any], n: int) -> bool:
    return metadata.get("n", -1) >= n


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="tars-rag-test-"))
        self.model: dict[str, Passage] = {}
        self.store = HybridStore(self.path / "store", EMBEDDER)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.path)

    @rule(contents=st.dictionaries(st.sampled_from(IDS), st.tuples(TEXTS, METADATA), max_size=6))
    def upsert(self, contents: dict[str, tuple[str, dict[str, Any]]]) -> None:
        passages = [Passage(key, *content) for key, content in contents.items()]
        assert self.store.upsert(passages) == len(passages)
        self.model |= {passage.id: passage for passage in passages}

    @rule(text=TEXTS, passage_id=st.sampled_from(IDS))
    def upsert_that_is_refused(self, text: str, passage_id: str) -> None:
        with pytest.raises(InvalidInputError, match="more than once"):
            self.store.upsert([Passage(passage_id, text), Passage(passage_id, text)])

    @rule(ids=st.lists(st.sampled_from(IDS), max_size=4))
    def delete_by_id(self, ids: list[str]) -> None:
        known = self.model.keys() & set(ids)
        assert self.store.delete(ids) == len(known)
        for key in known:
            del self.model[key]

    @rule(n=st.integers(0, 2))
    def delete_by_filter(self, n: int) -> None:
        known = [key for key, passage in self.model.items() if matches(passage.metadata, n)]
        assert self.store.delete(where={"n": {"$gte": n}}) == len(known)
        for key in known:
            del self.model[key]

    @precondition(lambda self: self.model)
    @rule()
    def clear(self) -> None:
        assert self.store.clear() == len(self.model)
        self.model.clear()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = HybridStore(self.path / "store", EMBEDDER)

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule()
    def reopen_as_after_a_kill(self) -> None:
        self.store._directory.close(flush=False)  # small writes stay in the log
        self.store = HybridStore(self.path / "store", EMBEDDER)

    @rule()
    def read_only(self) -> None:
        self.store.close()
        with HybridStore(self.path / "store", EMBEDDER, read_only=True) as store:
            assert {passage.id: passage for passage in store.get()} == self.model
        self.store = HybridStore(self.path / "store", EMBEDDER)

    @rule(n=st.integers(0, 2), word=st.sampled_from(WORDS))
    def search_filtered(self, n: int, word: str) -> None:
        where = {"n": {"$gte": n}}
        passing = {key for key, passage in self.model.items() if matches(passage.metadata, n)}
        worded = {key for key in passing if word in words(self.model[key].text)}
        for strategy, expected in (("naive", passing), ("lexical", worded), ("hybrid", passing)):
            found = self.store.search(word, len(IDS), strategy, where)  # type: ignore[arg-type]
            assert {hit.id for hit in found} == expected, strategy
        assert {passage.id for passage in self.store.get(where=where)} == passing

    @rule(ids=st.lists(st.sampled_from(IDS), max_size=4), limit=st.none() | st.integers(0, 3))
    def get(self, ids: list[str], limit: int | None) -> None:
        expected = [self.model[key] for key in dict.fromkeys(ids) if key in self.model]
        assert self.store.get(ids, limit=limit) == expected[:limit]

    @invariant()
    def texts_and_metadata_are_those_stored_last(self) -> None:
        assert self.store.count() == len(self.model)
        assert {passage.id: passage for passage in self.store.get()} == self.model

    @invariant()
    def vectors_are_those_of_the_current_texts(self) -> None:
        query = EMBEDDER.embed_query("kilo zulu")
        found = self.store.search("kilo zulu", len(IDS), "naive")
        assert len(found) == len(self.model)
        assert {hit.id: hit.passage for hit in found} == self.model
        for hit in found:
            cosine = float(EMBEDDER.embed([hit.text])[0] @ query)
            assert hit.score == pytest.approx(cosine, abs=1e-4)

    @invariant()
    def words_find_the_current_texts_and_no_others(self) -> None:
        for word in WORDS:
            found = self.store.search(word, len(IDS), "lexical")
            assert len({hit.id for hit in found}) == len(found)
            expected = {key for key, p in self.model.items() if word in words(p.text)}
            assert {hit.id: hit.passage for hit in found} == {k: self.model[k] for k in expected}


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
