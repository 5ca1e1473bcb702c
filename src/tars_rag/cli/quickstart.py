"""``tars-rag quickstart``: index and search a bundled sample, without any preparation."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from tars_rag.cli import resources
from tars_rag.cli.console import out, progress_bar, show
from tars_rag.cli.passages import show_passages
from tars_rag.cli.query import steps_table

QUESTIONS = (
    "Why does my board restart when it is busy?",
    "How do I make a sail smaller when the wind gets stronger?",
    "reciprocal rank fusion constant 60",
)
_SHOWN = 3


def quickstart(
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the index here (default: the user's cache)."),
    ] = None,
    rerank: resources.RerankOption = None,
) -> None:
    """Index a bundled sample, ask three questions, and show how long each step took."""
    from tars_rag.ingest.run import ingest
    from tars_rag.retrieval.pipeline import Pipeline

    settings = resources.read_settings()
    with (
        as_file(files("tars_rag.cli") / "sample" / "sample.jsonl") as sample,
        resources.open_embedder(settings) as embedder,
        resources.open_store(store or _default_store(embedder.fingerprint), embedder) as opened,
    ):
        reranker = resources.open_reranker(settings, rerank, fetch=True)
        splitter = resources.make_splitter(settings, embedder, None, 32)
        with progress_bar() as progress:
            report = ingest(opened, [sample], splitter, progress=progress)
        show(
            f"{opened.count()} passages in {store or opened.path} "
            f"({report.written} written, {report.seconds:.1f} s; "
            f"embedder {embedder.model} on the {embedder.device})"
        )
        pipeline = Pipeline(opened, reranker)
        for question in QUESTIONS:
            answer = pipeline.search(question, _SHOWN)
            show(f"\n{question}", style="bold green")
            show_passages(answer.passages, question, opened.language)
        out.print()
        out.print(steps_table(answer.steps, "Where the time of the last question went"))
    show("\nnext: tars-rag index YOUR_FILES --store ./my-store")
    show('      tars-rag query "..." --store ./my-store')


def _default_store(fingerprint: str) -> Path:
    """A directory for each store version and embedder, so that no older store is in the way."""
    import platformdirs

    from tars_rag.retrieval.storage.store_json import VERSION

    cache = Path(platformdirs.user_cache_dir("tars-rag", appauthor=False))
    return cache / "quickstart" / f"v{VERSION}-{fingerprint.replace(':', '-')}"
