"""``tars-rag bench``: what this machine does, measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tars_rag.cli.console import err, out, print_json, say, show
from tars_rag.cli.resources import JsonOption, open_embedder, read_settings, require_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from tars_rag.bench.evaluate import Collection
    from tars_rag.runtimes.npu.probe import Machine
    from tars_rag.settings import Settings


class Part(str, Enum):
    """What can be measured by itself."""

    RERANKER = "reranker"
    EMBEDDER = "embedder"
    QUERY = "query"


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Less of everything: a minute.")] = False,
    part: Annotated[
        list[Part] | None, typer.Option(help="Only this; may be repeated (default: all).")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="corpus.jsonl and queries.jsonl (BEIR): rows at the lengths of its texts, and "
            "nDCG@10 if it has judgements.",
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A store: rows at the lengths of its passages."),
    ] = None,
    embedder: Annotated[
        list[str] | None,
        typer.Option(help="Name or directory; may be repeated (default: EMBED_MODEL)."),
    ] = None,
    reranker: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or directory; may be repeated (default: RERANK_MODEL and the catalogue's)."
        ),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Measure models that are not here with random weights: times, no quality.",
        ),
    ] = False,
    json_: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one page with tables and plots.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write doctor and bench, without anything private, to send."
        ),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Measure nothing: set reports side by side; repeat it."),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep/--no-keep", help="Keep the placement that follows, for device auto to follow."
        ),
    ] = True,
) -> None:
    """Measure rerankers, embedders and whole queries on every device and engine there is.

    Nothing is fetched. What is not on this machine is a row that says so. The placement that
    follows from the figures is kept, and device auto follows it.
    """
    if compare:
        _compare(compare, json_)
        return
    for file in (html, report):
        _require_place(file)
    found = _measure(
        quick=quick,
        parts=part,
        data=data,
        store=store,
        embedders=embedder,
        rerankers=reranker,
        random_weights=random_weights,
        keep=keep,
    )
    _show(found, json_, html, report)
    if found["interrupted"]:
        say("Interrupted: what was measured until then is kept.", style="yellow")
        raise typer.Exit(130)


def _show(found: dict[str, Any], as_json: bool, html: Path | None, report: Path | None) -> None:
    from tars_rag.bench.page import page
    from tars_rag.bench.tables import terminal
    from tars_rag.cli.bench_report import shareable
    from tars_rag.files import write_atomically

    if as_json:
        print_json(found)
    else:
        for piece in terminal(found):
            if isinstance(piece, str):
                show(piece)
            else:
                _wide().print(piece)
    written = [(html, page), (report, shareable)]
    for file, make in written:
        if file:
            write_atomically(file, make(found).encode("utf-8"))
            say(f"written: {file}")


def _require_place(file: Path | None) -> None:
    """Before minutes of measuring: a file can be written where the user wants it."""
    from tars_rag.errors import InvalidInputError

    if file and (not file.absolute().parent.is_dir() or file.is_dir()):
        msg = f"{file} cannot be written: its directory is not there, or it is one itself."
        raise InvalidInputError(msg)


def _measure(
    *,
    quick: bool,
    parts: list[Part] | None,
    data: Path | None,
    store: Path | None,
    embedders: list[str] | None,
    rerankers: list[str] | None,
    random_weights: bool,
    keep: bool,
) -> dict[str, Any]:
    from tars_rag.bench.contenders import rerankers as known
    from tars_rag.bench.results import Report
    from tars_rag.bench.run import MEASURED, Bench, Wanted
    from tars_rag.models.cache import ModelCache
    from tars_rag.runtimes.npu import interpreter
    from tars_rag.runtimes.npu.probe import probe

    settings = read_settings()
    named = settings.npu_python
    machine = probe(other=interpreter.find(named)) if named else probe()
    cache = ModelCache(settings.model_cache_dir)
    texts, queries, collection = _own(settings, data, store)
    mine = [settings.rerank_model] if settings.rerank_model else []
    wanted = Wanted(
        cache=cache,
        machine=machine,
        embedders=embedders or [settings.embed_model],
        rerankers=rerankers or list(dict.fromkeys([*mine, *known(cache)])),
        parts=[choice.value for choice in parts] if parts else MEASURED,
        quick=quick,
        texts=texts,
        queries=queries,
        collection=collection,
        store=store,
        random=random_weights,
        keep=keep,
        embedder_rknn=settings.rknn_embedder_path,
        reranker_rknn=settings.rknn_reranker_path,
    )
    with _told() as tell:
        bench = Bench(wanted, Report(_machine(machine), _how(quick, random_weights)), tell=tell)
        return bench.run().as_dict()


def _own(
    settings: Settings, data: Path | None, store: Path | None
) -> tuple[list[str], list[str], Collection | None]:
    """The user's texts and queries, and the judgements if there are any."""
    from tars_rag.bench.evaluate import load_collection, load_texts
    from tars_rag.retrieval.store import HybridStore

    texts: list[str] = []
    queries: list[str] = []
    collection = None
    if data:
        if (data / "qrels" / "test.tsv").is_file():
            collection = load_collection(data)
            texts = [passage.text for passage in collection.passages]
            queries = list(collection.queries.values())
        else:
            passages, asked = load_texts(data)
            texts, queries = [p.text for p in passages], list(asked.values())
    if store:
        path = require_store(store)
        with open_embedder(settings) as embedder, HybridStore(path, embedder, read_only=True) as s:
            texts = [passage.text for passage in s.get()]
    return texts, queries, collection


def _machine(machine: Machine) -> dict[str, Any]:
    """What the figures depend on, and nothing that tells whose machine it is."""
    import platform

    from tars_rag.cli.surroundings import versions

    names = (
        *("model", "soc", "npu_cores", "driver", "library_version", "wheel", "python", "container"),
        *("governors", "npu_governor", "npu_frequency_mhz", "cpu_cores", "memory_mb"),
    )
    known = versions()
    return {
        **{name: getattr(machine, name) for name in names},
        "big_cores": len(machine.big_cores),
        "processor": _processor(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "tars_rag": known["tars_rag"],
        "packages": known["packages"],
    }


def _processor() -> str:
    """Its name, as the kernel has it; on boards the device tree tells more."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")


def _how(quick: bool, random_weights: bool) -> str:
    amount = "quick: fewer runs and lengths than the protocol" if quick else "the whole protocol"
    random = "; models that are not here have random weights" if random_weights else ""
    return (
        f"tars-rag bench ({amount}{random}). Medians; places on the CPU took turns. "
        "x1, x2: threads of the CPU, cores of the NPU; x CPU, x FP16: times faster than that."
    )


@contextmanager
def _told() -> Iterator[Callable[[str], object]]:
    """What is measured, in a line of stderr that is gone when it is done."""
    if not err.is_terminal:
        yield lambda what: None
        return
    with err.status("") as status:
        yield lambda what: status.update(Text(what))


def _compare(files: list[Path], as_json: bool) -> None:
    from tars_rag.bench.compare import compare, tables

    found = compare(files)
    if as_json:
        print_json(found)
        return
    for table in tables(found):
        _wide().print(table)


def _wide() -> Console:
    """A terminal as wide as it is; in a file a line may be as long as it has to be."""
    return out if out.is_terminal else Console(highlight=False, width=120)
