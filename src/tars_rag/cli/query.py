"""``tars-rag query``: the best passages for a question."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from tars_rag.cli import resources
from tars_rag.cli.console import out, print_json, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tars_rag.retrieval.passage import ScoredPassage
    from tars_rag.retrieval.pipeline import Answer, Step


def query(
    text: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    store: resources.StoreOption,
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
    budget_ms: Annotated[
        float | None, typer.Option(min=1, help="Rerank as many passages as fit in this time.")
    ] = None,
    model: resources.ModelOption = None,
    device: resources.DeviceOption = None,
    precision: resources.PrecisionOption = "fp32",
    json: resources.JsonOption = False,
) -> None:
    """Search a store and show the best passages, with the time of each step."""
    conditions = _parse(where)
    resources.require_store(store)
    settings = resources.read_settings(embed_model=model, memory_top_k=k, rag_strategy=strategy)
    from tars_rag.retrieval.pipeline import Pipeline

    with (
        resources.open_embedder(settings, device=device, precision=precision) as embedder,
        resources.open_store(store, embedder, read_only=True) as opened,
    ):
        reranker = resources.open_reranker(settings, rerank)
        pipeline = Pipeline(opened, reranker, strategy=settings.rag_strategy)
        answer = pipeline.search(
            text, settings.memory_top_k, conditions, rerank=rerank is not False, budget_ms=budget_ms
        )
    if json:
        print_json(_as_json(text, settings.rag_strategy, answer))
        return
    show_passages(answer.passages)
    show(steps_line(answer.steps), style="dim")


def show_passages(passages: Sequence[ScoredPassage]) -> None:
    """Ranked passages: rank, score, where it is from, text."""
    if not passages:
        show("Nothing was found.")
    for rank, passage in enumerate(passages, 1):
        head = Text.assemble((f"{rank}. ", "bold"), (f"{passage.score:.3f}  ", "cyan"), passage.id)
        if heading := passage.metadata.get("heading") or passage.metadata.get("title"):
            head.append(f"  {heading}", style="italic")
        out.print(head, soft_wrap=True)
        out.print(Text("   " + shorten(passage.text)), soft_wrap=True)


def shorten(text: str, limit: int = 240) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: limit * 4].split())
    return line if len(line) <= limit else line[:limit].rsplit(" ", 1)[0] + " ..."


def steps_line(steps: Sequence[Step]) -> str:
    """Where the time went, on one line."""
    parts = [f"{s.name} {s.milliseconds:.1f} ms" for s in steps]
    return f"{', '.join(parts)}; {sum(s.milliseconds for s in steps):.1f} ms in all"


def steps_table(steps: Sequence[Step], title: str) -> Table:
    """Where the time went: step, milliseconds, device, note."""
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


def _as_json(text: str, strategy: str, answer: Answer) -> dict[str, Any]:
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
            }
            for p in answer.passages
        ],
        "steps": [
            {"name": s.name, "milliseconds": s.milliseconds, "device": s.device, "note": s.note}
            for s in answer.steps
        ],
    }
