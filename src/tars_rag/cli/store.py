"""``tars-rag store``: check, repair and re-embed stores, and import a memory of py-tars."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tars_rag.cli import lance_stores, resources, sources
from tars_rag.cli.console import print_json, progress_bar, show
from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.address import lance_of

app = typer.Typer(
    name="store",
    help="Stores: look into, check, repair, back up, change embedder or language, import.",
    no_args_is_help=True,
    add_completion=False,
)


for command in (sources.info, sources.ls, sources.rm, sources.mv):
    app.command()(command)

_COLOUR = {True: "green", False: "red"}


@app.command()
def check(
    directory: resources.DirectoryArgument = None,
    store: resources.StoreInstead = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Bring the word index in line with the texts.")
    ] = False,
    json: resources.JsonOption = False,
) -> None:
    """Check that both indexes agree and all files are intact; exit code 1 if not.

    Nothing is written without --repair.
    """
    from tars_rag.ingest.sources import copies_in, near_copies_in
    from tars_rag.retrieval.storage.check import check_store

    which = resources.which_store(directory, store)
    address = lance_of(which)
    if address is not None:
        lance_stores.check(address, repair, json)
        return
    path = resources.require_store(which)
    with progress_bar("count") as progress:
        report = check_store(path, repair, partial(progress, "compare"))
    report.notes += [f"the same content: {', '.join(same)}" for same in copies_in(path)[:20]]
    report.notes += [
        f"nearly the same content ({share:.0%} of their passages): {one}, {other}"
        for one, other, share in near_copies_in(path)[:20]
    ]
    if json:
        print_json({**asdict(report), "path": str(report.path), "ok": report.ok})
    else:
        show(f"{report.path}: {'sound' if report.ok else 'not sound'}", _COLOUR[report.ok])
        show(f"embedder {report.fingerprint}, dimension {report.dimension or 'not known yet'}")
        passages, worded = report.passages, report.lexical_passages
        show(f"passages: {_count(passages)} with vectors, {_count(worded)} in the word index")
        for note in report.notes:
            show(f"note: {note}")
        for mended in report.repaired:
            show(f"mended: {mended}", "green")
        for problem in report.problems:
            show(f"wrong: {problem}", "red")
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def reembed(
    directory: resources.DirectoryArgument = None,
    store: resources.StoreInstead = None,
    model: resources.ModelOption = None,
    device: resources.DeviceOption = None,
    engine: resources.EngineOption = None,
    precision: resources.PrecisionOption = "fp32",
) -> None:
    """Change the embedder of a store in place.

    The old vectors are used until all passages are embedded. If interrupted, run it again: it
    continues where it stopped.
    """
    from tars_rag.retrieval.maintenance import reembed as embed_anew

    which = resources.which_store(directory, store)
    path = resources.require_store(which, lance_stores.REEMBED)
    settings = resources.read_settings(embed_model=model, cpu_engine=engine)
    with (
        resources.open_embedder(settings, device=device, precision=precision) as embedder,
        progress_bar("count") as progress,
    ):
        count = embed_anew(path, embedder, partial(progress, "embed"))
        show(f"{count} passages embedded with {embedder.model}: {embedder.fingerprint}")


@app.command()
def relex(
    language: Annotated[
        str,
        typer.Option(
            "--language", help="de, fr, ja, ...; multi: several; none: words as they are."
        ),
    ],
    directory: resources.DirectoryArgument = None,
    store: resources.StoreInstead = None,
    json: resources.JsonOption = False,
) -> None:
    """Change the language of a store: make its word index anew, without embedding anything.

    If interrupted, the next command that opens the store finishes it.
    """
    from tars_rag.retrieval.indexes.words.languages import check_language
    from tars_rag.retrieval.maintenance import relex as read_anew

    code = check_language(language)
    which = resources.which_store(directory, store)
    path = resources.require_store(which, lance_stores.RELEX)
    with progress_bar("count") as progress:
        count = read_anew(path, code, partial(progress, "read"))
    if json:
        print_json({"path": str(path), "language": code, "passages": count})
        return
    show(f"{path}: the words of {count} passages are read as {code}")


@app.command()
def compact(
    directory: resources.DirectoryArgument = None,
    store: resources.StoreInstead = None,
    json: resources.JsonOption = False,
) -> None:
    """Free what deleted passages hold on the disk, as a store does by itself now and then.

    If interrupted, run it again: it continues where it stopped.
    """
    from tars_rag.retrieval.maintenance import compact as make_smaller

    which = resources.which_store(directory, store)
    address = lance_of(which)
    if address is not None:
        lance_stores.compact(address, json)
        return
    path = resources.require_store(which)
    with progress_bar("count") as progress:
        freed = make_smaller(path, partial(progress, "copy"))
    if json:
        print_json({"path": str(path), "freed_bytes": freed})
        return
    told = f"smaller by {freed / 1e6:.1f} MB" if freed > 0 else "nothing to free"
    show(f"{path}: {told}")


@app.command()
def backup(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help="The backup, made or updated; before it may stand DIR, the store."
        ),
    ],
    store: resources.StoreInstead = None,
    json: resources.JsonOption = False,
) -> None:
    """Write everything in a store to one file.

    Only what is new since the last backup in that file is written. If interrupted, run it again: it
    continues where it stopped, and FILE is the last backup until then.
    """
    from tars_rag.retrieval.maintenance import backup as back_up

    named, [file] = resources.store_and_words(words, "FILE", store)
    directory = resources.require_store(named, lance_stores.BACKUP)
    with progress_bar("count") as progress:
        done = back_up(directory, Path(file), partial(progress, "back up"))
    if json:
        print_json({**asdict(done), "path": str(done.path)})
        return
    show(
        f"{done.path}: {done.passages} passages ({done.written} new or changed, {done.removed} "
        f"removed), {done.size / 1e6:.1f} MB, read back and found right"
    )


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup.")],
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="The new store's directory (or --store)."),
    ] = None,
    store: resources.StoreInstead = None,
    json: resources.JsonOption = False,
) -> None:
    """Make a store of a backup, in a directory that is empty or is to be made.

    Nothing is embedded. If interrupted, run it again: DIR appears when everything is in it.
    """
    from tars_rag.retrieval.maintenance import restore as restore_store

    path = resources.which_store(directory, store)
    if lance_of(path) is not None:
        resources.require_store(path, "Restore into a directory, export that, and load the file.")
    with progress_bar("count") as progress:
        count = restore_store(file, path, partial(progress, "restore"))
    if json:
        print_json({"path": str(path), "passages": count})
        return
    show(f"{path}: {count} passages restored")


@app.command()
def export(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help="The Parquet file; before it may stand DIR, the store."
        ),
    ],
    store: resources.StoreInstead = None,
    json: resources.JsonOption = False,
) -> None:
    """Write the passages of a store and their vectors to a Parquet file.

    `tars-rag index --from-parquet` loads it again, and other programs read it. FILE appears when it
    is whole. The store may be open in another process.
    """
    from tars_rag.ingest.vector_files import export_parquet

    named, [file] = resources.store_and_words(words, "FILE", store)
    path = lance_of(named) or resources.require_store(named)
    with progress_bar("count") as progress:
        count = export_parquet(path, file, partial(progress, "export"))
    if json:
        print_json({"path": file, "passages": count})
        return
    show(f"{file}: {count} passages with their vectors")


@app.command("import-hyperdb")
def import_memory(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="memory.pickle.gz, or the plain pickle.")
    ],
    store: resources.StoreOption,
    model: resources.ModelOption = None,
    device: resources.DeviceOption = None,
    engine: resources.EngineOption = None,
    precision: resources.PrecisionOption = "fp32",
    language: resources.LanguageOption = None,
    json: resources.JsonOption = False,
) -> None:
    """Import the memory of py-tars (HyperDB), without executing its pickle.

    Its vectors are kept if a sample of them agrees with the embedder, and computed anew if not. The
    import may be repeated: documents that are in the store already stay as they are.
    """
    from tars_rag.ingest.hyperdb import import_hyperdb, load_hyperdb

    memory = load_hyperdb(file)  # refused before a store is made
    if not memory.documents and not resources.is_store(store):
        msg = f"{file} holds no documents, so no store was made at {store}."
        raise InvalidInputError(msg)
    settings = resources.read_settings_for(store, embed_model=model, cpu_engine=engine)
    with (
        resources.open_embedder(settings, device=device, precision=precision) as embedder,
        resources.open_store(store, embedder, language=language) as opened,
        progress_bar("count") as progress,
    ):
        done = import_hyperdb(memory, opened, partial(progress, file.name))
        total = opened.count()
    if json:
        print_json(
            {
                "documents": done.documents,
                "reused": done.reused,
                "recomputed": done.recomputed,
                "reason": done.reason,
                "total": total,
            }
        )
        return
    why = f" ({done.reason})" if done.reason else ""
    show(
        f"{done.documents} documents imported: {done.reused} vectors kept, {done.recomputed} "
        f"computed anew{why}; {total} passages in the store"
    )


@app.command("import-chroma")
def import_collection(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Chroma's persist_directory; it is only read.")
    ],
    store: resources.StoreOption,
    collection: Annotated[
        str | None, typer.Option("--collection", help="Its name (default: the only one).")
    ] = None,
    model: resources.ModelOption = None,
    device: resources.DeviceOption = None,
    engine: resources.EngineOption = None,
    precision: resources.PrecisionOption = "fp32",
    language: resources.LanguageOption = None,
    json: resources.JsonOption = False,
) -> None:
    """Import a collection that LangChain's or LlamaIndex's Chroma store has made.

    Its vectors are kept if a sample of them agrees with the embedder, and computed anew if not. The
    import may be repeated: documents that are in the store already stay as they are.
    """
    from tars_rag.ingest.chroma_import import check_chroma, import_chroma

    check_chroma(directory)  # refused before a store is made
    settings = resources.read_settings_for(store, embed_model=model, cpu_engine=engine)
    with (
        resources.open_embedder(settings, device=device, precision=precision) as embedder,
        resources.open_store(store, embedder, language=language) as opened,
        progress_bar("count") as progress,
    ):
        done = import_chroma(
            directory, opened, collection=collection, progress=partial(progress, directory.name)
        )
        total = opened.count()
    if json:
        print_json({**asdict(done), "total": total})
        return
    why = f" ({done.reason})" if done.reason else ""
    left_out = f", {done.without_text} without text left out" if done.without_text else ""
    show(
        f"{done.documents} documents of {done.collection!r} imported: {done.reused} vectors kept, "
        f"{done.recomputed} computed anew{why}, {done.unchanged} were there{left_out}; {total} "
        "passages in the store"
    )


def _count(number: int | None) -> str:
    return "unreadable" if number is None else str(number)
