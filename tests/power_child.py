"""What is recorded for the test of power cuts: a store made, filled, closed and opened again.

    python power_child.py STORE LOG SEED THRESHOLD OPERATIONS

Each operation is announced and acknowledged by one write of JSON to LOG.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

from conftest import HashEmbedder
from store_child import SMALL, operations, passage
from tars_rag.retrieval.indexes.chroma import vectors as vectors_module
from tars_rag.retrieval.storage import passages as passages_module
from tars_rag.retrieval.store import HybridStore


def main(path: str, log: str, seed: int, threshold: int, number: int) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)

    def say(message: object) -> None:
        os.write(descriptor, json.dumps(message).encode())

    vectors_module._HNSW["sync_threshold"] = threshold
    passages_module._SMALL = SMALL
    for opening in range(2):
        with HybridStore(Path(path), HashEmbedder()) as store:
            say("open")
            source = operations(seed + opening, 24, 20, 0.25)
            for kind, versions in itertools.islice(source, number):
                say((kind, versions))
                if kind == "upsert":
                    store.upsert([passage(*item) for item in versions.items()])
                else:
                    store.delete(list(versions))
                say("done")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
