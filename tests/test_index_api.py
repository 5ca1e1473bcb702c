"""`tars_rag.index`: files into a store from Python, whatever the store came from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding

from tars_rag import Embedder, HybridStore, index
from tars_rag.errors import ConfigError, InvalidInputError
from tars_rag.langchain import TarsEmbeddings
from tars_rag.langchain import TarsVectorStore as LangChainStore
from tars_rag.llama_index import TarsEmbedding
from tars_rag.llama_index import TarsVectorStore as LlamaStore
from tars_rag.splitting.splitter import Splitter

pytest_plugins = ["tiny_models"]


@pytest.fixture
def notes(tmp_path: Path, embedder_dir: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "notes"
    directory.mkdir()
    (directory / "boards.md").write_text("# Boards\n\nA board with a fan sleeps well.")
    (directory / "cats.txt").write_text("The cat and the dog sleep on the sofa.")
    return directory


def test_into_a_directory_once_and_again(notes: Path, tmp_path: Path) -> None:
    told: list[str] = []
    report = index(notes, "s", progress=lambda name, done, total: told.append(name))
    assert (report.indexed, report.unchanged, report.written) == (2, 0, 2)
    assert "cats.txt" in told
    (notes / "cats.txt").unlink()
    (notes / "bad.txt").write_bytes(b"\xff\xfe\xfd")
    report = index([str(notes)], Path("s"), prune=True)
    assert (report.indexed, report.unchanged, report.deleted) == (0, 1, 1)
    assert [source for source, _ in report.failures] == [str(notes / "bad.txt")]
    with HybridStore("s", Embedder.from_env()) as store:  # it was closed
        assert store.search("fan", k=1)[0].passage.metadata["source"] == str(notes / "boards.md")


def test_into_open_stores_of_all_kinds(notes: Path, embedder_dir: str) -> None:
    with HybridStore("plain", Embedder(embedder_dir)) as plain:
        assert index(notes, plain).written == 2
        assert plain.count() == 2
    with LangChainStore(TarsEmbeddings(model=embedder_dir), "langchain") as langchain:
        assert index(notes / "cats.txt", langchain).written == 1
        assert "sofa" in langchain.similarity_search("sofa", k=1)[0].page_content
    llama = LlamaStore("llama", TarsEmbedding(model=embedder_dir))
    assert index([notes], llama, chunk_tokens=8, overlap=2).written > 2
    assert {node.metadata["source"] for node in llama.get_nodes()} == {
        str(path) for path in notes.iterdir()
    }
    llama.close()


def test_another_librarys_embedder_needs_a_splitter(notes: Path, embedder_dir: str) -> None:
    with LangChainStore(DeterministicFakeEmbedding(size=8), "s") as store:
        with pytest.raises(InvalidInputError, match="splitter="):
            index(notes, store)
        splitter = Splitter(Path(embedder_dir) / "tokenizer.json", 128)
        assert index(notes, store, splitter=splitter).written == 2


def test_the_language_is_that_of_the_call_the_environment_or_the_store(
    notes: Path, embedder_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def language(directory: str) -> str:
        with HybridStore(directory, Embedder(embedder_dir)) as store:
            return store.language

    index(notes, "german", language="de")
    monkeypatch.setenv("RAG_LANGUAGE", "fr")
    index(notes, "french")
    index(notes, "german")
    assert (language("german"), language("french")) == ("de", "fr")
    with HybridStore("french", Embedder(embedder_dir)) as store:
        assert index(notes, store, language="fr").unchanged == 2
        with pytest.raises(InvalidInputError, match=r"store relex .*french --language de"):
            index(notes, store, language="de")


def test_a_slip_in_the_path_leaves_no_store(notes: Path, tmp_path: Path) -> None:
    report = index("nodir", "s")
    assert [source for source, _ in report.failures] == ["nodir"]
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("paths", [[3], [""], [None], b"notes"])
def test_what_is_no_path_or_store_is_told(notes: Path, paths: Any, embedder_dir: str) -> None:
    with pytest.raises(InvalidInputError, match="not a path"):
        index(paths, "s")
    for store in (None, 3, Embedder(embedder_dir)):
        with pytest.raises(InvalidInputError, match="not a store"):
            index(notes, store)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tokens"):
        index(notes, "s", chunk_tokens=10**6)


def test_the_name_is_loaded_on_use_and_imports_of_the_room_do_not_take_it() -> None:
    code = """
import tars_rag.ingest.run, tars_rag.cli
from tars_rag import index
assert callable(index) and index.__doc__.startswith("Index text, Markdown, JSONL"), index
"""
    subprocess.run([sys.executable, "-c", code], check=True)
