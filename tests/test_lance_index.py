"""Files indexed straight into LanceDB: what a directory gives, also by many machines at once."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

import lance_child as child
from conftest import HashEmbedder
from tars_rag import Embedder, HybridStore, Passage, index
from tars_rag.cli import app
from tars_rag.errors import StoreError
from tars_rag.ingest import run as ingest_run
from tars_rag.ingest.chunks import pieces
from tars_rag.ingest.documents import DocumentReader
from tars_rag.ingest.run import ingest
from tars_rag.retrieval.lance.files import Files
from tars_rag.splitting.splitter import Splitter
from tiny_models import write_model
from trees import contents, prose

pytest_plugins = ["tiny_models"]
pytestmark = pytest.mark.lance
pytest.importorskip("lancedb")

EXAMPLES = int(os.environ.get("TARS_RAG_EXAMPLES", "6"))
QUESTIONS = ["piano music in the garden", "heat of the board", "sleep", "Note 3."]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("t") / "tiny", head=False, seed=5) / "tokenizer.json"


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"lance://{tmp_path}/shared"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Text, Markdown, JSONL, a document, and what cannot be read."""
    folder = tmp_path / "notes"
    (folder / "below").mkdir(parents=True)
    (folder / "a.md").write_text(
        f"---\ntitle: Boards\n---\n# Heat\n\n{prose(1, 20)}\n\n## Fan\n\nx"
    )
    (folder / "below" / "é 'b'.txt").write_text(prose(2, 40))
    (folder / "copy.txt").write_text(prose(3))
    (folder / "below" / "copy.txt").write_text(prose(3))
    (folder / "empty.txt").write_text(" \n")
    (folder / "binary.txt").write_bytes(b"x\0")
    rows(folder / "r.jsonl", *({"id": f"m{n}", "text": prose(n), "n": n} for n in range(5)))
    (folder / "page.html").write_text(
        f"<html><body><h1>Page</h1><p>{prose(9, 20)}</p></body></html>"
    )
    return folder


def rows(path: Path, *what: Any) -> None:
    path.write_text("".join(f"{json.dumps(one)}\n" for one in what))


def said(*words: str | Path, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


class Both:
    """The same commands to a store in a directory and one in LanceDB."""

    def __init__(self, folder: Path, model: str) -> None:
        self.own, self.table = str(folder / "own"), f"lance://{folder}/table"
        self.embedder = Embedder(model)
        self.running = False

    def run(self, *words: str | Path, code: int = 0) -> dict[str, Any]:
        """Run a command on both; they answer the same, and are the same afterwards."""
        self.running = True
        told = [said(*words, "--store", place, code=code) for place in (self.own, self.table)]
        self.running = False
        for one in told:
            one.pop("seconds", None)
        assert told[0] == told[1]
        self.check()
        answer: dict[str, Any] = told[0]
        return answer

    def check(self) -> None:
        with (
            HybridStore(self.own, self.embedder) as own,
            HybridStore(self.table, self.embedder, read_only=True) as table,
        ):
            held = contents(own)
            assert contents(table) == held
            vectors = own.vectors(held)
            for key, vector in table.vectors(held).items():
                assert np.array_equal(vector, vectors[key])
        assert said("store", "ls", self.own) == said("store", "ls", self.table)

    def searched(self) -> None:
        """The table is searched as a new directory of the same: its own counts deleted words."""
        with (
            tempfile.TemporaryDirectory() as folder,
            HybridStore(Path(folder) / "copy", self.embedder) as copy,
            HybridStore(self.table, self.embedder, read_only=True) as table,
        ):
            vectors = table.vectors(contents(table))
            copy.upsert(table.get(list(vectors)), list(vectors.values()))
            for question in QUESTIONS:
                one, two = copy.search(question, 500), table.search(question, 500)
                scores = {hit.id: hit.score for hit in one}
                assert len(scores) > 10
                assert {hit.id: hit.score for hit in two} == pytest.approx(scores, abs=1e-4)
                for first, second in zip(one, two, strict=True):  # what differs is as good
                    assert scores[first.id] == pytest.approx(scores[second.id], abs=1e-6)


def test_the_command_does_what_it_does_to_a_directory(
    embedder_dir: str, tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kreuzberg")
    monkeypatch.setenv("RERANK_MODEL", "")
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    both = Both(tmp_path, embedder_dir)
    short = ("--chunk-tokens", "40", "--overlap", "8")
    first = both.run("index", notes, *short, code=1)
    assert (first["indexed"], len(first["failures"]), len(first["copies"])) == (7, 1, 1)
    assert first["written"] == first["total"] > 30
    both.searched()

    made: list[str] = []
    embed = Embedder.embed

    def noted(self: Embedder, texts: list[str]) -> Any:
        made.extend(texts if both.running else ())
        return embed(self, texts)

    monkeypatch.setattr(Embedder, "embed", noted)
    again = both.run("index", notes, *short, code=1)
    assert (again["unchanged"], again["written"], again["deleted"], made) == (7, 0, 0, [])

    (notes / "a.md").write_text(f"# Cold\n\n{prose(1, 6)}")  # shorter
    (notes / "below" / "é 'b'.txt").rename(notes / "c.txt")
    (notes / "copy.txt").unlink()
    (notes / "binary.txt").unlink()
    rows(notes / "r.jsonl", {"id": "m1", "text": prose(1), "n": 1}, {"id": "m9", "text": "river"})
    changed = both.run("index", notes, *short)
    assert (changed["indexed"], len(changed["vanished"])) == (3, 2)
    assert changed["deleted"] > 0
    assert not [text for text in made if "Note 2." in text]  # what was moved is not embedded again
    made.clear()
    pruned = both.run("index", notes, *short, "--prune")
    assert (pruned["indexed"], pruned["unchanged"], len(pruned["vanished"])) == (0, 6, 2)
    assert pruned["deleted"] > 0
    assert made == []

    rows(
        notes / "r.jsonl",
        {"id": "m1", "text": "a sofa"},
        {"id": "m1", "text": "twice"},
        {"text": 1},
    )
    assert len(both.run("index", notes, *short, code=1)["failures"]) == 2
    rows(notes / "s.jsonl", {"id": "m9", "text": "of another file"})
    assert "already used by" in str(both.run("index", notes, *short, code=1)["failures"])
    (notes / "r.jsonl").unlink()  # then its ids are free
    assert both.run("index", notes, *short)["indexed"] == 1

    moved = notes.rename(tmp_path / "elsewhere")
    for place in (both.own, both.table):
        assert said("store", "mv", place, notes, moved)["sources"] == 7
    both.check()
    for place in (both.own, both.table):
        assert said("store", "rm", place, "*.html")["sources"] == 1
    assert both.run("index", moved, *short, "--prune")["indexed"] >= 1
    both.searched()
    for place in (both.own, both.table):
        facts = said("store", "info", place)
        assert (facts["sources"], facts["passages"]) == (6, facts["passages_of_sources"])
        found = said("query", "sleep", "--store", place, "--path", moved / "c.txt")["passages"]
        assert {one["metadata"]["source"] for one in found} == {str(moved / "c.txt")}


def test_a_slip_makes_no_store_and_another_chunk_size_cuts_anew(
    embedder_dir: str, tmp_path: Path, notes: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    done = CliRunner().invoke(app, ["index", str(tmp_path / "no"), "--store", address])
    assert done.exit_code == 1
    assert f"no store was made at {address}" in " ".join(done.output.split())
    assert "There is no store" in CliRunner().invoke(app, ["store", "ls", address]).output
    assert not (tmp_path / "shared").exists()
    assert index(tmp_path / "no", address).failures
    file = notes / "below" / "é 'b'.txt"
    whole = index(file, address)
    assert (whole.indexed, index(file, address).unchanged) == (1, 1)
    small = index(file, address, chunk_tokens=20, overlap=0)
    assert small.indexed == 1
    assert small.written > whole.written
    assert index(file, address, chunk_tokens=20, overlap=0).unchanged == 1


def test_a_root_that_moved(tmp_path: Path, notes: Path, address: str, tokenizer: Path) -> None:
    """Another machine has the folder elsewhere: the names stay, and nothing is embedded again."""
    from tars_rag.ingest.root import Root

    splitter = Splitter(tokenizer, 66, overlap=8)
    with HybridStore(address, HashEmbedder()) as store:
        first = ingest(store, [notes], splitter, root=Root.at(notes))
        assert "copy.txt#0" in contents(store)
        moved = notes.rename(tmp_path / "elsewhere")
        again = ingest(store, [moved], splitter, root=Root.at(moved), prune=True)
        assert (again.unchanged, again.written, again.deleted) == (first.indexed, 0, 0)
        (tmp_path / "other").mkdir()
        with pytest.raises(Exception, match="still has them"):
            ingest(store, [moved], splitter, root=Root.at(tmp_path / "other"))


def test_what_others_change_is_put_right(notes: Path, address: str, tokenizer: Path) -> None:
    """Passages that are deleted, replaced or were there before, by whoever writes the table."""
    splitter = Splitter(tokenizer, 66, overlap=8)
    with HybridStore(address, HashEmbedder()) as store:
        store.upsert([Passage("m0", "of nobody"), Passage("m1", prose(1), {"source": "x"}), MINE])
        ingest(store, [notes], splitter)
        right = contents(store)
        assert len(right) > 20
        store.delete(["m2", "m3"])
        store.upsert([Passage("m4", "by another")])
        report = ingest(store, [notes], splitter)
        assert (report.indexed, report.written) == (1, 3)
        assert contents(store) == right
        (notes / "r.jsonl").unlink()
        assert ingest(store, [notes], splitter, prune=True).deleted == 5
        assert {MINE.id} < contents(store).keys()
    # What was loaded with its vectors belongs to no file, until the file is indexed.
    with HybridStore(f"{address}-2", HashEmbedder()) as store:
        held = [Passage(key, *content) for key, content in right.items()]
        store.upsert(held)
        embedder = Counting()
        store.embedder = embedder
        report = ingest(store, [notes], splitter)
        assert (report.written, embedder.texts) == (0, [])
        (notes / "copy.txt").unlink()
        assert ingest(store, [notes], splitter, prune=True).deleted == 1


MINE = Passage("mine", "a passage of nobody's file", {"source": "nowhere"})


class Counting(HashEmbedder):
    """Knows what it embedded; does something before the nth time."""

    def __init__(self, before: int = -1, do: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._calls, self._before, self._do = 0, before, do

    def embed(self, texts: Any) -> NDArray[np.float32]:
        if self._calls == self._before and self._do is not None:
            self._do()
        self._calls += 1
        self.texts += texts
        return super().embed(texts)


def test_killed_and_run_again(tmp_path: Path, address: str, tokenizer: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for n in range(10):
        (folder / f"{n}.txt").write_text(prose(n, 80))
    new = multiprocessing.get_context("spawn")
    process = new.Process(target=child.index, args=(address, folder, tokenizer, 1))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with HybridStore(address, HashEmbedder(), read_only=True) as store:
        before = store.get()
    assert 64 <= len(before) < len(expected(folder, Splitter(tokenizer, 66, overlap=8)))
    embedder, splitter = Counting(), Splitter(tokenizer, 66, overlap=8)
    with HybridStore(address, embedder) as store:
        report = ingest(store, [folder], splitter)
        assert not {one.indexed for one in before} & set(embedder.texts)
        assert len(set(embedder.texts)) == len(embedder.texts) == report.written - report.reused
        assert 0 < report.unchanged < 10
        assert report.indexed + report.unchanged == 10
        assert contents(store) == expected(folder, splitter)
        assert ingest(store, [folder], splitter).unchanged == 10


def expected(folder: Path, splitter: Splitter) -> dict[str, tuple[str, dict[str, Any]]]:
    """What the files give."""
    with DocumentReader() as reader:
        found = [
            piece.passage
            for path in sorted(folder.iterdir())
            for piece in pieces(path, splitter, reader)
        ]
    return {one.id: (one.text, dict(one.metadata)) for one in found if one is not None}


def write(folder: Path, lines: list[int]) -> None:
    """A file of these rows, whose ids are their numbers in the file."""
    text = "".join(
        f"{json.dumps({'id': f'r{n}', 'text': f'note {what}'})}\n" for n, what in enumerate(lines)
    )
    (folder / "r.jsonl").write_text(text)


_lines = st.lists(st.integers(0, 9), min_size=1, max_size=9)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    older=_lines,
    newer=_lines,
    final=_lines,
    before=st.sampled_from(["embed", "embedded", "finish", "ids", "reopen"]),
    at=st.integers(0, 3),
    within=st.integers(-1, 3),
    again=st.booleans(),
)
def test_two_machines_and_a_file_that_changes(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Path,
    older: list[int],
    newer: list[int],
    final: list[int],
    before: str,
    at: int,
    within: int,
    again: bool,
) -> None:
    """One comes between any two steps of another, and may break off; the next run is right."""
    folder = tmp_path_factory.mktemp("two")
    address, notes = f"lance://{folder}/store", folder / "notes"
    notes.mkdir()
    splitter = Splitter(tokenizer, 66, overlap=8)

    def fall() -> None:
        raise StoreError("gone")

    def meanwhile() -> None:
        write(notes, newer)
        embedder = Counting(within, fall)
        with contextlib.suppress(StoreError), HybridStore(address, embedder) as store:
            ingest(store, [notes], splitter)
        if again:
            write(notes, older)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ingest_run, "_BATCH", 2)
        write(notes, older)
        if again:
            with HybridStore(address, HashEmbedder()) as store:
                ingest(store, [notes], splitter)
            write(notes, [*older, 10, 11])
        embedder = Counting(at, meanwhile) if before == "embed" else HashEmbedder()
        with HybridStore(address, embedder) as store, pytest.MonkeyPatch.context() as once:
            if before != "embed":
                do, calls = getattr(Files, before), iter(range(99))

                def step(*arguments: Any) -> Any:
                    if next(calls) == at:
                        once.undo()
                        meanwhile()
                    return do(*arguments)

                once.setattr(Files, before, step)
            ingest(store, [notes], splitter)
        for lines in (None, final):
            if lines is not None:
                write(notes, lines)
            with HybridStore(address, HashEmbedder()) as store:
                ingest(store, [notes], splitter)
                assert contents(store) == expected(notes, splitter)
                for one in store.get():
                    made = store.embedder.embed([one.indexed])[0]
                    assert np.array_equal(store.vectors([one.id])[one.id], made)


def test_two_processes_index_one_folder_at_once(
    tmp_path: Path, address: str, tokenizer: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for n in range(40):
        (folder / f"{n}.txt").write_text(prose(n, 30))
    new = multiprocessing.get_context("spawn")
    other = new.Process(target=child.index, args=(address, folder, tokenizer))
    other.start()
    splitter = Splitter(tokenizer, 66, overlap=8)
    with HybridStore(address, HashEmbedder()) as store:
        while other.is_alive() and not store.count():
            time.sleep(0.01)
        ingest(store, [folder], splitter)
    other.join(60)
    assert other.exitcode == 0
    with HybridStore(address, HashEmbedder()) as store:
        assert contents(store) == expected(folder, splitter)
        report = ingest(store, [folder], splitter)
        assert (report.unchanged, report.written) == (40, 0)
        assert store.count() == len(contents(store))


@pytest.fixture
def server(
    embedder_dir: str, address: str, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of a store in LanceDB at ``tars-rag serve``, which follows a folder."""
    pytest.importorskip("fastapi")
    pytest.importorskip("mcp")
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    monkeypatch.setenv("RERANK_MODEL", "")
    command = [sys.executable, "-m", "tars_rag", "serve", "--store", f"notes={address}"]
    command += ["--watch", str(notes), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        try:
            found, seen = None, ""
            for line in process.stderr:
                seen += line
                found = found or re.search(r"running on (https?://[\d.:]+)", line)
                if found and "files indexed" in seen:
                    break
            assert found, seen
            yield f"{found[1]}/notes"
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
            assert process.wait(60) == 0


@pytest.mark.enable_socket
def test_a_server_has_such_a_store(server: str, address: str, embedder_dir: str) -> None:
    with HybridStore(server) as served:
        files = served.count()
        assert files > 5
        served.upsert([Passage("one", "a cat and a dog sleep", {"topic": "cat"})])
        assert served.search("cat and dog", 1)[0].id == "one"
        assert served.search("cat", 5, where={"topic": "cat"})[0].passage.text.startswith("a cat")
        with Embedder(embedder_dir) as embedder, HybridStore(address, embedder) as here:
            here.upsert([Passage("two", "a fish and a bird", {"topic": "fish"})])
            assert [one.id for one in served.get(["one", "two"])] == ["one", "two"]  # at once
            assert served.delete(where={"topic": "cat"}) == 1
            assert here.get(["one"]) == []
            assert served.delete(["two"]) == 1
            assert served.count() == here.count() == files
