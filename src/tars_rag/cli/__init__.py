"""The command line. One file per command group, loaded only when it is needed.

To add a command, write ``cli/<name>.py`` with a function of that name (or, for a group, a
``typer.Typer`` called ``app``), and add a row to `_COMMANDS`. Import heavy modules (chromadb,
onnxruntime, the embedder) inside the command, so that the file itself is cheap to import. Raise a
`TarsRagError` when something goes wrong: errors are printed here and nowhere else.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from tars_rag import __version__
from tars_rag.cli.console import fail
from tars_rag.errors import TarsRagError

# Command -> module:attribute, in the order of the help page.
_COMMANDS: dict[str, str] = {
    "quickstart": "tars_rag.cli.quickstart:quickstart",
    "index": "tars_rag.cli.index:index",
    "embed": "tars_rag.cli.embed:embed",
    "query": "tars_rag.cli.query:query",
    "ask": "tars_rag.cli.ask:ask",
    "show": "tars_rag.cli.show:show_passage",
    "store": "tars_rag.cli.store:app",
    "serve": "tars_rag.cli.serve:serve",
    "mcp": "tars_rag.cli.serve:mcp",
    "models": "tars_rag.cli.models:app",
    "eval": "tars_rag.cli.eval:evaluate",
    "convert": "tars_rag.cli.convert:convert",
    "doctor": "tars_rag.cli.doctor:doctor",
    "npu": "tars_rag.cli.npu:app",
    "bench": "tars_rag.cli.bench:bench",
    "padding": "tars_rag.cli.padding:padding",
}


class _Commands(TyperGroup):
    """Imports the module of a command only when it is called, and prints its errors."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name].split(":")
        target = getattr(import_module(module), attribute)
        if isinstance(target, typer.Typer):
            command: Any = get_group(target)
        else:
            single = typer.Typer(add_completion=False)
            single.command(cmd_name)(target)
            command = get_command(single)
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TarsRagError as error:
            if ctx.params.get("debug"):
                raise
            fail(str(error))
            raise typer.Exit(1) from None


app = typer.Typer(
    name="tars-rag",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tars-rag {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Hybrid retrieval (vectors + BM25 + reranking) on small Rockchip boards and any CPU."""


def main() -> None:
    """The ``tars-rag`` command."""
    app(prog_name="tars-rag")
