"""Notebooks are committed as they ran; `nox -s notebooks` runs them (notebooks/run.py)."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = load(FOLDER / "run.py")
site = load(FOLDER.with_name("docs") / "site_hooks.py")


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_keeps_the_outputs_of_one_sound_run(path: Path) -> None:
    assert run.faults(read(path)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_begins_with_a_title_and_its_links_lead_somewhere(path: Path) -> None:
    cells = [c for c in read(path)["cells"] if c["cell_type"] == "markdown"]
    prose = ["".join(cell["source"]) for cell in cells]
    assert prose[0].startswith("# ")
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", "\n".join(prose)):
        assert re.match(r"https?:", target) or (FOLDER / target).exists(), target


SOUND: dict[str, Any] = {
    "cells": [
        {
            "cell_type": "code",
            "execution_count": 1,
            "outputs": [{"output_type": "stream", "name": "stdout", "text": ["notes/a.md\n"]}],
        }
    ]
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"execution_count": 2}, "run as number 2"),
        ({"execution_count": None, "outputs": []}, "no cell has an output"),
        ({"outputs": [{"output_type": "error", "ename": "E", "evalue": "x"}]}, "ended in E: x"),
        ({"outputs": [{"output_type": "stream", "name": "stderr", "text": "w"}]}, "stderr"),
        (
            {"outputs": [{"output_type": "stream", "name": "stdout", "text": ["in /tmp/abc\n"]}]},
            "path of this machine: /tmp/a",
        ),
        (
            {"outputs": [{"output_type": "execute_result", "data": {"text/html": "/home/me/x"}}]},
            "path of this machine: /home/m",
        ),
        (
            {"outputs": [{"output_type": "display_data", "data": {"image/png": "x/tmp/abc"}}]},
            None,
        ),
        (
            {"outputs": [{"output_type": "display_data", "data": {"image/png": "x" * 2_000_000}}]},
            "larger than",
        ),
    ],
)
def test_what_a_run_may_not_leave_is_found(change: dict[str, Any], said: str | None) -> None:
    notebook = copy.deepcopy(SOUND)
    notebook["cells"][0] |= change
    found = run.faults(notebook)
    if said is None:
        assert found == []
    else:
        assert any(said in line for line in found), found


def test_it_becomes_a_page_of_the_site_with_its_outputs_and_pictures() -> None:
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["it says\n", "```\n"]},
        {
            "output_type": "display_data",
            "data": {"image/png": "aGVsbG8=", "text/plain": "<Figure>"},
        },
        {"output_type": "execute_result", "data": {"text/plain": ["42"]}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Words."]},
        {"cell_type": "code", "execution_count": 1, "source": ["draw()"], "outputs": outputs},
    ]
    markdown, pictures = site.page_of({"cells": cells}, "01-x")
    assert pictures == {"01-x-1.png": b"hello"}
    assert markdown == (
        "# Title\nWords.\n\n```python\ndraw()\n```\n\n"
        '````text title="Output"\nit says\n```\n````\n\n'
        '![01-x, figure 1](01-x-1.png)\n\n```text title="Output"\n42\n```\n'
    )
