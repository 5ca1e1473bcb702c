"""``tars-rag eval``: compare search strategies on a collection in BEIR's layout."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tars_rag.cli import resources
from tars_rag.cli.console import out, print_json, progress_bar, show

if TYPE_CHECKING:
    from tars_rag.bench.comparison import Row
    from tars_rag.bench.evaluate import Collection
    from tars_rag.bench.significance import Difference
    from tars_rag.bench.tuning import Tuned
    from tars_rag.models.reranker import Reranker
    from tars_rag.settings import Settings


class Ranking(str, Enum):
    """The strategies that can be measured."""

    NAIVE = "naive"
    LEXICAL = "lexical"
    HYBRID = "hybrid"
    RERANKED = "hybrid+rerank"


def evaluate(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Holds corpus.jsonl, queries.jsonl and qrels/test.tsv (BEIR)."
        ),
    ],
    strategy: Annotated[
        list[Ranking] | None,
        typer.Option(help="May be repeated (default: all)."),
    ] = None,
    reranker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name or directory of a reranker, shown beside none; may be repeated "
            "(default: RERANK_MODEL, if it is here).",
        ),
    ] = None,
    model_dir: Annotated[
        Path | None,
        typer.Option(help="As --reranker, for one directory.", metavar="DIR"),
    ] = None,
    rerank_depth: Annotated[
        int, typer.Option(min=1, max=100, help="How many passages are reranked.")
    ] = 20,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the index here (default: a temporary directory)."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Embedder, name or directory; may be repeated (default: EMBED_MODEL)."),
    ] = None,
    device: resources.DeviceOption = None,
    engine: resources.EngineOption = None,
    precision: resources.PrecisionOption = "fp32",
    language: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LANGUAGE",
            help="Of the texts: de, ja, multi, ...; may be repeated (default: RAG_LANGUAGE or en).",
        ),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Fit the weight of vectors and words on half of the queries, judge it on the "
            "other half.",
        ),
    ] = False,
    json: resources.JsonOption = False,
) -> None:
    """Measure nDCG@10, MRR@10 and recall@100 on judged queries, and tell what is chance."""
    from tars_rag.bench.comparison import distinct, rows_of
    from tars_rag.bench.evaluate import STRATEGIES, fill, load_collection, query_vectors
    from tars_rag.bench.tuning import tune as fit

    collection = load_collection(directory)
    wanted = [choice.value for choice in strategy] if strategy else list(STRATEGIES)
    models: list[str | None] = [*model] if model else [None]
    languages: list[str | None] = [*language] if language else [None]
    several = len(models) * len(languages) > 1
    rows: list[Row] = []
    tuned: list[tuple[str, str, Tuned]] = []
    with ExitStack() as stack:
        progress = stack.enter_context(progress_bar("count"))
        settings = resources.read_settings(cpu_engine=engine)
        rerankers: dict[str, Reranker] = {}
        if Ranking.RERANKED.value in wanted:
            named = [*(reranker or []), *([str(model_dir)] if model_dir else [])]
            rerankers = _rerankers(settings, named, bool(strategy), stack)
        for name, kind in itertools.product(models, languages):
            settings = resources.read_settings(embed_model=name, cpu_engine=engine)
            place: Path = store or Path(stack.enter_context(_temporary()))
            if several:
                place /= re.sub(r"[^\w.-]+", "-", f"{name or 'default'}-{kind or 'default'}")
            with (
                resources.open_embedder(settings, device=device, precision=precision) as embedder,
                resources.open_store(place, embedder, language=kind) as opened,
            ):
                fill(opened, collection, progress)
                vectors = query_vectors(opened, collection)
                rows += rows_of(
                    opened,
                    collection,
                    rerankers,
                    strategies=wanted,
                    rerank_depth=rerank_depth,
                    vectors=vectors,
                    progress=progress,
                )
                if tune:
                    found = fit(opened, collection, vectors=vectors, progress=progress)
                    tuned.append((embedder.model, opened.language, found))
    rows = distinct(rows)
    if json:
        print_json(_described(collection, rows, tuned))
    else:
        out.print(_table(collection, rows))
        if len(rows) > 1:
            show("* more than chance: the 95 % interval (paired bootstrap over queries) is off 0")
        for told in tuned:
            show(_tuned_in_words(*told))


def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tars-rag-")


def _rerankers(
    settings: Settings, named: Sequence[str], asked: bool, stack: ExitStack
) -> dict[str, Reranker]:
    """The rerankers to show, open until the end; by name."""
    from tars_rag.models.reranker import Reranker

    if not named:
        default = resources.open_reranker(settings, True if asked else None)
        opened = [default] if default else []
    else:
        place = settings.reranker_placement
        opened = [Reranker.placed(name, place) for name in dict.fromkeys(named)]
    return {one.model: stack.enter_context(one) for one in opened}


def _ranking(row: Row) -> str:
    return row.strategy if row.reranker is None else f"{row.strategy}+{row.reranker}"


def _described(
    collection: Collection, rows: Sequence[Row], tuned: Sequence[tuple[str, str, Tuned]]
) -> dict[str, object]:
    """By strategy what its first row has; all that was measured; how every two rows differ."""
    from tars_rag.bench.comparison import differences

    first: dict[str, object] = {}
    for row in rows:
        name = Ranking.RERANKED.value if row.reranker else row.strategy
        first.setdefault(name, row.mean.as_dict())
    return {
        **first,
        "documents": len(collection.passages),
        "queries": len(collection.queries),
        "rows": [
            {
                "model": row.model,
                "language": row.language,
                "strategy": row.strategy,
                "reranker": row.reranker,
                **row.mean.as_dict(),
            }
            for row in rows
        ],
        "differences": [
            {"row": later, "less": earlier, "measure": "ndcg@10", **_interval(found)}
            for later, earlier, found in differences(rows)
        ],
        "tuned": [
            {
                "model": model,
                "language": language,
                "weight": one.weight,
                "fitted_on": one.fitted_on,
                "judged_on": one.judged_on,
                "ndcg@10": round(one.ndcg_10, 5),
                "default_ndcg@10": round(one.default_ndcg_10, 5),
                "difference": _interval(one.difference),
            }
            for model, language, one in tuned
        ],
    }


def _interval(found: Difference) -> dict[str, object]:
    return {
        "mean": round(found.mean, 5),
        "low": round(found.low, 5),
        "high": round(found.high, 5),
        "beyond_chance": found.beyond_chance,
    }


def _table(collection: Collection, rows: Sequence[Row]) -> Table:
    from tars_rag.bench.comparison import reference

    title = f"{len(collection.passages)} documents, {len(collection.queries)} queries"
    table = Table(title=title, title_justify="left")
    columns = {"model": {r.model for r in rows}, "language": {r.language for r in rows}}
    shown = [name for name, values in columns.items() if len(values - {None}) > 1]
    for name in (*shown, "ranking"):
        table.add_column(name)
    measures = list(rows[0].mean.as_dict())
    for name in measures:
        table.add_column(name, justify="right")
    table.add_column("difference in nDCG@10 (95 %)", justify="right")
    for row in rows:
        cells = [getattr(row, name) or "" for name in shown]
        values = (f"{value:.4f}" for value in row.mean.as_dict().values())
        other = reference(row, rows)
        table.add_row(*cells, _ranking(row), *values, _told(row.over(other)) if other else "")
    return table


def _told(found: Difference) -> str:
    star = " *" if found.beyond_chance else ""
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f}){star}"


def _tuned_in_words(model: str, language: str, found: Tuned) -> str:
    verdict = "more than chance" if found.difference.beyond_chance else "not more than chance"
    return (
        f"{model}, {language}: weight {found.weight} was best on {found.fitted_on} queries; on the "
        f"other {found.judged_on} nDCG@10 is {found.ndcg_10:.4f}, with the default "
        f"{found.default_ndcg_10:.4f}: {_told(found.difference)}, {verdict}"
    )
