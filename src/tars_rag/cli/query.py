"""``tars-rag query``: show the passages that answer a question best."""

from __future__ import annotations

import json as jsonlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from tars_rag.cli import resources
from tars_rag.cli.console import print_json, say, show
from tars_rag.cli.passages import show_passages
from tars_rag.cli.place import PlaceOption, require_place, told_by
from tars_rag.errors import StoreError
from tars_rag.retrieval.address import is_address, is_lance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tars_rag.retrieval.passage import Passage, ScoredPassage
    from tars_rag.retrieval.sharing.warm import Told
    from tars_rag.retrieval.timing import Step


def query(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="QUESTION...", help="What to look for; quotation marks are not needed."
        ),
    ],
    store: PlaceOption,
    k: Annotated[
        int | None, typer.Option("-k", min=1, help="How many passages (default: MEMORY_TOP_K).")
    ] = None,
    strategy: Annotated[
        Literal["hybrid", "naive", "lexical"] | None,
        typer.Option(help="naive: vectors only; lexical: BM25 only (default: RAG_STRATEGY)."),
    ] = None,
    rerank: resources.RerankOption = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='Metadata filter, e.g. \'{"topic": "sailing"}\'.'),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Show only passages that are at least this relevant."),
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Only in this file, directory or pattern; repeatable."),
    ] = None,
    window: Annotated[
        int, typer.Option(min=0, max=20, help="Show so many neighbours of each passage, too.")
    ] = 0,
    budget_ms: Annotated[
        float | None, typer.Option(min=1, help="Rerank as many passages as fit in this time.")
    ] = None,
    model: resources.ModelOption = None,
    device: resources.DeviceOption = None,
    engine: resources.EngineOption = None,
    precision: resources.PrecisionOption = "fp32",
    json: resources.JsonOption = False,
) -> None:
    """Search a store; show the best passages and how long each step took."""
    text = " ".join(words)
    chosen = _parse(where)
    here = {"model": model, "device": device, "engine": engine, "precision": precision}
    store = require_place(store, path=path, **here)
    conditions = _within(path, store, chosen)
    settings = resources.read_settings_for(
        store, embed_model=model, cpu_engine=engine, memory_top_k=k, rag_strategy=strategy
    )
    from tars_rag.retrieval.commands import index_command

    search: dict[str, Any] = {
        "query": text,
        "k": settings.memory_top_k,
        "strategy": settings.rag_strategy,
        "where": conditions,
        "min_score": min_score,
        "budget_ms": budget_ms,
        "window": window,
    }
    answer = told_by(store, settings, rerank, search, device=device, precision=precision)
    if not answer.count:
        say(f"The store {store} is empty. Fill it: {index_command(Path(store))}")
    around = answer.around if window else {}
    root, copies = _beside(store, answer.passages)
    if json:
        print_json(_as_json(text, settings.rag_strategy, answer, around, copies))
        return
    show_passages(answer.passages, text, answer.language, around, root, copies)
    missing = not answer.reranked and rerank is None and settings.rerank_model
    show(steps_line(answer.steps) + ("; not reranked" if missing else ""), style="dim")


def steps_line(steps: Sequence[Step]) -> str:
    """How long each step took, on one line."""
    parts = [f"{s.name} {s.milliseconds:.1f} ms" for s in steps]
    return f"{', '.join(parts)}; {sum(s.milliseconds for s in steps):.1f} ms in all"


def steps_table(steps: Sequence[Step], title: str) -> Table:
    """How long each step took, as a table: step, milliseconds, device, note."""
    table = Table("step", "ms", "device", "", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for step in steps:
        table.add_row(step.name, f"{step.milliseconds:.1f}", step.device, step.note)
    return table


def _parse(where: str | None) -> dict[str, Any] | None:
    if where is None:
        return None
    try:
        value = jsonlib.loads(where)
    except ValueError as error:
        msg = f"{where!r} is not JSON ({error})."
        raise typer.BadParameter(msg, param_hint="--where") from None
    if not isinstance(value, dict):
        msg = f"{where!r} is not a JSON object."
        raise typer.BadParameter(msg, param_hint="--where")
    return value


def _within(
    paths: list[str] | None, store: str, where: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The filter, and only sources that a path or pattern names."""
    if not paths:
        return where
    from tars_rag.ingest.sources import matching, root_of, sources_of

    place = store if is_lance(store) else Path(store)
    sources, root = sources_of(place), root_of(place)
    named = sorted({one for path in paths for one in matching(sources, path, root)})
    inside: dict[str, Any] = {"source": {"$in": named}}
    return inside if where is None else {"$and": [where, inside]}


def _beside(
    store: str, passages: Sequence[ScoredPassage]
) -> tuple[Path | None, dict[str, list[str]]]:
    """From where sources are named, if not by whole paths; ids of the copies of each passage.

    The record of indexed files tells it. Where that is damaged, the answer is there all the same.
    """
    from tars_rag.ingest.sources import copies_of, root_of

    found = [hit.passage for hit in passages]
    if is_address(store):  # the record is where the files are
        return None, copies_of(None, found)
    path = Path(store)
    try:
        return root_of(path).directory, copies_of(path, found)
    except (StoreError, sqlite3.Error) as error:
        say(f"Copies of passages elsewhere are not told: {error}", style="yellow")
        return None, copies_of(None, found)


def _as_json(
    text: str,
    strategy: str,
    answer: Told,
    around: Mapping[str, Sequence[Passage]],
    copies: Mapping[str, list[str]],
) -> dict[str, Any]:
    return {
        "query": text,
        "strategy": strategy,
        "passages": [
            {
                "id": p.id,
                "text": p.text,
                "metadata": dict(p.metadata),
                "score": p.score,
                "vector_score": p.vector_score,
                "lexical_score": p.lexical_score,
                "fused_score": p.fused_score,
                "rerank_score": p.rerank_score,
                "lexical_share": p.lexical_share,
                "relevance": p.relevance,
                "copies": copies[p.id],
                **({"window": [near.text for near in around[p.id]]} if p.id in around else {}),
            }
            for p in answer.passages
        ],
        "steps": [
            {"name": s.name, "milliseconds": s.milliseconds, "device": s.device, "note": s.note}
            for s in answer.steps
        ],
    }
