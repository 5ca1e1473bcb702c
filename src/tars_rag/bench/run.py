"""One run: which models, in which places, into which rows."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tars_rag.bench import embedder_bench, random_weights, reranker_bench, verdict
from tars_rag.bench.conditions import Watch
from tars_rag.bench.contenders import Contender, Subject, contenders, open_subject
from tars_rag.bench.measuring import Clock
from tars_rag.bench.results import Report
from tars_rag.bench.rows import EmbedderRow, RerankerRow
from tars_rag.bench.texts import QUERY, own
from tars_rag.bench.whole import measure_whole
from tars_rag.errors import TarsRagError
from tars_rag.models.assignment import Candidate
from tars_rag.models.cache import ModelCache
from tars_rag.models.verdict import write as keep
from tars_rag.runtimes.cores import allowed_cores
from tars_rag.runtimes.npu.manifest import ModelKind

if TYPE_CHECKING:
    from tars_rag.bench.evaluate import Collection
    from tars_rag.runtimes.npu.probe import Machine

Tell = Callable[[str], object]
MEASURED: Final = ("reranker", "embedder", "query")
_BUSY: Final = 0.5
"""Processes that want a processor, for each there is, from which on times are not to be trusted."""


@dataclass(frozen=True)
class Wanted:
    """What is to be measured.

    Attributes:
        cache: Where models are; nothing is fetched.
        machine: What `probe` found.
        embedders: Names of the catalogue, or directories; the first one is the query's.
        rerankers: The same, of cross-encoders.
        parts: Some of `MEASURED`.
        quick: Less of everything: under a minute on a PC.
        texts: The user's own passages, for rows at their lengths.
        queries: The user's own queries.
        collection: Judged queries, for nDCG@10.
        store: An existing store, for the query.
        random: Measure models that are not here with random weights, for their times.
        embedder_rknn: A bundle outside the cache.
        reranker_rknn: The same.
        keep: Write ``placement.json`` into the cache.
    """

    cache: ModelCache
    machine: Machine
    embedders: Sequence[str]
    rerankers: Sequence[str]
    parts: Sequence[str] = MEASURED
    quick: bool = False
    texts: Sequence[str] = ()
    queries: Sequence[str] = ()
    collection: Collection | None = None
    store: Path | None = None
    random: bool = False
    embedder_rknn: Path | None = None
    reranker_rknn: Path | None = None
    keep: bool = True


@dataclass
class Bench:
    """Measures what is wanted into a report.

    Attributes:
        wanted: What.
        report: Filled row by row.
        clock: What time is read from.
        watch: What clocks and governors are read with.
        tell: Told what is measured next.
        open: Opens a place; a test puts a device with known times there.
    """

    wanted: Wanted
    report: Report
    clock: Clock = field(default_factory=Clock)
    watch: Watch = field(default_factory=Watch)
    tell: Tell = lambda what: None
    open: Callable[[Contender], Subject] = open_subject
    _known: dict[Contender, Contender] = field(default_factory=dict)
    _candidates: dict[verdict.Place, Candidate] = field(default_factory=dict)

    def run(self) -> Report:
        """Measure all of it. After Ctrl-C the report has what was measured until then."""
        load, cores = os.getloadavg()[0], len(allowed_cores())
        if load > _BUSY * cores:
            self.report.notes.append(
                f"Other work ran at the same time (load {load:.1f} on {cores} cores): times are "
                "too long; the ratio of places that took turns still holds."
            )
        try:
            with tempfile.TemporaryDirectory(prefix="tars-rag-bench-") as folder:
                rerankers = self._places("cross-encoder", Path(folder))
                embedders = self._places("embedder", Path(folder))
                if "reranker" in self.wanted.parts:
                    for model in rerankers:
                        self._rerankers(model)
                if "embedder" in self.wanted.parts:
                    for model in embedders:
                        self._embedders(model)
                judged = self.wanted.collection and "reranker" in self.wanted.parts
                if "query" in self.wanted.parts or judged:
                    known = [[self._known.get(c, c) for c in model] for model in embedders]
                    ranking = [[self._known.get(c, c) for c in model] for model in rerankers]
                    measure_whole(self.wanted, self.report, known, ranking, self.watch, self.tell)
                self._verdict([*rerankers, *embedders])
        except KeyboardInterrupt:
            self.report.interrupted = True
        return self.report

    def _verdict(self, models: Sequence[Sequence[Contender]]) -> None:
        """Keep what follows from the figures, of models with weights of their own."""
        w = self.wanted
        named = [
            verdict.Model(
                places[0].model,
                places[0].kind,
                next(c.reference for c in places if c.reference),
                w.embedder_rknn if places[0].kind == "embedder" else w.reranker_rknn,
            )
            for places in models
            if any(c.reference and not c.random for c in places)
        ]
        rows: list[RerankerRow | EmbedderRow] = [*self.report.reranker, *self.report.embedder]
        notes = {"amount": self.report.how} | {
            f"note {n}": t for n, t in enumerate(self.report.notes)
        }
        made = verdict.judge(
            named, rows, self._candidates, cache=w.cache, machine=w.machine, notes=notes
        )
        self.report.verdict = {"rows": verdict.as_rows(made), "kept": False}
        if made and w.keep:
            try:
                keep(w.cache.root, made)
                self.report.verdict["kept"] = True
            except OSError as error:
                self.report.notes.append(f"The placement could not be kept: {error.strerror}")

    def _places(self, kind: ModelKind, folder: Path) -> list[list[Contender]]:
        """The places of each model, those with random weights after the real ones."""
        w = self.wanted
        names = w.embedders if kind == "embedder" else w.rerankers
        path = w.embedder_rknn if kind == "embedder" else w.reranker_rknn
        models = []
        for name in names:
            found = contenders(
                name,
                kind,
                cache=w.cache,
                machine=w.machine,
                rknn_path=path,
                thorough=not w.quick,
            )
            # A quick run has time for the first model only, as it comes and in float32.
            few = not w.quick or name.removesuffix("-fp32") == names[0]
            if w.random and few and all(c.absent for c in found):
                self.tell(f"random weights in the shape of {name}")
                made = random_weights.write(name, folder, w.cache)
                if made:
                    found = contenders(
                        made,
                        kind,
                        cache=w.cache,
                        machine=w.machine,
                        thorough=not w.quick,
                        random=True,
                    )
            models.append(found)
        return models

    def _rerankers(self, model: Sequence[Contender]) -> None:
        amount = reranker_bench.QUICK if self.wanted.quick else reranker_bench.Amount()

        def absent(c: Contender) -> None:
            row = RerankerRow(c.model, c.device, c.engine, c.precision, c.cores)
            self.report.reranker.append(dataclasses.replace(row, absent=c.absent))

        for subjects in self._open(model, absent):
            query = self.wanted.queries[0] if self.wanted.queries else QUERY
            samples = own(subjects[0].tokenizer, self.wanted.texts, reranker_bench.PASSAGES, query)
            reranker_bench.measure_rerankers(
                subjects,
                amount=amount,
                clock=self.clock,
                watch=self.watch,
                own=samples,
                keep=self.report.reranker.append,
                progress=lambda what: self.tell(f"reranker: {what}"),
            )

    def _embedders(self, model: Sequence[Contender]) -> None:
        amount = embedder_bench.QUICK if self.wanted.quick else embedder_bench.Amount()

        def absent(c: Contender) -> None:
            row = EmbedderRow(c.model, c.device, c.engine, c.precision, c.cores)
            self.report.embedder.append(dataclasses.replace(row, absent=c.absent))

        for subjects in self._open(model, absent):
            embedder_bench.measure_embedders(
                subjects,
                amount=amount,
                clock=self.clock,
                watch=self.watch,
                own=self.wanted.texts,
                keep=self.report.embedder.append,
                progress=lambda what: self.tell(f"embedder: {what}"),
            )

    def _open(
        self, model: Sequence[Contender], absent: Callable[[Contender], object]
    ) -> Iterator[list[Subject]]:
        """Open the places that take turns, and close them again.

        Those on the CPU are open at once. Each on the NPU is by itself: contexts of several
        would need the memory of all.
        """
        here = [c for c in model if not c.absent]
        on_cpu = [c for c in here if c.device == "cpu"]
        for group in [on_cpu, *([c] for c in here if c.device != "cpu")]:
            with contextlib.ExitStack() as stack:
                subjects = []
                for c in group:
                    self.tell(f"opening {c.model}, {c.device} {c.engine} {c.precision}")
                    try:
                        subject = self.open(c)
                    except TarsRagError as error:
                        absent(dataclasses.replace(c, absent=str(error)))
                        continue
                    stack.callback(subject.runtime.close)
                    self._known[c] = subject.contender
                    if subject.candidate:
                        of = (c.model, c.device, c.engine, subject.contender.precision)
                        self._candidates[of] = subject.candidate
                    subjects.append(subject)
                if subjects:
                    yield subjects
        for c in model:
            if c.absent:
                absent(c)
