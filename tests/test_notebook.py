"""The notebook runs from top to bottom, and was committed without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


def code_cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_is_committed_without_outputs() -> None:
    assert len(code_cells()) >= 5
    assert all(not cell["outputs"] and not cell["execution_count"] for cell in code_cells())


@pytest.mark.weights
def test_it_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, cell in enumerate(code_cells(), 1):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split()[1] == "pump"
    assert "E-17" in printed
    assert "vectors" in printed
    assert names["found"][0].id == "pump"
