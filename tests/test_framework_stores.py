"""What both frameworks' TarsVectorStore promise: how it is opened, shared, refused and closed."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import TransformQueryEngine
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from tars_rag import HybridStore
from tars_rag.errors import FingerprintError, InvalidInputError, StoreError
from tars_rag.langchain import TarsEmbeddings, TarsRerank, TarsRetriever
from tars_rag.langchain import TarsVectorStore as LangChainStore
from tars_rag.llama_index import TarsEmbedding
from tars_rag.llama_index import TarsVectorStore as LlamaStore

pytest_plugins = ["tiny_models"]

TEXTS = {"cat": "the cat sleeps", "dog": "the dog runs", "npu": "the npu core runs hot"}
WORDS = ("cat", "dog", "npu", "runs", "hot", "sleeps", "fox", "lazy")


def words(text: str) -> list[float]:
    return [0.1 + text.count(word) for word in WORDS]


class LangChainWords(Embeddings):
    model_name = "words"
    turn = 0

    def embed_query(self, text: str) -> list[float]:
        return np.roll(words(text), self.turn).tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


class LlamaWords(BaseEmbedding):
    model_name: str = "words"
    turn: int = 0

    def _get_query_embedding(self, query: str) -> list[float]:
        return np.roll(words(query), self.turn).tolist()

    _get_text_embedding = _get_query_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class LangChainSide:
    """The least that both frameworks' stores can be asked for, in one vocabulary."""

    @staticmethod
    def open(path: Path | str, *, changed: bool = False, fill: bool = True) -> LangChainStore:
        model = LangChainWords()
        model.turn = int(changed)
        store = LangChainStore(model, path)
        if fill and not changed:
            store.add_texts(list(TEXTS.values()), ids=list(TEXTS))
        return store

    @staticmethod
    def search(store: LangChainStore) -> list[str | None]:
        return [found.id for found in store.similarity_search("the dog runs", k=1)]


class LlamaSide:
    @staticmethod
    def open(path: Path | str, *, changed: bool = False, fill: bool = True) -> LlamaStore:
        model = LlamaWords(turn=int(changed))
        store = LlamaStore(path, model)
        if fill and not changed:
            store.add(model([TextNode(id_=key, text=text) for key, text in TEXTS.items()]))
        else:
            _ = store.client
        return store

    @staticmethod
    def search(store: LlamaStore) -> list[str]:
        query = VectorStoreQuery(
            query_embedding=words("the dog runs"), query_str="the dog runs", similarity_top_k=1
        )
        return store.query(query).ids or []


@pytest.fixture(params=[LangChainSide, LlamaSide])
def side(request: pytest.FixtureRequest) -> Any:
    return request.param


# Refused stores


def test_a_refused_store_is_closed_while_the_error_is_kept(tmp_path: Path, side: Any) -> None:
    side.open(tmp_path / "s").close()
    with pytest.raises(FingerprintError, match="cosine") as kept:
        side.open(tmp_path / "s", changed=True)
    store = side.open(tmp_path / "s", fill=False)
    assert side.search(store) == ["dog"]
    store.close()
    assert kept.value.__traceback__ is not None


@pytest.mark.parametrize(
    "refused",
    [
        lambda path: LangChainStore(DeterministicFakeEmbedding(size=8), path),
        lambda path: LangChainStore(DeterministicFakeEmbedding(size=3), path),
        lambda path: LangChainStore(LangChainWords(), path, language="de"),
        lambda path: LangChainStore(LangChainWords(), path, chroma_url="http://localhost:9"),
        lambda path: LlamaStore(path, MockEmbedding(embed_dim=8)).client,
        lambda path: LlamaStore(path, fingerprint="x", language="de").client,
    ],
)
def test_no_refusal_keeps_the_lock(tmp_path: Path, refused: Callable[[Path], Any]) -> None:
    LangChainSide.open(tmp_path / "s").close()
    with pytest.raises((StoreError, ValueError)) as kept:
        refused(tmp_path / "s")
    with LangChainSide.open(tmp_path / "s", fill=False) as store:
        assert LangChainSide.search(store) == ["dog"]
    assert kept.value.__traceback__ is not None


def test_texts_that_cannot_be_stored_leave_no_store_open(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="'bad'") as kept:
        LangChainStore.from_texts(["x"], LangChainWords(), [{"bad": {1}}], path=tmp_path / "s")
    store = LangChainStore(LangChainWords(), tmp_path / "s", k=1)
    fingerprint = store.store.fingerprint
    store.close()
    with pytest.raises(InvalidInputError, match="'bad'") as kept:
        LangChainStore.from_documents(
            [Document("x", metadata={"bad": {1}})], LangChainWords(), path=tmp_path / "s"
        )

    class Named:
        def __init__(self) -> None:
            self.fingerprint = fingerprint

        def embed(self, texts: Any) -> Any:
            raise NotImplementedError

    with HybridStore(tmp_path / "s", Named()) as plain:
        assert plain.count() == 0
    assert kept.value.__traceback__ is not None


def damage_probe(directory: Path, content: bytes | None) -> None:
    """Leave only an older store's probe.json, with this content; None: a directory of that name."""
    description = json.loads((directory / "store.json").read_bytes())
    if "probe" in description:
        description["probe"] = None
        (directory / "store.json").write_text(json.dumps(description))
    file = directory / "probe.json"
    file.unlink(missing_ok=True)
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)


@pytest.mark.parametrize(
    "damaged",
    [b"", b"[0.1, 0.2", b"[]", b"null", b"[NaN]", b'{"a": 1}', b"\xff[", b"[" * 9999, None],
)
def test_a_damaged_probe_is_made_again_from_what_is_stored(
    tmp_path: Path, side: Any, damaged: bytes | None
) -> None:
    side.open(tmp_path / "s").close()
    damage_probe(tmp_path / "s", damaged)
    with pytest.raises(FingerprintError, match="cosine"):
        side.open(tmp_path / "s", changed=True)
    store = side.open(tmp_path / "s", fill=False)
    assert side.search(store) == ["dog"]
    store.client.clear()
    store.close()
    with pytest.raises(FingerprintError, match="cosine"):
        side.open(tmp_path / "s", changed=True)


def test_a_damaged_probe_of_an_empty_store_is_made_again(tmp_path: Path, side: Any) -> None:
    side.open(tmp_path / "s", fill=False).close()
    damage_probe(tmp_path / "s", b"")
    side.open(tmp_path / "s", fill=False).close()
    with pytest.raises(FingerprintError, match="cosine"):
        side.open(tmp_path / "s", changed=True)


def test_the_probe_of_an_older_store_is_taken_in(tmp_path: Path, side: Any) -> None:
    store = side.open(tmp_path / "s", fill=False)
    probe = words("The quick brown fox jumps over the lazy dog, and 42 is the answer.")
    store.close()
    damage_probe(tmp_path / "s", json.dumps(probe).encode())
    with pytest.raises(FingerprintError, match="cosine"):
        side.open(tmp_path / "s", changed=True)
    side.open(tmp_path / "s").close()
    with pytest.raises(FingerprintError, match="cosine"):
        side.open(tmp_path / "s", changed=True)


# Closing and opening at once


def in_threads(*loops: Callable[[], Any], seconds: float = 1.5) -> list[BaseException]:
    """Run each function again and again in a thread of its own."""
    end = time.monotonic() + seconds
    errors: list[BaseException] = []

    def again(call: Callable[[], Any]) -> None:
        while time.monotonic() < end and not errors:
            try:
                call()
            except BaseException as error:  # noqa: PERF203
                errors.append(error)

    threads = [threading.Thread(target=again, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_closing_and_searching_at_once(tmp_path: Path, side: Any) -> None:
    store = side.open(tmp_path / "s")
    other = side.open(tmp_path / "s", fill=False)
    found: set[tuple[str, ...]] = set()
    search = lambda: found.add(tuple(side.search(store)))  # noqa: E731
    assert in_threads(search, search, store.close, other.close) == []
    assert found == {("dog",)}
    store.close()


def test_closing_and_writing_at_once(tmp_path: Path) -> None:
    store = LangChainSide.open(tmp_path / "s")
    numbers = itertools.count()
    written: list[str] = []

    def write() -> None:
        written.extend(store.add_texts(["a dog"], ids=[f"n{next(numbers)}"]))

    assert in_threads(write, write, store.close) == []
    assert written
    assert set(store.get()["ids"]) == {*TEXTS, *written}
    store.close()


def test_opening_while_the_last_owner_is_collected(tmp_path: Path, side: Any) -> None:
    side.open(tmp_path / "s").close()

    def open_and_drop() -> None:
        assert side.search(side.open(tmp_path / "s", fill=False)) == ["dog"]

    assert in_threads(open_and_drop, open_and_drop, open_and_drop, seconds=2.5) == []


def test_a_call_that_closes_from_within_ends(tmp_path: Path) -> None:
    """An embedder that looks something up in the store while another thread closes it."""
    began = threading.Event()

    class Nested(LangChainWords):
        def embed_query(self, text: str) -> list[float]:
            if text == "the dog":
                began.set()
                time.sleep(0.2)  # the other thread waits to close by now
                assert store.get_by_ids(["dog"])[0].page_content == "a dog"
            return words(text)

    store = LangChainStore(Nested(), tmp_path / "s")
    store.add_texts(["a dog"], ids=["dog"])
    found: list[Document] = []
    searching = threading.Thread(target=lambda: found.extend(store.similarity_search("the dog")))
    searching.start()
    assert began.wait(timeout=30)
    store.close()
    searching.join(timeout=30)
    assert [document.id for document in found] == ["dog"]
    store.close()


# Paths


def test_home_and_spellings_lead_to_one_store(
    tmp_path: Path, side: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    store = side.open("~/notes")
    assert (tmp_path / "home" / "notes" / "store.json").is_file()
    assert not (tmp_path / "~").exists()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    for spelling in ("home/notes", "gone/../home/notes", "./home//notes/", "link/notes"):
        assert side.open(spelling, fill=False).client is store.client
    assert not (tmp_path / "gone").exists()
    monkeypatch.chdir(tmp_path / "home")
    assert side.open("notes", fill=False).client is store.client
    store.close()


def test_a_relative_path_stays_where_it_was(
    tmp_path: Path, side: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = side.open("notes")
    store.close()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert side.search(store) == ["dog"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    store.close()


@pytest.mark.parametrize("path", ["~nobody-of-that-name/s", "a\0b", 3, ["s"]])
def test_what_is_no_path_is_told(side: Any, path: Any) -> None:
    with pytest.raises(ValueError) as error:  # LlamaIndex's fields are pydantic's
        side.open(path)
    assert repr(path).strip("'[]")[:6] in str(error.value)


# LlamaIndex hands the store vectors: they have to be its own model's


@pytest.fixture
def embed_model(embedder_dir: str) -> TarsEmbedding:
    return TarsEmbedding(model=embedder_dir)


def text_nodes(model: Any) -> Any:
    return model([TextNode(id_=key, text=text) for key, text in TEXTS.items()])


class Scattered(MockEmbedding):
    """A model of the right width whose vectors differ from text to text."""

    def _get_text_embedding(self, text: str) -> list[float]:
        seed = sum(text.encode())
        return np.random.default_rng(seed).standard_normal(self.embed_dim).tolist()

    _get_query_embedding = _get_text_embedding


@pytest.mark.parametrize("other", [MockEmbedding, Scattered, "ours"])
def test_nodes_of_another_model_are_refused(
    tmp_path: Path, embed_model: TarsEmbedding, other_embedder_dir: str, other: Any
) -> None:
    stranger = TarsEmbedding(model=other_embedder_dir) if other == "ours" else other(embed_dim=32)
    store = LlamaStore(tmp_path / "s", embed_model)
    with pytest.raises(FingerprintError, match="did not make the embedding of '"):
        store.add(text_nodes(stranger))
    with pytest.raises(FingerprintError):
        VectorStoreIndex.from_documents(
            [TextNode(text="the cat sleeps")],  # type: ignore[list-item]
            storage_context=StorageContext.from_defaults(vector_store=store),
            embed_model=stranger,
        )
    assert store.client.count() == 0
    store.add(text_nodes(embed_model))
    with pytest.raises(FingerprintError):
        store.add(text_nodes(stranger))
    assert store.client.count() == 3
    store.close()


async def test_nodes_of_another_width_or_added_asynchronously_are_refused(
    tmp_path: Path, embed_model: TarsEmbedding
) -> None:
    store = LlamaStore(tmp_path / "s", embed_model)
    with pytest.raises(FingerprintError, match="16 numbers and not 32"):
        store.add(text_nodes(MockEmbedding(embed_dim=16)))
    with pytest.raises(FingerprintError):
        await store.async_add(text_nodes(MockEmbedding(embed_dim=32)))
    assert store.client.count() == 0
    store.close()


def test_a_foreign_models_store_refuses_ours(tmp_path: Path, embed_model: TarsEmbedding) -> None:
    store = LlamaStore(tmp_path / "s", Scattered(embed_dim=32))
    with pytest.raises(FingerprintError):
        store.add(text_nodes(embed_model))
    store.add(text_nodes(Scattered(embed_dim=32)))
    assert store.client.count() == 3
    store.close()


def test_queries_of_another_model_are_refused(tmp_path: Path, embed_model: TarsEmbedding) -> None:
    store = LlamaStore(tmp_path / "s", embed_model)
    store.add(text_nodes(embed_model))
    for mode in ("default", "hybrid"):
        fresh = LlamaStore(tmp_path / "s", embed_model)
        index = VectorStoreIndex.from_vector_store(fresh, embed_model=MockEmbedding(embed_dim=32))
        with pytest.raises(FingerprintError, match=r"Settings\.embed_model"):
            index.as_retriever(vector_store_query_mode=mode).retrieve("the dog runs")
    store.close()


def test_right_vectors_pass_whatever_made_the_text_long_or_the_query_odd(
    tmp_path: Path, embed_model: TarsEmbedding
) -> None:
    store = LlamaStore(tmp_path / "s", embed_model)
    odd = [" ", "x", "the cat " * 500, "\x00", "🐟"]
    store.add(embed_model([TextNode(text=text, metadata={"page": 7}) for text in odd]))
    store.add(embed_model([TextNode(text=" ")]))
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    for query in ("the cat", "x", "🐟"):
        assert index.as_retriever(similarity_top_k=2).retrieve(query)
    hypothetical = TransformQueryEngine(
        index.as_query_engine(llm=MockLLM()), HyDEQueryTransform(llm=MockLLM())
    )
    assert hypothetical.query("what does the cat do?").source_nodes
    store.close()


def test_vectors_of_the_text_without_its_metadata_pass(
    tmp_path: Path, embed_model: TarsEmbedding
) -> None:
    """As PropertyGraphIndex stores its nodes."""
    store = LlamaStore(tmp_path / "s", embed_model)
    long = {"properties": "the dog runs hot and sleeps in the kitchen " * 3}
    for text in ("the cat", "npu"):
        vector = embed_model.get_text_embedding(text)
        store.add([TextNode(text=text, metadata=long, embedding=vector)])
    wrong = Scattered(embed_dim=32).get_text_embedding("the cat")
    with pytest.raises(FingerprintError):
        store.add([TextNode(text="the cat", metadata=long, embedding=wrong)])
    assert store.client.count() == 2
    store.close()


def test_a_pickle_leaves_the_model_behind_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Large(LlamaWords):
        def __getstate__(self) -> Any:
            raise AssertionError("a model of gigabytes")

    store = LlamaStore(tmp_path / "s", Large())
    twin = pickle.loads(pickle.dumps(store))
    assert twin.client is store.client
    assert twin.to_dict() == store.to_dict()
    assert caplog.messages == []
    store.close()


def test_vectors_from_elsewhere_go_with_a_name(tmp_path: Path) -> None:
    store = LlamaStore(tmp_path / "s", fingerprint="by hand")
    store.add([TextNode(text="the cat", embedding=[1.0, 0.0])])
    assert store.client.count() == 1
    with pytest.raises(InvalidInputError, match="'by hand'"):
        store.client.search("the cat", strategy="naive")
    store.close()


@pytest.mark.weights
def test_int8_vectors_do_not_enter_an_fp32_store(tmp_path: Path) -> None:
    exact, fast = TarsEmbedding(device="cpu"), TarsEmbedding(device="cpu", precision="int8")
    store = LlamaStore(tmp_path / "s", exact)
    with pytest.raises(FingerprintError, match=r"cosine of 0\.9"):
        store.add(text_nodes(fast))
    store.add(text_nodes(exact))
    store.close()
    store = LlamaStore(tmp_path / "fast", fast)
    for _ in range(3):  # an INT8 vector depends on its batch
        store.add(text_nodes(fast))
    store.close()


# Arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LangChainStore("my-model"),
            "'my-model' and not an Embeddings object.*'my-store'",
        ),
        (lambda: LangChainStore(TarsEmbeddings), "the class TarsEmbeddings"),
        (lambda: LangChainStore(LangChainWords(), 3), "3: give the name of a directory"),
        (lambda: LangChainStore(LangChainWords(), strategy="hybird"), "'hybird'.*hybrid, naive"),
        (lambda: LangChainStore(LangChainWords(), rerank=True), r"True and not TarsRerank\(\)"),
        (lambda: LangChainStore(LangChainWords(), rerank=TarsRerank), "the class TarsRerank"),
        (lambda: LangChainStore(LangChainWords(), k=0), "k must be"),
        (lambda: LangChainStore(LangChainWords(), k="3"), "k must be"),
        (lambda: LangChainStore(LangChainWords(), candidates=True), "candidates must be"),
        (lambda: LangChainStore(LangChainWords(), read_only="no"), "True or False"),
        (lambda: LangChainStore(LangChainWords(), chroma_url="localhost"), "http://localhost:8000"),
        (lambda: LangChainStore(LangChainWords(), persist_directory="s"), "Write path="),
        (lambda: LangChainStore(embedding_function=LangChainWords()), "Write embedding="),
        (lambda: LangChainStore(LangChainWords(), collection_name="c"), "path='DIRECTORY/NAME'"),
        (lambda: LangChainStore(LangChainWords(), pth="s"), "'pth'.*Allowed: embedding, path"),
        (
            lambda: LangChainStore.from_documents(
                [Document("x")], LangChainWords(), persist_directory="s"
            ),
            "Write path=",
        ),
        (
            lambda: LangChainStore.from_texts(["x"], LangChainWords(), collection_name="c"),
            "A collection is a directory",
        ),
        (lambda: LangChainStore.from_texts("x", LangChainWords(), path="s"), "one string"),
        (lambda: LangChainStore.from_texts([3], LangChainWords(), path="s"), "not a string"),
        (lambda: LlamaStore("s", "my-model"), "'my-model' and not an embedding model"),
        (lambda: LlamaStore("s", TarsEmbedding), "the class TarsEmbedding"),
    ],
)
def test_a_constructors_slips_are_told_before_anything_is_made(
    make: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=message) as error:
        make()
    assert "OpenStore" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def langchain_store(tmp_path: Path) -> Iterator[LangChainStore]:
    with LangChainSide.open(tmp_path / "s") as store:
        yield store


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.add_documents(["a"]), r"documents\[0\] is 'a' and not a Document"),
        (lambda s: s.add_documents(Document("a")), "not a list"),
        (lambda s: s.add_documents("abc"), "not a list"),
        (lambda s: s.add_documents(None), "None and not a list"),
        (lambda s: s.add_documents([Document("a")], ids="a"), "not a list"),
        (lambda s: s.add_documents([Document("a")], ids=[3]), r"ids\[0\] is 3"),
        (lambda s: s.add_texts([3]), r"texts\[0\] is 3 and not a string"),
        (lambda s: s.add_texts(5), "5 and not a list"),
        (lambda s: s.add_texts(["a"], metadatas={"n": 1}), "not a list"),
        (lambda s: s.add_texts(["a"], metadatas=["n"]), r"metadatas\[0\] is 'n'"),
        (lambda s: s.delete("cat"), "'cat'"),
        (lambda s: s.get_by_ids("cat"), "'cat'"),
        (lambda s: s.similarity_search("cat", rerank=True), r"rerank=TarsRerank\(\)"),
        (lambda s: s.as_retriever(rerank=True), r"rerank=TarsRerank\(\)"),
        (lambda s: s.as_retriever(search_kwargs={"rerank": True}), "no reranker"),
        (lambda s: s.as_retriever(strategy="hybird"), "'hybird'"),
        (lambda s: s.as_retriever(search_kwargs={"strategy": "hybird"}), "'hybird'"),
        (lambda s: s.as_retriever(k=0), "k must"),
        (lambda s: TarsRetriever(vectorstore=s, rerank=True).invoke("x"), "no reranker"),
        (lambda s: s.as_retriever().invoke("cat", rerank=True), "no reranker"),
        (lambda s: s.similarity_search("cat", rerank="yes"), "'yes'"),
        (lambda s: s.similarity_search("cat", strategy="hybird"), "hybird"),
        (lambda s: s.similarity_search("cat", where={"n": 1}), "Write filter="),
        (lambda s: s.similarity_search_by_vector("cat"), "not a list of numbers"),
        (lambda s: s.similarity_search_by_vector([1.0, "x"]), "not a list of numbers"),
        (lambda s: s.update_document("gone", Document("a")), "no document 'gone'"),
        (lambda s: s.get(include=["uris"]), "uris"),
    ],
)
def test_wrong_arguments_are_told_in_langchain(
    langchain_store: LangChainStore, call: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call(langchain_store)
    assert langchain_store.store.count() == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.add(["a"]), r"nodes\[0\] is 'a'"),
        (lambda s: s.add("abc"), "not a list"),
        (lambda s: s.query("the dog"), "'the dog' and not a VectorStoreQuery"),
        (lambda s: s.delete_nodes(filters={"kind": "pet"}), "MetadataFilters"),
        (lambda s: s.get_nodes(filters={"kind": "pet"}), "MetadataFilters"),
        (lambda s: s.get_nodes("cat"), "'cat'"),
        (lambda s: s.delete(None), "None and not the id"),
        (
            lambda s: s.query(VectorStoreQuery(query_str="x", mode=VectorStoreQueryMode.DEFAULT)),
            "query_embedding",
        ),
    ],
)
def test_wrong_arguments_are_told_in_llama_index(
    tmp_path: Path, call: Callable[[Any], Any], message: str
) -> None:
    store = LlamaSide.open(tmp_path / "s")
    with pytest.raises(InvalidInputError, match=message):
        call(store)
    assert store.client.count() == 3
    store.close()


# Looking at one


def test_store_and_client_are_one_thing_in_both(tmp_path: Path, side: Any) -> None:
    store = side.open(tmp_path / "s")
    assert isinstance(store.store, HybridStore)
    assert store.client is store.store
    store.close()


def test_the_repr_says_what_it_is_and_opens_nothing(tmp_path: Path, embedder_dir: str) -> None:
    store = LangChainStore(TarsEmbeddings(model=embedder_dir), tmp_path / "s", k=3)
    store.close()
    (tmp_path / "s").rename(tmp_path / "moved")
    said = repr(store)
    for part in (str(tmp_path / "s"), "TarsEmbeddings", embedder_dir, "strategy='hybrid'", "k=3"):
        assert part in said
    assert not (tmp_path / "s").exists()
    assert "LangChainWords('words')" in repr(LangChainStore(LangChainWords()))
    llama = LlamaStore(tmp_path / "t", fingerprint="by hand")
    assert "by hand" in repr(llama)
    assert str(tmp_path / "t") in repr(llama)


_IMPORTS = """
import gc, os, weakref
from langchain_core.embeddings import DeterministicFakeEmbedding
from tars_rag.langchain import TarsVectorStore
def make():
    return TarsVectorStore(DeterministicFakeEmbedding(size=4))
"""


def run_code(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", _IMPORTS + code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_temporary_stores_leave_neither_warnings_nor_files(tmp_path: Path) -> None:
    code = """
stores = [make() for _ in range(3)]
stores[0].add_texts(["the dog"], ids=["d"])
gone = stores.pop()
directory = gone.path
del gone
gc.collect()
assert not directory.exists(), directory
stores[1].close()
"""
    done = run_code(code, tmp_path)
    assert "ResourceWarning" not in done.stderr
    assert list(tmp_path.glob("tars-rag-*")) == []


@pytest.mark.slow
def test_a_forked_child_does_not_take_a_temporary_store_along(tmp_path: Path) -> None:
    code = """
store = make()
store.add_texts(["the dog"], ids=["d"])
child = os.fork()
if not child:
    weakref.finalize._exitfunc()  # what the interpreter's end runs
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert store.path.exists()
assert store.get_by_ids(["d"])
"""
    run_code(code, tmp_path)
