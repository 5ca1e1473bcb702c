"""Many files of all kinds, runs that are killed, a tree that changes while it is watched.

The counts are small; TARS_RAG_FILES, TARS_RAG_INDEX_KILLS and TARS_RAG_CHANGES set others.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import HashEmbedder
from tars_rag.ingest.sources import sources_of
from tars_rag.retrieval.store import HybridStore
from tars_rag.splitting.splitter import Splitter
from tiny_models import write_model
from trees import Gardener, afresh, contents, mixed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

FILES = int(os.environ.get("TARS_RAG_FILES", "40"))
KILLS = int(os.environ.get("TARS_RAG_INDEX_KILLS", "4"))
CHANGES = int(os.environ.get("TARS_RAG_CHANGES", "60"))
_PACE = 60 / 500  # seconds for a change


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("t") / "tiny", head=False, seed=5) / "tokenizer.json"


def command(store: Path, top: Path, tokenizer: Path, *more: str) -> list[str]:
    child = Path(__file__).with_name("index_child.py")
    return [sys.executable, str(child), str(store), str(top), str(tokenizer), *more]


def indexed(store: Path, top: Path, tokenizer: Path) -> dict[str, Any]:
    done = subprocess.run(command(store, top, tokenizer), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def held(store: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    with HybridStore(store, HashEmbedder()) as opened:
        return contents(opened)


def test_files_of_all_kinds_are_indexed_once(tmp_path: Path, tokenizer: Path) -> None:
    pytest.importorskip("kreuzberg")
    few, many = tmp_path / "few", tmp_path / "many"
    mixed(few, FILES // 4)
    small = indexed(tmp_path / "small", few, tokenizer)
    bad = mixed(many, FILES)
    first = indexed(tmp_path / "store", many, tokenizer)
    assert {source for source, _ in first["failures"]} == bad
    assert first["indexed"] == FILES - len(bad)
    second = indexed(tmp_path / "store", many, tokenizer)
    assert second["unchanged"] == FILES - len(bad)
    assert (second["written"], second["deleted"]) == (0, 0)
    share = second["seconds"] / first["seconds"]
    peaks = small["peak"] >> 10, first["peak"] >> 10
    print(f"{FILES} files: {first['seconds']:.1f} s, again {share:.1%}; peak MB, quarter: {peaks}")
    assert first["peak"] < small["peak"] + (64 << 10)  # kilobytes


def test_killed_runs_over_files_that_move_end_as_one(tmp_path: Path, tokenizer: Path) -> None:
    notes, store = tmp_path / "notes", tmp_path / "store"
    gardener, rng = Gardener(notes, seed=1), random.Random(2)
    for _ in range(80):
        gardener.change()
    for _ in range(KILLS):
        child = subprocess.Popen(
            command(store, notes, tokenizer), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        began, within = time.monotonic(), rng.uniform(0.2, 5)
        while time.monotonic() - began < within and child.poll() is None:
            time.sleep(0.02)
            if (store / "sources.sqlite3").exists() and rng.random() < 0.02:
                break  # soon after the first passages
        child.kill()
        child.wait()
        for _ in range(12):
            gardener.change()
    told = indexed(store, notes, tokenizer)
    assert told["failures"] == []
    right, _ = afresh(notes, tmp_path / "fresh", Splitter(tokenizer, 66, overlap=8))
    assert held(store) == right


def test_a_watched_tree_ends_as_a_fresh_index(tmp_path: Path, tokenizer: Path) -> None:
    pytest.importorskip("watchfiles")
    notes, store = tmp_path / "notes", tmp_path / "store"
    gardener = Gardener(notes, seed=3)
    last = notes / "~last.txt"  # after all others in a run
    watcher = subprocess.Popen(command(store, notes, tokenizer, "watch"), stdout=subprocess.DEVNULL)

    def until(there: bool) -> None:
        end = time.monotonic() + 300
        while (str(last) in sources_of(store)) != there:
            assert time.monotonic() < end
            assert watcher.poll() is None
            time.sleep(0.2)

    try:
        for _ in range(CHANGES):
            gardener.change()
            time.sleep(_PACE)
        last.write_text("The last.")
        until(there=True)
        last.unlink()
        until(there=False)
    finally:
        watcher.terminate()
        watcher.wait(60)
    right, report = afresh(notes, tmp_path / "fresh", Splitter(tokenizer, 66, overlap=8))
    assert report.failures == []
    assert held(store) == right
