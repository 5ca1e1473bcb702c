"""Pages that are made from the code say what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_command_line_reference_is_current() -> None:
    command = [sys.executable, "docs/cli_reference.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"run: python docs/cli_reference.py --write\n{done.stdout}{done.stderr}"
    )
