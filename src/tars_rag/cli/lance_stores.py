"""What the commands of ``tars-rag store`` are for a store in LanceDB (docs/lance.md)."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import typer

from tars_rag.cli import resources
from tars_rag.cli.console import print_json, progress_bar, show
from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.commands import load_commands

REEMBED = (
    "To embed its passages with another model: tars-rag store export {store} old.parquet; tars-rag "
    "embed old.parquet new.parquet --model MODEL; tars-rag index --from-parquet new.parquet "
    "--store ANOTHER"
)
RELEX = (
    "To read its words in another language: tars-rag store export {store} all.parquet; tars-rag "
    "index --from-parquet all.parquet --store ANOTHER --language LANGUAGE"
)
BACKUP = (
    "To keep a copy: tars-rag store export {store} FILE.parquet; or copy its directory or bucket."
)
FILES = f"To index files: {load_commands('{store}')}"


def info(address: str, json: bool) -> None:
    """Say what a store is."""
    from tars_rag.retrieval.lance.told import told

    with resources.look_into(Path(address)) as opened:
        passages, its = opened.count(), told(address)
    assert its is not None
    facts = {
        "path": address,
        "model": its.model,
        "fingerprint": its.fingerprint,
        "dimension": its.dimension,
        "language": its.language,
        "passages": passages,
        "created": its.created,
        "vector_search": "exact",
    }
    if json:
        print_json(facts)
        return
    show(f"{address}: {passages} passages, of {its.dimension} dimensions, in LanceDB")
    show(f"model {its.model or 'unknown'} ({its.fingerprint}), language {its.language}")
    show("vectors are scanned: the nearest are exact, and their time grows with the passages")


def check(address: str, repair: bool, json: bool) -> None:
    """Compare every passage with what is kept beside it; exit code 1 if something is wrong."""
    from tars_rag.retrieval.lance.check import check as check_store

    if repair:
        msg = (
            "--repair is for a store in a directory. A table of LanceDB keeps its old versions "
            "for an hour; what is damaged beyond that is written again, from what it was made of."
        )
        raise InvalidInputError(msg)
    with progress_bar("count") as progress:
        report = check_store(address, partial(progress, "compare"))
    if json:
        print_json({**asdict(report), "ok": report.ok})
    else:
        colour = "green" if report.ok else "red"
        show(f"{address}: {'sound' if report.ok else 'not sound'}", colour)
        show(f"embedder {report.fingerprint}, dimension {report.dimension}")
        show(f"passages: {report.passages}, {report.unindexed} of them not in the word index yet")
        for problem in report.problems:
            show(f"wrong: {problem}", "red")
    if not report.ok:
        raise typer.Exit(1)


def compact(address: str, json: bool) -> None:
    """Join files, bring the indexes up to date, drop versions that are an hour old."""
    with resources.look_into(Path(address), read_only=False) as opened:
        opened.compact()
    if json:
        print_json({"path": address})
        return
    show(f"{address}: files joined, indexes up to date")


def remove(address: str, source: str, json: bool) -> None:
    """Delete the passages whose metadata name a source."""
    with resources.look_into(Path(address), read_only=False) as opened:
        passages = opened.delete(where={"source": source})
    if not passages:
        msg = (
            f"No passage of {address} has the source {source!r}. It is compared as a whole with "
            "what the metadata say, which tars-rag query --json shows."
        )
        raise InvalidInputError(msg)
    if json:
        print_json({"sources": 1, "passages": passages})
        return
    show(f"1 source removed, with {passages} passages")
