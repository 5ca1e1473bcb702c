"""What the commands print with: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(message: str, style: str = "") -> None:
    """One line for the person watching, on stderr."""
    err.print(Text(message, style=style), soft_wrap=True)


def fail(message: str) -> None:
    """The reason why a command ends with exit code 1: one red line on stderr."""
    say("error: " + " ".join(message.split()), style="red")


def print_json(value: Any) -> None:
    """The result of ``--json``: one JSON document on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))
