"""What a store promises, where it once did not hold: types of metadata, odd paths, hot journals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage
from tars_rag.errors import FingerprintError, InvalidInputError, StoreError
from tars_rag.retrieval.maintenance import reembed
from tars_rag.retrieval.storage.check import check_store

COUNT = 30


def passages(flag: object = 1) -> list[Passage]:
    return [Passage(f"p{n}", f"word{n} text", {"flag": flag}) for n in range(COUNT)]


class Failing(HashEmbedder):
    """Ends after `left` calls, as a killed process would."""

    left = 2

    def embed(self, texts: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().embed(texts)


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, True), (True, 1), (1, 1.0), (0.0, 0), (0, False), ([1], [True]), ({"a": 1}, {"a": 1.0})],
)
def test_a_resumed_reembedding_takes_changed_metadata_type_for_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: object, after: object
) -> None:
    monkeypatch.setattr("tars_rag.retrieval.storage.rebuild._BATCH", 10)
    path, other = tmp_path / "store", HashEmbedder(48, "other")
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert(passages(before))
    with pytest.raises(KeyboardInterrupt):
        reembed(path, Failing(48, "other"))
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert(passages(after)[:5])
    reembed(path, other)
    report = check_store(path)
    assert report.ok, report.problems
    with HybridStore(path, other) as store:
        for got in (store.get(["p0"])[0], store.search("word0", 1, "lexical")[0]):
            assert repr(got.metadata["flag"]) == repr(after)
        assert repr(store.get(["p9"])[0].metadata["flag"]) == repr(before)


ODD_NAMES = ["my#store", "what?", "50%25", "a b&c=d", "100%", "ä#?%41", "-rf", "a;b", "mode=ro"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_check_looks_at_the_store_whatever_its_path_is_called(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "store"
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert(passages())
    beside = sorted(tmp_path.rglob("*"))
    assert check_store(path).ok
    assert sorted(tmp_path.rglob("*")) == beside, "the check has written something"
    database = path / "chroma" / "chroma.sqlite3"
    data = bytearray(database.read_bytes())
    data[4096 : 2 * 4096] = os.urandom(4096)
    database.write_bytes(data)
    assert "texts are damaged" in check_store(path).problems[0]


def test_a_hot_journal_is_no_damage(tmp_path: Path) -> None:
    """A process that died in a commit leaves a journal that the next reader rolls back."""
    path = tmp_path / "store"
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert(passages())
    database = path / "chroma" / "chroma.sqlite3"
    script = (
        "import sqlite3, sys, time\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 2')\n"
        "c.execute('BEGIN IMMEDIATE')\n"
        "c.execute('CREATE TABLE filler (x)')\n"
        "c.execute('INSERT INTO filler VALUES (randomblob(1000000))')\n"
        "c.execute('UPDATE embedding_metadata SET string_value = 1')\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(database)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        child.send_signal(signal.SIGKILL)
    journal = database.with_name(database.name + "-journal")
    assert journal.stat().st_size > 0, "no journal was left: the test shows nothing"
    report = check_store(path)
    assert report.ok, report.problems
    assert report.passages == COUNT


@pytest.mark.parametrize("row", [0.0, np.nan, np.inf, -np.inf])
def test_new_vectors_that_cannot_be_compared_are_refused(tmp_path: Path, row: float) -> None:
    class Broken(HashEmbedder):
        def embed(self, texts: Any) -> Any:
            rows = super().embed(texts)
            rows[len(rows) // 2] = row
            return rows

    path = tmp_path / "store"
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert(passages())
    with pytest.raises(StoreError, match=r"p15.*zeros or not finite.*old vectors are in use"):
        reembed(path, Broken(48, "other"))
    with HybridStore(path, HashEmbedder()) as store:
        assert store.search("word3", 1)[0].id == "p3"


# -- the embedder, by name -------------------------------------------------------------------------


class Named(HashEmbedder):
    def __init__(self, model: str, fingerprint: str) -> None:
        super().__init__(32)
        self.model, self.fingerprint = model, fingerprint


def test_a_refused_embedder_is_named_by_its_model(tmp_path: Path) -> None:
    HybridStore(tmp_path / "s", Named("small-en", "aa:mean:256:exact")).close()
    with pytest.raises(FingerprintError) as caught:
        HybridStore(tmp_path / "s", Named("large-en", "bb:mean:256:exact"))
    message = str(caught.value)
    assert "small-en" in message
    assert "large-en" in message
    assert f"tars-rag store reembed {tmp_path / 's'} --model large-en" in message
    assert "--precision" not in message


def test_another_precision_of_the_same_model_is_called_that(tmp_path: Path) -> None:
    HybridStore(tmp_path / "s", Named("small-en", "aa:mean:256:exact")).close()
    with pytest.raises(
        FingerprintError, match=r"precision differs \(exact, int8\).*precision fp32"
    ):
        HybridStore(tmp_path / "s", Named("small-en", "aa:mean:256:int8"))


def test_the_model_follows_a_change_of_embedder(tmp_path: Path) -> None:
    old, new = Named("old-en", "aa:mean:256:exact"), Named("new-en", "bb:mean:256:exact")
    with HybridStore(tmp_path / "s", old) as store:
        store.upsert(passages())
    reembed(tmp_path / "s", new)
    with pytest.raises(FingerprintError, match="made with the embedder new-en"):
        HybridStore(tmp_path / "s", old)


# -- where a store is ------------------------------------------------------------------------------


def test_a_path_is_one_place_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "notes")
    with HybridStore("~/notes", HashEmbedder()) as store:
        assert store.path == tmp_path / "notes"
        store.upsert(passages()[:1])
    for spelling in ("notes", "x/../notes", "./notes/", tmp_path / "notes", "link", "~/x/../notes"):
        with HybridStore(spelling, HashEmbedder()) as store:
            assert store.path == tmp_path / "notes"
            assert store.count() == 1
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    "path", [None, 3, b"bytes", object(), "nul\0inside", "~nobody-of-that-name/x"]
)
def test_what_is_no_path_is_refused_by_name(path: Any) -> None:
    with pytest.raises(InvalidInputError, match="not the path of a directory"):
        HybridStore(path, HashEmbedder())
