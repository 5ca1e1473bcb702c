"""A server with everything switched on, and servers that are stopped or killed under load."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("mcp")

from test_server_process import Served, environment, start

pytest_plugins = ["tiny_models"]
_ = environment  # a fixture
KILLS = int(os.environ.get("TARS_RAG_KILLS", "25"))
KEY = "a-key-of-sixteen-characters"


@dataclass
class Everything:
    """One server with TLS, a key and a folder that it follows."""

    server: Served
    trusted: ssl.SSLContext
    notes: Path

    def client(self, **options: object) -> httpx.Client:
        headers = {"authorization": f"Bearer {KEY}"}
        given = {"headers": headers, "verify": self.trusted, "timeout": 60, **options}
        return httpx.Client(base_url=self.server.url, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def everything(
    environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Everything]:
    pytest.importorskip("watchfiles")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not there to make a certificate")
    folder = tmp_path_factory.mktemp("everything")
    keys, certificate, key = (folder / name for name in ("keys", "cert.pem", "key.pem"))
    keys.write_text(f"# of this test\n{KEY}\n")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    notes = folder / "files"
    notes.mkdir()
    (notes / "fan.md").write_text("The fan is near the cpu core.\n")
    options = ("--tls-cert", certificate, "--tls-key", key, "--api-key-file", keys)
    server = start(folder / "notes", environment, *map(str, options), "--watch", str(notes))
    yield Everything(server, ssl.create_default_context(cafile=str(certificate)), notes)
    server.stop()


@pytest.mark.slow
@pytest.mark.enable_socket
def test_tls_lets_in_who_trusts_it_and_has_the_key(everything: Everything) -> None:
    assert everything.server.url.startswith("https://")
    with everything.client() as client:
        assert client.get("/v1/models").json()["data"][0]["kind"] == "embedder"
        told = client.post("/v1/embeddings", json={"input": ["a cat"] * 300})
        assert len(told.raise_for_status().json()["data"]) == 300  # more than one packet
    with everything.client(headers={}) as nobody:
        assert nobody.get("/v1/models").status_code == 401
    careful = everything.client(verify=ssl.create_default_context())
    with careful, pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
        careful.get("/health/live")
    plain = everything.server.url.replace("https", "http")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{plain}/health/live", timeout=60)
    place = everything.server.url.removeprefix("https://").split(":")
    with socket.create_connection((place[0], int(place[1])), 60) as stranger:
        stranger.sendall(b"no handshake\r\n\r\n")
        try:
            while stranger.recv(1024):
                pass
        except ConnectionError:
            pass


@pytest.mark.slow
@pytest.mark.enable_socket
def test_files_that_change_are_found(everything: Everything) -> None:
    def found(client: httpx.Client) -> set[str]:
        body = {"query": "piano", "k": 10, "rerank": False}
        told = client.post("/v1/stores/notes/search", json=body).raise_for_status().json()
        return {Path(hit["metadata"]["source"]).name for hit in told["passages"]}

    with everything.client() as client:
        while found(client) != {"fan.md"}:  # pytest's own limit ends it
            time.sleep(0.1)
        (everything.notes / "piano.md").write_text("Piano music in the garden.\n")
        while found(client) != {"fan.md", "piano.md"}:
            time.sleep(0.1)
        (everything.notes / "fan.md").unlink()
        while found(client) != {"piano.md"}:
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_terminal_that_closes_stops_nothing(everything: Everything) -> None:
    def ask(_: int) -> int:
        with everything.client() as client:
            told = client.post("/v1/embeddings", json={"input": ["a cat"] * 50})
            return len(told.raise_for_status().json()["data"])

    with ThreadPoolExecutor(4) as clients:
        answers = clients.map(ask, range(40))
        for _ in range(5):
            everything.server.process.send_signal(signal.SIGHUP)
            time.sleep(0.05)
        assert list(answers) == [50] * 40
    assert everything.server.process.poll() is None


@dataclass
class Acknowledged:
    """What a writer was told is stored, and what may be, as its last request had no answer."""

    there: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str | None] = field(default_factory=dict)


def write_until_it_dies(
    server: Served, number: int, known: Acknowledged, begun: threading.Event
) -> None:
    """Write, replace and delete passages of its own, one after the other."""
    choose = random.Random(f"{number} {len(known.there)}")
    path = "/v1/stores/notes"
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for turn in range(100_000):
            key, text = f"{number}-{choose.randrange(40)}", f"river {number} {turn} fish"
            gone = key in known.there and choose.random() < 0.3
            known.unknown = {key: None if gone else text}
            try:
                if gone:
                    answer = client.post(f"{path}/delete", json={"ids": [key]})
                else:
                    body = {"passages": [{"id": key, "text": text}]}
                    answer = client.post(f"{path}/passages", json=body)
            except httpx.TransportError:
                return
            if answer.status_code == 429:
                continue
            if answer.status_code == 503:  # it is stopping: nothing was done, or it is not known
                return
            answer.raise_for_status()
            known.unknown = {}
            if gone:
                del known.there[key]
            else:
                known.there[key] = text
            if turn >= 20:
                begun.set()


@pytest.fixture
def ended() -> Iterator[contextlib.ExitStack]:
    """What is done however the test ends."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.crash
@pytest.mark.enable_socket
@pytest.mark.timeout(3600)
def test_nothing_acknowledged_is_lost_by_servers_that_end_under_load(
    environment: dict[str, str], tmp_path: Path, ended: contextlib.ExitStack
) -> None:
    """One store, many servers: each is stopped or killed while eight clients write."""
    known = [Acknowledged() for _ in range(8)]
    choose = random.Random(7)
    for life in range(max(KILLS // 8, 2)):
        server = start(tmp_path / "store", environment)
        ended.callback(server.process.kill)
        begun = [threading.Event() for _ in known]
        with ThreadPoolExecutor(len(known)) as writers:
            ends = [
                writers.submit(write_until_it_dies, server, n, mine, begun[n])
                for n, mine in enumerate(known)
            ]
            for one in begun:
                assert one.wait(300)
            time.sleep(choose.random())
            how = signal.SIGKILL if life % 2 else signal.SIGTERM
            server.process.send_signal(how)
            assert server.process.wait(120) == (-how if life % 2 else 0)
            for end in ends:
                end.result(120)
        server = start(tmp_path / "store", environment)
        ended.callback(server.process.kill)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            got = client.post("/v1/stores/notes/get", json={}).raise_for_status().json()
        server.stop()
        stored = {one["id"]: one["text"] for one in got["passages"]}
        for number, mine in enumerate(known):
            own = {key: text for key, text in stored.items() if key.startswith(f"{number}-")}
            for key, text in mine.unknown.items():  # done or not, but nothing else
                assert own.get(key) in (text, mine.there.get(key))
                for side in (own, mine.there):
                    side.pop(key, None)
                if key in stored:
                    own[key] = mine.there[key] = stored[key]
            assert own == mine.there
