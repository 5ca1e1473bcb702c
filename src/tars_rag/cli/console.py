"""What the commands print with: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from tars_rag.progress import NamedProgress

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def show(message: str, style: str = "") -> None:
    """A line of the result, on stdout; not wrapped, and taken literally."""
    out.print(Text(message, style=style), soft_wrap=True)


def say(message: str, style: str = "") -> None:
    """One line for the person watching, on stderr."""
    err.print(Text(message, style=style), soft_wrap=True)


def fail(message: str) -> None:
    """The reason why a command ends with exit code 1: one red line on stderr."""
    say("error: " + " ".join(message.split()), style="red")


def print_json(value: Any) -> None:
    """The result of ``--json``: one JSON document on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))


@contextmanager
def progress_bar(
    unit: Literal["bytes", "count"] = "bytes", *, download: bool = False
) -> Iterator[NamedProgress]:
    """A bar on stderr that is gone when it is done, and what draws it.

    Args:
        unit: What is counted.
        download: Worth a line of its own where no bar can be drawn.

    Yields:
        To be called as the work goes on.
    """
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=None, visible=False)
        announced = ""

        def advance(what: str, done: int, total: int | None) -> None:
            nonlocal announced
            if download and not err.is_terminal and what != announced:
                say(f"fetching {what}")
                announced = what
            progress.update(task, description=what, completed=done, total=total, visible=True)

        yield advance
