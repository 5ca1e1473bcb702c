"""A store one can look into: info, ls, rm, mv, show, --path, and TARS_STORE."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tars_rag import Embedder, HybridStore, Passage, index
from tars_rag.cli import app
from tars_rag.errors import InvalidInputError
from tars_rag.ingest.sources import matching, move, remove, sources_of
from tars_rag.retrieval.neighbours import with_neighbours

pytest_plugins = ["tiny_models"]
BODY = "\n\n".join(f"The {n} fan of the board is cooled by the river." for n in range(9))


@pytest.fixture
def notes(tmp_path: Path, embedder_dir: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    monkeypatch.setenv("RERANK_MODEL", "")
    monkeypatch.setenv("TARS_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "notes"
    (directory / "sub").mkdir(parents=True)
    (directory / "boards.md").write_text(f"# Boards\n\n{BODY}")
    (directory / "sub" / "cats.txt").write_text("A cat sleeps on the sofa.")
    (directory / "rows.jsonl").write_text('{"id": "own", "text": "A row about a piano."}\n')
    return directory


def said(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_store_is_looked_into_without_naming_it_or_its_model(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(notes, "store", chunk_tokens=40, overlap=0)
    monkeypatch.setenv("EMBED_MODEL", "gone")
    facts = json.loads(said("store", "info", "--json"))
    assert (facts["sources"], Path(facts["model"]).name) == (3, "tiny")
    assert facts["passages"] == facts["passages_of_sources"] > 4
    assert facts["bytes"] > 1000
    assert "3 files indexed" in said("store", "info")
    listed = json.loads(said("store", "ls", "--path", "notes/sub", "--json"))
    assert listed == [{"source": str(notes / "sub" / "cats.txt"), "passages": 1}]
    assert "boards.md" in said("store", "ls")
    shown = said("show", f"{notes}/boards.md#1")
    assert [f"#{n}" in shown for n in range(4)] == [True, True, True, False]
    [only] = json.loads(said("show", "own", "--json"))
    assert only["text"] == "A row about a piano."
    assert "2 sources" not in said("store", "rm", "*.txt")
    assert json.loads(said("store", "info", "--json"))["sources"] == 2
    bad = CliRunner().invoke(app, ["show", "nothing"])
    assert bad.exit_code == 1
    assert "no passage" in bad.stderr


def test_a_store_is_named_in_any_of_three_ways(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the other arguments, by --store, or by TARS_STORE."""
    index(notes, "store", chunk_tokens=40, overlap=0)
    Path("store").rename("away")  # so that TARS_STORE names none
    assert (
        said("store", "info", "away")
        == said("store", "info", "--store", "away")
        == said("store", "info", "--store=away")
    )
    assert said("store", "ls", "away") == said("store", "ls", "--store", "away")
    for words in (
        ["store", "mv", "away", notes, "b"],
        ["store", "mv", "b", "c", "--store", "away"],
    ):
        assert "3 sources moved" in said(*words)
    assert "1 sources removed" in said("store", "rm", "away", "boards.md*")
    assert "sound" in said("store", "check", "--store", "away")
    said("store", "backup", "away", "file")
    said("store", "restore", "file", "--store", "again")
    monkeypatch.setenv("TARS_STORE", "again")
    assert json.loads(said("store", "info", "--json"))["sources"] == 2
    assert "sound" in said("store", "check")
    assert said("store", "compact").startswith("again: ")
    said("store", "backup", "file2")
    for words in (["check", "again", "--store", "away"], ["mv", "a"], ["rm", "a", "b", "c"]):
        wrong = CliRunner().invoke(app, ["store", *words])
        assert wrong.exit_code == 2


def test_what_was_moved_is_not_embedded_again(notes: Path, embedder_dir: str) -> None:
    index(notes, "store", chunk_tokens=40, overlap=0)
    with HybridStore("store", Embedder(embedder_dir)) as store:
        before = {p.id: (p, store.vectors([p.id])[p.id].tolist()) for p in store.get()}
    notes.rename(notes.with_name("papers"))
    assert "3 sources moved" in said("store", "mv", "notes", "papers")
    with HybridStore("store", Embedder(embedder_dir)) as store:
        after = {p.id: (p, store.vectors([p.id])[p.id].tolist()) for p in store.get()}
        report = index("papers", store, chunk_tokens=40, overlap=0)
        assert (report.unchanged, report.written, report.vanished) == (3, 0, [])
        with pytest.raises(InvalidInputError, match="No source"):
            move(store, "nowhere", "papers")
        with pytest.raises(InvalidInputError, match="in the store already"):
            move(store, "papers/boards.md", "papers/sub/cats.txt")
        assert remove(store, "papers") == (3, len(after))
        assert store.count() == 0
    assert len(after) == len(before)
    for key, (passage, vector) in before.items():
        name = key.replace("/notes/", "/papers/")
        assert after[name][1] == pytest.approx(vector, abs=1e-6)
        assert after[name][0].text == passage.text
        assert after[name][0].metadata["source"] == passage.metadata["source"].replace(
            "/notes/", "/papers/"
        )


def test_a_query_can_be_kept_to_a_path(notes: Path) -> None:
    index(notes, "store", chunk_tokens=40, overlap=0)
    (notes / "copy.txt").write_text("A cat sleeps on the sofa.")
    index(notes, "store", chunk_tokens=40, overlap=0)
    found = json.loads(said("query", "fan", "--path", "*.txt", "-k", 9, "--json"))["passages"]
    assert {Path(one["metadata"]["source"]).name for one in found} == {"cats.txt", "copy.txt"}
    assert found[0]["copies"] == [found[1]["id"]]
    [note] = [
        n for n in json.loads(said("store", "check", "store", "--json"))["notes"] if "same" in n
    ]
    assert str(notes / "copy.txt") in note
    found = json.loads(said("query", "fan", "--path", "notes/boards.md", "--window", 1, "--json"))
    assert len(found["passages"][0]["window"]) > 1
    assert "river" in said("query", "fan", "--path", "notes/boards.md", "--window", 1)
    result = CliRunner().invoke(app, ["query", "fan", "--path", "nowhere"])
    assert result.exit_code == 1


def test_without_a_store_it_is_asked_for(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TARS_STORE")
    result = CliRunner().invoke(app, ["store", "ls"])
    assert result.exit_code == 2
    assert "TARS_STORE" in result.stderr


def test_neighbours_are_those_of_the_same_text(notes: Path, embedder_dir: str) -> None:
    with HybridStore("store", Embedder(embedder_dir)) as store:
        store.upsert([Passage(f"a#{n}", f"text {n}") for n in range(12)] + [Passage("b", "x")])
        found = with_neighbours(store, ["a#1", "b", "c#1", "a#11"], 2)
        assert [p.id for p in found["a#1"]] == ["a#0", "a#1", "a#2", "a#3"]
        assert [p.id for p in found["b"]] == ["b"]
        assert [p.id for p in found["a#11"]] == ["a#9", "a#10", "a#11"]
        assert "c#1" not in found
        with pytest.raises(InvalidInputError, match="window"):
            with_neighbours(store, ["b"], -1)


def test_patterns_and_paths(notes: Path) -> None:
    held = dict.fromkeys(map(str, (notes / "a.md", notes / "sub" / "b.md", "/x/a.pdf")), 1)
    assert matching(held, "notes/sub") == [str(notes / "sub" / "b.md")]
    assert len(matching(held, "*.md")) == 2
    assert matching(held, "x/*.pdf") == ["/x/a.pdf"]
    assert sources_of(notes) == {}
