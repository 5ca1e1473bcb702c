"""Stores and models of a server, asked over HTTP: the same answers and errors as at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage
from tars_rag.errors import ConfigError, FingerprintError, InvalidInputError, StoreError
from tars_rag.retrieval.address import split_store
from tars_rag.retrieval.neighbours import with_neighbours
from tars_rag.retrieval.pipeline import Pipeline
from tars_rag.retrieval.remote import client as client_module
from tars_rag.retrieval.remote.models import RemoteEmbedder, RemoteReranker

pytest.importorskip("fastapi")
pytest.importorskip("mcp")

from starlette.testclient import TestClient

from tars_rag.server.app import application
from tars_rag.server.security import Keys
from tars_rag.server.service import Limits, Service

URL = "http://localhost/notes"
KEY = "sesame sesame sesame"
WORDS = ["fan", "switch", "river", "cat", "sofa", "board", "pump", "été", "東京", "كتاب"]


def passages(count: int) -> list[Passage]:
    rng = np.random.default_rng(3)
    return [
        Passage(
            f"note#{n}",
            f"{' '.join(rng.choice(WORDS, 8))} number {n}",
            {"n": n, "even": n % 2 == 0, "tags": ["a", "b"], "none": n % 3 == 0},
        )
        for n in range(count)
    ]


class WordScorer:
    model, device = "word-scorer", "cpu"

    def score(self, query: str, texts: Sequence[str], budget_ms: float | None = None) -> Any:
        words = set(query.lower().split())
        shares = [len(words & set(t.lower().split())) / max(len(words), 1) for t in texts]
        return np.array(shares, np.float32)


class Sealed(httpx.BaseTransport):
    """The way to a server in this process, which notes requests and may lose some."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner = inner
        self.asked: list[str] = []
        self.trouble: list[Any] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path.rpartition("/")[2])
        trouble = self.trouble.pop(0) if self.trouble else None
        if isinstance(trouble, httpx.Response):
            return trouble
        if isinstance(trouble, httpx.ConnectError):
            raise trouble
        told = self.inner.handle_request(request)  # of the server's own library
        content = b"".join(told.stream)  # type: ignore[arg-type]
        if trouble is not None:
            raise trouble
        return httpx.Response(told.status_code, headers=told.headers, content=content)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[HybridStore]:
    with HybridStore(tmp_path / "local", HashEmbedder()) as store:
        yield store


@pytest.fixture
def way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sealed]:
    service = Service(HashEmbedder(), WordScorer(), limits=Limits(body=60_000, texts=300))
    service.add_store("notes", HybridStore(tmp_path / "served", service.embedder))
    app = application(service, keys=Keys([KEY]))
    with TestClient(app, base_url="http://localhost") as test_client:  # type: ignore[arg-type]
        sealed = Sealed(test_client._transport)
        real = httpx.Client

        def reached(**settings: Any) -> httpx.Client:
            return real(**{**settings, "transport": settings.get("transport") or sealed})

        monkeypatch.setattr(client_module.httpx, "Client", reached)
        monkeypatch.setattr(client_module.time, "sleep", lambda seconds: None)
        yield sealed
    service.close()


@pytest.fixture
def remote(way: Sealed) -> Iterator[HybridStore]:
    with HybridStore(URL, api_key=KEY) as store:
        yield store


def test_a_remote_store_answers_as_one_at_hand(remote: HybridStore, local: HybridStore) -> None:
    held = passages(60)
    assert remote.upsert(held) == local.upsert(held) == 60
    assert remote.upsert(held[:5]) == 5
    assert (remote.count(), remote.fingerprint) == (60, local.fingerprint)
    assert (remote.dimension, remote.language) == (local.dimension, local.language)
    for where in (None, {"even": True}, {"n": {"$gte": 50}}, {"tags": {"$contains": "a"}}):
        for strategy in ("hybrid", "naive", "lexical"):
            found, right = (
                store.search("fan 東京 number 7", 7, strategy, where, weight=0.3)  # type: ignore[arg-type]
                for store in (remote, local)
            )
            assert [hit.passage for hit in found] == [hit.passage for hit in right]
            np.testing.assert_allclose(
                [hit.score for hit in found], [hit.score for hit in right], rtol=1e-6
            )
        ids = [p.id for p in held[10:30]] + ["unknown"]
        assert remote.get(ids, where) == local.get(ids, where)
        assert sorted(remote.matching(None, where)) == sorted(local.matching(None, where))
    every = [[hit.id for hit in store.search("fan", 1, every=True)] for store in (remote, local)]
    assert every[0] == every[1]
    assert len(every[0]) > 1
    assert remote.get([], None) == local.get([], None) == []
    assert len(remote.get(limit=7)) == 7
    for key, row in remote.vectors(["note#1", "unknown", "note#2"]).items():
        np.testing.assert_array_equal(row, local.vectors([key])[key])
    assert with_neighbours(remote, ["note#7"], 1) == with_neighbours(local, ["note#7"], 1)
    assert remote.delete(["note#1", "unknown"]) == local.delete(["note#1", "unknown"]) == 1
    assert remote.delete(where={"even": True}) == local.delete(where={"even": True}) == 30
    assert {p.id for p in remote.get()} == {p.id for p in local.get()}
    remote.flush()
    assert remote.clear() == local.clear()
    assert remote.count() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.search("a", 0), InvalidInputError),
        (lambda s: s.search("a", 5, "hybird"), InvalidInputError),
        (lambda s: s.search("a", where={"$nor": []}), InvalidInputError),
        (lambda s: s.delete(), InvalidInputError),
        (lambda s: s.upsert([Passage("", "x", {})]), InvalidInputError),
        (lambda s: s.upsert([Passage("a", "x", {})], vectors=[[1.0, 2.0]]), InvalidInputError),
        (lambda s: s.get(limit=-1), InvalidInputError),
    ],
)
def test_what_is_refused_at_hand_is_refused_from_afar(
    remote: HybridStore, local: HybridStore, call: Any, error: type[Exception]
) -> None:
    for store in (local, remote):
        store.upsert([Passage("a", "the fan", {"n": 1})])
        with pytest.raises(error):
            call(store)
        assert store.count() == 1


def test_what_is_too_large_for_one_request_goes_in_several(remote: HybridStore) -> None:
    held = [Passage(f"p{n}", f"{n} " + "fan " * 2000, {}) for n in range(30)]
    assert remote.upsert(held) == 30
    assert {p.id: p for p in remote.get()} == {p.id: p for p in held}
    with pytest.raises(InvalidInputError):
        remote.upsert([Passage("huge", "fan " * 30_000, {})])


def test_what_was_lost_is_asked_again_where_that_changes_nothing(
    remote: HybridStore, way: Sealed
) -> None:
    busy = httpx.Response(429, headers={"Retry-After": "1"}, json={})
    cut, unreached = httpx.ReadError("cut off"), httpx.ConnectError("refused")
    way.trouble = [busy, cut, unreached]
    assert remote.upsert([Passage("a", "the fan", {})]) == 1
    assert remote.count() == 1
    way.trouble = [cut, unreached, cut]
    assert [hit.id for hit in remote.search("fan")] == ["a"]
    way.asked.clear()
    way.trouble = [None, cut]
    with pytest.raises(StoreError, match="cut off"):
        remote.delete(["a"])
    assert way.asked == ["matching", "delete"], "a deletion that may have been done is not repeated"
    way.trouble = [unreached] * 9
    with pytest.raises(StoreError, match="tars-rag serve"):
        remote.count()


def test_who_may_not_is_told(way: Sealed) -> None:
    with pytest.raises(ConfigError, match="key"):
        HybridStore(URL, api_key="wrong")
    with pytest.raises(ConfigError, match="notes"):
        HybridStore("http://localhost/other", api_key=KEY)
    other = HashEmbedder()
    other.fingerprint = "another"
    with pytest.raises(FingerprintError, match="another"):
        HybridStore(URL, other, api_key=KEY)
    with HybridStore(URL, api_key=KEY, read_only=True) as store:
        with pytest.raises(StoreError, match="read-only"):
            store.upsert([Passage("a", "x", {})])
        with pytest.raises(StoreError, match="tars-rag store backup"):
            store.backup("file")
        with pytest.raises(InvalidInputError, match="--watch"):
            _ = store.local_path
    with pytest.raises(StoreError, match="closed"):
        store.count()


@pytest.mark.parametrize("url", ["http://board", "https://", "http://board/", "http:///notes"])
def test_an_address_without_a_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"names no store|no address"):
        split_store(url)


def test_a_store_in_a_directory_needs_an_embedder(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="needs its embedder"):
        HybridStore(tmp_path / "store")
    with pytest.raises(InvalidInputError, match="api_key"):
        HybridStore(tmp_path / "store", HashEmbedder(), api_key="x")
    with pytest.raises(InvalidInputError, match="language"):
        HybridStore("http://board/notes", language="de")


def test_the_models_of_a_server(way: Sealed) -> None:
    texts = [f"text {n} fan" for n in range(600)]
    embedder = RemoteEmbedder("http://localhost", KEY)
    assert embedder.fingerprint == HashEmbedder().fingerprint
    np.testing.assert_array_equal(embedder.embed(texts), HashEmbedder().embed(texts))
    np.testing.assert_array_equal(embedder.embed_query("fan"), HashEmbedder().embed(["fan"])[0])
    assert len(embedder.embed([])) == 0
    reranker = RemoteReranker("http://localhost", KEY)
    right = WordScorer().score("text 7", texts)
    np.testing.assert_allclose(reranker.score("text 7", texts), right)
    with HybridStore(URL, api_key=KEY) as store:
        store.upsert(passages(20))
        answer = Pipeline(store, reranker).search("number 7", 3)
        assert answer.passages[0].id == "note#7"


def test_an_answer_of_something_else_is_an_error() -> None:
    def page(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>a router's page</html>")

    with pytest.raises(StoreError, match="is not what a tars-rag server says"):
        RemoteEmbedder("http://board", transport=httpx.MockTransport(page))

    def rows(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            told = {"id": "m", "kind": "embedder", "fingerprint": "f", "dimension": 2}
            return httpx.Response(200, json={"data": [told]})
        texts = json.loads(request.content)["input"]
        return httpx.Response(200, json={"data": [{"index": 0, "embedding": ""} for _ in texts]})

    embedder = RemoteEmbedder("http://board", transport=httpx.MockTransport(rows))
    with pytest.raises(StoreError, match="other vectors"):
        embedder.embed(["a", "b"])
