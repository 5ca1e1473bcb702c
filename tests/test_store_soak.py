"""Mixed work for a while: nothing grows but what is stored."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import store_years

pytestmark = [pytest.mark.crash, pytest.mark.timeout(7200)]


def test_nothing_grows_but_what_is_stored(tmp_path: Path) -> None:
    """`TARS_RAG_SOAK` sets the seconds: 40, or 600 and 3600 for the figures of docs/store.md."""
    found = store_years.soak(tmp_path / "store", float(os.environ.get("TARS_RAG_SOAK", "40")))
    # While what is remembered of passages fills, a fifth more memory is no leak.
    settled = {name: values[len(values) // 4 :] for name, values in found.items()}
    grown = {name: store_years.growth(values) for name, values in settled.items()}
    for name in ("memory MB", "descriptors", "threads"):
        assert grown[name] <= 1.2, grown
    assert grown["disk MB"] <= 1.6, grown
    for name in ("search ms", "write of 1 ms"):  # another process may have had the cores
        assert grown[name] <= 4, grown
