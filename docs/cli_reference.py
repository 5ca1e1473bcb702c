"""Write docs/cli-reference.md from the command line itself, or check that it says the same.

    python docs/cli_reference.py --write
    python docs/cli_reference.py --check

The layout is made here: typer's own help pages change with its releases and the terminal.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
import textwrap
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

PAGE = Path(__file__).with_name("cli-reference.md")
HEAD = """\
# Command line reference

Every command with its arguments and options, as `--help` says it. [The command line](cli.md) tells
what they are for. This page is made by `python docs/cli_reference.py --write`, and CI compares it.
"""
WIDTH = 100
COLUMN = 30


def page() -> str:
    """The whole page, from the commands as they are."""
    from typer.main import get_command

    from tars_rag.cli import app

    root = get_command(app)
    return "\n".join([HEAD, *(section(name, command) for name, command in walk("tars-rag", root))])


def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command and all below it, in the order of the help page."""
    yield name, command
    if hasattr(command, "list_commands"):
        for child in command.list_commands(None):
            found = command.get_command(None, child)
            if not found.hidden:
                yield from walk(f"{name} {child}", found)


def section(name: str, command: Any) -> str:
    """One command: usage, what it does, arguments and options."""
    is_group = hasattr(command, "list_commands")
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    usage = [name, *(["[OPTIONS]"] if len(arguments) < len(shown) else [])]
    usage += [place(p) for p in arguments] + (["COMMAND ..."] if is_group else [])
    lines = ["Usage: " + " ".join(usage)]
    for paragraph in (command.help or "").split("\n\n"):
        lines += ["", *textwrap.wrap(" ".join(paragraph.split()), WIDTH)]
    if is_group:
        children = [command.get_command(None, child) for child in command.list_commands(None)]
        rows = [(child.name, first_sentence(child.help)) for child in children if not child.hidden]
        lines += ["", "Commands:", *table(rows)]
    if arguments:
        lines += ["", "Arguments:", *table([(place(p), told(command, p)) for p in arguments])]
    if options := [p for p in shown if p.param_type_name == "option"]:
        lines += [
            "",
            "Options:",
            *table([(spelled(command, p), told(command, p)) for p in options]),
        ]
    body = "\n".join(lines)
    return f"## {name}\n\n```text\n{body}\n```\n"


def table(rows: list[tuple[str, str]]) -> list[str]:
    """Names in one column, words in the other; a long name has a line of its own."""
    lines = []
    for name, words in rows:
        first = f"  {name}".ljust(COLUMN)
        wrapped = textwrap.wrap(words, WIDTH - COLUMN) or [""]
        if len(first) > COLUMN or not first.endswith(" "):
            lines.append(first.rstrip())
            first = " " * COLUMN
        lines.append((first + wrapped[0]).rstrip())
        lines += [" " * COLUMN + line for line in wrapped[1:]]
    return lines


def first_sentence(text: str | None) -> str:
    """The start of a help text, for a list of commands."""
    return " ".join((text or "").split()).partition(". ")[0].rstrip(".")


def place(param: Any) -> str:
    """An argument as the usage line has it."""
    name = param.metavar or param.name.upper()
    name = name.strip("[]")
    more = "..." if param.nargs == -1 and not name.endswith("...") else ""
    return f"{name}{more}" if param.required else f"[{name}{more}]"


def written(command: Any, param: Any) -> tuple[Any, str]:
    """The type and the help text that the source gives a parameter: `Annotated[type, info]`."""
    hints = typing.get_type_hints(inspect.unwrap(command.callback), include_extras=True)
    hint = hints.get(param.name, Annotated[str, param])
    # Python 3.10 wraps what has the default None: Optional[Annotated[type, info]].
    found = next(h for h in (hint, *typing.get_args(hint)) if hasattr(h, "__metadata__"))
    annotation, info, *_ = typing.get_args(found)
    return annotation, " ".join((info.help or "").split())


def spelled(command: Any, param: Any) -> str:
    """An option with its short form, its opposite and what it takes."""
    name = ", ".join(sorted(param.opts, key=len))
    if param.secondary_opts:
        name += " / " + ", ".join(param.secondary_opts)
    return name if param.is_flag else f"{name} {param.metavar or kind(written(command, param)[0])}"


def kind(annotation: Any) -> str:
    """What a value looks like: its choices or a word for its type."""
    if typing.get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in typing.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "|".join(str(choice.value) for choice in annotation)
    for inner in typing.get_args(annotation):  # X | None, list[X]
        if inner is not type(None):
            return kind(inner)
    return {int: "N", float: "NUMBER", Path: "PATH"}.get(annotation, "TEXT")


def told(command: Any, param: Any) -> str:
    """What the help says, with the default where there is one that a person would type."""
    words = written(command, param)[1]
    default = param.default
    if param.required and param.param_type_name == "option":
        return f"{words} [required]".strip()
    if isinstance(default, str | int | float) and not isinstance(default, bool):
        return f"{words} [default: {default}]".strip()
    if default is True and param.secondary_opts:
        return f"{words} [default: {param.opts[0].removeprefix('--')}]".strip()
    return words


def main() -> int:
    """Write or check; 1 where the page differs from the commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    todo = parser.add_mutually_exclusive_group(required=True)
    todo.add_argument("--write", action="store_true")
    todo.add_argument("--check", action="store_true")
    wanted = parser.parse_args()
    made = page()
    if wanted.write:
        PAGE.write_text(made, "utf-8")
        return 0
    found = PAGE.read_text("utf-8") if PAGE.is_file() else ""
    if found == made:
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(
            found.splitlines(keepends=True), made.splitlines(keepends=True), str(PAGE), "commands"
        )
    )
    print(f"\n{PAGE.name} is older than the commands: python docs/cli_reference.py --write")
    return 1


if __name__ == "__main__":
    sys.exit(main())
