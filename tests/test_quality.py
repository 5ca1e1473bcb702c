"""Retrieval quality on Cranfield with the published weights, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tars_rag.cli import app

# Least nDCG@10; below it a change has made retrieval worse.
LEAST = {"naive": 0.498, "lexical": 0.530, "hybrid": 0.563}


@pytest.mark.weights
@pytest.mark.data
@pytest.mark.timeout(900)
def test_cranfield(cranfield: Path, tmp_path: Path) -> None:
    arguments = ["eval", str(cranfield), "--json", "--store", str(tmp_path / "store")]
    for name in LEAST:
        arguments += ["--strategy", name]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    scores = json.loads(result.stdout)
    assert set(LEAST) <= set(scores)
    for name, least in LEAST.items():
        assert scores[name]["ndcg@10"] >= least, name
        assert 0 < scores[name]["mrr@10"] <= 1
        assert 0 < scores[name]["recall@100"] <= 1
