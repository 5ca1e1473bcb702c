"""The private formats of Chroma and tantivy: as the installed versions write them, and otherwise.

The first tests look at an index that the installed version has just written. When one of them fails
a new release has another layout: read what changed, teach `chroma_layout` or `tantivy_files` to
read it, then move the row in `guests` and the pin in pyproject.toml.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import HashEmbedder
from store_child import passage
from tars_rag.errors import StoreError, UnknownLayoutError
from tars_rag.guests import CHROMA, GUESTS, RKNN, TANTIVY, Guest
from tars_rag.retrieval.indexes.chroma import layout as chroma_layout
from tars_rag.retrieval.indexes.chroma.files import Seal
from tars_rag.retrieval.indexes.words import files as tantivy_files
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.store import HybridStore

VECTORS = 1100
"""So many that Chroma saves once."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that the installed versions wrote: vectors saved, passages deleted."""
    path = tmp_path_factory.mktemp("guests") / "store"
    vectors = np.random.default_rng(0).standard_normal((VECTORS, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert([passage(f"p{n}", 1) for n in range(VECTORS)], vectors)
        store.delete(["p7"])
    return path


@pytest.fixture
def path(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "store"))


def vectors_of(path: Path) -> Path:
    [saved] = path.glob(f"chroma/*/{chroma_layout.SAVED}")
    return saved.parent


# --- as the installed versions write them -------------------------------------------------------


@pytest.mark.parametrize("guest", [CHROMA, TANTIVY], ids=lambda guest: guest.name)
def test_the_installed_version_is_one_of_those_tested(guest: Guest) -> None:
    assert guest.installed
    assert guest.is_tested(guest.installed)


def test_the_pins_are_what_was_tested() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for guest in GUESTS:
        assert re.findall(rf'"({guest.name}[<>=][^";]*)', project) == [guest.pin]


def test_the_tables_of_chroma(written: Path) -> None:
    with chroma_layout.database(written / "chroma" / chroma_layout.DATABASE) as database:
        for table, wanted in chroma_layout.TABLES.items():
            columns = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
            assert wanted == columns if table == "max_seq_id" else wanted <= columns
        segments = set(database.execute("SELECT scope, type FROM segments"))
        assert segments == chroma_layout.SEGMENTS
        [saves] = database.execute(
            "SELECT typeof(seq_id), seq_id FROM max_seq_id m JOIN segments s ON m.segment_id = s.id"
            " WHERE scope = 'VECTOR'"
        )
        assert saves[0] == "integer"
        assert VECTORS >= saves[1] >= 1000


def test_the_vector_files_of_chroma(written: Path) -> None:
    folder = vectors_of(written)
    assert {file.name for file in folder.iterdir()} == chroma_layout.VECTOR_FILES
    header = (folder / "header.bin").read_bytes()
    assert len(header) == chroma_layout.HEADER.size
    version, level0, capacity, count, record, label, vector, *rest = chroma_layout.HEADER.unpack(
        header
    )
    _, _, max_m, max_m0, m, multiplier, construction = rest
    assert (version, level0, vector) == (1, 0, 4 + 4 * max_m0)
    assert (label, record) == (vector + 4 * 32, vector + 4 * 32 + 8)
    assert 1000 <= count <= min(VECTORS, capacity)
    assert (max_m, max_m0) == (m, 2 * m)
    assert multiplier == pytest.approx(1 / np.log(m))
    assert construction > 0
    assert (folder / "data_level0.bin").stat().st_size >= count * record
    assert (folder / "length.bin").stat().st_size >= 4 * count
    links = (folder / "link_lists.bin").read_bytes()
    at = 0
    for _ in range(count):
        at += 4 + int.from_bytes(links[at : at + 4], "little")
    assert at == len(links)
    assert not chroma_layout.cut_short(folder)


def test_the_files_of_tantivy(written: Path) -> None:
    folder = written / "lexical"
    meta = json.loads((folder / "meta.json").read_text())
    seen = set()
    for segment in meta["segments"]:
        stem = segment["segment_id"].replace("-", "")
        names = {file.name.partition(".")[2] for file in folder.glob(f"{stem}.*")}
        deletes = {f"{segment['deletes']['opstamp']}.del"} if segment["deletes"] else set()
        assert deletes <= names
        assert {name for name in names if not name.endswith(".del")} == {*tantivy_files.SUFFIXES}
        seen |= deletes
        for file in folder.glob(f"{stem}.*"):
            content = file.read_bytes()
            length, magic = struct.unpack("<II", content[-8:])
            footer = json.loads(content[-8 - length : -8])
            assert magic == tantivy_files.MAGIC
            assert footer.keys() == {"version", "crc"}
            assert footer["version"]["index_format_version"] == tantivy_files.FORMAT_VERSION
    assert seen, "nothing was deleted"
    assert tantivy_files.damage(folder) is None


# --- otherwise ----------------------------------------------------------------------------------


def sql(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with sqlite3.connect(path / "chroma" / chroma_layout.DATABASE) as connection:
            connection.execute(statement)
        connection.close()

    return change


def header(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        file = vectors_of(path) / "header.bin"
        file.write_bytes(change(file.read_bytes()))

    return rewrite


TABLES = {
    "a column renamed": sql("ALTER TABLE segments RENAME COLUMN scope TO kind"),
    "a column gone": sql("ALTER TABLE collections RENAME COLUMN name TO title"),
    "a table renamed": sql("ALTER TABLE max_seq_id RENAME TO log_positions"),
    "another vector index": sql(
        "UPDATE segments SET type = 'urn:chroma:segment/vector/spann' WHERE scope = 'VECTOR'"
    ),
    "another scope": sql("UPDATE segments SET scope = 'DENSE' WHERE scope = 'VECTOR'"),
    "another column of values": sql(
        "ALTER TABLE collection_metadata RENAME COLUMN str_value TO text_value"
    ),
    "seq_id as bytes": sql("UPDATE max_seq_id SET seq_id = x'0000000000000064'"),
}
VECTOR_FILES = {
    "a longer header": header(lambda content: content + bytes(8)),
    "another version of the header": header(lambda content: b"\2" + content[1:]),
    "fields in another place": header(lambda content: content[:4] + bytes(8) + content[4:-8]),
    "one more file": lambda path: (vectors_of(path) / "quantised.bin").write_bytes(b"x"),
    "saved under another name": lambda path: (vectors_of(path) / chroma_layout.SAVED).rename(
        vectors_of(path) / "index_metadata.json"
    ),
}
MESSAGE = r"layout this tars-rag does not know.*tested with chromadb 1\.5\.2 to 1\.5\.9"


@pytest.mark.parametrize("change", TABLES.values(), ids=TABLES)
def test_other_tables_are_called_another_layout(path: Path, change: Callable[[Path], None]) -> None:
    change(path)
    before = sorted(path.rglob("*"))
    with pytest.raises(UnknownLayoutError, match=MESSAGE):
        HybridStore(path, HashEmbedder())
    assert sorted(path.rglob("*")) == before, "something was set aside or made anew"


@pytest.mark.parametrize("change", VECTOR_FILES.values(), ids=VECTOR_FILES)
def test_other_vector_files_are_called_another_layout(
    path: Path, change: Callable[[Path], None]
) -> None:
    """As they are checked after Chroma has written: neither a full disk nor damage."""
    change(path)
    with pytest.raises(UnknownLayoutError, match=MESSAGE):
        Seal(path / "seal.json", path / "chroma").renew()


@pytest.mark.parametrize(
    "change", [VECTOR_FILES[name] for name in ("a longer header", "one more file")]
)
def test_other_vector_files_are_told_before_they_are_made_anew(
    path: Path, change: Callable[[Path], None]
) -> None:
    change(path)
    before = sorted(path.rglob("*"))
    with pytest.raises(UnknownLayoutError, match=MESSAGE):
        HybridStore(path, HashEmbedder())
    assert sorted(path.rglob("*")) == before, "something was set aside or made anew"


def test_a_file_that_was_cut_short_is_no_other_layout(path: Path) -> None:
    for name in ("header.bin", "data_level0.bin", "link_lists.bin", "length.bin"):
        file = vectors_of(path) / name
        whole = file.read_bytes()
        for content in (whole[:-9], b"", bytes(len(whole)) if name == "header.bin" else whole[:7]):
            file.write_bytes(content)
            with pytest.raises(OSError, match="No room"):
                Seal(path / "seal.json", path / "chroma").renew()
        file.write_bytes(whole)
    Seal(path / "seal.json", path / "chroma").renew()


def test_what_others_leave_in_the_directory_is_no_other_layout(path: Path) -> None:
    for name in (".nfs0001", ".DS_Store", "notes.txt"):
        (vectors_of(path) / name).write_bytes(b"x")
    Seal(path / "seal.json", path / "chroma").renew()
    [segment, *_] = (path / "lexical").glob("*.idx")
    shutil.copy(segment, segment.with_name(segment.name + ".bak"))
    assert tantivy_files.damage(path / "lexical") is None


def rewrite_footers(path: Path, change: Callable[[bytes], bytes], magic: int = 1337) -> None:
    for suffix in (*tantivy_files.SUFFIXES, "del"):
        for file in (path / "lexical").glob(f"*.{suffix}"):
            content = file.read_bytes()
            length = int.from_bytes(content[-8:-4], "little")
            footer = change(content[-8 - length : -8])
            tail = struct.pack("<II", len(footer), magic)
            file.write_bytes(content[: -8 - length] + footer + tail)


def rename(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        for file in (path / "lexical").glob(f"*.{old}"):
            file.rename(file.with_suffix(f".{new}"))

    return change


def add_component(path: Path) -> None:
    for file in (path / "lexical").glob("*.fast"):
        shutil.copy(file, file.with_suffix(".vec"))


def rename_key(path: Path) -> None:
    meta = path / "lexical" / "meta.json"
    meta.write_text(meta.read_text().replace('"segments"', '"parts"'))


LEXICAL = {
    "a suffix renamed": rename("fieldnorm", "norms"),
    "one more file a segment": add_component,
    "another format version": lambda path: rewrite_footers(
        path, lambda footer: footer.replace(b'_version":7', b'_version":8')
    ),
    "another magic number": lambda path: rewrite_footers(path, lambda footer: footer, 1338),
    "no checksum": lambda path: rewrite_footers(path, lambda f: f.replace(b'"crc"', b'"xxh"')),
    "another key": rename_key,
}


@pytest.mark.parametrize("change", LEXICAL.values(), ids=LEXICAL)
def test_other_files_of_tantivy_are_called_another_layout(
    path: Path, change: Callable[[Path], None]
) -> None:
    change(path)
    before = sorted((path / "lexical").iterdir())
    told = r"layout this tars-rag does not know.*tested with tantivy 0\.25\.0 to 0\.27\.0.*rm -r"
    with pytest.raises(UnknownLayoutError, match=told):
        HybridStore(path, HashEmbedder())
    assert sorted((path / "lexical").iterdir()) == before
    shutil.rmtree(path / "lexical")  # what the message says
    with HybridStore(path, HashEmbedder()) as store:
        assert store.count() == VECTORS - 1


def test_a_bit_in_the_name_of_a_key_is_damage(path: Path) -> None:
    meta = path / "lexical" / "meta.json"
    meta.write_text(meta.read_text().replace('"segments"', '"semments"'))
    assert "segments" in str(tantivy_files.damage(path / "lexical"))
    HybridStore(path, HashEmbedder()).close()
    assert check_store(path).ok


def test_the_check_says_it_too(path: Path) -> None:
    rewrite_footers(path, lambda footer: footer, 1338)
    try:
        said = " ".join(check_store(path).problems)
    except StoreError as error:
        said = str(error)
    assert "layout this tars-rag does not know" in said
    assert "damaged" not in said


# --- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "tested"),
    [
        ("2.3.2", True), ("2.4.0", True), ("2.5.0", True), ("2.3.1", False), ("2.5.1", False),
        ("2.10.0", False), ("2.5.0rc1", False), ("2.5.0+local", False), ("not", False),
    ],
)  # fmt: skip
def test_what_counts_as_tested(version: str, tested: bool) -> None:
    assert RKNN.is_tested(version) == tested


def test_with_an_untested_version_the_command_installs_a_tested_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guest, "installed", "9.9")
    rewrite_footers(path, lambda footer: footer, 1338)
    told = r"9\.9 is installed.*pip install 'tantivy>=0\.25\.0,<=0\.27\.0'"
    with pytest.raises(UnknownLayoutError, match=told):
        tantivy_files.damage(path / "lexical")
    header(lambda content: content[:96])(path)
    with pytest.raises(UnknownLayoutError, match=r"header\.bin of 96 bytes"):
        Seal(path / "seal.json", path / "chroma").renew()
