"""From measured rows to ``placement.json``: which place runs what, and the figures it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tars_rag.bench.rows import EmbedderRow, RerankerRow
from tars_rag.errors import TarsRagError
from tars_rag.models import layout, npu, verdict
from tars_rag.models.assignment import Candidate, Choice, Measurement
from tars_rag.models.cache import ModelCache
from tars_rag.models.following import current_key
from tars_rag.runtimes.npu.manifest import ModelKind
from tars_rag.settings import Placement

if TYPE_CHECKING:
    from tars_rag.models.local import LocalModel
    from tars_rag.runtimes.npu.probe import Machine

_PASSAGES: Final = 5


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a verdict is about.

    Attributes:
        name: As in the rows.
        kind: As what it was measured.
        reference: Name or path.
        rknn_path: A bundle outside the cache.
    """

    name: str
    kind: ModelKind
    reference: str
    rknn_path: Path | None = None


Place = tuple[str, str, str, str]
"""Model, device, engine and precision of a row."""


def place_of(row: EmbedderRow | RerankerRow) -> Place:
    """Where it ran."""
    return (row.model, row.device, row.engine, row.precision)


def measurements(
    rows: Iterable[EmbedderRow | RerankerRow], candidates: Mapping[Place, Candidate]
) -> list[Measurement]:
    """What the rows say of whole calls in places that a verdict has a name for.

    Left out: one thread or one core of several, random weights, the user's own texts (which are
    of several lengths), and batches that nothing but a bench would make.
    """
    rows = [row for row in rows if not (row.absent or row.random or row.sample.startswith("own"))]
    most: dict[Place, int] = {}
    for row in rows:
        most[place_of(row)] = max(most.get(place_of(row), 0), row.cores or 0)
    found = []
    for row in rows:
        candidate = candidates.get(place_of(row))
        if row.length is None or row.cores != most[place_of(row)] or candidate is None:
            continue
        spread = row.spread_ms or 0.0
        if isinstance(row, EmbedderRow):
            if row.total_ms and row.texts:
                measured = Measurement(row.length, row.texts, candidate, row.total_ms, spread)
                found.append(measured)
        elif row.passage_ms and row.five_ms and row.planned:
            found.append(Measurement(row.length, 1, candidate, row.passage_ms, spread))
            found.append(Measurement(row.length, _PASSAGES, candidate, row.five_ms))
    return found


def judge(
    models: Sequence[Model],
    rows: Sequence[EmbedderRow | RerankerRow],
    candidates: Mapping[Place, Candidate],
    *,
    cache: ModelCache,
    machine: Machine,
    notes: Mapping[str, str],
) -> list[verdict.Verdict]:
    """A verdict for each model that has figures.

    Args:
        models: Those measured.
        rows: All rows.
        candidates: What a verdict calls their places. Of several bundles only the one that the
            NPU would run is kept.
        cache: Where the models are.
        machine: What `probe` found.
        notes: What else was seen while it was measured.

    Returns:
        Not written yet.

    Raises:
        TarsRagError: A model cannot be read any more.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    made = []
    for model in models:
        of = EmbedderRow if model.kind == "embedder" else RerankerRow
        mine = [row for row in rows if isinstance(row, of) and row.model == model.name]
        local = cache.find(model.reference) if mine else None
        if local is None:
            continue
        bundle = _bundle(model, local, cache, machine)
        fitting = [row for row in mine if row.device == "cpu" or row.precision == bundle]
        figures = measurements(fitting, candidates)
        if not figures:
            continue
        placement = Placement(rknn_path=model.rknn_path, cache_dir=cache.root)
        pooling = layout.pooling(local) if model.kind == "embedder" else "mean"
        throttled = {row.note for row in mine if row.note.startswith("throttled")}
        made.append(
            verdict.Verdict(
                local.name,
                model.kind,
                current_key(local, model.kind, cache.root, placement, machine, pooling),
                tuple(dict.fromkeys(figures)),
                now,
                "; ".join(sorted(throttled)),
                notes,
            )
        )
    return made


def as_rows(verdicts: Sequence[verdict.Verdict]) -> list[dict[str, Any]]:
    """For tables: what is fastest for each length and number of texts.

    Of an embedder within each class, for a store's vectors are of one; of a cross-encoder in the
    class that is followed, and against the others.
    """
    rows = []
    for v in verdicts:
        is_embedder = v.kind == "embedder"
        names = {row.candidate.precision_class for row in v.rows} if is_embedder else {None}
        for name in sorted(names, key=str):
            plan = v.plan(name)
            rows += [
                {
                    "model": v.model,
                    "length": choice.length,
                    "count": choice.count,
                    "precision_class": plan.precision_class,
                    "place": str(choice.candidate),
                    "ms": round(choice.ms, 4),
                    "reason": choice.reason if is_embedder else _against(choice, v.rows),
                    "note": v.throttled,
                }
                for choice in plan.choices()
            ]
    return rows


def _against(choice: Choice, rows: Sequence[Measurement]) -> str:
    """The figures of all places, the chosen one first."""
    others = sorted(
        (row.ms, str(row.candidate))
        for row in rows
        if (row.length, row.count) == (choice.length, choice.count)
        and row.candidate != choice.candidate
    )
    against = "; ".join(f"{ms:.1f} ms on {place}" for ms, place in others)
    return f"{choice.ms:.1f} ms" + (f" against {against}" if against else ", alone")


def _bundle(model: Model, local: LocalModel, cache: ModelCache, machine: Machine) -> str | None:
    """The precision of the bundle that the NPU would run."""
    if machine.reason:
        return None
    placement = Placement(device="npu", rknn_path=model.rknn_path, cache_dir=cache.root)
    pooling = layout.pooling(local) if model.kind == "embedder" else "mean"
    try:
        file = npu.find_model(local, model.kind, pooling, placement, cache.root, machine)
    except TarsRagError:
        return None
    return file.precision or "not said"
