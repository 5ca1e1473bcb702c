"""Files to a Parquet file of vectors: every passage once, and nothing embedded again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage
from tars_rag.cli import app
from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.ingest import embed_files as module
from tars_rag.ingest.embed_files import EmbedReport, Shard, embed_files
from tars_rag.ingest.vector_files import import_parquet
from tars_rag.splitting.splitter import Splitter
from tiny_models import *  # noqa: F403  (fixtures)

pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")


class Kind(HashEmbedder):
    model = "hash"

    def __init__(self, name: str = "hash") -> None:
        super().__init__(32, name)
        self.seen: list[str] = []
        self.most = 10**9

    def vectors(self, shards: Iterable[Shard]) -> Iterator[tuple[int, Any]]:
        """Two shards ahead and in the other order, as a cluster may answer."""
        waiting: list[Shard] = []
        for shard in shards:
            waiting.append(shard)
            if len(waiting) == 2:
                yield from map(self.answer, reversed(waiting))
                waiting.clear()
        yield from map(self.answer, waiting)

    def answer(self, shard: Shard) -> tuple[int, Any]:
        if len(self.seen) >= self.most:
            raise KeyboardInterrupt
        self.seen += shard[1]
        return shard[0], self.embed(shard[1])


@pytest.fixture(scope="session")
def splitter(tiny_models: Path) -> Splitter:
    return Splitter(tiny_models / "tiny" / "tokenizer.json", max_length=34, overlap=8)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD", 10)


def write_rows(path: Path, count: int, begin: int = 0) -> Path:
    rows = [{"id": f"d{n}", "text": f"cat number {n}", "n": n} for n in range(begin, begin + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(splitter: Splitter, kind: Kind, paths: list[Path], output: Path) -> EmbedReport:
    return embed_files(paths, output, splitter, kind, kind.vectors)


def test_a_file_of_vectors_is_what_a_store_takes(splitter: Splitter, tmp_path: Path) -> None:
    rows, note = write_rows(tmp_path / "rows.jsonl", 25), tmp_path / "note.md"
    note.write_text("# Kettle\n\nIt is in the kitchen.\n")
    kind, output = Kind(), tmp_path / "out.parquet"
    report = run(splitter, kind, [rows, note], output)
    assert (report.passages, report.embedded, report.failures) == (26, 26, [])
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "note.md", "out.parquet"}
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        assert import_parquet(output, store) == 26
        held = {passage.id: passage for passage in store.get()}
        assert held["d7"].metadata["n"] == 7
        assert sorted(kind.seen) == sorted(passage.indexed for passage in held.values())
        vectors = store.vectors(held)
        for key, passage in held.items():
            assert np.array_equal(vectors[key], kind.embed([passage.indexed])[0])


def test_what_was_done_before_a_cut_is_not_done_again(splitter: Splitter, tmp_path: Path) -> None:
    rows, output = write_rows(tmp_path / "rows.jsonl", 95), tmp_path / "out.parquet"
    first = Kind()
    first.most = 40
    with pytest.raises(KeyboardInterrupt):
        run(splitter, first, [rows], output)
    assert not output.exists()
    second = Kind()
    report = run(splitter, second, [rows], output)
    assert (report.passages, report.embedded) == (95, 55)
    assert not set(first.seen) & set(second.seen)
    whole = Kind()
    run(splitter, whole, [rows], tmp_path / "other.parquet")
    assert pq.read_table(output).equals(pq.read_table(tmp_path / "other.parquet"))


def test_parts_of_another_model_or_other_texts_are_not_taken(
    splitter: Splitter, tmp_path: Path
) -> None:
    rows, output = write_rows(tmp_path / "rows.jsonl", 95), tmp_path / "out.parquet"
    first = Kind()
    first.most = 40
    with pytest.raises(KeyboardInterrupt):
        run(splitter, first, [rows], output)
    assert run(splitter, Kind("other"), [rows], tmp_path / "out.parquet").embedded == 95
    first.seen.clear()
    with pytest.raises(KeyboardInterrupt):
        run(splitter, first, [rows], output)
    rows.write_text(rows.read_text().replace("cat number 12", "dog number 12"))
    assert run(splitter, Kind(), [rows], output).embedded == 95 - 30
    assert "dog number 12" in pq.read_table(output).column("text").to_pylist()
    assert not (tmp_path / "out.parquet.parts").exists()


def test_an_id_is_there_once_and_the_second_is_told(splitter: Splitter, tmp_path: Path) -> None:
    one, two = write_rows(tmp_path / "1.jsonl", 12), write_rows(tmp_path / "2.jsonl", 5, 10)
    report = run(splitter, Kind(), [one, two], tmp_path / "out.parquet")
    assert report.passages == 15
    assert [(Path(source).name, "'d1" in problem) for source, problem in report.failures] == [
        ("2.jsonl", True),
        ("2.jsonl", True),
    ]
    ids = pq.read_table(tmp_path / "out.parquet").column("id").to_pylist()
    assert len(ids) == len(set(ids)) == 15


def test_parquet_without_vectors_goes_in(splitter: Splitter, tmp_path: Path) -> None:
    long = "the cat sleeps " * 40
    table = pa.table({"id": ["a", "b"], "text": ["x", long], "metadata": ['{"n": 1}', None]})
    pq.write_table(table, tmp_path / "in.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but no more")
    inputs = [tmp_path / "in.parquet", tmp_path / "bad.parquet"]
    report = run(splitter, Kind(), inputs, tmp_path / "out.parquet")
    assert [Path(source).name for source, _ in report.failures] == ["bad.parquet"]
    held = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (held[0]["id"], json.loads(held[0]["metadata"])) == ("a", {"n": 1})
    assert [row["id"] for row in held[1:]] == [f"b#{n}" for n in range(len(held) - 1)]
    assert len(held) > 2


def test_two_at_once_and_damage_are_told(splitter: Splitter, tmp_path: Path) -> None:
    rows, output = write_rows(tmp_path / "rows.jsonl", 45), tmp_path / "out.parquet"

    class Nested(Kind):
        def answer(self, shard: Shard) -> tuple[int, Any]:
            with pytest.raises(StoreError, match="Another process is writing"):
                run(splitter, Kind(), [rows], output)
            return super().answer(shard)

    kind = Nested()
    kind.most = 20
    with pytest.raises(KeyboardInterrupt):
        run(splitter, kind, [rows], output)
    part = next((tmp_path / "out.parquet.parts").iterdir())
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 255
    part.write_bytes(data)
    with pytest.raises(StoreError, match="Repeat the command"):
        run(splitter, Kind(), [rows], output)
    report = run(splitter, Kind(), [rows], output)
    assert (report.passages, report.embedded) == (45, 10)


def test_nothing_is_written_where_something_else_is(splitter: Splitter, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 5)
    with pytest.raises(InvalidInputError, match="no Parquet file"):
        run(splitter, Kind(), [rows], rows)
    empty = tmp_path / "empty.txt"
    empty.write_text(" ")
    with pytest.raises(InvalidInputError, match="no text to embed"):
        run(splitter, Kind(), [empty, tmp_path / "gone"], tmp_path / "out.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "empty.txt"}
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(StoreError, match="cannot be written"):
            run(splitter, Kind(), [rows], tmp_path / "out.parquet")
        tmp_path.chmod(0o700)


class Gap(Kind):
    def vectors(self, shards: Iterable[Shard]) -> Iterator[tuple[int, Any]]:
        yield from list(super().vectors(shards))[1:]


def test_a_shard_that_does_not_come_back_is_an_error(splitter: Splitter, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 45)
    with pytest.raises(StoreError, match="without vectors"):
        run(splitter, Gap(), [rows], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=4), count=st.integers(1, 60))
def test_however_often_it_is_cut_the_file_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, splitter: Splitter, cuts: list[int], count: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    rows, output = write_rows(folder / "rows.jsonl", count), folder / "out.parquet"
    embedded = 0
    for cut in [*cuts, 10**9]:
        kind = Kind()
        kind.most = cut
        try:
            run(splitter, kind, [rows], output)
        except KeyboardInterrupt:
            embedded += len(kind.seen)
            assert not output.exists()
            continue
        embedded += len(kind.seen)
        break
    assert embedded == count
    assert pq.read_table(output).column("id").to_pylist() == [f"d{n}" for n in range(count)]


def test_the_command_asks_for_an_output(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["embed", str(write_rows(tmp_path / "rows.jsonl", 1))])
    assert done.exit_code == 2
    assert "Parquet file to write" in " ".join(done.output.split())


def test_the_command_embeds(tmp_path: Path, embedder_dir: str, splitter: Splitter) -> None:
    rows, output = write_rows(tmp_path / "rows.jsonl", 12), tmp_path / "out.parquet"
    words = ["embed", str(rows), str(output), "--model", str(embedder_dir), "--device", "cpu"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "12 passages embedded" in done.output
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "x", "text": 3}\n{"id": "y", "text": "fine"}\n')
    done = CliRunner().invoke(app, [*words[:1], str(bad), *words[1:], "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["passages"], len(told["failures"])) == (13, 1)
    assert Passage("y", "fine").id in pq.read_table(output).column("id").to_pylist()
