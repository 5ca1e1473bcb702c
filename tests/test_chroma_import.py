"""Moving in from Chroma: directories made by LangChain's and LlamaIndex's own Chroma stores."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
import typer.testing
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from conftest import HashEmbedder
from tars_rag import Embedder, HybridStore
from tars_rag.cli import app
from tars_rag.errors import InvalidInputError
from tars_rag.ingest.chroma_import import import_chroma
from tars_rag.langchain import TarsEmbeddings

pytestmark = pytest.mark.slow

pytest_plugins = ["tiny_models"]

TEXTS = {
    "cat": "the cat sleeps on the sofa",
    "dog": "the dog runs in the garden",
    "npu": "the npu core runs hot",
    "fan": "",
    "odd": "naïve 🐟 \x00 text",
}
METADATA = [{"n": n, "share": n / 4, "kind": "pet", "yes": n > 1} for n in range(5)]


class HashEmbeddings(Embeddings):
    """The stores' embedder as LangChain's."""

    def __init__(self, dimension: int = 32, name: str = "hash") -> None:
        self.embedder = HashEmbedder(dimension, name)

    def embed_query(self, text: str) -> list[float]:
        return self.embedder.embed_query(text).tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.embedder.embed(texts).tolist()


def langchain_made(directory: Path, embeddings: Embeddings, name: str = "notes") -> Path:
    chroma = pytest.importorskip("langchain_chroma")
    store = chroma.Chroma(name, embeddings, str(directory))
    documents = [
        Document(text, metadata=data) for text, data in zip(TEXTS.values(), METADATA, strict=True)
    ]
    store.add_documents(documents, ids=list(TEXTS))
    return directory


def files(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["chroma", "my#db?50%25 x"])
def test_langchains_documents_keep_ids_metadata_and_vectors(tmp_path: Path, name: str) -> None:
    source = langchain_made(tmp_path / name, HashEmbeddings())
    before = files(source)
    with HybridStore(tmp_path / "s", HashEmbedder()) as store:
        seen: list[tuple[int, int | None]] = []
        done = import_chroma(source, store, progress=lambda n, total: seen.append((n, total)))
        assert (done.collection, done.documents, done.reused) == ("notes", 5, 5)
        assert (done.recomputed, done.unchanged, done.reason) == (0, 0, "")
        assert seen == [(5, 5)]
        found = store.get(list(TEXTS))
        assert [p.text for p in found] == list(TEXTS.values())
        assert [dict(p.metadata) for p in found] == METADATA
        kept = store.vectors(["cat"])["cat"]
        np.testing.assert_allclose(kept, HashEmbedder().embed_query(TEXTS["cat"]), atol=1e-6)
        assert store.search("garden", k=1, strategy="lexical")[0].id == "dog"
        again = import_chroma(str(source), store)
        assert (again.documents, again.unchanged, again.reused) == (5, 5, 0)
        assert store.count() == 5
    assert files(source) == before


@pytest.mark.parametrize("other", [HashEmbeddings(name="hash"), HashEmbeddings(16)])
def test_vectors_of_another_model_are_made_anew(tmp_path: Path, other: HashEmbeddings) -> None:
    class Turned(HashEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [row[::-1] for row in other.embed_documents(texts)]

    source = langchain_made(tmp_path / "chroma", Turned())
    with HybridStore(tmp_path / "s", HashEmbedder()) as store:
        done = import_chroma(source, store)
        assert (done.documents, done.reused, done.recomputed) == (5, 0, 5)
        assert "agree" in done.reason or "16 numbers, this model's 32" in done.reason
        assert store.search("dog runs in the garden", k=1, strategy="naive")[0].id == "dog"


def test_one_of_several_collections_is_named(tmp_path: Path) -> None:
    source = langchain_made(tmp_path / "chroma", HashEmbeddings(), "notes")
    client = chromadb.PersistentClient(str(source))
    client.create_collection("empty")
    with HybridStore(tmp_path / "s", HashEmbedder()) as store:
        assert import_chroma(source, store).collection == "notes"
        more = client.create_collection("letters")
        more.add(ids=["a"], documents=["dear cat"], embeddings=HashEmbedder().embed(["dear cat"]))
        with pytest.raises(InvalidInputError, match=r"letters \(1\), notes \(5\).*--collection"):
            import_chroma(source, store)
        with pytest.raises(InvalidInputError, match=r"no collection 'x'.*empty, letters, notes"):
            import_chroma(source, store, collection="x")
        assert import_chroma(source, store, collection="letters").documents == 1
        assert import_chroma(source, store, collection="empty").documents == 0
        assert store.count() == 6


def test_records_without_text_are_left_out_and_bad_vectors_made_anew(tmp_path: Path) -> None:
    collection = chromadb.PersistentClient(str(tmp_path / "c")).create_collection("mixed")
    rows = HashEmbedder().embed(["the cat", "the dog"])
    collection.add(ids=["cat", "dog"], documents=["the cat", "the dog"], embeddings=rows)
    collection.add(ids=["zero"], documents=["the npu"], embeddings=[[0.0] * 32])
    collection.add(ids=["image"], uris=["file.png"], embeddings=rows[:1])
    with HybridStore(tmp_path / "s", HashEmbedder()) as store:
        done = import_chroma(tmp_path / "c", store)
        assert (done.documents, done.reused, done.recomputed, done.without_text) == (3, 2, 1, 1)
        assert "zero" in done.reason
        assert store.search("the npu", k=1, strategy="naive")[0].id == "zero"


@pytest.mark.parametrize("count", [300, 513])
def test_more_than_a_batch(tmp_path: Path, count: int) -> None:
    collection = chromadb.PersistentClient(str(tmp_path / "c")).create_collection("many")
    texts = [f"note {n}" for n in range(count)]
    collection.add(
        ids=[f"n{n}" for n in range(count)],
        documents=texts,
        embeddings=3 * HashEmbedder().embed(texts),  # not of unit length
    )
    with HybridStore(tmp_path / "s", HashEmbedder()) as store:
        assert import_chroma(tmp_path / "c", store).reused == count
        assert store.count() == count
        assert {p.text for p in store.get()} == set(texts)


def test_what_is_no_chroma_directory_is_told(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "s", HashEmbedder()) as store:
        for directory in (tmp_path / "gone", tmp_path):
            with pytest.raises(InvalidInputError, match=r"no chroma\.sqlite3"):
                import_chroma(directory, store)
        for directory in (tmp_path / "s", tmp_path / "s" / "chroma"):
            with pytest.raises(InvalidInputError, match="belongs to a tars-rag store"):
                import_chroma(directory, store)
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "chroma.sqlite3").write_bytes(b"not a database" * 999)
        with pytest.raises(InvalidInputError, match="cannot read"):
            import_chroma(tmp_path / "bad", store)
        with pytest.raises(InvalidInputError, match="nobody"):
            import_chroma("~nobody-of-that-name/chroma", store)
        assert store.count() == 0


def test_llama_indexes_nodes_come_back_as_nodes(tmp_path: Path) -> None:
    chroma_store = pytest.importorskip("llama_index.vector_stores.chroma")
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.schema import (
        IndexNode,
        MetadataMode,
        NodeRelationship,
        RelatedNodeInfo,
        TextNode,
    )
    from llama_index.core.vector_stores.types import ExactMatchFilter, MetadataFilters

    from tars_rag.llama_index import TarsVectorStore

    class Hashed(BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return HashEmbedder().embed_query(text).tolist()

        _get_query_embedding = _get_text_embedding

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc-1")}
    nodes: list[Any] = [
        TextNode(id_="cat", text="the cat {content}", metadata={"title": "pets", "n": 1}),
        TextNode(
            id_="dog",
            text="the dog",
            metadata={"title": "pets", "hidden": "secret", "doc_id": "mine"},
            excluded_embed_metadata_keys=["hidden"],
            relationships=source,
            text_template="<{metadata_str}> {content}",
            metadata_template="{key}={value}",
            metadata_separator="; ",
        ),
        IndexNode(id_="table", text="a table", index_id="other"),
    ]
    nodes = Hashed()(nodes)
    if "; " not in nodes[1].get_content(MetadataMode.EMBED):
        pytest.skip("this version of LlamaIndex does not embed with a node's own separator")
    collection = chromadb.PersistentClient(str(tmp_path / "c")).create_collection("nodes")
    chroma_store.ChromaVectorStore(chroma_collection=collection).add(nodes)
    store = TarsVectorStore(tmp_path / "s", Hashed())
    done = import_chroma(tmp_path / "c", store.store)
    assert (done.documents, done.reused) == (3, 3)  # so the embedded text is LlamaIndex's
    moved = store.get_nodes(["cat", "dog", "table"])
    by_hand = TarsVectorStore(tmp_path / "t", fingerprint="x")
    by_hand.add(nodes)
    for old, new in zip(by_hand.get_nodes(["cat", "dog", "table"]), moved, strict=True):
        assert type(new) is type(old)
        assert new.to_dict() == old.to_dict()
    for key in ("cat", "dog", "table"):
        [old_passage], [new_passage] = by_hand.store.get([key]), store.store.get([key])
        assert new_passage.text == old_passage.text
        assert set(new_passage.metadata) == set(old_passage.metadata)
    assert moved[1].get_content(MetadataMode.EMBED) == "<title=pets; doc_id=mine> the dog"
    pets = MetadataFilters(filters=[ExactMatchFilter(key="title", value="pets")])
    assert {node.node_id for node in store.get_nodes(filters=pets)} == {"cat", "dog"}
    store.delete("doc-1")
    assert store.get_nodes(["dog"]) == []
    store.close()
    by_hand.close()


def test_on_the_command_line(
    tmp_path: Path, embedder_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    langchain_made(tmp_path / "chroma", TarsEmbeddings(model=embedder_dir))
    run = typer.testing.CliRunner().invoke
    done = run(app, ["store", "import-chroma", "chroma", "--store", "s"])
    assert done.exit_code == 0, done.output
    assert "5 documents of 'notes' imported: 5 vectors kept, 0 computed anew" in done.output
    done = run(app, ["store", "import-chroma", "chroma", "--store", "s", "--json"])
    report = json.loads(done.stdout)
    assert (report["unchanged"], report["total"], report["collection"]) == (5, 5, "notes")
    with HybridStore("s", Embedder(embedder_dir)) as store:
        assert store.search("garden", k=1, strategy="lexical")[0].id == "dog"
    assert run(app, ["store", "import-chroma", "s", "--store", "t"]).exit_code != 0
    assert not (tmp_path / "t").exists()
