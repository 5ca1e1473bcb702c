"""``tars-rag eval``: compare search strategies on a collection in BEIR's layout."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tars_rag.cli import resources
from tars_rag.cli.console import out, print_json, progress_bar

if TYPE_CHECKING:
    from tars_rag.bench.evaluate import Scores
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
    model_dir: Annotated[
        Path | None,
        typer.Option(
            help="Directory of a reranker: FlashRank's files, or safetensors.", metavar="DIR"
        ),
    ] = None,
    rerank_depth: Annotated[
        int, typer.Option(min=1, max=100, help="How many passages are reranked.")
    ] = 20,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the index here (default: a temporary directory)."),
    ] = None,
    model: resources.ModelOption = None,
    device: resources.DeviceOption = None,
    engine: resources.EngineOption = None,
    precision: resources.PrecisionOption = "fp32",
    language: resources.LanguageOption = None,
    json: resources.JsonOption = False,
) -> None:
    """Measure nDCG@10, MRR@10 and recall@100 of each strategy on judged queries."""
    from tars_rag.bench.evaluate import STRATEGIES, fill, load_collection
    from tars_rag.bench.evaluate import evaluate as measure

    collection = load_collection(directory)
    settings = resources.read_settings(embed_model=model, cpu_engine=engine)
    wanted = [choice.value for choice in strategy] if strategy else list(STRATEGIES)
    place = nullcontext(store) if store else tempfile.TemporaryDirectory(prefix="tars-rag-")
    with (
        place as path,
        resources.open_embedder(settings, device=device, precision=precision) as embedder,
        resources.open_store(Path(str(path)), embedder, language=language) as opened,
        progress_bar("count") as progress,
    ):
        reranker = (
            _reranker(settings, model_dir, bool(strategy))
            if Ranking.RERANKED.value in wanted
            else None
        )
        fill(opened, collection, progress)
        scores = measure(
            opened,
            collection,
            reranker,
            strategies=wanted,
            rerank_depth=rerank_depth,
            progress=progress,
        )
    if json:
        print_json({name: values.as_dict() for name, values in scores.items()})
    else:
        out.print(_table(scores, len(collection.passages), len(collection.queries)))


def _reranker(settings: Settings, model_dir: Path | None, asked: bool) -> Reranker | None:
    from tars_rag.models.reranker import Reranker

    if model_dir:
        return Reranker(model_dir, cache_dir=settings.model_cache_dir)
    return resources.open_reranker(settings, True if asked else None)


def _table(scores: dict[str, Scores], documents: int, queries: int) -> Table:
    table = Table(title=f"{documents} documents, {queries} queries", title_justify="left")
    table.add_column("strategy")
    names = next(iter(scores.values())).as_dict()
    for name in names:
        table.add_column(name, justify="right")
    for strategy, values in scores.items():
        table.add_row(strategy, *(f"{value:.4f}" for value in values.as_dict().values()))
    return table
