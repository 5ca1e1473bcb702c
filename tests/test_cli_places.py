"""Commands that search a server's store by its address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from served import KEY, Board
from tars_rag import HybridStore, Passage
from tars_rag.cli import app
from tars_rag.cli.place import require_place, token_counter, told_by
from tars_rag.cli.serve import _elsewhere, _places, _service
from tars_rag.errors import ConfigError
from tars_rag.retrieval.address import is_url, unfolded
from tars_rag.retrieval.pipeline import Pipeline
from tars_rag.settings import Settings

pytest_plugins = ["tiny_models", "served"]
pytestmark = pytest.mark.enable_socket

TEXTS = ["the fan is near the cpu core", "a cat and a dog sleep", "piano music", "the fan hums"]
HERE = {"model": None, "device": None, "engine": None, "precision": "fp32"}


@pytest.fixture
def url(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store of a server, with what this machine needs to know of it: the key."""
    monkeypatch.setenv("TARS_API_KEY", KEY)
    monkeypatch.setenv("EMBED_MODEL", "no-such-model")  # nothing is opened here
    monkeypatch.setenv("RERANK_MODEL", "")
    with board.store(tmp_path / "s") as address:
        with HybridStore(address) as store:
            store.upsert([Passage(f"note.md#{n}", text, {"n": n}) for n, text in enumerate(TEXTS)])
        yield address


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_query_by_address(url: str, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run("query", "cat and dog", "--store", url, "--json", "-k", "3", "--window", "1")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)["passages"]
    own = Pipeline(board.service.store(url.rpartition("/")[2]), board.service.reranker)
    assert [p["id"] for p in found] == [p.id for p in own.search("cat and dog", 3).passages]
    assert all(p["rerank_score"] is not None for p in found)
    assert found[0]["window"]
    monkeypatch.setenv("TARS_STORE", url)
    plain = run("query", "cat and dog", "--no-rerank")
    assert plain.exit_code == 0, plain.output
    assert "note.md" in plain.stdout
    assert "rerank" not in plain.stdout


def test_what_is_of_a_directory_is_refused(url: str) -> None:
    for option in (["--path", "note.md"], ["--device", "npu"], ["--precision", "int8"]):
        refused = run("query", "cat", "--store", url, *option)
        assert refused.exit_code == 1
        assert option[0] in refused.stderr
    with pytest.raises(ConfigError, match="--model"):
        require_place(url, model="other")
    refused = run("serve", "--store", f"notes={url}")
    assert refused.exit_code == 1
    assert "served already" in refused.stderr


def test_a_store_or_server_that_is_not_there_is_told(url: str) -> None:
    refused = run("query", "cat", "--store", url + "-other")
    assert refused.exit_code == 1
    assert "There is no store" in refused.stderr


def test_ask_by_address_is_the_same_search(url: str) -> None:
    refused = run(
        "ask", "cat", "--store", url, "--llm", "http://127.0.0.1:9/v1", "--min-score", "1"
    )
    assert refused.exit_code == 0, refused.output
    assert f"Nothing in {url} fits" in refused.stdout
    search = {"query": "cat", "k": 2, "strategy": "hybrid", "where": None, "min_score": None}
    settings = Settings.from_env()
    told = told_by(
        url,
        settings,
        None,
        {**search, "budget_ms": None, "window": 0},
        device=None,
        precision="fp32",
    )
    assert told.reranked
    assert len(told.passages) == 2
    count = token_counter(url, settings)
    assert count("the fan is near") >= 4
    assert count("東京の塔") >= 4


def test_an_agents_stores_by_address(url: str, tmp_path: Path) -> None:
    places = _places([f"notes={url}"])
    assert places == {"notes": url}
    with _elsewhere(places, None, dict(HERE)) as service:
        assert service.describe("notes").count == len(TEXTS)
        assert service.reranker_model == "tiny-ce"
    with (
        pytest.raises(ConfigError, match="not both"),
        _elsewhere(_places([f"notes={url}", f"own={tmp_path}"]), None, dict(HERE)),
    ):
        pass


def test_serve_lends_its_models_to_commands_beside_it(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"EMBED_MODEL": "tiny", "RERANK_MODEL": "tiny-ce"}.items():
        monkeypatch.setenv(name, str(tiny_models / value))
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tiny_models / "cache"))
    place = tmp_path / "s"

    def not_here(*_: object, **__: object) -> None:
        pytest.fail("a model was opened")

    with _service([f"notes={place}"], False, None, None, None, None, "fp32", None) as service:
        service.store("notes").upsert([Passage(f"{n}", text, {}) for n, text in enumerate(TEXTS)])
        monkeypatch.setattr("tars_rag.cli.resources.open_embedder", not_here)
        monkeypatch.setattr("tars_rag.cli.resources.open_reranker", not_here)
        told = run("query", "cat and dog", "--store", str(place), "--json")
        assert told.exit_code == 0, told.output
        assert json.loads(told.stdout)["passages"][0]["rerank_score"] is not None
        asked = ["ask", "cat", "--store", str(place), "--min-score", "1"]
        nothing = run(*asked, "--llm", "http://127.0.0.1:9/v1")
        assert f"Nothing in {place} fits" in nothing.stdout, nothing.output


def test_an_address_that_became_a_path_is_known() -> None:
    assert unfolded(Path("http://board:7588/notes")) == "http://board:7588/notes"
    assert unfolded(Path("/a/http:/b")) == "/a/http:/b"
    assert not is_url(Path("store"))
    with pytest.raises(ConfigError, match="http://board/notes"):
        is_url(Path("http://board/notes"))
