"""Reports of several machines, or of one at several times, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from tars_rag.bench.results import read
from tars_rag.bench.tables import length, number, place

_FIGURES: Final = {"reranker": "passage_ms", "embedder": "total_ms", "query": "total_ms"}
_TITLES: Final = {
    "reranker": "Reranker: ms a passage",
    "embedder": "Embedder: ms a call",
    "query": "The whole query, ms",
}


def compare(paths: list[Path]) -> dict[str, Any]:
    """Set reports side by side.

    Args:
        paths: What ``--json`` or ``--report`` wrote.

    Returns:
        ``files`` (name and machine of each), and for each part its rows: ``what`` was measured
        and the ``values``, milliseconds, one a file; None where a file has no such row.

    Raises:
        InvalidInputError: A file cannot be read, or is something else.
    """
    reports = [read(path) for path in paths]
    found: dict[str, Any] = {
        "files": [
            {"name": path.name, "machine": _machine(report), "interrupted": report["interrupted"]}
            for path, report in zip(paths, reports, strict=True)
        ]
    }
    for part, figure in _FIGURES.items():
        rows: dict[str, list[float | None]] = {}
        for number_, report in enumerate(reports):
            for row in report[part]["rows"]:
                value = row.get(figure)
                if isinstance(value, int | float):
                    values = rows.setdefault(_what(part, row), [None] * len(reports))
                    values[number_] = float(value)
        found[part] = [{"what": what, "values": values} for what, values in rows.items()]
    return found


def tables(compared: Mapping[str, Any]) -> list[Table]:
    """The comparison for the terminal; a column for each file."""
    made = []
    for part, title in _TITLES.items():
        if not compared[part]:
            continue
        table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
        table.add_column("what")
        for file in compared["files"]:
            table.add_column(escape(f"{file['name']} ({file['machine']})"), justify="right")
        for row in compared[part]:
            table.add_row(escape(row["what"]), *(number(v) for v in row["values"]))
        made.append(table)
    return made


def _what(part: str, row: Mapping[str, Any]) -> str:
    random = ", random weights" if row.get("random") else ""
    if part == "query":
        return f"{row.get('embedder')} / {row.get('reranker')}{random}"
    many = f", batches of {row['batch']}" if row.get("batch") else ""
    many = f", {row['texts']} text(s)" if row.get("texts") else many
    return f"{row.get('model')}, {place(row)}, {length(row)} tokens{many}{random}"


def _machine(report: Mapping[str, Any]) -> str:
    machine = report.get("machine") or {}
    return str(machine.get("model") or machine.get("processor") or "unknown machine")
