"""Indexes a tree, in a process that may be killed: STORE TOP MODEL [watch]."""

from __future__ import annotations

import resource
import sys
import threading
from dataclasses import asdict
from json import dumps
from pathlib import Path

from conftest import HashEmbedder
from tars_rag.ingest.run import ingest
from tars_rag.ingest.watch import Mounts, changes
from tars_rag.retrieval.store import HybridStore
from tars_rag.splitting.splitter import Splitter


def run(store: Path, top: Path, splitter: Splitter) -> None:
    with HybridStore(store, HashEmbedder()) as opened:
        report = ingest(opened, [top], splitter, prune=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(dumps({**asdict(report), "peak": peak}), flush=True)


def main() -> None:
    store, top, tokenizer = map(Path, sys.argv[1:4])
    splitter = Splitter(tokenizer, 66, overlap=8)
    if "watch" not in sys.argv:
        run(store, top, splitter)
        return
    mounts = Mounts([top])
    for _ in changes([top], threading.Event()):
        assert mounts.are_as_before()
        run(store, top, splitter)


if __name__ == "__main__":
    main()
