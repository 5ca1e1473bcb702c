"""A real server on the loopback, in a thread, whose stores and models remote classes use.

A plugin: ``pytest_plugins = ["served"]``. Sockets are off in fast tests; `REMOTE` lets one test in.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

KEY = "sesame sesame sesame"
REMOTE = pytest.param("remote", marks=pytest.mark.enable_socket)
"""The parameter of a fixture that gives what a server has."""
SLOW_REMOTE = pytest.param("remote", marks=[pytest.mark.enable_socket, pytest.mark.slow])
"""The same where there are many of such tests."""


class Board:
    """What is served, and where."""

    def __init__(self, service: Any, url: str) -> None:
        self.service, self.url = service, url
        self._names = itertools.count()

    @contextlib.contextmanager
    def store(self, directory: Path) -> Iterator[str]:
        """Serve a new store; its address."""
        from tars_rag import HybridStore

        name = f"s{next(self._names)}"
        self.service.add_store(name, HybridStore(directory, self.service.embedder))
        try:
            yield f"{self.url}/{name}"
        finally:
            self.service.stores.pop(name).close()


@contextlib.contextmanager
def serving(embedder: Any, reranker: Any = None) -> Iterator[Board]:
    """A server of these models, with a key, until the block is left."""
    pytest.importorskip("fastapi")
    pytest.importorskip("mcp")
    import uvicorn

    from tars_rag.server.app import application
    from tars_rag.server.process import HTTP
    from tars_rag.server.security import Keys
    from tars_rag.server.service import Service

    service = Service(embedder, reranker)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app = application(service, keys=Keys([KEY]))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, **HTTP))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Board(service, f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()
            service.close()


@pytest.fixture(scope="session")
def board(tiny_models: Path) -> Iterator[Board]:
    """A server of the tiny embedder and the tiny reranker."""
    from tars_rag import Embedder, Reranker

    with (
        Embedder(tiny_models / "tiny", device="cpu") as embedder,
        Reranker(tiny_models / "tiny-ce") as reranker,
        serving(embedder, reranker) as served,
    ):
        yield served
