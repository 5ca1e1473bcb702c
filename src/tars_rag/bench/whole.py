"""The parts that need a store: the whole query in each place, and nDCG@10 of each reranker."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tars_rag.bench.conditions import Watch
from tars_rag.bench.contenders import Contender
from tars_rag.bench.quality import Judged, measure_quality
from tars_rag.bench.query_bench import DOCUMENTS, Asked, fill, measure_queries, pipeline
from tars_rag.bench.results import Report
from tars_rag.bench.rows import QualityRow, QueryRow
from tars_rag.bench.texts import notes
from tars_rag.errors import TarsRagError
from tars_rag.models.embedder import Embedder
from tars_rag.models.reranker import Reranker
from tars_rag.retrieval.store import HybridStore

if TYPE_CHECKING:
    from tars_rag.bench.run import Wanted

_WORDS: Final = 90  # about as many tokens as the published passages
_QUERIES: Final = (
    "what lifts a wing at low speed?",
    "heat transfer in a laminar boundary layer",
    "pressure on a cylinder in supersonic flow",
    "a method for the analysis of shock waves",
    "temperature of the surface of a plate",
)


def measure_whole(
    wanted: Wanted,
    report: Report,
    embedders: Sequence[Sequence[Contender]],
    rerankers: Sequence[Sequence[Contender]],
    watch: Watch,
    tell: Callable[[str], object],
) -> None:
    """The query's rows and, where there are judgements and time, the quality's."""
    first = list(embedders[0]) if embedders else []
    here = [c for c in first if not c.absent and not _part(c)]
    if not here:
        absent = first[0].absent if first else "no embedder is on this machine"
        report.query.append(QueryRow("none", "none", absent=absent))
        return
    with tempfile.TemporaryDirectory(prefix="tars-rag-bench-") as folder:
        if "query" in wanted.parts:
            _queries(wanted, report, first, rerankers, watch, tell, Path(folder))
        if "reranker" not in wanted.parts:
            return
        if wanted.collection and wanted.quick:
            absent = "--quick does not ask judged queries; leave it out"
            report.quality.append(QualityRow("none", absent=absent))
        elif wanted.collection:
            tell("nDCG@10")
            with (
                Embedder.placed(here[0].reference, here[0].placement) as embedder,
                HybridStore(Path(folder) / "judged", embedder) as store,
            ):
                judged = [
                    Judged(words(c), length, partial(_reranker, c, length), c.random)
                    for model in rerankers
                    for c in model
                    if not c.absent and not _part(c)
                    for length in lengths(c)
                ]
                measure_quality(
                    store,
                    wanted.collection,
                    judged,
                    queries=50,
                    keep=report.quality.append,
                    progress=lambda what: tell(f"quality: {what}"),
                )


def words(c: Contender) -> str:
    """A place in a few words."""
    parts = (c.model, c.device, c.engine, c.precision, f"x{c.cores}" if c.cores else "")
    return " ".join(part for part in parts if part)


def lengths(c: Contender) -> tuple[int, ...]:
    """The lengths at which a reranker is judged; other engines rank alike, so at one only."""
    return (512, 384, 256, 128) if c.engine != "openvino" else (512,)


def _reranker(c: Contender, length: int) -> Reranker:
    return Reranker.placed(c.reference, c.placement, length)


def _part(c: Contender) -> bool:
    """Whether it may use a part of the device only: such places have no row of a whole query."""
    return c.placement.threads is not None or c.placement.core_mask == "0"


def _queries(
    wanted: Wanted,
    report: Report,
    embedders: Sequence[Contender],
    rerankers: Sequence[Sequence[Contender]],
    watch: Watch,
    tell: Callable[[str], object],
    folder: Path,
) -> None:
    documents = 100 if wanted.quick else DOCUMENTS
    texts = [*wanted.texts[:documents]] or notes(documents, _WORDS)
    queries = [*wanted.queries[: len(_QUERIES)]] or list(_QUERIES)
    made_up = "" if wanted.texts else " made-up"
    if not wanted.store:
        report.notes.append(f"query: a temporary store of {len(texts)}{made_up} passages")
    with contextlib.ExitStack() as stack:
        ranking = [
            (c, stack.enter_context(_reranker(c, 512)))
            for model in rerankers
            for c in model
            if not c.absent and not _part(c)
        ]
        asked = []
        for number, c in enumerate(embedders):
            if _part(c):
                continue
            if c.absent:
                report.query.append(QueryRow(words(c), "none", absent=c.absent))
                continue
            try:
                embedder = stack.enter_context(Embedder.placed(c.reference, c.placement))
                place = wanted.store or folder / f"store-{number}"
                store = stack.enter_context(
                    HybridStore(place, embedder, read_only=bool(wanted.store))
                )
                if not wanted.store:
                    fill(store, texts, lambda what: tell(f"query: {what}"))
            except TarsRagError as error:
                report.query.append(QueryRow(words(c), "none", absent=str(error)))
                continue
            asked.append(Asked(words(c), "none", pipeline(store, None), c.random))
            # Every reranker beside the first embedder, and the first one beside the others.
            beside = ranking if len(asked) == 1 else ranking[:1]
            asked += [
                Asked(words(c), words(r), pipeline(store, reranker), c.random or r.random)
                for r, reranker in beside
            ]
        if asked:
            measure_queries(
                asked,
                queries,
                rounds=2 if wanted.quick else 5,
                watch=watch,
                keep=report.query.append,
                progress=lambda what: tell(f"query: {what}"),
            )
