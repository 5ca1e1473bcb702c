"""Stock clients against a real server process on the loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tars_rag import Embedder, HybridStore, Passage, Reranker
from tars_rag.retrieval.http_contract import HitBody
from tars_rag.retrieval.pipeline import Pipeline

pytest_plugins = ["tiny_models"]
pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]
pytest.importorskip("fastapi")
pytest.importorskip("mcp")

TEXTS = ["the fan is near the cpu core", "a cat and a dog sleep in the garden", "piano music"]
MORE = [f"{word} in the garden {n}" for n in range(8) for word in ("fish", "bird", "river")]


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    store: Path
    environment: dict[str, str]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0


def start(store: Path, environment: dict[str, str], *more: str) -> Served:
    command = [sys.executable, "-m", "tars_rag", "serve", "--store", f"notes={store}"]
    process = subprocess.Popen(
        [*command, "--port", "0", *more], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if found := re.search(r"running on (https?://[\d.:]+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return Served(process, found[1], store, environment)
    pytest.fail("".join(seen))


@pytest.fixture(scope="module")
def environment(tiny_models: Path) -> dict[str, str]:
    own = {
        "EMBED_MODEL": str(tiny_models / "tiny"),
        "RERANK_MODEL": str(tiny_models / "tiny-ce"),
        "MODEL_CACHE_DIR": str(tiny_models / "cache"),
    }
    return {**os.environ, **own}


@pytest.fixture(scope="module")
def served(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("served") / "notes"
    with (
        Embedder(environment["EMBED_MODEL"], device="cpu") as embedder,
        HybridStore(path, embedder) as store,
    ):
        store.upsert([Passage(f"note.md#{n}", text, {"n": n}) for n, text in enumerate(TEXTS)])
    server = start(path, environment)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def embedder(environment: dict[str, str]) -> Iterator[Embedder]:
    with Embedder(environment["EMBED_MODEL"], device="cpu") as opened:
        yield opened


def near(rows: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(rows, np.float32), expected, atol=2e-5)


def test_openai(served: Served, embedder: Embedder) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    told = client.embeddings.create(input=TEXTS, model="default")  # asks for base64
    near([row.embedding for row in told.data], embedder.embed(TEXTS))
    plain = client.embeddings.create(input=TEXTS[0], model="default", encoding_format="float")
    near([plain.data[0].embedding], embedder.embed(TEXTS[:1]))
    assert told.usage.total_tokens > len(TEXTS)
    assert client.models.list().data[0].id == embedder.model
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        client.embeddings.create(input="a", model="other")
    with pytest.raises(openai.BadRequestError, match="dimensions=8"):
        client.embeddings.create(input="a", model="default", dimensions=8)


def test_langchain_openai(served: Served, embedder: Embedder) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    client = langchain_openai.OpenAIEmbeddings(
        base_url=f"{served.url}/v1",
        api_key="none",
        model="default",
        check_embedding_ctx_length=False,
    )
    near(client.embed_documents(TEXTS), embedder.embed(TEXTS))


def test_llama_index_openai_like(served: Served, embedder: Embedder) -> None:
    module = pytest.importorskip("llama_index.embeddings.openai_like")
    client = module.OpenAILikeEmbedding(
        model_name="default", api_base=f"{served.url}/v1", api_key="none"
    )
    near(client.get_text_embedding_batch(TEXTS), embedder.embed(TEXTS))


def test_cohere(served: Served, environment: dict[str, str]) -> None:
    cohere = pytest.importorskip("cohere")
    with Reranker(environment["RERANK_MODEL"]) as reranker:
        scores = reranker.score("cat and dog", TEXTS)
    order = np.argsort(-scores)
    for kind in (cohere.ClientV2, cohere.Client):
        client = kind(api_key="none", base_url=served.url)
        told = client.rerank(model="default", query="cat and dog", documents=TEXTS, top_n=2)
        assert [row.index for row in told.results] == list(order[:2])
        near([row.relevance_score for row in told.results], scores[order[:2]])


def test_a_jina_style_client(served: Served, environment: dict[str, str]) -> None:
    """What Jina's own examples and LangChain's JinaRerank post."""
    with Reranker(environment["RERANK_MODEL"]) as reranker:
        scores = reranker.score("cat and dog", TEXTS)
    body = {
        "model": "default",
        "query": "cat and dog",
        "documents": [{"text": text} for text in TEXTS],
        "top_n": 2,
        "return_documents": True,
    }
    headers = {"Authorization": "Bearer none", "Accept-Encoding": "identity"}
    told = httpx.post(f"{served.url}/v1/rerank", json=body, headers=headers).json()
    order = np.argsort(-scores)[:2]
    assert [row["index"] for row in told["results"]] == list(order)
    assert [row["document"]["text"] for row in told["results"]] == [TEXTS[n] for n in order]
    near([row["relevance_score"] for row in told["results"]], scores[order])
    assert told["usage"]["total_tokens"] >= 0


def test_a_command_beside_the_server_opens_no_model(served: Served) -> None:
    code = "from tars_rag.cli import main, resources; resources.open_embedder = None; main()"
    asked = ["query", "cat and dog", "--store", str(served.store), "-k", "3", "--json"]
    told = subprocess.run(
        [sys.executable, "-c", code, *asked],
        env=served.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    body = {"query": "cat and dog", "k": 3}
    over_http = httpx.post(f"{served.url}/v1/stores/notes/search", json=body).json()
    found = json.loads(told.stdout)["passages"]
    assert [p["id"] for p in found] == [p["id"] for p in over_http["passages"]]
    assert all(p["rerank_score"] is not None for p in found)


async def test_mcp_over_stdio_of_a_servers_store(served: Served) -> None:
    from mcp import Client, StdioServerParameters, stdio_client

    arguments = ["-m", "tars_rag", "mcp", "--store", f"far={served.url}/notes"]
    unusable = {"EMBED_MODEL": "no-such-model", "RERANK_MODEL": ""}  # the server has them
    command = StdioServerParameters(
        command=sys.executable, args=arguments, env={**served.environment, **unusable}
    )
    async with Client(stdio_client(command)) as agent:
        found = await agent.call_tool("search", {"query": "cat and dog", "k": 3})
    passages = json.loads(found.content[0].text)["passages"]
    async with Client(f"{served.url}/mcp") as agent:
        own = await agent.call_tool("search", {"query": "cat and dog", "k": 3})
    assert passages == json.loads(own.content[0].text)["passages"]


_ADAPTERS = """
import asyncio, json, sys
from langchain_mcp_adapters.client import MultiServerMCPClient

async def main(url):
    client = MultiServerMCPClient({"tars": {"transport": "streamable_http", "url": url}})
    [search] = [tool for tool in await client.get_tools() if tool.name == "search"]
    found = await search.ainvoke({"query": "cat and dog", "k": 3})
    print(found if isinstance(found, str) else found[0]["text"])

asyncio.run(main(sys.argv[1]))
"""


def test_langchain_mcp_adapters(served: Served) -> None:
    """They need an older MCP SDK than the server, so they run in an environment of their own."""
    python = os.environ.get("TARS_RAG_MCP_ADAPTERS")
    if python is None:
        pytest.skip("set TARS_RAG_MCP_ADAPTERS to a Python with langchain-mcp-adapters")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    told = subprocess.run(
        [python, "-c", _ADAPTERS, f"{served.url}/mcp"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    assert {p["citation"] for p in json.loads(told.stdout)["passages"]} == {"note.md"}


def test_ollama(served: Served, embedder: Embedder) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=served.url)
    near(client.embed(model="default", input=TEXTS).embeddings, embedder.embed(TEXTS))
    assert client.list().models[0].model == embedder.model


def test_headers_of_megabytes_are_refused(served: Served) -> None:
    try:
        told = httpx.get(f"{served.url}/health/live", headers={"x": "a" * (2 << 20)})
    except httpx.TransportError:  # it closed before all was sent
        pass
    else:
        assert told.status_code == 400
    assert httpx.get(f"{served.url}/health/live").status_code == 200


async def test_mcp_over_http_and_stdio(served: Served) -> None:
    from mcp import Client, StdioServerParameters, stdio_client

    arguments = ["-m", "tars_rag", "mcp", "--store", f"copy={served.store}"]
    over_stdio = StdioServerParameters(
        command=sys.executable, args=arguments, env=served.environment
    )
    async with Client(f"{served.url}/mcp") as agent:
        found = await agent.call_tool("search", {"query": "cat and dog", "k": 3})
        passages = json.loads(found.content[0].text)["passages"]
        assert {p["citation"] for p in passages} == {"note.md"}
        read = await agent.read_resource("tars-rag://notes/note.md%231")
        assert read.contents[0].text == TEXTS[1]
    served.stop()  # the store has one holder
    try:
        async with Client(stdio_client(over_stdio)) as agent:
            again = await agent.call_tool("search", {"query": "cat and dog", "k": 3})
            assert json.loads(again.content[0].text)["passages"] == passages
    finally:
        other = start(served.store, served.environment)
        served.process, served.url = other.process, other.url


def test_many_clients_get_their_own_answers(served: Served, environment: dict[str, str]) -> None:
    """Mixed work of 16 clients at once, each answer compared with the library's."""
    texts = TEXTS + MORE
    with Embedder(environment["EMBED_MODEL"], device="cpu") as embedder:
        rows = embedder.embed(texts)

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        with httpx.Client(base_url=served.url, timeout=60) as client:
            for turn in range(6):
                chosen = rng.choice(len(texts), size=int(rng.integers(1, 9)), replace=False)
                body = {"input": [texts[n] for n in chosen]}
                told = client.post("/v1/embeddings", json=body).raise_for_status().json()
                near([row["embedding"] for row in told["data"]], rows[chosen])
                key = f"of-{number}-{turn}"
                passage = {"id": key, "text": texts[chosen[0]]}
                path = "/v1/stores/notes"
                client.post(f"{path}/passages", json={"passages": [passage]}).raise_for_status()
                asked = {"query": texts[chosen[0]], "k": 200, "rerank": False}
                hits = client.post(f"{path}/search", json=asked).raise_for_status().json()
                assert key in {hit["id"] for hit in hits["passages"]}
                client.post(f"{path}/delete", json={"ids": [key]}).raise_for_status()

    with ThreadPoolExecutor(16) as clients:
        list(clients.map(work, range(16)))
    count = httpx.get(f"{served.url}/v1/stores/notes/count").json()
    assert count == {"count": len(TEXTS)}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_acknowledged_outlives_the_server(
    environment: dict[str, str], embedder: Embedder, tmp_path: Path, how: signal.Signals
) -> None:
    server = start(tmp_path / "store", environment)
    acknowledged: list[str] = []
    enough = threading.Event()

    def write(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for turn in range(10_000):
                key = f"{number}-{turn}"
                body = {"passages": [{"id": key, "text": f"river {key}"}]}
                try:
                    answer = client.post("/v1/stores/notes/passages", json=body)
                except httpx.HTTPError:
                    return
                if answer.status_code != 200:
                    return
                acknowledged.append(key)
                if len(acknowledged) >= 40:
                    enough.set()

    with ThreadPoolExecutor(4) as writers:
        for number in range(4):
            writers.submit(write, number)
        assert enough.wait(120)
        server.process.send_signal(how)
        code = server.process.wait(120)
    assert code == (0 if how == signal.SIGTERM else -signal.SIGKILL)
    with HybridStore(tmp_path / "store", embedder) as store:
        assert {p.id for p in store.get(acknowledged)} == set(acknowledged)


def test_a_search_over_http_is_the_librarys(
    environment: dict[str, str], embedder: Embedder, served: Served
) -> None:
    body = {"query": "cat and dog", "k": 3}
    told = httpx.post(f"{served.url}/v1/stores/notes/search", json=body).json()
    served.stop()
    try:
        with (
            Reranker(environment["RERANK_MODEL"]) as reranker,
            HybridStore(served.store, embedder) as store,
        ):
            own = Pipeline(store, reranker).search("cat and dog", 3).passages
    finally:
        other = start(served.store, served.environment)
        served.process, served.url = other.process, other.url
    hits = [HitBody(**row).hit() for row in told["passages"]]
    assert [hit.passage for hit in hits] == [hit.passage for hit in own]
    near([hit.score for hit in hits], [hit.score for hit in own])


def test_watched_files_are_named_from_the_root(environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    notes = tmp_path / "notes"
    (notes / "sub").mkdir(parents=True)
    (notes / "sub" / "cat.txt").write_text("A cat sleeps.")
    server = start(tmp_path / "s", environment, "--watch", str(notes), "--root", str(notes))
    try:
        end = time.monotonic() + 120
        found: list[dict[str, Any]] = []
        while not found and time.monotonic() < end:
            time.sleep(0.1)
            body = {"ids": ["sub/cat.txt#0"]}
            told = httpx.post(f"{server.url}/v1/stores/notes/get", json=body).json()
            found = told["passages"]
        assert [one["metadata"]["source"] for one in found] == ["sub/cat.txt"]
    finally:
        server.stop()
