"""``tars-rag index``: files into a store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tars_rag.cli import resources
from tars_rag.cli.console import print_json, progress_bar, say, show

if TYPE_CHECKING:
    from tars_rag.ingest.run import Report

_SHOWN = 20


def index(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Text, Markdown or JSONL files, or directories."),
    ],
    store: resources.StoreOption,
    chunk_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens in a chunk (default: all the model reads).")
    ] = None,
    overlap: Annotated[int, typer.Option(min=0, help="Tokens shared by neighbouring chunks.")] = 32,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete the passages of files that are gone.")
    ] = False,
    model: resources.ModelOption = None,
    device: resources.DeviceOption = None,
    precision: resources.PrecisionOption = "fp32",
    json: resources.JsonOption = False,
) -> None:
    """Index files: new and changed ones only; may be interrupted and run again.

    JSONL rows are objects with id, text and metadata. Exit code 1 if a file could not be read; the
    others are indexed all the same.
    """
    from tars_rag.ingest.run import ingest

    settings = resources.read_settings(embed_model=model)
    with (
        resources.open_embedder(settings, device=device, precision=precision) as embedder,
        resources.open_store(store, embedder) as opened,
    ):
        splitter = resources.make_splitter(settings, embedder, chunk_tokens, overlap)
        with progress_bar() as progress:
            report = ingest(
                opened,
                paths,
                splitter,
                prune=prune,
                progress=lambda done, total, name: progress(name, done, total),
            )
        total = opened.count()
    if json:
        print_json(_as_json(report, total))
    _explain(report, prune)
    if not json:
        show(_summary(report, total))
    if report.failures:
        raise typer.Exit(1)


def _summary(report: Report, total: int) -> str:
    return (
        f"{report.indexed} files indexed, {report.unchanged} unchanged; passages: "
        f"{report.written} written, {report.deleted} deleted, {total} in the store "
        f"({report.seconds:.1f} s)"
    )


def _explain(report: Report, prune: bool) -> None:
    for source, problem in report.failures[:_SHOWN]:
        text = problem if source in problem else f"{source}: {problem}"
        say(f"not indexed: {text}", style="red")
    if (more := len(report.failures) - _SHOWN) > 0:
        say(f"... and {more} more problems (--json lists them all)", style="red")
    if report.vanished and not prune:
        say(f"{len(report.vanished)} indexed files are gone; --prune deletes their passages.")
    if report.ignored:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(report.ignored.items()))
        say(f"Left out as not text, Markdown or JSONL: {kinds}.")


def _as_json(report: Report, total: int) -> dict[str, Any]:
    failures = [{"source": source, "problem": problem} for source, problem in report.failures]
    return {**asdict(report), "failures": failures, "total": total}
