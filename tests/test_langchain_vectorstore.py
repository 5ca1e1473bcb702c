"""TarsVectorStore for LangChain: the standard suites, hybrid search, filters, copies, bad input."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from pydantic import ValidationError

from served import KEY, SLOW_REMOTE, Board, serving
from tars_rag.adapters.foreign import ForeignEmbedder
from tars_rag.errors import ConfigError, FingerprintError, InvalidInputError, StoreError
from tars_rag.langchain import TarsEmbeddings, TarsRerank, TarsRetriever, TarsVectorStore
from tars_rag.models.reranker import Reranker

pytest_plugins = ["tiny_models", "served"]

DOCUMENTS = [
    Document(id="cat", page_content="the cat sleeps on the sofa", metadata={"kind": "pet", "n": 1}),
    Document(id="dog", page_content="the dog runs in the garden", metadata={"kind": "pet", "n": 2}),
    Document(id="npu", page_content="the npu core runs hot", metadata={"kind": "chip", "n": 3}),
    Document(id="fan", page_content="a fan cools the board", metadata={"kind": "chip", "n": 4}),
    Document(id="tea", page_content="music in the kitchen", metadata={"deep": {"a": [1, None]}}),
]
QUERY = "music for the dog"


class WordEmbeddings(Embeddings):
    """A foreign model: one dimension a word, so that nearness can be worked out by hand."""

    model_name = "words"
    words = ("cat", "dog", "npu", "fan", "music", "sofa")

    def embed_query(self, text: str) -> list[float]:
        return [0.1 + text.count(word) for word in self.words]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


@pytest.fixture(scope="module")
def word_board() -> Iterator[Board]:
    """A server whose embedder is the same foreign model."""
    words = WordEmbeddings()
    model = ForeignEmbedder(words, words.embed_documents, words.embed_query)
    with serving(model) as served:
        yield served


class TestStandard(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        with TarsVectorStore(self.get_embeddings(), tmp_path / "store") as store:
            yield store


@pytest.mark.enable_socket
@pytest.mark.slow
class TestStandardRemote(VectorStoreIntegrationTests):
    """The same of a store that a server has; its embedder stands in for the suite's own."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path, board: Board) -> Iterator[VectorStore]:
        with (
            board.store(tmp_path / "store") as url,
            TarsVectorStore(path=url, api_key=KEY) as store,
        ):
            yield store


@pytest.mark.weights
class TestStandardPublishedModel(VectorStoreIntegrationTests):
    """The same with the published embedder, in a temporary directory."""

    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        with TarsVectorStore(TarsEmbeddings(device="cpu")) as store:
            yield store


class TestStandardRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _store(self, store: TarsVectorStore) -> None:
        self.store = store

    @property
    def retriever_constructor(self) -> type[TarsRetriever]:
        return TarsRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"vectorstore": self.store}

    @property
    def retriever_query_example(self) -> str:
        return QUERY


@pytest.fixture(params=["local", SLOW_REMOTE])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[TarsVectorStore]:
    """In a directory, and what a server has."""
    with contextlib.ExitStack() as stack:
        place: dict[str, Any] = {"path": tmp_path / "store"}
        if request.param == "remote":
            served: Board = request.getfixturevalue("word_board")
            place = {"path": stack.enter_context(served.store(place["path"])), "api_key": KEY}
        opened = stack.enter_context(TarsVectorStore(WordEmbeddings(), **place))
        opened.add_documents(DOCUMENTS)
        yield opened


def ids(documents: list[Document]) -> list[str]:
    return [str(document.id) for document in documents]


# Searching


def test_both_sides_find(store: TarsVectorStore) -> None:
    # "garden" is a word of the dog's text that the vectors do not know; BM25 does not find
    # "catdog", which is close to both by their vectors.
    assert ids(store.similarity_search("garden", k=5, strategy="lexical")) == ["dog"]
    assert ids(store.similarity_search("catdog", k=5, strategy="lexical")) == []
    near = ids(store.similarity_search("catdog", k=2, strategy="naive"))
    assert sorted(near) == ["cat", "dog"]
    assert near[0] == "dog"  # nearer: the cat's vector is also that of a sofa
    assert ids(store.similarity_search("catdog on the sofa", k=1, strategy="naive")) == ["cat"]
    assert ids(store.similarity_search("catdog garden", k=1)) == ["dog"]
    assert len(store.similarity_search("garden", k=5)) == 5


def test_documents_come_back_whole(store: TarsVectorStore) -> None:
    found = {d.id: d for d in store.similarity_search("anything", k=5)}
    assert found == {d.id: d for d in DOCUMENTS}


def test_scores_are_python_floats_that_fall(store: TarsVectorStore) -> None:
    for strategy in ("hybrid", "naive", "lexical"):
        found = store.similarity_search_with_score("the cat and the npu", k=5, strategy=strategy)
        scores = [score for _, score in found]
        assert all(type(score) is float for score in scores)
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > scores[-1]


def test_relevance_is_from_0_to_1_and_says_the_same_for_any_query(store: TarsVectorStore) -> None:
    words = WordEmbeddings()
    for query in ("cat sofa", "zzz"):
        near = np.array(words.embed_query(query))
        found = store.similarity_search_with_relevance_scores(query, k=5, strategy="naive")
        for document, score in found:
            vector = np.array(words.embed_query(document.page_content))
            cosine = near @ vector / np.linalg.norm(near) / np.linalg.norm(vector)
            assert score == pytest.approx(cosine, abs=1e-4)
        fused = store.similarity_search_with_score(query, k=5)
        assert store.similarity_search_with_relevance_scores(query, k=5) == fused
    for _, score in store.similarity_search_with_relevance_scores("cat", strategy="lexical"):
        assert 0 < score < 1
    opposite = TarsVectorStore(DeterministicFakeEmbedding(size=4))
    opposite.add_documents(DOCUMENTS)
    scores = [s for _, s in opposite.similarity_search_with_relevance_scores("cat", k=5)]
    assert all(0 <= score <= 1 for score in scores)


def test_score_threshold(store: TarsVectorStore) -> None:
    retriever = store.as_retriever(
        search_type="similarity_score_threshold",
        search_kwargs={"score_threshold": 0.9, "k": 5},
        strategy="naive",
    )
    assert ids(retriever.invoke("cat sofa")) == ["cat"]
    assert retriever.invoke("cat dog npu fan music sofa cat cat") == []


def test_filter_holds_for_every_way_of_searching(store: TarsVectorStore) -> None:
    pets = {"kind": "pet"}
    for strategy in ("hybrid", "naive", "lexical"):
        found = store.similarity_search("the npu runs", k=5, filter=pets, strategy=strategy)
        assert set(ids(found)) <= {"cat", "dog"}
        assert found
    assert ids(store.similarity_search_by_vector([0.1] * 6, k=5, filter={"n": {"$gt": 3}})) == [
        "fan"
    ]
    assert set(ids(store.max_marginal_relevance_search("npu", k=5, filter=pets))) == {"cat", "dog"}
    assert ids(store.as_retriever(filter={"$and": [pets, {"n": 2}]}).invoke("cat")) == ["dog"]


def test_a_filter_that_chroma_refuses_is_an_error(store: TarsVectorStore) -> None:
    with pytest.raises(InvalidInputError):
        store.similarity_search("cat", filter={"n": {"$roughly": 3}})


def test_by_vector(store: TarsVectorStore) -> None:
    vector = WordEmbeddings().embed_query("music")
    assert ids(store.similarity_search_by_vector(vector, k=1)) == ["tea"]


def test_max_marginal_relevance_prefers_the_different(tmp_path: Path) -> None:
    with TarsVectorStore(WordEmbeddings(), tmp_path / "s") as store:
        store.add_texts(["cat cat", "cat cat cat", "cat music"], ids=["a", "b", "c"])
        near = store.max_marginal_relevance_search("cat cat cat", k=2, lambda_mult=1)
        assert ids(near) == ["b", "a"]
        assert ids(store.max_marginal_relevance_search("cat cat cat", k=2, lambda_mult=0.3)) == [
            "b",
            "c",
        ]
        vector = WordEmbeddings().embed_query("cat cat cat")
        found = store.max_marginal_relevance_search_by_vector(vector, k=2, lambda_mult=0.3)
        assert ids(found) == ["b", "c"]
        assert len(store.as_retriever(search_type="mmr", k=3).invoke("cat")) == 3


def test_the_store_knows_how_many_unless_told(tmp_path: Path) -> None:
    with TarsVectorStore(WordEmbeddings(), tmp_path / "s", k=2) as store:
        store.add_documents(DOCUMENTS)
        assert len(store.similarity_search("the")) == 2
        assert len(store.similarity_search("the", 3)) == 3
        retriever = store.as_retriever()
        assert len(retriever.invoke("the")) == 2
        assert len(store.as_retriever(k=4).invoke("the")) == 4
        assert len(store.as_retriever(k=4, search_kwargs={"k": 3}).invoke("the")) == 3
        assert len(retriever.invoke("the", k=5)) == 5
        assert ids(retriever.invoke("garden", k=5, strategy="lexical")) == ["dog"]
        assert ids(retriever.invoke("the", k=5, filter={"n": 4})) == ["fan"]


async def test_relevance_scores_come_as_many_as_the_store_says(tmp_path: Path) -> None:
    with TarsVectorStore(WordEmbeddings(), tmp_path / "s", k=2) as store:
        store.add_documents(DOCUMENTS)
        assert len(store.similarity_search_with_relevance_scores("the")) == 2
        assert len(await store.asimilarity_search_with_relevance_scores("the")) == 2
        assert len(store.similarity_search_with_relevance_scores("the", k=3)) == 3
        above = store.similarity_search_with_relevance_scores(
            "cat sofa", k=5, score_threshold=0.9, strategy="naive"
        )
        assert [document.id for document, _ in above] == ["cat"]


def test_k_beyond_the_corpus_is_the_corpus(store: TarsVectorStore) -> None:
    assert len(store.similarity_search("cat", k=1000)) == len(DOCUMENTS)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_an_error(store: TarsVectorStore, k: int) -> None:
    for search in (
        store.similarity_search,
        store.similarity_search_with_relevance_scores,
        store.max_marginal_relevance_search,
    ):
        with pytest.raises(InvalidInputError, match="k must"):
            search("cat", k=k)


def test_unknown_arguments_are_named(store: TarsVectorStore) -> None:
    with pytest.raises(InvalidInputError, match="'fliter'"):
        store.similarity_search("cat", fliter={"n": 1})
    with pytest.raises(InvalidInputError, match="'where'"):
        store.as_retriever().invoke("cat", where={"n": 1})
    with pytest.raises(ValidationError, match="fliter"):
        store.as_retriever(fliter={"n": 1})
    with pytest.raises(InvalidInputError, match="'strategy'"):
        store.similarity_search_by_vector([0.1] * 6, strategy="naive")
    with pytest.raises(InvalidInputError, match="'refresh'"):
        store.add_documents([], refresh=True)
    with pytest.raises(InvalidInputError, match="strategy"):
        store.similarity_search("cat", strategy="magic")


@pytest.mark.parametrize("query", ["", "  ", "\x00", "\ud800", "🐟", "AND (", "x " * 50_000])
def test_odd_queries_find_or_find_nothing(store: TarsVectorStore, query: str) -> None:
    for strategy in ("hybrid", "naive", "lexical"):
        assert len(store.similarity_search(query, k=2, strategy=strategy)) <= 2


@pytest.mark.parametrize("query", [None, 3, ["cat"]])
def test_a_query_that_is_not_a_string_is_refused(store: TarsVectorStore, query: Any) -> None:
    with pytest.raises(InvalidInputError):
        store.similarity_search(query)


# Reranking


def test_reranked_search_is_the_rerankers_order(
    tmp_path: Path,
    reranker_dir: str,
) -> None:
    rerank = TarsRerank(model=reranker_dir)
    with TarsVectorStore(WordEmbeddings(), tmp_path / "s", rerank=rerank) as store:
        store.add_documents(DOCUMENTS)
        texts = [document.page_content for document in DOCUMENTS]
        scores = Reranker(reranker_dir).score(QUERY, texts)
        order = [str(DOCUMENTS[row].id) for row in np.argsort(-scores)]
        found = store.similarity_search_with_score(QUERY, k=3)
        assert [document.id for document, _ in found] == order[:3]
        assert [score for _, score in found] == pytest.approx(
            sorted(scores, reverse=True)[:3], abs=1e-4
        )
        relevant = store.similarity_search_with_relevance_scores(QUERY, k=3)
        assert [score for _, score in relevant] == [score for _, score in found]
        plain = store.similarity_search(QUERY, k=5, rerank=False)
        assert ids(plain) != order
        assert ids(store.as_retriever(rerank=False, k=5).invoke(QUERY)) == ids(plain)


def test_in_a_compression_retriever(
    store: TarsVectorStore,
    reranker_dir: str,
) -> None:
    retriever = ContextualCompressionRetriever(
        base_compressor=TarsRerank(model=reranker_dir, top_n=2),
        base_retriever=store.as_retriever(k=5),
    )
    found = retriever.invoke(QUERY)
    assert len(found) == 2
    assert found[0].metadata["relevance_score"] > found[1].metadata["relevance_score"]
    assert {document.id for document in found} <= set(ids(DOCUMENTS))


# Listing and updating, as langchain-chroma has it


def test_get_lists_what_is_stored_in_columns(store: TarsVectorStore) -> None:
    found = store.get()
    assert sorted(found["ids"]) == ["cat", "dog", "fan", "npu", "tea"]
    assert found["embeddings"] is None
    for key, text, metadata in zip(
        found["ids"], found["documents"] or [], found["metadatas"] or [], strict=True
    ):
        [document] = store.get_by_ids([key])
        assert (text, metadata) == (document.page_content, document.metadata)
    assert sorted(store.get(where={"kind": "pet"})["ids"]) == ["cat", "dog"]
    assert store.get(["fan", "none", "cat"])["ids"] == ["fan", "cat"]
    assert store.get("fan")["documents"] == ["a fan cools the board"]
    assert len(store.get(limit=2)["ids"]) == 2
    only = store.get(["npu"], include=["embeddings"])
    assert (only["documents"], only["metadatas"]) == (None, None)
    wanted = np.array(WordEmbeddings().embed_query("the npu core runs hot"))
    assert only["embeddings"] == [pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-6)]
    assert store.get([], include=["embeddings"])["embeddings"] == []


async def test_updating_replaces_what_is_there_and_nothing_else(store: TarsVectorStore) -> None:
    store.update_document("cat", Document("the fan is a cat", metadata={"n": 9}, id="ignored"))
    assert store.get_by_ids(["cat"]) == [Document("the fan is a cat", metadata={"n": 9}, id="cat")]
    assert ids(store.similarity_search("sofa", k=5, strategy="lexical")) == []
    await store.aupdate_documents(["dog", "npu"], [Document("x"), Document("y")])
    assert (await store.aget(["dog", "npu"]))["documents"] == ["x", "y"]
    with pytest.raises(InvalidInputError, match=r"no document 'gone'.*add_documents"):
        store.update_documents(["dog", "gone"], [Document("z"), Document("z")])
    with pytest.raises(InvalidInputError, match="1 ids for 2"):
        store.update_documents(["dog"], [Document("z"), Document("z")])
    assert [d.page_content for d in store.get_by_ids(["dog"])] == ["x"]
    assert store.store.count() == len(DOCUMENTS)


def test_what_langchain_chroma_is_called_with_works_here(tmp_path: Path) -> None:
    """The same calls on both; what differs is the direction of the scores."""
    chroma = pytest.importorskip("langchain_chroma")
    theirs = chroma.Chroma("moved", WordEmbeddings(), str(tmp_path / "chroma"))
    with TarsVectorStore(WordEmbeddings(), tmp_path / "ours", strategy="naive") as ours:
        for store in (theirs, ours):
            store.add_documents(DOCUMENTS[:4], ids=["cat", "dog", "npu", "fan"])
            store.update_document("dog", Document("the dog sleeps", metadata={"kind": "pet"}))
            store.update_documents(["fan"], [Document("no fan", metadata={"kind": "none"})])
            store.delete(["npu"])
        listed = [store.get(where={"kind": "pet"}) for store in (theirs, ours)]
        assert [sorted(found["ids"]) for found in listed] == [["cat", "dog"]] * 2
        assert set(listed[0]["documents"]) == set(listed[1]["documents"] or [])
        query = "the cat on the sofa"
        distances = theirs.similarity_search_with_score(query, k=3)
        similarities = ours.similarity_search_with_score(query, k=3)
        assert [d.id for d, _ in distances] == [d.id for d, _ in similarities]
        assert [s for _, s in distances] == sorted(s for _, s in distances)
        assert [s for _, s in similarities] == sorted((s for _, s in similarities), reverse=True)


# Writing


def test_ids_win_over_document_ids_over_new_ones(store: TarsVectorStore) -> None:
    given = [Document(id="own", page_content="x"), Document(page_content="y")]
    assert store.add_documents(given, ids=["a", None])[0] == "a"
    names = store.add_documents(given)
    assert names[0] == "own"
    assert len({names[1], *ids(DOCUMENTS), "a", "own"}) == 8
    assert given == [Document(id="own", page_content="x"), Document(page_content="y")]


def test_get_by_ids_keeps_the_order_asked_for(store: TarsVectorStore) -> None:
    assert ids(store.get_by_ids(["npu", "none", "cat"])) == ["npu", "cat"]
    assert store.get_by_ids([]) == []


def test_batches_store_everything(store: TarsVectorStore) -> None:
    texts = [f"passage {n}" for n in range(7)]
    names = store.add_texts(texts, [{"n": n} for n in range(7)], batch_size=3)
    assert [d.page_content for d in store.get_by_ids(names)] == texts
    assert store.store.count() == len(DOCUMENTS) + 7
    assert store.add_documents([]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "abc"}, "one string"),
        ({"texts": ["a", "b"], "ids": ["1"]}, "1 ids for 2"),
        ({"texts": ["a"], "ids": ["1", "2"]}, "2 ids for 1"),
        ({"texts": ["a", "b"], "metadatas": [{}]}, "1 metadatas for 2"),
        ({"texts": ["a"], "metadatas": [{"x": {1, 2}}]}, "'x'"),
        ({"texts": ["a"], "batch_size": 0}, "batch_size"),
    ],
)
def test_bad_writes_name_the_fault_and_write_nothing(
    store: TarsVectorStore, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        store.add_texts(**arguments)
    assert store.store.count() == len(DOCUMENTS)


def test_a_bad_document_in_a_later_batch_stores_none(store: TarsVectorStore) -> None:
    texts = [f"passage {n}" for n in range(7)]
    metadatas: list[dict[str, Any]] = [{"n": n} for n in range(6)] + [{"n": {1}}]
    with pytest.raises(InvalidInputError, match="'n'"):
        store.add_texts(texts, metadatas, batch_size=2)
    assert store.store.count() == len(DOCUMENTS)


@pytest.mark.parametrize("text", ["", " ", "\x00 NUL", "lone \ud800", "🐟" * 9, "long " * 200_000])
def test_odd_texts_come_back_as_they_were(store: TarsVectorStore, text: str) -> None:
    [name] = store.add_texts([text], [{"note": text[:50]}])
    [found] = store.get_by_ids([name])
    assert (found.page_content, found.metadata) == (text, {"note": text[:50]})


def test_delete(store: TarsVectorStore) -> None:
    assert store.delete(["cat", "none"]) is True
    assert store.delete([]) is True
    assert store.delete(filter={"kind": "chip"}) is True
    assert sorted(d.id or "" for d in store.similarity_search("the", k=9)) == ["dog", "tea"]
    assert store.delete(["dog", "tea"], filter={"n": 2}) is True
    assert ids(store.similarity_search("the", k=9)) == ["tea"]
    assert store.delete() is True
    assert store.store.count() == 0
    assert store.delete() is True


def test_from_texts_and_documents(tmp_path: Path) -> None:
    with TarsVectorStore.from_documents(DOCUMENTS, WordEmbeddings(), path=tmp_path / "a") as store:
        assert ids(store.similarity_search("dog", k=1)) == ["dog"]
    temporary = TarsVectorStore.from_texts(["cat", "dog"], WordEmbeddings(), [{"n": 1}, {"n": 2}])
    assert temporary.similarity_search("dog", k=1)[0].metadata == {"n": 2}
    directory = temporary.path
    assert directory.is_dir()
    temporary.close()
    del temporary
    assert not directory.exists()


@pytest.mark.parametrize("run_async", [False, True])
async def test_langchains_indexing_updates_and_cleans_up(
    store: TarsVectorStore, run_async: bool
) -> None:
    records = InMemoryRecordManager("test")
    records.create_schema()

    async def run(documents: list[Document]) -> dict[str, int]:
        arguments: dict[str, Any] = {
            "cleanup": "full",
            "source_id_key": "source",
            "key_encoder": "sha256",
            "batch_size": 2,
        }
        if run_async:
            return dict(await aindex(documents, records, store, **arguments))
        return dict(index(documents, records, store, **arguments))

    first = [Document(page_content=f"note {n}", metadata={"source": "a"}) for n in range(5)]
    assert (await run(first))["num_added"] == 5
    assert (await run(first))["num_skipped"] == 5
    assert (await run(first[:2]))["num_deleted"] == 3
    assert store.store.count() == len(DOCUMENTS) + 2


# One store, several objects


def test_what_was_written_is_there_on_the_next_open(tmp_path: Path) -> None:
    with TarsVectorStore(WordEmbeddings(), tmp_path / "s") as store:
        store.add_documents(DOCUMENTS)
    with TarsVectorStore(WordEmbeddings(), str(tmp_path / "s")) as again:
        assert again.get_by_ids(ids(DOCUMENTS)) == DOCUMENTS
        again.close()
        assert len(again.similarity_search("cat", k=9)) == 5  # opens again


def test_objects_with_one_path_share_one_store(store: TarsVectorStore) -> None:
    twins = [
        TarsVectorStore(WordEmbeddings(), store.path, api_key=store.api_key),
        copy.copy(store),
        copy.deepcopy(store),
        pickle.loads(pickle.dumps(store)),
        pickle.loads(pickle.dumps(store.as_retriever())).vectorstore,
    ]
    for number, twin in enumerate(twins):
        assert twin.store is store.store
        twin.add_texts([f"by twin {number}"], ids=[f"t{number}"])
        assert store.get_by_ids([f"t{number}"])
    other = TarsVectorStore(WordEmbeddings(), store.path, k=7, api_key=store.api_key)
    assert pickle.loads(pickle.dumps(other)).k == 7


def test_a_temporary_store_is_not_pickled() -> None:
    with pytest.raises(InvalidInputError, match="path"):
        pickle.dumps(TarsVectorStore(WordEmbeddings()))


def test_an_unreferenced_store_lets_go_of_its_lock(tmp_path: Path) -> None:
    TarsVectorStore(WordEmbeddings(), tmp_path / "s").add_documents(DOCUMENTS)
    from tars_rag import HybridStore

    class Recorded:
        fingerprint = TarsVectorStore(WordEmbeddings())._embedder.fingerprint

        def embed(self, texts: Any) -> Any:
            raise NotImplementedError

    with HybridStore(tmp_path / "s", Recorded()) as store:
        assert store.count() == 5


# Vectors of different kinds never mix


def test_another_model_of_ours_is_refused(
    tmp_path: Path,
    embedder_dir: str,
    other_embedder_dir: str,
) -> None:
    with TarsVectorStore(TarsEmbeddings(model=embedder_dir), tmp_path / "s") as store:
        store.add_texts(["cat"])
    with pytest.raises(FingerprintError):
        TarsVectorStore(TarsEmbeddings(model=other_embedder_dir), tmp_path / "s")
    with pytest.raises(FingerprintError):
        TarsVectorStore(WordEmbeddings(), tmp_path / "s")


def test_another_foreign_model_is_refused_by_class_name_or_dimension(tmp_path: Path) -> None:
    class Renamed(WordEmbeddings):
        model_name = "other words"

    class Wider(WordEmbeddings):
        words = (*WordEmbeddings.words, "piano")

    with TarsVectorStore(WordEmbeddings(), tmp_path / "s") as store:
        store.add_texts(["cat"])
    for other in (Renamed(), Wider(), DeterministicFakeEmbedding(size=6)):
        with pytest.raises(FingerprintError):
            TarsVectorStore(other, tmp_path / "s")


def test_a_foreign_model_that_changed_under_its_name_is_refused(tmp_path: Path) -> None:
    with TarsVectorStore(WordEmbeddings(), tmp_path / "s") as store:
        store.add_texts(["cat"])
    changed = WordEmbeddings()
    changed.embed_documents = lambda texts: [  # type: ignore[method-assign]
        [float(len(text)), *[1.0] * 5] for text in texts
    ]
    with pytest.raises(FingerprintError, match="cosine"):
        TarsVectorStore(changed, tmp_path / "s")
    close = WordEmbeddings()
    close.embed_documents = lambda texts: [  # type: ignore[method-assign]
        [3 * number + 1e-4 for number in close.embed_query(text)] for text in texts
    ]
    with TarsVectorStore(close, tmp_path / "s") as store:  # other length, rounding: the same kind
        assert len(store.similarity_search("cat")) == 1


@pytest.mark.parametrize(
    "rows",
    [
        [[0.0] * 3],
        [[float("nan")] * 3],
        [[float("inf"), 1.0, 1.0]],
        [],
        [[1.0], [1.0, 2.0]],
        [["x"]],
    ],
)
def test_a_foreign_model_that_returns_no_vectors_is_an_error(rows: Any) -> None:
    broken = WordEmbeddings()
    broken.embed_documents = lambda texts: rows  # type: ignore[method-assign]
    with pytest.raises(InvalidInputError, match="WordEmbeddings"):
        TarsVectorStore(broken)


# The environment, directories


def test_from_env(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    embedder_dir: str,
    reranker_dir: str,
) -> None:
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    monkeypatch.setenv("RAG_STRATEGY", "naive")
    monkeypatch.setenv("MEMORY_TOP_K", "3")
    with TarsVectorStore.from_env(tmp_path / "s") as store:
        assert (store.strategy, store.k, store.rerank) == ("naive", 3, None)
        assert store.embeddings == TarsEmbeddings.from_env()
    monkeypatch.setenv("RERANK_MODEL", reranker_dir)
    with TarsVectorStore.from_env(tmp_path / "s", k=2) as store:
        assert store.k == 2
        assert store.rerank == TarsRerank.from_env()
        store.add_documents(DOCUMENTS)
        assert len(store.similarity_search("cat")) == 2
    with TarsVectorStore.from_env(tmp_path / "s", rerank=None) as store:
        assert store.rerank is None
    monkeypatch.setenv("RERANK_MODEL", "")
    with TarsVectorStore.from_env(tmp_path / "s") as store:
        assert store.rerank is None
    monkeypatch.setenv("RAG_STRATEGY", "magic")
    with pytest.raises(ConfigError, match="RAG_STRATEGY='magic'"):
        TarsVectorStore.from_env(tmp_path / "s")


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StoreError):
        TarsVectorStore(WordEmbeddings(), tmp_path / "file" / "s")
    with pytest.raises(InvalidInputError, match="empty"):
        TarsVectorStore(WordEmbeddings(), "")


@pytest.mark.enable_socket
def test_a_servers_store_needs_its_address_only(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rerank = TarsRerank(base_url=board.url, api_key=KEY)
    with (
        board.store(tmp_path / "s") as url,
        TarsVectorStore(path=url, api_key=KEY, rerank=rerank) as store,
    ):
        store.add_documents(DOCUMENTS)
        assert store.embeddings == TarsEmbeddings(base_url=board.url, api_key=KEY)
        scores = rerank.reranker.score(QUERY, [d.page_content for d in DOCUMENTS])
        best = [DOCUMENTS[row].id for row in np.argsort(-scores)][:3]
        assert ids(store.similarity_search(QUERY, k=3)) == best
        assert KEY not in repr(store)
        with pytest.raises(FingerprintError):
            TarsVectorStore(WordEmbeddings(), url, api_key=KEY)
        with pytest.raises(ConfigError, match="string, not a Path"):
            TarsVectorStore(path=Path(url), api_key=KEY)
        with pytest.raises(ConfigError, match="key"):
            TarsVectorStore(path=url, api_key="another")
        monkeypatch.setenv("TARS_API_KEY", KEY)
        monkeypatch.setenv("EMBED_MODEL", "no-such-model")  # the server has its own
        monkeypatch.setenv("RAG_LANGUAGE", "de")
        assert ids(TarsVectorStore.from_env(url, k=1).similarity_search("garden", k=1)) == ["dog"]


# Async


async def test_every_async_call_runs_in_another_thread(
    store: TarsVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tars_rag import HybridStore

    seen: list[threading.Thread] = []
    for name in ("upsert", "delete", "get", "search"):
        run = getattr(HybridStore, name)

        def spy(self: HybridStore, *args: Any, _run: Any = run, **kwargs: Any) -> Any:
            seen.append(threading.current_thread())
            return _run(self, *args, **kwargs)

        monkeypatch.setattr(HybridStore, name, spy)
    vector = WordEmbeddings().embed_query("cat")
    await store.aadd_texts(["x"], ids=["x"])
    await store.aadd_documents([Document(id="y", page_content="y")])
    assert ids(await store.aget_by_ids(["y", "x"])) == ["y", "x"]
    assert await store.adelete(["x", "y"]) is True
    assert ids(await store.asimilarity_search("dog", k=1)) == ["dog"]
    assert (await store.asimilarity_search_with_score("dog", k=1))[0][0].id == "dog"
    assert len(await store.asimilarity_search_with_relevance_scores("garden", k=1)) == 1
    assert ids(await store.asimilarity_search_by_vector(vector, k=1)) == ["cat"]
    assert len(await store.amax_marginal_relevance_search("cat", k=2, fetch_k=3)) == 2
    assert len(await store.amax_marginal_relevance_search_by_vector(vector, k=2)) == 2
    assert ids(await store.as_retriever(k=1).ainvoke("dog")) == ["dog"]
    assert ids(await store.asearch("dog", "similarity", k=1)) == ["dog"]
    made = await TarsVectorStore.afrom_texts(["cat"], WordEmbeddings(), ids=["c"])
    assert ids(made.similarity_search("cat")) == ["c"]
    seen.pop()  # the line above
    assert len(seen) >= 12
    assert threading.current_thread() not in seen


async def test_concurrent_reads_and_writes(store: TarsVectorStore) -> None:
    writes = [store.aadd_texts([f"note {n}"], ids=[f"n{n}"]) for n in range(8)]
    reads = [store.asimilarity_search("garden", k=1, strategy="lexical") for _ in range(8)]
    await asyncio.gather(*writes, *reads)
    assert len(store.get_by_ids([f"n{n}" for n in range(8)])) == 8
