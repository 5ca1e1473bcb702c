"""The server without sockets: every route, the gate before it, and what batches texts."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from conftest import HashEmbedder
from tars_rag import advice
from tars_rag.errors import ConfigError, DeviceError
from tars_rag.retrieval.http_contract import (
    HitBody,
    SearchRequest,
    StoreAnswer,
    pack_vector,
    unpack_vector,
)
from tars_rag.retrieval.pipeline import Pipeline
from tars_rag.retrieval.store import HybridStore, Passage

pytest.importorskip("fastapi")
pytest.importorskip("mcp")

from listening import TEXTS, WordScorer
from tars_rag.server.app import application
from tars_rag.server.batcher import SLICE, Batcher, OverloadedError
from tars_rag.server.security import Hosts, Keys, check_exposure
from tars_rag.server.service import Limits, Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    served = Service(HashEmbedder(), WordScorer(), limits=Limits(body=100_000, texts=100))
    store = HybridStore(tmp_path_factory.mktemp("server") / "notes", served.embedder)
    store.upsert([Passage(f"note#{n}", text, {"n": n}) for n, text in enumerate(TEXTS)])
    served.add_store("notes", store)
    yield served
    served.close()


def client_of(service: Service, **gate: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=application(service, **gate))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service) as asked:
        yield asked


async def test_embeddings_are_the_embedders_own(client: httpx.AsyncClient) -> None:
    body = {"input": TEXTS, "model": "default", "user": "ignored"}
    told = (await client.post("/v1/embeddings", json=body)).json()
    assert [row["index"] for row in told["data"]] == [0, 1, 2]
    np.testing.assert_allclose([r["embedding"] for r in told["data"]], HashEmbedder().embed(TEXTS))
    assert told["usage"]["prompt_tokens"] == sum(len(text.split()) for text in TEXTS)
    packed = await client.post("/v1/embeddings", json={**body, "encoding_format": "base64"})
    first = np.frombuffer(base64.b64decode(packed.json()["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(first, HashEmbedder().embed(TEXTS)[0])


async def test_ollama_clients_are_answered(client: httpx.AsyncClient) -> None:
    told = (await client.post("/api/embed", json={"model": "hash:32", "input": TEXTS[0]})).json()
    np.testing.assert_allclose(told["embeddings"], HashEmbedder().embed(TEXTS[:1]))
    old = (
        await client.post("/api/embeddings", json={"model": "default", "prompt": TEXTS[0]})
    ).json()
    assert old["embedding"] == told["embeddings"][0]
    assert (await client.get("/api/tags")).json()["models"][0]["name"] == "hash:32"
    assert (await client.get("/api/version")).json()["version"]


async def test_rerank_in_the_shapes_of_jina_cohere_and_tei(client: httpx.AsyncClient) -> None:
    asked: dict[str, Any] = {"query": "cats sleep", "documents": TEXTS, "top_n": 2}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        told = (await client.post(path, json={**asked, "return_documents": True})).json()
        assert len(told["results"]) == 2
        best = told["results"][0]
        assert (best["index"], best["relevance_score"]) == (1, 1.0)
        assert best["document"] == {"text": TEXTS[1]}
    objects = [{"text": text} for text in TEXTS]
    told = (await client.post("/v1/rerank", json={**asked, "documents": objects})).json()
    assert told["results"][0]["index"] == 1
    tei = await client.post("/rerank", json={"query": "cats sleep", "texts": TEXTS})
    assert tei.json()[0] == {"index": 1, "score": 1.0}


async def test_a_search_is_the_pipelines(service: Service, client: httpx.AsyncClient) -> None:
    for rerank in (True, False):
        body = {
            "query": "where do cats sleep",
            "k": 2,
            "rerank": rerank,
            "where": {"n": {"$gte": 1}},
        }
        told = (await client.post("/v1/stores/notes/search", json=body)).json()
        pipeline = Pipeline(service.stores["notes"], service.reranker)
        own = pipeline.search("where do cats sleep", 2, {"n": {"$gte": 1}}, rerank=rerank)
        assert [HitBody(**row).hit() for row in told["passages"]] == own.passages
        assert [step["name"] for step in told["steps"]] == [step.name for step in own.steps]


async def test_a_search_by_vector_and_with_neighbours(client: httpx.AsyncClient) -> None:
    vector = pack_vector(HashEmbedder().embed_query(TEXTS[2]))
    body = {"vector": vector, "strategy": "naive", "k": 1, "window": 1}
    told = (await client.post("/v1/stores/notes/search", json=body)).json()
    assert told["passages"][0]["id"] == "note#2"
    assert [p["id"] for p in told["passages"][0]["window"]] == ["note#1", "note#2"]
    both = await client.post("/v1/stores/notes/search", json={**body, "rerank": True})
    assert both.status_code == 400


async def test_what_is_written_is_there(client: httpx.AsyncClient) -> None:
    path = "/v1/stores/notes"
    rows = HashEmbedder().embed(["one", "two"])
    body = {
        "passages": [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}],
        "vectors": [pack_vector(row) for row in rows],
        "fingerprint": "hash:32",
    }
    body["passages"][0]["metadata"] = {"kept": [1, 2]}
    assert (await client.post(f"{path}/passages", json=body)).json() == {"stored": 2}
    other = await client.post(f"{path}/passages", json={**body, "fingerprint": "other:32"})
    assert (other.status_code, other.json()["error"]["type"]) == (409, "FingerprintError")
    got = (await client.post(f"{path}/get", json={"ids": ["b", "a", "none"]})).json()["passages"]
    assert [p["id"] for p in got] == ["b", "a"]
    assert got[1]["metadata"] == {"kept": [1, 2]}
    vectors = (await client.post(f"{path}/vectors", json={"ids": ["a"]})).json()["vectors"]
    np.testing.assert_allclose(unpack_vector(vectors["a"]), rows[0], rtol=1e-5)
    assert (await client.get(f"{path}/count")).json() == {"count": 5}
    deleted = await client.post(f"{path}/delete", json={"ids": ["a", "b"]})
    assert deleted.json() == {"deleted": 2}
    assert (await client.post(f"{path}/flush")).json() == {"count": 3}
    near = await client.post(f"{path}/get", json={"ids": ["note#1"], "window": 1})
    assert [p["id"] for p in near.json()["passages"]] == ["note#0", "note#1", "note#2"]


async def test_a_store_describes_itself(service: Service, client: httpx.AsyncClient) -> None:
    [told] = (await client.get("/v1/stores")).json()["data"]
    assert told == (await client.get("/v1/stores/notes")).json()
    said = StoreAnswer(**told)
    assert (said.fingerprint, said.dimension, said.count) == ("hash:32", 32, 3)
    assert (said.reranker, said.read_only) == ("word-scorer", False)


WRONG: list[tuple[str, Any, int]] = [
    ("/v1/embeddings", {"input": TEXTS[0], "model": "text-embedding-3-small"}, 404),
    ("/v1/embeddings", {"input": TEXTS[0], "dimensions": 16}, 400),
    ("/v1/embeddings", {"input": [1, 2, 3]}, 400),
    ("/v1/embeddings", {"input": []}, 400),
    ("/v1/embeddings", {"input": ["a"] * 101}, 400),
    ("/v1/embeddings", [], 400),
    ("/v1/rerank", {"query": "a"}, 400),
    ("/rerank", {"query": "a", "texts": ["a"], "raw_scores": True}, 400),
    ("/v1/stores/other/search", {"query": "a"}, 404),
    ("/v1/stores/notes/search", {"query": "a", "k": 0}, 400),
    ("/v1/stores/notes/search", {"query": "a", "misspelt": 0}, 400),
    ("/v1/stores/notes/search", {"query": "a", "where": {"$no": 1}}, 400),
    ("/v1/stores/notes/search", {"vector": "@", "strategy": "naive"}, 400),
    ("/v1/stores/notes/search", {}, 400),
    ("/v1/stores/notes/passages", {"passages": [{"id": "", "text": "a"}]}, 400),
    ("/v1/stores/notes/get", {"window": 1}, 400),
    ("/v1/stores/notes/delete", {}, 400),
    ("/v1/stores/notes/delete", {"all": True, "ids": ["a"]}, 400),
    ("/nowhere", {}, 404),
    ("/v1/embeddings", {"input": "a" * 100_001}, 413),
]


@pytest.mark.parametrize(("path", "body", "status"), WRONG)
async def test_what_is_wrong_is_told(
    client: httpx.AsyncClient, path: str, body: Any, status: int
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type"}


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"{", b"[" * 50_000, b'{"input": NaN}', b""])
async def test_bytes_that_are_no_request_are_the_clients_fault(
    client: httpx.AsyncClient, raw: bytes
) -> None:
    headers = {"content-type": "application/json"}
    answer = await client.post("/v1/embeddings", content=raw, headers=headers)
    assert 400 <= answer.status_code < 500


async def test_the_gate_asks_for_a_key_and_the_right_name(service: Service) -> None:
    keys = Keys(["a-key-of-sixteen-characters"])
    right = {"authorization": "Bearer a-key-of-sixteen-characters"}
    async with client_of(service, keys=keys, hosts=Hosts(["board.example"])) as client:
        assert (await client.get("/v1/models")).status_code == 401
        wrong = {"authorization": "Bearer a-key-of-sixteen-characterz"}
        assert (await client.get("/v1/models", headers=wrong)).status_code == 401
        assert (await client.get("/v1/models", headers=right)).status_code == 200
        other = {"x-api-key": "a-key-of-sixteen-characters"}
        assert (await client.get("/v1/models", headers=other)).status_code == 200
        assert (await client.get("/health/live")).status_code == 200
        for host, status in {"board.example": 200, "[::1]:7588": 200, "evil.example": 403}.items():
            answer = await client.get("/v1/models", headers={**right, "host": host})
            assert answer.status_code == status
        foreign = {**right, "origin": "http://evil.example"}
        assert (await client.get("/v1/models", headers=foreign)).status_code == 403
        same = await client.get("/v1/models", headers={**right, "origin": "http://localhost"})
        assert "access-control-allow-origin" not in same.headers


def test_it_listens_elsewhere_only_on_purpose(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--api-key-file"):
        check_exposure("0.0.0.0", Keys(), no_auth=False)
    check_exposure("0.0.0.0", Keys(), no_auth=True)
    check_exposure("127.0.0.2", Keys(), no_auth=False)
    file = tmp_path / "keys"
    file.write_text("# comment\nshort\n")
    with pytest.raises(ConfigError, match="16 characters"):
        Keys.read(file)
    file.write_text("# comment\n0123456789abcdef\n")
    assert Keys.read(file).admit(b"Bearer 0123456789abcdef")
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.read(tmp_path)


async def test_a_server_that_only_reads_refuses_to_write(service: Service) -> None:
    service.read_only = True
    try:
        async with client_of(service) as client:
            for name, body in {"passages": {"passages": []}, "delete": {"all": True}}.items():
                answer = await client.post(f"/v1/stores/notes/{name}", json=body)
                assert answer.status_code == 403
    finally:
        service.read_only = False
    assert service.stores["notes"].count() == 3


async def test_the_log_has_no_contents(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "tars_rag.access"):
        await client.post("/v1/embeddings?secret=1", json={"input": "confidential"})
    [line] = [record.getMessage() for record in caplog.records if record.name == "tars_rag.access"]
    assert "POST /v1/embeddings 200" in line
    assert "confidential" not in caplog.text
    assert "secret" not in line


async def test_status_page_metrics_and_description(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/ready")).json() == {"status": "ok", "texts_waiting": 0}
    await client.get("/v1/models")
    text = (await client.get("/metrics")).text
    assert 'route="/v1/models",status="200"' in text
    page = await client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    told = (await client.get("/openapi.json")).json()
    assert "/v1/stores/{name}/search" in told["paths"]
    for path, methods in told["paths"].items():
        for one in methods.values():  # each says what it answers
            [(kind, content)] = one["responses"]["200"]["content"].items()
            said = content["schema"].keys() & {"$ref", "anyOf"}
            assert said if kind == "application/json" else path == "/metrics"


class Slow(HashEmbedder):
    """Waits until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[list[str]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def embed(self, texts: Sequence[str]) -> Any:
        self.runs.append(list(texts))
        self.begun.set()
        assert self.go.wait(60)
        return super().embed(texts)


@pytest.fixture
def slow() -> Iterator[tuple[Slow, Callable[..., Batcher]]]:
    embedder, made = Slow(), []

    def make(**given: Any) -> Batcher:
        made.append(Batcher(embedder, **given))
        return made[-1]

    yield embedder, make
    embedder.go.set()
    for batcher in made:
        batcher.close()


def test_texts_of_different_clients_share_a_run(slow: Any) -> None:
    embedder, make = slow
    batcher = make()
    first = batcher.submit(["zero"])
    assert embedder.begun.wait(60)
    futures = [batcher.submit([f"text {n}", "more"]) for n in range(5)]
    left = batcher.submit(["of a client that left"])
    assert left.cancel()
    embedder.go.set()
    plain = HashEmbedder()
    np.testing.assert_array_equal(first.result(60), plain.embed(["zero"]))
    for n, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(60), plain.embed([f"text {n}", "more"]))
    assert len(embedder.runs) == 2
    assert not any("of a client that left" in run for run in embedder.runs)
    assert batcher.waiting == 0


def test_what_is_left_of_bulk_work_whose_client_left_does_not_wait_for_ever(slow: Any) -> None:
    embedder, make = slow
    batcher = make()
    bulk = batcher.submit(["bulk"] * (2 * SLICE))
    assert embedder.begun.wait(60)
    assert bulk.cancel()
    embedder.go.set()
    batcher.close()
    assert len(embedder.runs) == 1
    assert batcher.waiting == 0


def test_bulk_work_takes_turns_and_queries_do_not_wait_for_it(slow: Any) -> None:
    embedder, make = slow
    batcher = make()
    bulk = batcher.submit([f"bulk {n}" for n in range(3 * SLICE)])
    assert embedder.begun.wait(60)
    other = batcher.submit([f"other {n}" for n in range(5)])
    query = batcher.submit(["a query"], "query")  # embed_query, in the other thread
    embedder.go.set()
    assert query.result(60).shape == (1, 32)
    texts = [f"other {n}" for n in range(5)]
    np.testing.assert_array_equal(other.result(60), HashEmbedder().embed(texts))
    assert bulk.result(60).shape == (3 * SLICE, 32)
    bulk_runs = [run for run in embedder.runs if run != ["a query"]]
    assert "other 0" in bulk_runs[1]  # before the first client's second slice
    assert max(map(len, bulk_runs)) <= SLICE


def test_more_than_may_wait_is_refused_and_it_recovers(slow: Any) -> None:
    embedder, make = slow
    batcher = make(most_waiting=10)
    first = batcher.submit(["zero"])
    assert embedder.begun.wait(60)
    more = [batcher.submit(["b"] * 4) for _ in range(2)]
    with pytest.raises(OverloadedError):
        batcher.submit(["c"] * 4)
    embedder.go.set()
    for future in [first, *more]:
        future.result(60)
    assert batcher.submit(["again"]).result(60).shape == (1, 32)
    batcher.close()
    with pytest.raises(OverloadedError, match="stopping"):
        batcher.submit(["late"])


def test_a_text_that_fails_fails_alone() -> None:
    class Picky(Slow):
        def embed(self, texts: Sequence[str]) -> Any:
            rows = super().embed(texts)
            if "bad" in texts:
                msg = "not this one"
                raise DeviceError(msg)
            return rows

    embedder = Picky()
    batcher = Batcher(embedder)
    first = batcher.submit(["zero"])
    assert embedder.begun.wait(60)
    good, bad = batcher.submit(["good"]), batcher.submit(["bad"])
    embedder.go.set()
    assert first.result(60).shape == good.result(60).shape
    with pytest.raises(DeviceError):
        bad.result(60)
    batcher.close()
    assert batcher.waiting == 0


async def test_overload_slow_work_and_a_client_that_left() -> None:
    embedder = Slow()
    service = Service(embedder, limits=Limits(requests=1, seconds=30))
    app = application(service)
    messages: list[Any] = []
    left = asyncio.Event()
    scope = {
        "type": "http", "method": "POST", "path": "/v1/embeddings", "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "raw_path": b"/v1/embeddings", "root_path": "", "scheme": "http", "http_version": "1.1",
    }  # fmt: skip
    body = json.dumps({"input": ["a"] * 200}).encode()
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        messages.append(message)

    task = asyncio.create_task(app(scope, receive, send))
    assert await asyncio.to_thread(embedder.begun.wait, 60)
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        refused = await client.get("/v1/models")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert (await client.get("/health/live")).status_code == 200
        left.set()
        await task
        assert messages == []
        assert (await client.get("/v1/models")).status_code == 200
        embedder.go.set()
        again = await client.post("/v1/embeddings", json={"input": "a"})
        assert again.status_code == 200
    await asyncio.to_thread(service.close)
    assert sum(map(len, embedder.runs)) <= SLICE + 1  # the rest was dropped


async def test_too_many_texts_are_refused_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, go = threading.Event(), threading.Event()

    def count(self: Service, texts: Sequence[str]) -> int:
        reading.set()
        assert go.wait(60)
        return len(texts)

    monkeypatch.setattr(Service, "count_tokens", count)
    service = Service(HashEmbedder(), limits=Limits(waiting=10))
    async with client_of(service) as client:
        first = asyncio.create_task(client.post("/v1/embeddings", json={"input": ["a"] * 8}))
        assert await asyncio.to_thread(reading.wait, 60)
        refused = await client.post("/v1/embeddings", json={"input": ["b"] * 8})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        go.set()
        assert (await first).status_code == 200
        assert (await client.post("/v1/embeddings", json={"input": ["b"] * 8})).status_code == 200
    await asyncio.to_thread(service.close)
    assert service.batcher.waiting == 0


async def test_time_is_limited() -> None:
    embedder = Slow()
    service = Service(embedder, limits=Limits(seconds=0.05))
    async with client_of(service) as client:
        late = await client.post("/v1/embeddings", json={"input": "a"})
    assert (late.status_code, late.json()["error"]["type"]) == (504, "Timeout")
    embedder.go.set()
    await asyncio.to_thread(service.close)


async def test_an_agent_searches_and_cites(service: Service) -> None:
    from mcp import Client

    from tars_rag.server.mcp import mcp_server

    async with Client(mcp_server(service)) as agent:
        tools = {tool.name for tool in (await agent.list_tools()).tools}
        assert tools == {"search", "get", "stores"}
        found = await agent.call_tool("search", {"query": "cats sleep", "k": 1})
        [passage] = json.loads(found.content[0].text)["passages"]  # type: ignore[union-attr]
        assert (passage["id"], passage["citation"]) == ("note#1", "note")
        read = await agent.call_tool("get", {"id": "note#1"})
        texts = [p["text"] for p in json.loads(read.content[0].text)["passages"]]  # type: ignore[union-attr]
        assert texts == TEXTS
        told = await agent.call_tool("stores", {})
        assert json.loads(told.content[0].text)["stores"][0]["count"] == 3  # type: ignore[union-attr]
        wrong = await agent.call_tool("get", {"id": "nothing"})
        assert wrong.is_error


def test_a_search_request_says_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="misspelt"):
        SearchRequest(query="a", misspelt=1)  # type: ignore[call-arg]


def test_stores_are_named_on_the_command_line(tmp_path: Path) -> None:
    from tars_rag.cli.serve import stores_by_name

    named = stores_by_name(["notes=a/b", str(tmp_path / "my-store")])
    assert named == {"notes": Path("a/b"), "my-store": tmp_path / "my-store"}
    for wrong in (["a=x", "a=y"], ["a b=x"], ["notes="], ["../=x"]):
        with pytest.raises(ConfigError, match="NAME=DIR"):
            stores_by_name(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--tls-cert", "cert.pem"], "go together"),
        (["--watch", "notes", "--read-only"], "does not go with"),
        (["--root", "notes"], "--watch"),
    ],
)
def test_serve_refuses_before_anything_is_opened(options: list[str], message: str) -> None:
    from typer.testing import CliRunner

    from tars_rag.cli import app

    told = CliRunner().invoke(app, ["serve", "--store", "notes=nowhere", *options])
    assert told.exit_code == 1
    assert message in " ".join(told.output.split())


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from tars_rag.cli import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape(advice.install("server"))):
        serve.mcp()
