"""``tars-rag index``: put the texts of files into a store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tars_rag.cli import resources
from tars_rag.cli.console import print_json, progress_bar, say, show
from tars_rag.errors import InvalidInputError

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
        int | None,
        typer.Option(min=1, help="Most tokens of a chunk (default: as many as the model reads)."),
    ] = None,
    overlap: Annotated[
        int, typer.Option(min=0, help="Tokens that a chunk repeats from the one before.")
    ] = 32,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete the passages of files that are gone.")
    ] = False,
    model: resources.ModelOption = None,
    device: resources.DeviceOption = None,
    engine: resources.EngineOption = None,
    precision: resources.PrecisionOption = "fp32",
    language: resources.LanguageOption = None,
    json: resources.JsonOption = False,
) -> None:
    """Index new and changed files. If interrupted, run it again: it continues where it stopped.

    JSONL rows are objects with id, text and metadata. Files that cannot be read are reported, the
    others are indexed, and the exit code is 1.
    """
    from tars_rag.ingest.run import ingest, nothing_to_ingest

    settings = resources.read_settings(embed_model=model, cpu_engine=engine)
    with resources.open_embedder(settings, device=device, precision=precision) as embedder:
        splitter = resources.make_splitter(settings, embedder, chunk_tokens, overlap)
        nothing = None if resources.is_store(store) else nothing_to_ingest(paths, splitter)
        if nothing is not None:
            if json:
                print_json(_as_json(nothing, 0))
            _explain(nothing, prune)
            raise InvalidInputError(_nothing(paths, store))
        with (
            resources.open_store(store, embedder, language=language) as opened,
            progress_bar() as progress,
        ):
            report = ingest(opened, paths, splitter, prune=prune, progress=progress)
            total = opened.count()
    if json:
        print_json(_as_json(report, total))
    _explain(report, prune)
    if not json:
        show(_summary(report, total))
    if report.failures:
        raise typer.Exit(1)


def _nothing(paths: list[Path], store: Path) -> str:
    return (
        f"There is no text to index in {', '.join(map(str, paths))}, so no store was made at "
        f"{store}. Give text, Markdown or JSONL files, or a directory that holds some."
    )


def _summary(report: Report, total: int) -> str:
    return (
        f"{report.indexed} files indexed, {report.unchanged} unchanged; passages: "
        f"{report.written} written, {report.deleted} deleted, {total} in the store "
        f"({report.seconds:.1f} s)"
    )


def _explain(report: Report, prune: bool) -> None:
    for line in _problems(report.failures):
        say(line, style="red")
    if report.vanished and not prune:
        say(f"{len(report.vanished)} indexed files are gone; --prune deletes their passages.")
    if report.ignored:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(report.ignored.items()))
        say(f"Left out as not text, Markdown or JSONL: {kinds}.")


def _problems(failures: list[tuple[str, str]]) -> list[str]:
    """One line for each file: its first problem, and the number of further rows with one."""
    of_file: dict[str, list[str]] = {}
    for source, problem in failures:
        of_file.setdefault(source, []).append(problem)
    lines = []
    for source, (first, *others) in list(of_file.items())[:_SHOWN]:
        text = first if source in first else f"{source}: {first}"
        more = f" (and {len(others)} more rows; --json lists them all)" if others else ""
        lines.append(f"not indexed: {text}{more}")
    if (more_files := len(of_file) - _SHOWN) > 0:
        lines.append(f"... and {more_files} more files (--json lists them all)")
    return lines


def _as_json(report: Report, total: int) -> dict[str, Any]:
    failures = [{"source": source, "problem": problem} for source, problem in report.failures]
    return {**asdict(report), "failures": failures, "total": total}
