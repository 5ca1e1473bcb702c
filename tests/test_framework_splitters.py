"""Both frameworks' splitters cut as `tars-rag index` does, and lose nothing of a document."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.schema import MetadataMode

from tars_rag.errors import ConfigError, InvalidInputError
from tars_rag.langchain import TarsEmbeddings, TarsSplitter, TarsVectorStore
from tars_rag.llama_index import TarsEmbedding, TarsNodeParser
from tars_rag.retrieval.passage import CONTEXT

pytest_plugins = ["tiny_models"]

BODY = " ".join(f"The {n}. fan of the board is cooled by the river." for n in "abcdefghijklmnop")
TEXT = f"# Boards\n\n## Cooling\n\n{BODY}\n\n## Music\n\nA piano.\n"


@pytest.fixture
def embeddings(embedder_dir: str) -> TarsEmbeddings:
    return TarsEmbeddings(model=embedder_dir)


def test_documents_are_cut_and_keep_what_they_had(embeddings: TarsEmbeddings) -> None:
    given = Document(id="d", page_content=TEXT, metadata={"source": "a.md", "title": "Manual"})
    before = given.model_copy(deep=True)
    found = TarsSplitter(embeddings, chunk_tokens=100).split_documents([given])
    assert given == before
    assert len(found) > 2
    assert [one.id for one in found] == [f"d#{n}" for n in range(len(found))]
    for one in found:
        start, end = one.metadata["start"], one.metadata["end"]
        assert TEXT[start:end] == one.page_content
        assert one.metadata["source"] == "a.md"
    assert found[1].metadata["heading"] == "Boards > Cooling"
    assert found[1].metadata[CONTEXT] == "Manual > Boards > Cooling"


def test_plain_text_is_not_read_as_markdown(embeddings: TarsEmbeddings) -> None:
    splitter = TarsSplitter(embeddings)
    [one] = splitter.create_documents(["# no heading\n\ntext"], [{"source": "a.txt"}])
    assert "heading" not in one.metadata
    assert splitter.split_text("# no heading\n\ntext") == ["# no heading\n\ntext"]
    [one] = TarsSplitter(embeddings, form="markdown").transform_documents(
        [Document(page_content="# A\n\ntext")]
    )
    assert one.metadata["heading"] == "A"


def test_wrong_arguments_are_told(embeddings: TarsEmbeddings) -> None:
    with pytest.raises(InvalidInputError, match="TarsEmbeddings"):
        TarsSplitter("all-MiniLM-L6-v2")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="Document"):
        TarsSplitter(embeddings).split_documents(["text"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="not possible"):
        TarsSplitter(embeddings, chunk_tokens=10_000).split_text("a")
    with pytest.raises(InvalidInputError, match="TarsEmbedding"):
        TarsNodeParser.for_model("all-MiniLM-L6-v2")  # type: ignore[arg-type]


def test_a_chapter_is_found_by_its_name(embeddings: TarsEmbeddings, tmp_path: Path) -> None:
    documents = TarsSplitter(embeddings, chunk_tokens=60, form="markdown").split_documents(
        [Document(page_content=TEXT, metadata={"title": "Manual"})]
    )
    with TarsVectorStore(embeddings, tmp_path / "store") as store:
        store.add_documents(documents)
        found = store.similarity_search("cooling", k=9, strategy="lexical")
    assert len(found) > 2
    assert not any(one.metadata["heading"] == "Boards > Music" for one in found)


def test_nodes_fit_with_their_metadata(embedder_dir: str) -> None:
    model = TarsEmbedding(model=embedder_dir)
    given = LlamaDocument(text=TEXT, metadata={"file_name": "a.md", "topic": "cooling"})
    parser = TarsNodeParser.for_model(model, chunk_tokens=110, overlap=8)
    nodes = parser.get_nodes_from_documents([given])
    assert len(nodes) > 3
    for node in nodes:
        assert parser.splitter.count(node.get_content(MetadataMode.EMBED)) <= 110
        assert node.ref_doc_id == given.node_id
        start, end = node.metadata["start"], node.metadata["end"]
        assert TEXT[start:end] == node.get_content(MetadataMode.NONE)
        assert "start:" not in node.get_content(MetadataMode.EMBED)
    assert "heading: Boards > Cooling" in nodes[1].get_content(MetadataMode.EMBED)
