"""``tars-rag embed``: files in, a Parquet file of passages with their vectors out."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tars_rag.cli import reading, resources
from tars_rag.cli.console import print_json, progress_bar, say, show

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from tars_rag.ingest.embed_files import EmbedReport, Shard
    from tars_rag.models.embedder import Embedder

_SHOWN = 20


def embed(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT... OUTPUT",
            help="Files, or directories of them, as `index` reads them, and Parquet files with the "
            "columns id and text; last the Parquet file to write.",
            show_default=False,
        ),
    ],
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Embed on a Ray cluster: its address, auto for the one that runs here, or local.",
        ),
    ] = None,
    chunk_tokens: reading.ChunkTokensOption = None,
    overlap: reading.OverlapOption = 32,
    root: reading.RootOption = None,
    exclude: reading.ExcludeOption = None,
    ocr: reading.OcrOption = False,
    max_file_mb: reading.MaxFileOption = 200,
    max_pages: reading.MaxPagesOption = 5000,
    max_seconds: reading.MaxSecondsOption = 120,
    model: resources.ModelOption = None,
    device: resources.DeviceOption = None,
    engine: resources.EngineOption = None,
    precision: resources.PrecisionOption = "fp32",
    json: resources.JsonOption = False,
) -> None:
    """Embed files into a Parquet file, which `tars-rag index --from-parquet` loads.

    OUTPUT appears when it is whole. If interrupted, run it again: it continues where it stopped.
    Rows that cannot be read are reported, the others are embedded, and the exit code is 1.
    """
    from tars_rag.ingest.documents import Limits
    from tars_rag.ingest.embed_files import embed_files
    from tars_rag.ingest.parquet import check_installed
    from tars_rag.ingest.root import Root

    *inputs, output = paths
    if not inputs:
        msg = "Give files or directories to embed, and after them the Parquet file to write."
        raise typer.BadParameter(msg, param_hint="INPUT... OUTPUT")
    check_installed()
    seen_from = None if root is None else Root.at(root)
    settings = resources.read_settings(embed_model=model, cpu_engine=engine)
    # On a cluster the nodes embed; here the model only says what its vectors are.
    own = "cpu" if ray is not None else device
    with resources.open_embedder(settings, device=own, precision=precision) as embedder:
        splitter = resources.make_splitter(settings, embedder, chunk_tokens, overlap)
        with _Where(embedder, ray, device) as where, progress_bar("count") as progress:
            report = embed_files(
                inputs,
                output,
                splitter,
                embedder,
                where.vectors,
                exclude=exclude or [],
                limits=Limits(max_file_mb, max_pages, max_seconds, ocr=ocr),
                root=seen_from,
                progress=progress,
            )
    if json:
        print_json(_as_json(report))
    else:
        show(_summary(report, output))
    for source, problem in report.failures[:_SHOWN]:
        say(f"not embedded: {problem if source in problem else f'{source}: {problem}'}", "red")
    if (more := len(report.failures) - _SHOWN) > 0:
        say(f"... and {more} more (--json lists them all)")
    if report.failures:
        raise typer.Exit(1)


class _Where:
    """This machine or a cluster, as what makes vectors."""

    def __init__(self, embedder: Embedder, address: str | None, device: str | None) -> None:
        self._embedder, self._cluster = embedder, None
        with contextlib.ExitStack() as streams:
            if address is not None:
                from tars_rag.ray import Cluster, share_model

                # Ray tells of workers and nodes that died on standard output: that is for results.
                streams.enter_context(contextlib.redirect_stdout(sys.stderr))
                self._cluster = Cluster(address)
                model, placement, prompts = embedder.asked_for
                wanted: Any = {"device": device or "auto"}
                shared = share_model(model, placement, prompts)
                self._model = replace(shared, placement=replace(shared.placement, **wanted))
            self._streams = streams.pop_all()

    def __enter__(self) -> _Where:
        return self

    def __exit__(self, *_: object) -> None:
        with self._streams:
            if self._cluster is not None:
                self._cluster.close()

    def vectors(self, shards: Iterable[Shard]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        if self._cluster is not None:
            yield from self._cluster.vectors(self._model, shards)
            return
        for number, texts in shards:
            yield number, self._embedder.embed(texts)


def _summary(report: EmbedReport, output: Path) -> str:
    kept = report.passages - report.embedded
    before = f" ({kept} of them by an earlier run)" if kept else ""
    return f"{report.passages} passages embedded{before} into {output} ({report.seconds:.1f} s)"


def _as_json(report: EmbedReport) -> dict[str, Any]:
    failures = [{"source": source, "problem": problem} for source, problem in report.failures]
    return {**asdict(report), "failures": failures}
