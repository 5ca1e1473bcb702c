"""``tars-rag store info | ls | rm | mv``: what a store holds."""

from __future__ import annotations

from typing import Annotated

import typer

from tars_rag.cli import lance_stores, resources
from tars_rag.cli.console import print_json, show
from tars_rag.retrieval.address import lance_of


def info(
    directory: resources.DirectoryArgument = None,
    store: resources.StoreInstead = None,
    json: resources.JsonOption = False,
) -> None:
    """Say what a store is: its model, language, passages, sources, size."""
    from tars_rag.ingest.sources import root_of, size_on_disk, sources_of
    from tars_rag.retrieval.storage.store_json import read_store_json

    which = resources.which_store(directory, store)
    address = lance_of(which)
    if address is not None:
        lance_stores.info(address, json)
        return
    with resources.look_into(which) as opened:
        passages, path = opened.count(), opened.local_path
        told = read_store_json(path)
    sources = sources_of(path)
    root, size = root_of(path).directory, size_on_disk(path)
    facts = {
        "path": str(path),
        "model": None if told is None else told.model,
        "fingerprint": opened.fingerprint,
        "dimension": None if told is None else told.dimension,
        "language": opened.language,
        "passages": passages,
        "sources": len(sources),
        "root": None if root is None else str(root),
        "passages_of_sources": sum(sources.values()),
        "bytes": size,
        "created": None if told is None else told.created,
    }
    if json:
        print_json(facts)
        return
    show(f"{path}: {passages} passages, {size / 1e6:.1f} MB")
    show(f"model {facts['model'] or 'unknown'} ({opened.fingerprint}), language {opened.language}")
    others = passages - sum(sources.values())
    more = f"; {others} passages from elsewhere" if others > 0 else ""
    show(f"{len(sources)} files indexed, with {sum(sources.values())} passages{more}")
    if root is not None:
        gone = "" if root.exists() else ", which is gone; if it was moved: tars-rag index --root"
        show(f"named from {root}{gone}")


def ls(
    directory: resources.DirectoryArgument = None,
    store: resources.StoreInstead = None,
    path: Annotated[
        str | None, typer.Option("--path", help="Only this file, directory or pattern.")
    ] = None,
    json: resources.JsonOption = False,
) -> None:
    """List the files that were indexed, and how many passages each has."""
    from tars_rag.ingest.sources import matching, root_of, sources_of

    which = resources.which_store(directory, store)
    address = lance_of(which)
    held = resources.require_store(which) if address is None else lance_stores.require(address)
    sources = sources_of(held)
    chosen = sorted(sources if path is None else matching(sources, path, root_of(held)))
    if json:
        print_json([{"source": one, "passages": sources[one]} for one in chosen])
        return
    for one in chosen:
        show(f"{sources[one]:6}  {one}")


def rm(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="A file, a directory, a pattern; before it may stand DIR, the store.",
        ),
    ],
    store: resources.StoreInstead = None,
    json: resources.JsonOption = False,
) -> None:
    """Delete the passages of files from a store; the files stay."""
    from tars_rag.ingest.sources import remove

    named, [source] = resources.store_and_words(words, "SOURCE", store)
    address = lance_of(named)
    if address is not None:
        lance_stores.remove(address, source, json)
        return
    with resources.look_into(named, read_only=False) as opened:
        sources, passages = remove(opened, source)
    _told("removed", sources, passages, json)


def mv(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="OLD NEW",
            help="A path as it was, and as it is now; before it may stand DIR, the store.",
        ),
    ],
    store: resources.StoreInstead = None,
    json: resources.JsonOption = False,
) -> None:
    """Tell a store that a file or folder was moved: nothing is read or embedded again."""
    from tars_rag.ingest.sources import move

    named, [old, new] = resources.store_and_words(words, "OLD NEW", store)
    with resources.look_into(named, read_only=False) as opened:
        sources, passages = move(opened, old, new)
    _told("moved", sources, passages, json)


def _told(done: str, sources: int, passages: int, json: bool) -> None:
    if json:
        print_json({"sources": sources, "passages": passages})
        return
    show(f"{sources} sources {done}, with {passages} passages")
