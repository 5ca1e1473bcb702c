"""``tars-rag index``: put the texts of files into a store."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tars_rag import advice
from tars_rag.cli import reading, resources
from tars_rag.cli.console import print_json, progress_bar, say, show
from tars_rag.errors import InvalidInputError, TarsRagError
from tars_rag.retrieval.address import lance_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tars_rag.ingest.run import Report

_SHOWN = 20


def index(
    context: typer.Context,
    store: resources.StoreOption,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH...", help="Files, or directories of them.", show_default=False
        ),
    ] = None,
    from_parquet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead of PATHs: passages with their vectors, which are not embedded again.",
        ),
    ] = None,
    chunk_tokens: reading.ChunkTokensOption = None,
    overlap: reading.OverlapOption = 32,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Name files as seen from here; if it was moved, where it is now."
        ),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete the passages of files that are gone.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Go on, and index what changes; what is gone is deleted."),
    ] = False,
    exclude: reading.ExcludeOption = None,
    ocr: reading.OcrOption = False,
    max_file_mb: reading.MaxFileOption = 200,
    max_pages: reading.MaxPagesOption = 5000,
    max_seconds: reading.MaxSecondsOption = 120,
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

    A Parquet file, which `tars-rag store export` or another program has written, is loaded whole or
    refused; no model is needed.
    """
    if from_parquet is not None:
        _check_alone(context)
        _load(from_parquet, store, language, json)
        return
    if not paths:
        msg = "Give files or directories to index, or --from-parquet FILE."
        raise typer.BadParameter(msg, param_hint="PATH...")
    from tars_rag.ingest.documents import Limits
    from tars_rag.ingest.root import Root
    from tars_rag.ingest.run import ingest, nothing_to_ingest
    from tars_rag.ingest.watch import check_watching

    left_out = exclude or []
    seen_from = None if root is None else Root.at(root)
    limits = Limits(max_file_mb, max_pages, max_seconds, ocr=ocr)
    settings = resources.read_settings_for(store, embed_model=model, cpu_engine=engine)
    if watch:
        check_watching()
    with resources.open_embedder(settings, device=device, precision=precision) as embedder:
        splitter = resources.make_splitter(settings, embedder, chunk_tokens, overlap)
        nothing = None
        if not watch and not resources.is_store(store):
            nothing = nothing_to_ingest(paths, splitter, exclude=left_out, limits=limits)
        if nothing is not None:
            if json:
                print_json(_as_json(nothing, 0))
            _explain(nothing, prune)
            raise InvalidInputError(_nothing(paths, store))

        def run(prune: bool) -> Report:
            with (
                resources.open_store(store, embedder, language=language) as opened,
                progress_bar() as progress,
            ):
                report = ingest(
                    opened,
                    paths,
                    splitter,
                    root=seen_from,
                    prune=prune,
                    exclude=left_out,
                    limits=limits,
                    progress=progress,
                )
                total = opened.count()
            if json:
                print_json(_as_json(report, total))
            elif not watch or report.indexed or report.deleted:
                show(_summary(report, total))
            return report

        if watch:
            _watch(paths, run)
            return
        report = run(prune)
    _explain(report, prune)
    _tell_of_root(store)
    if report.failures:
        raise typer.Exit(1)


def _tell_of_root(store: Path) -> None:
    """Say that the directory is gone that sources are named from: they are not found below it."""
    from tars_rag.ingest.sources import root_of

    root = root_of(lance_of(store) or store.expanduser()).directory
    if root is not None and not root.exists():
        say(f"The store's root {root} is gone. If it was moved: --root DIR, where it is now.")


def _check_alone(context: typer.Context) -> None:
    """Only options that concern any store were given beside --from-parquet."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        given = source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
        empty = context.params.get(parameter.name or "") in (None, (), [])
        if (
            given
            and not empty
            and parameter.name not in ("from_parquet", "store", "language", "json")
        ):
            name = parameter.opts[0] if parameter.opts[0].startswith("-") else "PATH"
            msg = f"{name} is not for a file whose passages are ready. Leave it out."
            raise typer.BadParameter(msg, param_hint="--from-parquet")


def _load(file: Path, store: Path, language: str | None, json: bool) -> None:
    from tars_rag.ingest.vector_files import load_parquet

    place = lance_of(store) or store
    with progress_bar("count") as progress:
        done = load_parquet(file, place, language=language, progress=partial(progress, file.name))
    if json:
        print_json({"path": str(place), **asdict(done)})
        return
    made_with = done.model or done.fingerprint
    show(f"{done.passages} passages loaded, made with {made_with}; {done.total} in the store")


def _watch(paths: list[Path], run: Callable[[bool], Report]) -> None:
    """Run now and after each burst of changes, until Ctrl-C; errors are told and outlived.

    The store is open only while files are indexed, so that others can use it.
    """
    from tars_rag.ingest.watch import Mounts, changes

    mounts, told = Mounts(paths), set[str]()
    with contextlib.suppress(KeyboardInterrupt):
        for _ in changes(paths, threading.Event()):
            try:
                # Nothing is pruned while a drive is away: its directory may be there, and empty.
                report = run(mounts.are_as_before())
            except TarsRagError as error:
                say(f"not indexed this time: {error}", style="red")
                continue
            problems = _problems(report.failures)
            for line in problems:
                if line not in told:
                    say(line, style="red")
            told = set(problems)


def _nothing(paths: list[Path], store: Path) -> str:
    return (
        f"There is no text to index in {', '.join(map(str, paths))}, so no store was made at "
        f"{lance_of(store) or store}. Give files with text in them, or a directory that holds some."
    )


def _summary(report: Report, total: int) -> str:
    return (
        f"{report.indexed} files indexed, {report.unchanged} unchanged; passages: "
        f"{report.written} written{_reused(report)}, {report.deleted} deleted, {total} in "
        f"the store ({report.seconds:.1f} s)"
    )


def _reused(report: Report) -> str:
    return f" ({report.reused} without embedding them)" if report.reused else ""


def _documents(report: Report) -> bool:
    from tars_rag.ingest.formats import FORMATS

    kinds = [FORMATS[suffix].kind for suffix in report.ignored if suffix in FORMATS]
    return "document" in kinds


def _explain(report: Report, prune: bool) -> None:
    from tars_rag.ingest.formats import documents_are_read

    for line in _problems(report.failures):
        say(line, style="red")
    if report.vanished and not prune:
        say(f"{len(report.vanished)} indexed files are gone; --prune deletes their passages.")
    if report.ignored:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(report.ignored.items()))
        more = (
            ""
            if documents_are_read() or not _documents(report)
            else f" To read documents: {advice.install('documents')}"
        )
        say(f"Left out as of no known kind: {kinds}.{more}")
    if report.excluded:
        say(f"Left out by .gitignore or --exclude: {report.excluded} files and directories.")
    if report.copies:
        first = " and ".join(report.copies[0][:2])
        say(f"{len(report.copies)} files have copies, which --json lists: {first}.")


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
