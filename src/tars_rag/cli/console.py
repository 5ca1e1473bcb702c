"""What the commands print with: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from tars_rag.progress import NamedProgress

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def show(message: str, style: str = "") -> None:
    """Print a line of the result on stdout, unwrapped, with any markup in it taken literally."""
    out.print(Text(message, style=style), soft_wrap=True)


def say(message: str, style: str = "") -> None:
    """Print one line for the user on stderr."""
    err.print(Text(message, style=style), soft_wrap=True)


def say_once(topic: str, message: str, style: str = "") -> None:
    """`say` the message unless this user was told about `topic` before."""
    path = _told(topic)
    if path.exists():
        return
    say(message, style)
    with contextlib.suppress(OSError):  # if it cannot be remembered, it is repeated
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def say_again(topic: str) -> None:
    """Forget that the user was told about `topic`: the situation has changed since."""
    with contextlib.suppress(OSError):
        _told(topic).unlink()


def _told(topic: str) -> Path:
    import platformdirs

    name = hashlib.sha256(topic.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return Path(platformdirs.user_cache_dir("tars-rag", appauthor=False)) / "told" / name


def fail(message: str) -> None:
    """Print on one red line on stderr why the command ends with exit code 1."""
    say("error: " + " ".join(message.split()), style="red")


def command_line(context: typer.Context, *more: str) -> str:
    """The running command as it was given, followed by `more`, quoted for a shell."""
    options: list[str] = []
    arguments: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        values = [str(v) for v in (value if isinstance(value, list | tuple) else [value])]
        if parameter.param_type_name == "argument":
            arguments += values
        elif isinstance(value, bool):
            options.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            options += [word for one in values for word in (parameter.opts[0], one)]
    names: list[str] = []
    group: Any = context
    while group.parent is not None:  # the last one is the program itself
        names.insert(0, group.info_name or "")
        group = group.parent
    return shlex.join(["tars-rag", *names, *arguments, *options, *more])


def print_json(value: Any) -> None:
    """Print the result of ``--json``: one JSON document on stdout."""
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
    progress = Progress(*columns, console=err, transient=True)
    # Off a terminal it is not started: disabled, rich before 14.3 still ends with an empty line.
    with progress if err.is_terminal else nullcontext():
        task = progress.add_task("", total=None, visible=False)
        announced = ""

        def advance(what: str, done: int, total: int | None) -> None:
            nonlocal announced
            if download and not err.is_terminal and what != announced:
                say(f"fetching {what}")
                announced = what
            progress.update(task, description=what, completed=done, total=total, visible=True)

        yield advance
