"""A store in LanceDB by the command line, Parquet files and both frameworks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from typer.testing import CliRunner

from conftest import HashEmbedder
from tars_rag import Embedder, HybridStore, Passage
from tars_rag.cli import app
from tars_rag.errors import StoreError
from tars_rag.ingest.vector_files import export_parquet, load_parquet
from tars_rag.langchain import TarsEmbeddings, TarsVectorStore

pytest_plugins = ["tiny_models"]
pytestmark = pytest.mark.lance
pytest.importorskip("lancedb")

TEXTS = ["the fan is near the cpu core", "a cat and a dog sleep", "piano music", "the fan hums"]


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"lance://{tmp_path}/shared"


def run(*words: str, code: int = 0) -> Any:
    told = CliRunner().invoke(app, list(words))
    assert told.exit_code == code, told.output
    return told


def answer(*words: str, code: int = 0) -> Any:
    return json.loads(run(*words, "--json", code=code).stdout)


def passages() -> list[Passage]:
    return [
        Passage(f"p{n}", text, {"n": n, "source": f"{n % 2}.md"}) for n, text in enumerate(TEXTS)
    ]


def test_the_command_line(
    embedder_dir: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_MODEL", "")
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    with Embedder(embedder_dir) as embedder, HybridStore(address, embedder) as store:
        store.upsert(passages())
    found = answer("query", "cat", "and", "dog", "--store", address, "--strategy", "lexical")
    assert [one["id"] for one in found["passages"]] == ["p1"]
    where = '{"source": "0.md"}'
    found = answer("query", "the fan", "--store", address, "--where", where, "--window", "1")
    assert {one["id"] for one in found["passages"]} == {"p0", "p2"}
    monkeypatch.setenv("TARS_STORE", address)
    assert "piano" in run("query", "piano").stdout
    assert answer("show", "p1", "--store", address, "--window", "0")[0]["text"] == TEXTS[1]
    facts = answer("store", "info", address)
    assert (facts["passages"], facts["path"], facts["language"]) == (4, address, "en")
    assert "exact" in run("store", "info").stdout
    report = answer("store", "check", address)
    assert (report["ok"], report["passages"]) == (True, 4)
    assert "sound" in run("store", "check").stdout
    run("store", "check", address, "--repair", code=1)
    assert answer("store", "compact", address)["path"] == address
    file = str(tmp_path / "all.parquet")
    assert answer("store", "export", address, file)["passages"] == 4
    assert answer("store", "rm", address, "1.md")["passages"] == 2
    assert "No passage" in run("store", "rm", address, "1.md", code=1).output
    assert answer("index", "--from-parquet", file, "--store", address)["total"] == 4
    other = f"lance://{tmp_path}/other"
    loaded = answer("index", "--from-parquet", file, "--store", other, "--language", "de")
    assert loaded["path"] == other
    assert answer("store", "info", other)["language"] == "de"


def test_a_check_finds_what_was_changed(address: str) -> None:
    with HybridStore(address, HashEmbedder()) as store:
        store.upsert(passages())
    import lancedb

    table = lancedb.connect(address.removeprefix("lance://")).open_table("passages")
    table.update(where="id = 'p1'", values={"content": b'{"text":"other","metadata":{}}'})
    table.update(where="id = 'p2'", values={"terms": "other"})
    table.add(table.search().where("id = 'p3'").select(table.schema.names).to_arrow())
    report = answer("store", "check", address, code=1)
    assert len(report["problems"]) == 3
    assert [one for one in report["problems"] if "'p1'" in one]
    assert [one for one in report["problems"] if "'p3' is there more than once. Delete it" in one]
    with HybridStore(address, HashEmbedder()) as store:
        for strategy in ("hybrid", "naive", "lexical"):
            assert [hit.id for hit in store.search("fan hums", 9, strategy)].count("p3") == 1
        assert store.delete(["p1", "p2", "p3"]) == 4
        store.upsert(passages())
    assert answer("store", "check", address)["ok"]


def test_a_file_moves_between_both_kinds_of_store(address: str, tmp_path: Path) -> None:
    with HybridStore(tmp_path / "own", HashEmbedder(), language="de") as store:
        store.upsert(passages())
    file, again = tmp_path / "a.parquet", tmp_path / "b.parquet"
    export_parquet(tmp_path / "own", file)
    done = load_parquet(file, address)
    assert (done.passages, done.total) == (4, 4)
    assert load_parquet(file, address).total == 4
    assert export_parquet(address, again) == 4
    load_parquet(again, tmp_path / "back")
    with (
        HybridStore(tmp_path / "own", HashEmbedder()) as one,
        HybridStore(tmp_path / "back", HashEmbedder()) as two,
    ):
        assert (one.language, two.language) == ("de", "de")
        ids = [passage.id for passage in passages()]
        assert one.get(ids) == two.get(ids)
        assert all((two.vectors(ids)[key] == row).all() for key, row in one.vectors(ids).items())
    with pytest.raises(StoreError, match="There is no store"):
        export_parquet(f"{address}-not", again)


def test_langchain(address: str, embedder_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_LANGUAGE", "de")
    embedding = TarsEmbeddings(model=embedder_dir)
    store = TarsVectorStore.from_env(address, embedding)
    store.add_documents([Document(text, id=f"p{n}") for n, text in enumerate(TEXTS)])
    found = store.similarity_search("cat and dog", k=1)
    assert [one.id for one in found] == ["p1"]
    assert store.store.path == address
    assert store.store.language == "de"
    store.close()
    again = TarsVectorStore.from_env(f"{address}/", embedding)
    assert [one.page_content for one in again.get_by_ids(["p2"])] == [TEXTS[2]]
    again.close()


class TestLangChainsOwn(VectorStoreIntegrationTests):
    """LangChain's suite for vector stores, over a table."""

    @pytest.fixture
    def vectorstore(self, address: str) -> Iterator[VectorStore]:
        with TarsVectorStore(self.get_embeddings(), address) as store:
            yield store


def test_llama_index(address: str, embedder_dir: str) -> None:
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.schema import TextNode

    from tars_rag.llama_index import TarsEmbedding, TarsVectorStore

    model = TarsEmbedding(model=embedder_dir)
    store = TarsVectorStore(address, model)
    nodes = [TextNode(text=text, id_=f"p{n}") for n, text in enumerate(TEXTS)]
    context = StorageContext.from_defaults(vector_store=store)
    held = VectorStoreIndex(nodes, storage_context=context, embed_model=model)
    found = held.as_retriever(similarity_top_k=1).retrieve(TEXTS[1])
    assert [one.node.node_id for one in found] == ["p1"]
    assert store.store.path == address
    store.close()
