"""What the commands of ``tars-rag store`` are for a store in LanceDB (docs/lance.md)."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import typer

from tars_rag.cli import resources
from tars_rag.cli.console import print_json, progress_bar, show
from tars_rag.errors import InvalidInputError, StoreError

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


def require(address: str) -> str:
    """The address, if there is a store.

    Raises:
        StoreError: There is none.
    """
    from tars_rag.retrieval.lance.library import no_store
    from tars_rag.retrieval.lance.told import told

    if told(address) is None:
        raise StoreError(no_store(address))
    return address


def info(address: str, json: bool) -> None:
    """Say what a store is."""
    from tars_rag.ingest.sources import root_of, sources_of
    from tars_rag.retrieval.lance.told import told

    with resources.look_into(Path(address)) as opened:
        passages, its = opened.count(), told(address)
    assert its is not None
    sources, root = sources_of(address), root_of(address).directory
    facts = {
        "path": address,
        "model": its.model,
        "fingerprint": its.fingerprint,
        "dimension": its.dimension,
        "language": its.language,
        "passages": passages,
        "sources": len(sources),
        "root": None if root is None else str(root),
        "passages_of_sources": sum(sources.values()),
        "created": its.created,
        "vector_search": "exact",
    }
    if json:
        print_json(facts)
        return
    show(f"{address}: {passages} passages, of {its.dimension} dimensions, in LanceDB")
    show(f"model {its.model or 'unknown'} ({its.fingerprint}), language {its.language}")
    show(f"{len(sources)} files indexed, with {sum(sources.values())} passages")
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
    """Delete the passages of files; where none was indexed, those whose metadata name a source."""
    from tars_rag.ingest.sources import remove as remove_files

    with resources.look_into(Path(address), read_only=False) as opened:
        try:
            sources, passages = remove_files(opened, source)
        except InvalidInputError:  # it was loaded from a file of vectors
            passages = opened.delete(where={"source": source})
            sources = min(passages, 1)
    if not sources:
        msg = (
            f"No passage of {address} has the source {source!r}, nor was such a file indexed. To "
            f"see the files: tars-rag store ls {address}; the metadata: tars-rag query --json"
        )
        raise InvalidInputError(msg)
    if json:
        print_json({"sources": sources, "passages": passages})
        return
    show(f"{sources} sources removed, with {passages} passages")
