"""`tars-rag ask` against a language model's server that stands on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tars_rag import Embedder, HybridStore, Passage
from tars_rag.cli import app
from tars_rag.cli.ask import fitting, prompt
from tars_rag.cli.llm import Llm, LlmError
from tars_rag.retrieval.passage import ScoredPassage

pytest_plugins = ["tiny_models"]
pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]

END = b"data: [DONE]\n\n"


class Standin(ThreadingHTTPServer):
    """Answers with `lines`, and remembers what it was asked."""

    lines: tuple[bytes, ...] = ()
    asked: Any = None
    status = 200
    models: Any = None


class Handler(BaseHTTPRequestHandler):
    server: Standin

    def do_GET(self) -> None:
        self._answer(json.dumps(self.server.models).encode())

    def do_POST(self) -> None:
        self.server.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(*self.server.lines)

    def _answer(self, *lines: bytes) -> None:
        self.send_response(self.server.status)
        self.end_headers()
        for line in lines:
            self.wfile.write(line)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def llm() -> Iterator[Standin]:
    with Standin(("127.0.0.1", 0), Handler) as server:
        server.models = {"data": [{"id": "small"}]}
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def url(server: Standin) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1"


def said(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def hit(key: str, text: str) -> ScoredPassage:
    return ScoredPassage(Passage(key, text, {"page": 3}), 1.0)


def test_an_answer_comes_in_pieces(llm: Standin) -> None:
    llm.lines = (b": comment\n\n", said("The fan "), said("runs [1]."), END)
    server = Llm(url(llm), "key")
    assert list(server.stream(server.first_model(), "be brief", "why")) == ["The fan ", "runs [1]."]
    assert llm.asked["model"] == "small"
    assert llm.asked["messages"][1] == {"role": "user", "content": "why"}


def test_a_server_that_fails_is_told(llm: Standin) -> None:
    server = Llm(url(llm))
    cases: list[tuple[tuple[bytes, ...], str]] = [
        ((said("half"),), "before the end"),
        ((b"data: {\n\n",), "not OpenAI's protocol"),
        ((b'data: {"error": "no memory"}\n\n',), "no memory"),
    ]
    for lines, message in cases:
        llm.lines = lines
        with pytest.raises(LlmError, match=message):
            list(server.stream("small", "", ""))
    llm.status, llm.lines = 400, (b"too long",)
    with pytest.raises(LlmError, match="refused with 400: too long"):
        list(server.stream("small", "", ""))
    llm.status, llm.models = 200, {"data": []}
    with pytest.raises(LlmError, match="--llm-model"):
        server.first_model()


def test_a_server_that_is_not_there_or_hangs_is_told() -> None:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        with pytest.raises(LlmError, match="cannot be reached"):
            Llm(address).first_model()
        listening.listen()
        with pytest.raises(LlmError, match="sent nothing for"):
            Llm(address, timeout=0.2).first_model()


def test_the_context_is_cut_by_tokens() -> None:
    hits = [hit("a", "one two"), hit("b", "three four"), hit("c", "five")]
    count = lambda text: len(text.split())  # noqa: E731
    assert fitting(hits, 4, count) == hits[:2]
    assert fitting(hits, 1, count) == hits[:1]
    assert fitting([], 1, count) == []
    assert prompt("why?", hits[:1]) == "[1] p. 3\none two\n\nQuestion: why?"


@pytest.mark.slow
def test_the_command_cites_or_says_that_nothing_fits(
    llm: Standin, embedder_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    monkeypatch.setenv("RERANK_MODEL", "")
    store = tmp_path / "store"
    with Embedder(embedder_dir, device="cpu") as embedder, HybridStore(store, embedder) as opened:
        opened.upsert([Passage("a.md#0", "the fan is near the cpu", {"heading": "Fan"})])
    llm.lines = (said("Near the cpu [1]."), END)
    common = ["ask", "where is the fan", "--store", str(store), "--llm", url(llm)]
    told = CliRunner().invoke(app, [*common, "--min-score", "0"])
    assert told.exit_code == 0, told.output
    assert "Near the cpu [1]." in told.stdout
    assert "[1] a.md#0  Fan" in told.stdout
    assert "the fan is near the cpu" in llm.asked["messages"][1]["content"]
    llm.asked = None
    nothing = CliRunner().invoke(app, [*common, "--min-score", "1"])
    assert "Nothing in" in nothing.stdout
    assert llm.asked is None
    wrong = CliRunner().invoke(app, [*common[:-1], "localhost:8080"])
    assert wrong.exit_code == 1
