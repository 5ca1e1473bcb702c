"""Parquet files: a store out, and in again, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage
from tars_rag.errors import FingerprintError, InvalidInputError
from tars_rag.ingest.vector_files import export_parquet, import_parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.slow

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
def test_a_file_that_cannot_be_loaded_leaves_the_store_as_it_was(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    pq.write_table(table(**changed), tmp_path / "f")
    with HybridStore(tmp_path / "t", HashEmbedder(2)) as other:
        with pytest.raises(InvalidInputError, match=told):
            import_parquet(tmp_path / "f", other)
        assert other.count() == 0


def test_an_id_that_comes_again_far_away_is_found(tmp_path: Path) -> None:
    ids = [f"p{n}" for n in range(3000)]
    ids[2900] = "p5"
    many = table(id=ids, text=ids, vector=pa.array([[1.0, 0.5]] * 3000))
    pq.write_table(many, tmp_path / "f")
    with HybridStore(tmp_path / "t", HashEmbedder(2)) as other:
        with pytest.raises(InvalidInputError, match=r"'p5' in row 5 and again in row 2900"):
            import_parquet(tmp_path / "f", other)
        assert other.count() == 0


def test_vectors_of_another_kind_are_refused(store: HybridStore, tmp_path: Path) -> None:
    export_parquet(store.local_path, tmp_path / "f")
    with HybridStore(tmp_path / "t", HashEmbedder(name="other")) as other:
        with pytest.raises(FingerprintError, match="hash:32.*other:32"):
            import_parquet(tmp_path / "f", other)
        assert other.count() == 0
    pq.write_table(table().replace_schema_metadata({}), tmp_path / "g")
    with pytest.raises(InvalidInputError, match="no tars_rag.fingerprint"):
        import_parquet(tmp_path / "g", store)


def test_damage_is_an_error(store: HybridStore, tmp_path: Path) -> None:
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
            with pytest.raises(InvalidInputError, match="cannot be loaded"):
                import_parquet(tmp_path / "f", other)
        assert other.count() == 0


def test_a_file_is_not_written_where_something_else_is(store: HybridStore, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("keep")
    with pytest.raises(InvalidInputError, match="no Parquet file"):
        export_parquet(store.local_path, tmp_path / "note")
    with pytest.raises(InvalidInputError, match="lies in the store"):
        export_parquet(store.local_path, store.local_path / "f")
    assert (tmp_path / "note").read_text() == "keep"
