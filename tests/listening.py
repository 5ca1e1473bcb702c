"""A server of this process on the loopback, with stand-ins for the models: real sockets, fast."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage
from tars_rag.server.app import application
from tars_rag.server.process import HTTP
from tars_rag.server.service import Limits, Service

TEXTS = ["the fan has a switch", "cats sleep on the sofa", "a river in the mountain"]


class WordScorer:
    """A reranker without weights: the share of the query's words that a text has."""

    model = "word-scorer"

    def score(self, query: str, texts: Sequence[str], budget_ms: float | None = None) -> Any:
        words = set(query.lower().split())
        shares = [len(words & set(t.lower().split())) / max(len(words), 1) for t in texts]
        return np.array(shares, np.float32)


@contextlib.contextmanager
def serving(folder: Path, limits: Limits | None = None) -> Iterator[Service]:
    """A service with one store, `notes`, of `TEXTS`."""
    service = Service(HashEmbedder(), WordScorer(), limits=limits)
    store = HybridStore(folder / "notes", service.embedder)
    store.upsert([Passage(f"note#{n}", text, {"n": n}) for n, text in enumerate(TEXTS)])
    service.add_store("notes", store)
    try:
        yield service
    finally:
        service.close()


@contextlib.contextmanager
def listening(service: Service, **gate: Any) -> Iterator[int]:
    """The service as `tars-rag serve` has it, in a thread: the port it listens at."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        config = uvicorn.Config(
            application(service, **gate), log_config=None, timeout_graceful_shutdown=30, **HTTP
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()  # who connects before it accepts waits in the kernel
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive()
