"""A store one can look into: info, ls, rm, mv, show, --path, and TARS_STORE."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tars_rag import Embedder, HybridStore, Passage, Settings, index
from tars_rag.cli import app
from tars_rag.errors import InvalidInputError
from tars_rag.ingest.sources import (
    matching,
    move,
    near_copies_in,
    remove,
    root_of,
    sources_of,
)
from tars_rag.retrieval.neighbours import with_neighbours
from tars_rag.retrieval.storage.layout import SOURCES, settings_for
from tars_rag.retrieval.storage.store_json import StoreJson

pytest_plugins = ["tiny_models"]
OF_BEFORE = """
CREATE TABLE p(id TEXT PRIMARY KEY, source TEXT NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO p SELECT id, source, digest FROM passages;
DROP TABLE passages;
ALTER TABLE p RENAME TO passages;
"""
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


def test_a_store_with_a_root_follows_its_directory(notes: Path, tmp_path: Path) -> None:
    first = index(notes, "store", root=notes)
    assert set(sources_of(tmp_path / "store")) == {"boards.md", "sub/cats.txt", "rows.jsonl"}
    assert (first.indexed, first.failures) == (3, [])
    moved = notes.rename(tmp_path / "moved")
    again = index(moved, "store", root=moved, prune=True)
    assert (again.indexed, again.unchanged, again.written, again.deleted) == (0, 3, 0, 0)
    [cats] = json.loads(said("show", "sub/cats.txt#0", "--json"))
    assert cats["metadata"]["source"] == "sub/cats.txt"
    listed = json.loads(said("store", "ls", "--path", "moved/sub", "--json"))
    assert [one["source"] for one in listed] == ["sub/cats.txt"]
    (moved / "sub" / "cats.txt").rename(moved / "cats.txt")
    said("store", "mv", "moved/sub/cats.txt", "moved/cats.txt")
    last = index(moved, "store", prune=True)  # the root is known
    assert (last.written, last.deleted, last.vanished) == (0, 0, [])
    assert set(sources_of(tmp_path / "store")) == {"boards.md", "cats.txt", "rows.jsonl"}
    (moved / "boards.md").unlink()
    assert index(moved, "store", prune=True).vanished == ["boards.md"]


def test_what_lies_outside_the_root_has_its_whole_path(notes: Path, tmp_path: Path) -> None:
    index(notes, "store", root=notes / "sub")
    held = sources_of(tmp_path / "store")
    assert set(held) == {str(notes / "boards.md"), str(notes / "rows.jsonl"), "cats.txt"}
    with pytest.raises(InvalidInputError, match="which still has them"):
        index(notes, "store", root=notes)
    gone = (notes / "sub").rename(tmp_path / "elsewhere")
    with pytest.raises(InvalidInputError, match="has none of them"):  # a slip, or an empty drive
        index(notes, "store", root=notes, prune=True)
    (notes / "cats.txt").write_text("Now there is one of that name.")
    with pytest.raises(InvalidInputError, match=r"store rm .*boards\.md"):
        index(notes, "store", root=notes)
    assert sources_of(tmp_path / "store") == held
    assert index(gone, "store", root=gone).unchanged == 1


def test_a_store_without_a_root_stays_without(notes: Path, tmp_path: Path) -> None:
    index(notes, "store")
    held = sources_of(tmp_path / "store")
    with pytest.raises(InvalidInputError, match="named by their whole paths"):
        index(notes, "store", root=notes)
    assert sources_of(tmp_path / "store") == held
    assert index(notes, "store").unchanged == 3


def test_a_root_that_is_none_is_told_before_a_store_is_made(notes: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for wrong in ("nowhere", notes / "boards.md", "~nobody/x", "loop"):
        with pytest.raises(InvalidInputError, match="root"):
            index(notes, "store", root=wrong)
        result = CliRunner().invoke(app, ["index", str(notes), "--root", str(wrong)])
        assert result.exit_code == 1
        assert "The root" in result.stderr
    assert not (tmp_path / "store").exists()


def test_the_command_names_sources_from_the_root_and_says_when_it_is_gone(
    notes: Path, tmp_path: Path
) -> None:
    said("index", notes, "--root", notes)
    assert json.loads(said("store", "info", "--json"))["root"] == str(notes)
    assert "boards.md" in said("query", "fan", "-k", 1)
    found = json.loads(said("query", "cat", "--path", "sub", "--json"))["passages"]  # as listed
    assert [one["id"] for one in found] == ["sub/cats.txt#0"]
    said("store", "backup", "file")
    said("store", "restore", "file", "--store", "again")
    assert json.loads(said("store", "info", "again", "--json"))["root"] == str(notes)
    notes.rename(tmp_path / "moved")
    (tmp_path / "other.txt").write_text("A piano.")
    result = CliRunner().invoke(app, ["index", "other.txt"])
    assert result.exit_code == 0
    assert "--root DIR" in result.stderr
    assert "is gone" in said("store", "info")
    assert "0 files indexed, 3 unchanged" in said("index", "moved", "--root", "moved")


def test_a_record_of_before_is_read_and_not_written(notes: Path, tmp_path: Path) -> None:
    index(notes, "store")
    record = tmp_path / "store" / SOURCES
    with contextlib.closing(sqlite3.connect(record)) as opened:
        opened.execute("DROP TABLE roots")
        opened.commit()
    before = record.read_bytes()
    assert root_of(tmp_path / "store").directory is None
    assert len(sources_of(tmp_path / "store")) == 3
    assert record.read_bytes() == before


def test_copies_below_the_first_are_told_however_they_are_spaced(
    notes: Path, tmp_path: Path
) -> None:
    for name, text in (
        ("a.md", "---\ntitle: Tea\n---\nThe river is near the garden."),
        ("b.txt", "The river  is near\nthe garden."),
        ("c.txt", "The river is near the garden, and a piano."),
        ("d.txt", "The river is near the garden."),
    ):
        (notes / name).write_text(text)
    index(notes, "store")
    [first] = json.loads(said("query", "river near garden", "-k", 1, "--json"))["passages"]
    three = {f"{notes}/{name}#0" for name in ("a.md", "b.txt", "d.txt")}
    assert {first["id"], *first["copies"]} == three
    shown = said("query", "river near garden", "-k", 1)
    assert sum(key in " ".join(shown.split()) for key in three) == 3
    assert "the same text:" in shown
    (notes / "d.txt").write_text("Something else altogether.")
    index(notes, "store")
    [first] = json.loads(said("query", "river near garden", "-k", 1, "--json"))["passages"]
    assert {first["id"], *first["copies"]} == three - {f"{notes}/d.txt#0"}
    (tmp_path / "store" / SOURCES).write_bytes(b"damaged " * 999)
    result = CliRunner().invoke(app, ["query", "river", "-k", "1", "--json"])
    assert (result.exit_code, len(json.loads(result.stdout)["passages"])) == (0, 1)
    assert "not told" in result.stderr


def test_files_that_are_nearly_the_same_are_told(notes: Path, tmp_path: Path) -> None:
    parts = [f"The {n} river flows to the sea of {n} ships." for n in range(10)]
    changed = [*parts[:9], "An end of its own."]
    licence = '{"text": "Free to use."}\n'
    for name, texts in (("x", parts), ("y", changed), ("z", parts[:5])):
        rows = [json.dumps({"text": text}) + "\n" for text in texts]
        (notes / f"{name}.jsonl").write_text("".join(rows) + (" " * (name == "y")) + licence)
    for n in range(25):
        (notes / f"n{n}.jsonl").write_text(licence + " " * n)
    index(notes, "store")
    near = [(notes / f"{name}.jsonl").as_posix() for name in "xy"]
    assert near_copies_in(tmp_path / "store") == [(*near, pytest.approx(9 / 11))]
    notes_told = json.loads(said("store", "check", "store", "--json"))["notes"]
    assert f"nearly the same content (82% of their passages): {', '.join(near)}" in notes_told
    with contextlib.closing(sqlite3.connect(tmp_path / "store" / SOURCES)) as record:
        record.executescript(OF_BEFORE)
    assert near_copies_in(tmp_path / "store") == []
    assert json.loads(said("query", "river", "-k", 1, "--json"))["passages"][0]["copies"] == []
    index(notes, "store")
    assert len(near_copies_in(tmp_path / "store")) == 1


def test_a_store_is_opened_with_its_own_model_where_none_is_named(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tmp_path / "no models"))
    index(notes, "store")
    monkeypatch.delenv("EMBED_MODEL")
    assert "river" in said("query", "river")
    assert "3 unchanged" in said("index", "notes")
    assert index("notes", "store").unchanged == 3
    monkeypatch.setenv("EMBED_MODEL", str(tmp_path / "another"))  # named, so it is this one
    refused = CliRunner().invoke(app, ["query", "river"])
    assert (refused.exit_code, "another" in refused.output) == (1, True)


def test_only_an_embedder_of_this_package_is_opened_for_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EMBED_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    for fingerprint, model, chosen in (
        ("0123456789abcdef:mean:256:exact", "all-MiniLM-L12-v2", "all-MiniLM-L12-v2"),
        ("0123456789abcdef:mean+12ab:256:int8", "org/name", "org/name"),
        ("0123456789abcdef:mean:256:exact", None, settings.embed_model),
        ("0123456789abcdef:mean:256:exact", "/no/such", settings.embed_model),
        ("OllamaEmbeddings:nomic:latest:768", "nomic:latest", settings.embed_model),
        ("DeterministicFakeEmbedding::8", "x", settings.embed_model),
    ):
        StoreJson(fingerprint, "passages", model=model).write(tmp_path)
        assert settings_for(tmp_path, settings).embed_model == chosen
    StoreJson("0123456789abcdef:mean:256:exact", "passages", model="org/name").write(tmp_path)
    assert settings_for(tmp_path, Settings(embed_model="mine")).embed_model == "mine"
    assert settings_for(tmp_path / "new", settings) == settings
