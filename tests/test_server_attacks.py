"""What a client may send, or leave unsent, over a real socket: told 4xx or closed, and soon."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import struct
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from pydantic import BaseModel, ValidationError

from conftest import HashEmbedder

pytest.importorskip("fastapi")
pytest.importorskip("mcp")

from listening import TEXTS, listening, serving
from tars_rag.retrieval import http_contract
from tars_rag.server import schemas
from tars_rag.server.security import Keys
from tars_rag.server.service import Limits, Service

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

KEY = "a-key-of-sixteen-characters"
MOST = 100_000
POSTS = (
    *("/v1/embeddings", "/api/embed", "/api/embeddings", "/v1/rerank", "/v2/rerank", "/rerank"),
    *(f"/v1/stores/notes/{w}" for w in ("search", "passages", "get", "matching", "vectors")),
    *("/v1/stores/notes/delete", "/mcp"),
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    limits = Limits(body=MOST, texts=100)
    with serving(tmp_path_factory.mktemp("attacked"), limits) as served:
        yield served


@pytest.fixture(scope="module")
def port(service: Service) -> Iterator[int]:
    with listening(service) as number:
        yield number


@pytest.fixture(autouse=True)
def unharmed(service: Service, port: int, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Afterwards nothing is at work, right questions have their answers, and nothing failed."""
    yield
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        while "tars_rag_requests_at_work 1.0" not in client.get("/metrics").text:  # this one
            time.sleep(0.02)
        told = client.post("/v1/embeddings", json={"input": TEXTS[0]}).json()
        assert told["data"][0]["embedding"] == HashEmbedder().embed(TEXTS[:1])[0].tolist()
        assert client.get("/v1/stores/notes/count").json() == {"count": len(TEXTS)}
    assert service.batcher.waiting == 0
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []


def told(port: int, *parts: bytes, finish: bool = False) -> bytes:
    """All that the server says until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        whole = b""
        try:
            for part in parts:
                connection.sendall(part)
            if finish:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                whole += part
        except ConnectionError:  # closed before all was sent
            pass
        return whole


def _json(body: object) -> bytes:
    return json.dumps(body).encode()


def post(path: str, *headers: str, host: str = "localhost") -> bytes:
    lines = (f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *headers)
    return "\r\n".join((*lines, "Connection: close", "", "")).encode()


CHUNKED = "Transfer-Encoding: chunked"
EMBED = "/v1/embeddings"
RAW: dict[str, tuple[bytes, str]] = {
    "10 GB announced": (post(EMBED, "Content-Length: 10000000000"), "413"),
    "10 GB asked for": (
        post(EMBED, "Content-Length: 10000000000", "Expect: 100-continue"),
        "413",
    ),
    "too large": (post(EMBED, f"Content-Length: {9 * MOST}") + b"a" * 9 * MOST, "413"),
    "too large in chunks": (
        post(EMBED, CHUNKED) + b"30D40\r\n" + b"a" * 200_000 + b"\r\n0\r\n\r\n",
        "413",
    ),
    "another Host": (post(EMBED, "Content-Length: 2", host="evil.example") + b"{}", "403"),
    "no Host": (b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n", "400"),
    "negative length": (post(EMBED, "Content-Length: -1") + b"{}", "400"),
    "two lengths": (post(EMBED, "Content-Length: 2", "Content-Length: 3") + b"{}", "400"),
    "a length of letters": (post(EMBED, "Content-Length: many") + b"{}", "400"),
    "chunks of letters": (post(EMBED, CHUNKED) + b"many\r\n{}\r\n0\r\n\r\n", "400"),
    "chunks and a length": (
        post(EMBED, CHUNKED, "Content-Length: 9") + b"2\r\n{}\r\n0\r\n\r\n",
        "4",
    ),
    "NUL in a header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \0\r\n\r\n", "400"),
    "no colon": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n", "400"),
    "no HTTP": (b"hello\r\n\r\n", "400"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "4"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), "400"),
    "many headers": (post(EMBED, *[f"X-{n}: a" for n in range(20_000)]), "4"),
    "a long address": (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", "4"),
    "a path of bytes": (
        b"GET /%00%ff%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n"
        b"Host: localhost\r\nConnection: close\r\n\r\n",
        "404",
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_request(port: int, name: str) -> None:
    sent, status = RAW[name]
    answer = told(port, sent)
    # "4": which of them, or none, depends on how much of it was read at once.
    assert answer.startswith(b"HTTP/1.1 " + status.encode()) or (status == "4" and not answer)


@pytest.mark.parametrize("path", POSTS)
def test_bodies_that_say_nothing(port: int, path: str) -> None:
    bodies = [
        *(b"", b"{", b"\xff\xfe", b"\xef\xbb\xbf{", b"[" * 50_000, b"null", b"[]", b"0", b'"a"'),
        *(b'{"input": NaN, "query": NaN}', b'{"input": 1e999}', b'{"k": ' + b"9" * 5_000 + b"}"),
        *(b'{"\\u0000": 1}', b'"\\ud800"', b"\x1f\x8b\x08" + bytes(50), b'{"input": "a"', bytes(9)),
        b"[" + b"1," * 40_000 + b"1]",
    ]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for kind in ("application/json", "text/plain", "application/json; charset=utf-16", ""):
            for body in bodies:
                answer = client.post(path, content=body, headers={"content-type": kind})
                assert 400 <= answer.status_code < 500, (body[:40], kind, answer.text)


ODD = ["\0", "\ud800", "\U0010ffff", "a" * 50_000, "\u202e", "", "' OR 1=1 --", "../../etc/passwd"]


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_strings_that_are_odd(port: int, odd: str) -> None:
    store = "/v1/stores/notes"
    nested: object = odd
    for _ in range(900):
        nested = {"a": nested}
    asked: list[tuple[str, object]] = [
        (EMBED, {"input": odd}),
        (EMBED, {"input": "a", "model": odd}),
        ("/v1/rerank", {"query": odd, "documents": [odd]}),
        (f"{store}/search", {"query": odd, "where": {odd: odd}}),
        (f"{store}/search", {"query": "a", "where": nested}),
        (f"{store}/search", {"vector": odd, "strategy": "naive"}),
        (f"{store}/get", {"ids": [odd]}),
        (f"{store}/delete", {"ids": [f"{odd}x"]}),
        (f"{store}/passages", {"passages": [{"id": f"{odd}x", "text": odd}]}),
        (f"{store}/passages", {"passages": [{"id": "x", "text": "a", "metadata": {odd: odd}}]}),
        (f"{store}/passages", {"passages": [{"id": "x", "text": "a", "metadata": nested}]}),
        (f"{store}/get", {"ids": [f"{odd}x", "x"]}),
    ]
    headers = {"content-type": "application/json"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=headers) as client:
        for path, body in asked:
            answer = client.post(path, content=_json(body))
            assert answer.status_code < 500, (path, answer.text)
        for key in (f"{odd}x", "x"):
            client.post(f"{store}/delete", content=_json({"ids": [key]}))


def test_wrong_keys_are_refused_before_anything_is_read(service: Service) -> None:
    with listening(service, keys=Keys([KEY])) as port:
        for wrong in (
            "",
            "Bearer",
            "Bearer wrong",
            f"Basic {KEY}",
            f"Bearer {KEY}x",
            "Bearer \x7f",
        ):
            sent = post(EMBED, f"Authorization: {wrong}", "Content-Length: 2")
            assert b" 401 " in told(port, sent, b"{}")[:13]
        endless = post(EMBED, "Authorization: Bearer wrong", "Content-Length: 30000000")
        assert b" 401 " in told(port, endless, b"a" * 1000)[:13]
        right = post(EMBED, f"X-Api-Key: {KEY}", "Content-Length: 14")
        assert b" 200 " in told(port, right, b'{"input": "a"}')[:13]


def test_a_body_that_does_not_come(service: Service) -> None:
    hasty = Service(HashEmbedder(), limits=Limits(slow_body=0.2))
    try:
        with listening(hasty) as port:
            begun = post(EMBED, "Content-Length: 14")
            assert b" 408 " in told(port, begun)[:13]
            assert b" 408 " in told(port, begun, b'{"inp')[:13]
    finally:
        hasty.close()


def test_clients_that_leave_in_the_middle(port: int) -> None:
    body = _json({"input": ["a cat sleeps"] * 100})
    request = post(EMBED, f"Content-Length: {len(body)}") + body
    for n in range(60):
        connection = socket.create_connection(("127.0.0.1", port), 60)
        connection.sendall(request[: len(request) * n // 59])
        if n % 2:  # reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    for cut in (10, len(request) - 20, len(request)):
        told(port, request[:cut], finish=True)  # half-closed: it ends, whatever it says


def test_many_requests_in_one_go_are_answered_in_order(port: int) -> None:
    one = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = told(port, one * 300 + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 301
    assert answer.rstrip().endswith(b"}]}")


def test_connections_that_say_nothing_cost_little(port: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2048:  # both ends are in this process
        if 0 <= hard < 2048:
            pytest.skip("this process may not open enough files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    process = psutil.Process()
    before = process.memory_info().rss
    with contextlib.ExitStack() as idle:
        for _ in range(500):
            idle.enter_context(socket.create_connection(("127.0.0.1", port), 60))
        assert b" 200 " in told(port, post(EMBED, "Content-Length: 14"), b'{"input": "a"}')
        assert process.memory_info().rss - before < 50 << 20


SAID = [
    model
    for module, base in ((http_contract, http_contract.Said), (schemas, schemas._Sent))
    for model in base.__subclasses__()
    if model.__module__ == module.__name__
]


def errors(model: type[BaseModel], body: object) -> int:
    try:
        model.model_validate(body)
    except ValidationError as error:
        return error.error_count()
    return 0


@pytest.mark.parametrize("model", SAID, ids=lambda model: model.__name__)
def test_wrong_bodies_have_few_errors(model: type[BaseModel]) -> None:
    """An error for each element or field would take gigabytes for a body of megabytes."""
    assert errors(model, {f"a{n}": 1 for n in range(1000)}) < 10
    for name in model.model_fields:
        assert errors(model, {name: [1.5] * 1000}) < 10
