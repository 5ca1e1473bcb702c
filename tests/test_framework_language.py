"""Language and least score, through both frameworks and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.documents import Document
from llama_index.core import MockEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import VectorStoreQuery
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from tars_rag.errors import ConfigError, InvalidInputError
from tars_rag.langchain import TarsVectorStore
from tars_rag.llama_index import TarsVectorStore as LlamaStore
from tars_rag.settings import Settings
from test_langchain_vectorstore import WordEmbeddings

TEXT = "Die H\u00e4user am Fluss wurden gestrichen."


def test_langchain_takes_a_language_and_keeps_it_in_copies(tmp_path: Path) -> None:
    with TarsVectorStore(WordEmbeddings(), tmp_path / "s", language="de") as store:
        store.add_documents([Document(TEXT, id="haus")])
        assert store.similarity_search("Haus", strategy="lexical")[0].id == "haus"
        assert store.store.language == "de"
    with pytest.raises(ConfigError, match="relex"):
        TarsVectorStore(WordEmbeddings(), tmp_path / "s", language="fr")
    with pytest.raises(InvalidInputError, match="language must be one of"):
        TarsVectorStore(WordEmbeddings(), tmp_path / "t", language="klingon")
    assert not (tmp_path / "t").exists()


def test_llama_index_takes_a_language(tmp_path: Path) -> None:
    store = LlamaStore(tmp_path / "s", MockEmbedding(4), language="German")
    node = TextNode(text=TEXT, id_="haus", embedding=[0.5] * 4)
    store.add([node])
    found = store.query(VectorStoreQuery(query_str="Haus", mode=VectorStoreQueryMode.TEXT_SEARCH))
    assert found.ids == ["haus"]
    assert store.client.language == "de"
    store.close()


def test_rag_language_is_of_new_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_LANGUAGE", "de")
    assert Settings.from_env().rag_language == "de"
    with TarsVectorStore.from_env(tmp_path / "s", WordEmbeddings()) as store:
        assert store.store.language == "de"
    monkeypatch.setenv("RAG_LANGUAGE", "fr")  # the store has its own
    with TarsVectorStore.from_env(tmp_path / "s", WordEmbeddings()) as store:
        assert store.store.language == "de"
    llama = LlamaStore.from_env(tmp_path / "l", MockEmbedding(4))
    assert llama.client.language == "fr"
    llama.close()
    monkeypatch.setenv("RAG_LANGUAGE", "klingon")
    with pytest.raises(ConfigError, match="RAG_LANGUAGE=klingon: language must be one of"):
        TarsVectorStore.from_env(tmp_path / "n", WordEmbeddings())
    monkeypatch.setenv("RAG_LANGUAGE", "")
    with TarsVectorStore.from_env(tmp_path / "e", WordEmbeddings()) as store:
        assert store.store.language == "en"


def test_where_nothing_fits_nothing_comes(tmp_path: Path) -> None:
    with TarsVectorStore(WordEmbeddings(), tmp_path / "s") as store:
        store.add_documents([Document("pump oil", id="a"), Document("violin strings", id="b")])
        hits = store.similarity_search_with_relevance_scores("pump oil", k=2)
        best, rest = hits[0][1], hits[1][1]
        assert best > rest
        least = (best + rest) / 2
        assert [d.id for d in store.similarity_search("pump oil", min_score=least)] == ["a"]
        assert store.similarity_search("pump oil", min_score=1.0) in ([], [hits[0][0]])
        retriever = store.as_retriever(min_score=least)
        assert [d.id for d in retriever.invoke("pump oil")] == ["a"]
        with pytest.raises(InvalidInputError, match="min_score must be"):
            store.similarity_search("pump oil", min_score=2)


def test_llama_index_takes_a_least_score(tmp_path: Path) -> None:
    store = LlamaStore(tmp_path / "s", fingerprint="given")
    store.add(
        [
            TextNode(text="near", id_="near", embedding=[1.0, 0.0]),
            TextNode(text="far", id_="far", embedding=[0.0, 1.0]),
        ]
    )
    query = VectorStoreQuery(query_embedding=[1.0, 0.1], similarity_top_k=2)
    assert store.query(query).ids == ["near", "far"]
    assert store.query(query, min_score=0.5).ids == ["near"]
    store.close()
