"""Parquet files: a store out, and in again, to the last bit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage, advice
from tars_rag.cli import app
from tars_rag.errors import ConfigError, FingerprintError, InvalidInputError
from tars_rag.ingest.vector_files import export_parquet, import_parquet, load_parquet
from tars_rag.retrieval.storage.store_json import read_store_json

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

slow = pytest.mark.slow
CHILD = Path(__file__).with_name("parquet_child.py")

ODD: dict[str, Any] = {
    "s": "naïve 🐟 \x00",
    "lone": "\ud83d\ude00",
    "n": 3,
    "big": 1 << 80,
    "f": 1.0,
    "yes": True,
    "none": None,
    "list": [1, 2],
    "deep": {"a": [{"b": None}]},
}
PASSAGES = [
    *(Passage(f"p{n}", f"the cat number {n} sleeps", {"n": n}) for n in range(300)),
    Passage("odd \udcff", "a lone \ud800 surrogate", ODD),
    Passage("tars-b64:x", "tars-b64:y", {}),
    Passage("empty", "", {"": 1}),
]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with HybridStore(tmp_path / "store", HashEmbedder(), language="de") as made:
        made.upsert(PASSAGES)
        yield made


def everything(store: HybridStore) -> tuple[dict[str, tuple[str, str]], dict[str, bytes]]:
    held = {p.id: (p.text, repr(dict(p.metadata))) for p in store.get()}
    return held, {key: row.tobytes() for key, row in store.vectors(held).items()}


def test_a_store_comes_back_to_the_last_bit(store: HybridStore, tmp_path: Path) -> None:
    file = tmp_path / "out.parquet"
    assert export_parquet(store.local_path, file) == len(PASSAGES)  # while it is open
    expected = everything(store)
    store.close()
    assert export_parquet(store.local_path, file) == len(PASSAGES)  # and closed, written over
    assert {path.name for path in tmp_path.iterdir()} == {"store", "out.parquet"}
    said = pq.read_schema(file).metadata
    assert said[b"tars_rag.fingerprint"] == b"hash:32"
    assert said[b"tars_rag.language"] == b"de"

    class Idle(HashEmbedder):
        def embed(self, texts: Any) -> Any:
            raise AssertionError

    with HybridStore(tmp_path / "new", Idle()) as other:
        seen: list[tuple[int, int | None]] = []
        count = import_parquet(file, other, lambda done, total: seen.append((done, total)))
        assert count == len(PASSAGES)
        assert seen == [(count, count)]
        assert everything(other) == expected
        other.delete(["p7"])
        assert import_parquet(file, other) == len(PASSAGES)
        assert everything(other) == expected


@slow
def test_an_empty_store_is_a_file_without_rows(tmp_path: Path) -> None:
    HybridStore(tmp_path / "s", HashEmbedder()).close()
    assert export_parquet(tmp_path / "s", tmp_path / "f") == 0
    with HybridStore(tmp_path / "t", HashEmbedder()) as other:
        assert import_parquet(tmp_path / "f", other) == 0


def table(**changed: Any) -> Any:
    rows = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
    columns: dict[str, Any] = {
        "id": ["a", "b", "c"],
        "text": ["x", "y", "z"],
        "vector": pa.array(rows, pa.list_(pa.float64())),
    }
    columns |= changed
    made = pa.table({name: held for name, held in columns.items() if held is not None})
    return made.replace_schema_metadata({"tars_rag.fingerprint": "hash:2"})


@slow
def test_files_of_other_programs_are_loaded(tmp_path: Path) -> None:
    pq.write_table(table(metadata=['{"n": 1}', None, "{}"]), tmp_path / "f")
    with HybridStore(tmp_path / "t", HashEmbedder(2)) as other:
        assert import_parquet(tmp_path / "f", other) == 3
        assert dict(other.get(["a"])[0].metadata) == {"n": 1}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"id": ["a", "b", "a"]}, "Ids occur more than once in one upsert: 'a'"),
        ({"id": ["a", None, "c"]}, "row 1 has no id"),
        ({"id": [1, 2, 3]}, "column id has int64"),
        ({"text": None}, "no single column text"),
        ({"metadata": ["{", "{}", "{}"]}, "metadata of row 0 .* no JSON"),
        ({"metadata": ["[]", "{}", "{}"]}, "must be a mapping"),
        ({"vector": pa.array([[1.0, 0.0], [np.nan, 1.0], [1.0, 1.0]])}, "'b' is all zeros or not"),
        ({"vector": pa.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])}, "'b' is all zeros or not"),
        ({"vector": pa.array([[1.0, 0.0], [1.0], [1.0, 1.0]])}, "have 1 or 2 numbers"),
        ({"vector": pa.array([[1.0, 0.0], None, [1.0, 1.0]])}, "have 0 or 2 numbers"),
        ({"vector": pa.array([[1.0, 0.0], [None, 1.0], [1.0, 1.0]])}, "null"),
        ({"vector": pa.array([[1.0, 0.0, 1.0]] * 3)}, "shape .* are needed"),
        ({"vector": ["a", "b", "c"]}, "column vector has string"),
    ],
)
@slow
def test_a_file_that_cannot_be_loaded_leaves_the_store_as_it_was(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    pq.write_table(table(**changed), tmp_path / "f")
    with HybridStore(tmp_path / "t", HashEmbedder(2)) as other:
        with pytest.raises(InvalidInputError, match=told):
            import_parquet(tmp_path / "f", other)
        assert other.count() == 0


@slow
def test_an_id_that_comes_again_far_away_is_found(tmp_path: Path) -> None:
    ids = [f"p{n}" for n in range(3000)]
    ids[2900] = "p5"
    many = table(id=ids, text=ids, vector=pa.array([[1.0, 0.5]] * 3000))
    pq.write_table(many, tmp_path / "f")
    with HybridStore(tmp_path / "t", HashEmbedder(2)) as other:
        with pytest.raises(InvalidInputError, match=r"'p5' in row 5 and again in row 2900"):
            import_parquet(tmp_path / "f", other)
        assert other.count() == 0


@slow
def test_vectors_of_another_kind_are_refused(store: HybridStore, tmp_path: Path) -> None:
    export_parquet(store.local_path, tmp_path / "f")
    with HybridStore(tmp_path / "t", HashEmbedder(name="other")) as other:
        with pytest.raises(FingerprintError, match=r"hash:32.*other:32"):
            import_parquet(tmp_path / "f", other)
        assert other.count() == 0
    pq.write_table(table().replace_schema_metadata({}), tmp_path / "g")
    with pytest.raises(InvalidInputError, match=r"no tars_rag\.fingerprint"):
        import_parquet(tmp_path / "g", store)


@slow
def test_a_text_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    raw = pa.array([b"x", b"\xff", b"z"], pa.binary())
    text = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    pq.write_table(table(text=text), tmp_path / "f")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_parquet(tmp_path / "f", tmp_path / "s")
    assert not (tmp_path / "s").exists()


@slow
def test_damage_is_an_error(store: HybridStore, tmp_path: Path) -> None:
    expected, refused = everything(store), 0
    export_parquet(store.local_path, tmp_path / "f")
    whole = (tmp_path / "f").read_bytes()
    with HybridStore(tmp_path / "t", HashEmbedder()) as other:
        for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
            (tmp_path / "f").write_bytes(whole[:size])
            with pytest.raises(InvalidInputError, match="cannot be read"):
                import_parquet(tmp_path / "f", other)
        for place in range(200, len(whole) // 2, len(whole) // 40):
            flipped = bytearray(whole)
            flipped[place] ^= 16
            (tmp_path / "f").write_bytes(flipped)
            try:
                import_parquet(tmp_path / "f", other)
            except InvalidInputError:
                refused += 1
                assert other.count() == 0
            else:  # a bit of a page's header that nothing depends on
                assert everything(other) == expected
                other.clear()
        assert refused > 0


@slow
def test_a_file_is_not_written_where_something_else_is(store: HybridStore, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("keep")
    with pytest.raises(InvalidInputError, match="no Parquet file"):
        export_parquet(store.local_path, tmp_path / "note")
    with pytest.raises(InvalidInputError, match="lies in the store"):
        export_parquet(store.local_path, store.local_path / "f")
    assert (tmp_path / "note").read_text() == "keep"


class Foreign(HashEmbedder):
    """Of another library: its fingerprint says too little, its probe what it makes of one text."""

    def __init__(self, *probe: float) -> None:
        super().__init__(len(probe), "lib.Model")
        self.probe = np.array(probe, np.float32)


@slow
def test_models_that_share_a_fingerprint_are_told_apart_by_the_probe(tmp_path: Path) -> None:
    file = tmp_path / "f"
    with HybridStore(tmp_path / "s", Foreign(0.1, 0.7)) as store:
        store.upsert([Passage("a", "x"), Passage("b", "y")])
        store.record_probe(np.array([0.1, 0.7], np.float32))
        export_parquet(store.local_path, file)
    load_parquet(file, tmp_path / "t")
    held = read_store_json(tmp_path / "t")
    assert held is not None
    assert held.probe == np.array([0.1, 0.7], np.float32).tolist()
    load_parquet(file, tmp_path / "t")  # the same again
    with HybridStore(tmp_path / "u", Foreign(0.7, 0.1)) as other:
        with pytest.raises(FingerprintError, match=r"cosine of 0\.280"):
            import_parquet(file, other)
        assert (other.count(), other.probe) == (0, None)
        other.record_probe(other.embedder.probe)  # type: ignore[attr-defined]
    with pytest.raises(FingerprintError, match=r"cosine of 0\.280"):
        load_parquet(file, tmp_path / "u")
    bare = {"tars_rag.fingerprint": "lib.Model:2"}
    pq.write_table(table().replace_schema_metadata(bare), tmp_path / "g")
    with pytest.raises(FingerprintError, match=r"g has no probe"):
        load_parquet(tmp_path / "g", tmp_path / "u")
    load_parquet(tmp_path / "g", tmp_path / "v")  # compared when its embeddings open it
    with pytest.raises(FingerprintError, match=r"v has no probe"):
        load_parquet(file, tmp_path / "v")
    for held_back in ("[0, 0]", "[[1]]", "{}", "[", '["a"]', "[NaN]"):
        meta = bare | {"tars_rag.probe": held_back}
        pq.write_table(table().replace_schema_metadata(meta), tmp_path / "g")
        with pytest.raises(InvalidInputError, match="no vector of numbers"):
            load_parquet(tmp_path / "g", tmp_path / "w")


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=re.escape(advice.install("parquet"))):
        load_parquet(tmp_path / "f", tmp_path / "s")
    assert not (tmp_path / "s").exists()


@slow
def test_a_file_that_is_refused_makes_no_store(tmp_path: Path) -> None:
    pq.write_table(table(id=["a", "b", "a"]), tmp_path / "f")
    with pytest.raises(InvalidInputError, match="'a'"):
        load_parquet(tmp_path / "f", tmp_path / "s")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_parquet(tmp_path / "none", tmp_path / "s")
    assert not (tmp_path / "s").exists()


@slow
def test_a_store_is_loaded_without_its_model(store: HybridStore, tmp_path: Path) -> None:
    expected = everything(store)
    export_parquet(store.local_path, tmp_path / "f")
    done = load_parquet(tmp_path / "f", tmp_path / "t")
    assert (done.passages, done.total) == (len(PASSAGES), len(PASSAGES))
    with HybridStore(tmp_path / "t", HashEmbedder()) as other:
        assert other.language == "de"
        assert everything(other) == expected
        assert other.search("the cat number 7 sleeps", 1)[0].id == "p7"
        other.delete(["p7"])
        child = [sys.executable, str(CHILD), "load", str(tmp_path / "f"), str(tmp_path / "t")]
        subprocess.run(child, check=True)  # beside it: a guest
        assert everything(other) == expected
    with HybridStore(tmp_path / "u", HashEmbedder(name="other")) as other:
        other.upsert([Passage("a", "x")])
    with pytest.raises(FingerprintError, match=r"tars-rag index --from-parquet .*f --store NEW"):
        load_parquet(tmp_path / "f", tmp_path / "u")
    with pytest.raises(ConfigError, match="relex"):
        load_parquet(tmp_path / "f", tmp_path / "t", language="fr")


def command(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@slow
def test_the_command_line_moves_a_store(store: HybridStore, tmp_path: Path) -> None:
    expected = everything(store)
    told = command("store", "export", store.path, tmp_path / "f", "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout) == {"path": str(tmp_path / "f"), "passages": len(PASSAGES)}
    assert "303 passages" in command("store", "export", store.path, tmp_path / "f").stdout
    load = ("index", "--from-parquet", tmp_path / "f", "--store", tmp_path / "t")
    done = command(*load, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["passages"], told["total"], told["fingerprint"]) == (303, 303, "hash:32")
    assert "303 passages loaded, made with hash:32" in command(*load).stdout
    with HybridStore(tmp_path / "t", HashEmbedder()) as other:
        assert everything(other) == expected


@pytest.mark.parametrize(
    "words", [["PATH"], ["--prune"], ["--model", "m"], ["--device", "cpu"], ["--overlap", "32"]]
)
def test_options_that_a_loaded_file_cannot_follow_are_refused(
    tmp_path: Path, words: list[str]
) -> None:
    place = tmp_path / "s"
    told = command("index", "--from-parquet", tmp_path / "f", "--store", place, *words)
    assert told.exit_code == 2
    assert not place.exists()


def killed(what: str, source: Path, target: Path, steps: int) -> None:
    """Kill a child of this kind after so many steps, wherever it is by then."""
    words = [sys.executable, str(CHILD), what, str(source), str(target)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(steps):
            assert process.stdout.readline()
        process.kill()


@slow
def test_killed_at_any_step_it_is_repeated(tmp_path: Path) -> None:
    count = 2500
    rows = np.random.default_rng(3).standard_normal((count, 8)).astype(np.float32)
    made = [Passage(f"p{n}", f"text {n}", {"n": n}) for n in range(count)]
    source, file = tmp_path / "s", tmp_path / "f"
    with HybridStore(source, HashEmbedder(8)) as store:
        store.upsert(made, rows)
        held = everything(store)
    for steps in (0, 1):
        before = file.read_bytes() if file.exists() else None
        killed("export", source, file, steps)
        now = file.read_bytes() if file.exists() else None
        assert now == before or pq.read_table(file).num_rows == count
    assert export_parquet(source, file) == count
    assert {path.name for path in tmp_path.iterdir()} == {"s", "f"}
    for steps in (0, 1, 2):
        killed("load", file, tmp_path / "t", steps)
    assert load_parquet(file, tmp_path / "t").total == count
    with HybridStore(tmp_path / "t", HashEmbedder(8)) as other:
        assert everything(other) == held
