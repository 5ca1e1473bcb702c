"""Pages that are made from the code say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "script",
    ["docs/cli_reference.py", "docs/configuration_table.py", "docs/filters_table.py"],
)
def test_a_page_is_current(script: str) -> None:
    command = [sys.executable, script, "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run: python {script} --write\n{done.stdout}{done.stderr}"


def test_the_files_that_contributors_are_sent_to_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = set(re.findall(r"(?:tests|docs|src)/[\w./*-]+", text))
    named |= set(re.findall(r"\]\(([\w./-]+)\)", text))
    placeholders = {name for name in named if "NAME" in name}
    assert len(named) > 20
    assert not [
        name for name in sorted(named - placeholders) if not list(ROOT.glob(name.rstrip("/.")))
    ]
