"""What one run of the bench found, as values that JSON, tables and pages are made of."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tars_rag.bench import published
from tars_rag.bench.reranker_bench import with_ratios
from tars_rag.bench.rows import EmbedderRow, QualityRow, QueryRow, RerankerRow
from tars_rag.errors import InvalidInputError

FORMAT: Final = 1
PARTS: Final = ("reranker", "embedder", "query", "verdict")


@dataclass
class Report:
    """Filled row by row, so that an interrupted run has what was measured until then.

    Attributes:
        machine: What this machine is, without names of people, hosts or directories.
        how: How much was measured, in words for the tables' headings.
        reranker: Rows.
        quality: What rerankers do to the order of judged queries.
        embedder: Rows.
        query: Rows.
        verdict: Which place runs what, and why: plain values.
        notes: What a reader should know of the whole run.
        interrupted: It was stopped before its end.
    """

    machine: dict[str, Any]
    how: str
    reranker: list[RerankerRow] = field(default_factory=list)
    quality: list[QualityRow] = field(default_factory=list)
    embedder: list[EmbedderRow] = field(default_factory=list)
    query: list[QueryRow] = field(default_factory=list)
    verdict: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The whole as JSON has it; figures are rounded to what a clock can tell."""
        return {
            "format": FORMAT,
            "made": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": self.machine,
            "how": self.how,
            "interrupted": self.interrupted,
            "notes": self.notes,
            "reranker": {
                "rows": _plain(with_ratios(self.reranker)),
                "quality": _plain(self.quality),
                "published": list(published.RERANKER),
            },
            "embedder": {
                "rows": _plain(self.embedder),
                "published": list(published.EMBEDDER),
            },
            "query": {"rows": _plain(self.query), "published": list(published.QUERY)},
            "verdict": self.verdict,
        }


def read(path: Path) -> dict[str, Any]:
    """Read what ``--json`` or ``--report`` wrote.

    Raises:
        InvalidInputError: It cannot be read, or is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path} cannot be read ({error}). Make it: tars-rag bench --report {path}"
        raise InvalidInputError(msg) from error
    bench = value.get("bench", value) if isinstance(value, Mapping) else None
    if not isinstance(bench, dict) or not all(isinstance(bench.get(part), dict) for part in PARTS):
        msg = f"{path} is not a report of tars-rag. Make one: tars-rag bench --report {path}"
        raise InvalidInputError(msg)
    if bench.get("format") != FORMAT:
        msg = (
            f"{path} has format {bench.get('format')!r}, this version reads {FORMAT}. Make it "
            f"again: tars-rag bench --report {path}"
        )
        raise InvalidInputError(msg)
    for part in PARTS[:3]:
        rows = bench[part].get("rows")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            msg = f"{path}: {part} has no rows. Make it again: tars-rag bench --report {path}"
            raise InvalidInputError(msg)
    return bench


def _plain(rows: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in dataclasses.asdict(row).items()
        }
        for row in rows
    ]
