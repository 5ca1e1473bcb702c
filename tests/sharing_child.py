"""What the processes do that share a store; a file of its own, for the fork server to load."""

from __future__ import annotations

import random
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from conftest import HashEmbedder
from store_child import Ledger, operations, passage, word
from tars_rag.retrieval.store import HybridStore


def work(path: Path, pipe: Connection, name: str, seed: int) -> None:
    """Announce, do and acknowledge operations on ids of its own, and compare what it reads.

    Whatever is refused or wrong is sent, too, and ends it.
    """
    rng = random.Random(seed)
    ledger = Ledger()
    embedder = HashEmbedder()
    try:
        with HybridStore(path, embedder) as store:
            pipe.send("open")
            for kind, versions in operations(seed, 12, 6, 0.25):
                own = {f"{name}{key}": version for key, version in versions.items()}
                for message in ((kind, own), "done"):
                    if message == "done":
                        if kind == "upsert":
                            store.upsert([passage(*item) for item in own.items()])
                        else:
                            there = sum(key in ledger.known for key in own)
                            deleted = store.delete(list(own))
                            assert deleted == there, f"{deleted} of {there} were deleted"
                    pipe.send(message)
                    ledger.hear(message)
                _compare(store, ledger, name, rng)
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))


def read(path: Path, pipe: Connection, name: str, seed: int) -> None:
    """Read what all others write: each passage is one that was written, whole, and found."""
    rng = random.Random(seed)
    try:
        with HybridStore(path, HashEmbedder(), read_only=True) as store:
            pipe.send("open")
            while True:
                held = store.get()
                for found in rng.sample(held, min(3, len(held))):
                    assert found == passage(found.id, found.metadata["version"])
                store.search("filler words", 5, rng.choice(["hybrid", "naive", "lexical"]))
                store.count()
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))


def _compare(store: HybridStore, ledger: Ledger, name: str, rng: random.Random) -> None:
    """What nobody else writes is as this process left it."""
    keys = [f"{name}p{n}" for n in range(12)]
    held = {p.id: p for p in store.get(keys)}
    assert held == {key: passage(key, version) for key, version in ledger.known.items()}
    if not held:
        return
    one = rng.choice(list(held.values()))
    assert store.search(word(one.id, one.metadata["version"]), 3, "lexical")[0].passage == one
    vector = HashEmbedder().embed_query(one.text)
    assert store.search(None, 1, "naive", vector=vector)[0].passage == one
    assert len(store.vectors([one.id])) == 1
