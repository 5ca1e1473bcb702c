"""The language of a store: given, kept, changed, and finished after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage
from tars_rag.errors import ConfigError, InvalidInputError, StoreError
from tars_rag.retrieval.maintenance import relex
from tars_rag.retrieval.storage.check import check_store

GERMAN = [
    Passage("haus", "Die Häuser am Fluss wurden gestrichen."),
    Passage("katze", "Zwei Katzen schlafen."),
    Passage("c", "Der C-Kurs beginnt um neun."),
]


def ids(store: HybridStore, query: str) -> list[str]:
    return [hit.id for hit in store.search(query, 5, "lexical")]


def test_a_store_keeps_its_language(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "s", HashEmbedder(), language="German") as store:
        assert store.language == "de"
        store.upsert(GERMAN)
        assert ids(store, "Haus") == ["haus"]
    with HybridStore(tmp_path / "s", HashEmbedder()) as store:
        assert store.language == "de"
        assert ids(store, "Katze") == ["katze"]
    with HybridStore(tmp_path / "s", HashEmbedder(), language="de-AT") as store:
        assert store.language == "de"
    with pytest.raises(ConfigError, match=rf"'de'.*'fr'.*relex {tmp_path}/s --language fr"):
        HybridStore(tmp_path / "s", HashEmbedder(), language="fr")
    with HybridStore(tmp_path / "s", HashEmbedder(), read_only=True) as store:
        assert ids(store, "Katze") == ["katze"]


def test_an_unknown_language_is_refused_and_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="language must be one of"):
        HybridStore(tmp_path / "s", HashEmbedder(), language="klingon")
    assert not (tmp_path / "s").exists()


def test_relex_reads_the_words_anew(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "s", HashEmbedder()) as store:
        assert store.language == "en"
        store.upsert(GERMAN)
        assert ids(store, "Haus") == []
    told: list[tuple[int, int | None]] = []
    assert relex(tmp_path / "s", "de", lambda *step: told.append(step)) == 3
    assert (3, 3) in told
    with HybridStore(tmp_path / "s", HashEmbedder()) as store:
        assert (store.language, ids(store, "Haus")) == ("de", ["haus"])
    assert relex(tmp_path / "s", "de") == 3
    assert check_store(tmp_path / "s").ok
    with pytest.raises(StoreError, match="cannot be opened"):
        relex(tmp_path / "none", "de")


def test_relex_cut_short_is_finished_by_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = [Passage(f"p{n}", f"Nummer {n} der Häuser") for n in range(30)]
    with HybridStore(tmp_path / "s", HashEmbedder()) as store:
        store.upsert(passages)
    monkeypatch.setattr("tars_rag.retrieval.storage.rebuild._FILL_BATCH", 10)

    def killed(done: int, total: int | None) -> None:
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        relex(tmp_path / "s", "de", killed)
    with pytest.raises(StoreError, match="store check"):
        HybridStore(tmp_path / "s", HashEmbedder(), read_only=True)
    with HybridStore(tmp_path / "s", HashEmbedder()) as store:
        assert store.language == "de"
        assert len(store.search("Haus", 50, "lexical")) == 30
    assert check_store(tmp_path / "s").ok


def test_a_store_of_the_version_before_is_brought_up_to_date_when_it_is_opened(
    tmp_path: Path,
) -> None:
    """No language, no model, no exact index, and words that were read otherwise."""
    path = tmp_path / "s"
    with HybridStore(path, HashEmbedder(), language="none") as store:
        store.upsert([Passage("a", "the houses"), Passage("b", "another")])
    content = json.loads((path / "store.json").read_text())
    for key in ("language", "model", "probe"):
        del content[key]
    (path / "store.json").write_text(json.dumps({**content, "version": 2}))
    for file in (path / "exact").iterdir():
        file.unlink()
    (path / "exact").rmdir()
    assert not check_store(path).ok
    with pytest.raises(StoreError, match=rf"tars-rag store check {path} --repair"):
        HybridStore(path, HashEmbedder(), read_only=True)
    told: list[tuple[int, int | None]] = []
    with HybridStore(path, HashEmbedder(), progress=lambda *step: told.append(step)) as store:
        assert (store.language, store.count()) == ("en", 2)
        assert ids(store, "house") == ["a"]
        vector = HashEmbedder().embed_query("the houses")
        assert store.search(None, 1, "naive", vector=vector)[0].id == "a"
    assert told
    assert check_store(path).ok
