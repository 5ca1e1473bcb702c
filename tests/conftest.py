"""Fixtures every test may use."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.chroma import process as embedded

pytest.register_assert_rewrite("served")  # a plugin whose names tests import, too

# Started in the background of a shell, a program has Ctrl-C ignored, and so have its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is no fault of the code on a machine that others use as well.
settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")

embedded.KEEP_IDLE = 1  # hundreds of stores are opened: a process for each would take minutes


def shared_dir() -> Path:
    """../shared beside the checkout, or TARS_RAG_SHARED."""
    default = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("TARS_RAG_SHARED", default))


@pytest.fixture(scope="session")
def shared() -> Path:
    path = shared_dir()
    if not path.is_dir():
        pytest.skip(f"{path} is not there (set TARS_RAG_SHARED)")
    return path


@pytest.fixture(scope="session")
def cranfield(shared: Path) -> Path:
    path = shared / "data" / "cranfield"
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    return path


class HashEmbedder:
    """A deterministic bag-of-words embedder without weights: equal words, nearer vectors."""

    def __init__(self, dimension: int = 32, name: str = "hash") -> None:
        self.dimension = dimension
        self.fingerprint = f"{name}:{dimension}"
        self.device = "cpu"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split() or [""]:
                digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=4)
                seed = int.from_bytes(digest.digest(), "big")
                row += np.random.default_rng(seed).standard_normal(self.dimension)
            row /= np.linalg.norm(row)
        return rows

    def embed_query(self, text: str) -> NDArray[np.float32]:
        return self.embed([text])[0]


@pytest.fixture
def hash_embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Chroma server of the chromadb package, on the loopback; its stores know each other not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("chroma")
    if not command.exists():
        pytest.skip(f"{command} is not there")
    place = tmp_path_factory.mktemp("chroma")
    arguments = ["run", "--path", str(place / "server"), "--port", str(port)]
    with (place / "server.log").open("wb") as log:
        child = subprocess.Popen([command, *arguments], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait(10)
