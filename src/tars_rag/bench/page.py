"""A report as one page that needs nothing but itself: tables, plots, light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from tars_rag.bench import published
from tars_rag.bench.plots import Points, bars, lines
from tars_rag.bench.query_bench import STEPS
from tars_rag.bench.tables import (
    COLUMNS,
    Row,
    notes_of,
    place,
    published_lines,
    rows_of,
    tables_of,
)

_HEADINGS: Final = {
    "reranker": "Reranker",
    "quality": "Does reranking help?",
    "embedder": "Embedder",
    "query": "The whole query",
    "verdict": "Who runs what",
}
_MACHINE: Final = (
    ("model", "Board"),
    ("soc", "SoC"),
    ("processor", "Processor"),
    ("cpu_cores", "Cores"),
    ("memory_mb", "Memory, MB"),
    ("npu_cores", "NPU cores"),
    ("library_version", "librknnrt"),
    ("kernel", "Kernel"),
    ("python", "Python"),
    ("tars_rag", "tars-rag"),
)


def page(report: Mapping[str, Any]) -> str:
    """The report as HTML."""
    machine = report["machine"]
    facts = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(str(machine[name]))}</dd>"
        for name, label in _MACHINE
        if machine.get(name)
    )
    stopped = "<p class=warn>Interrupted: this is what was measured until then.</p>"
    body = [
        "<header><h1>tars-rag bench</h1>",
        f"<p>{escape(str(report['how']))}</p>",
        *(f"<p>{escape(str(note))}</p>" for note in report["notes"]),
        stopped if report["interrupted"] else "",
        f"<dl>{facts}</dl></header>",
    ]
    for name, heading in _HEADINGS.items():
        if rows_of(report, name):
            body.append(f"<section><h2>{escape(heading)}</h2>")
            body += _section(report, name)
            body.append("</section>")
    return _FRAME.format(style=_STYLE, body="\n".join(body))


def _section(report: Mapping[str, Any], name: str) -> Iterator[str]:
    drawn = "".join(_plots(report, name))
    if drawn:
        yield f'<div class="plots">{drawn}</div>'
    columns = COLUMNS[name][1]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    for heading, rows in tables_of(report, name):
        cells = (
            "<tr>" + "".join(f"<td>{escape(show(row))}</td>" for show in columns.values()) + "</tr>"
            for row in rows
        )
        yield f"<h3>{escape(heading)}</h3>"
        yield (
            f'<div class="wide"><table class="{name}"><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(cells)}</tbody></table></div>"
        )
    below = [*notes_of(report, name), *published_lines(name)]
    if below:
        yield f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in below)}</ul>"


def _plots(report: Mapping[str, Any], name: str) -> Iterator[str]:
    rows = [row for row in rows_of(report, name) if not row.get("absent")]
    if name == "reranker":
        for model in dict.fromkeys(str(row["model"]) for row in rows):
            mine = [r for r in rows if r["model"] == model]
            mine = [r for r in mine if not str(r.get("sample")).startswith("own")]
            known = [p for p in published.RERANKER if p["model"] == model]
            said = ", ".join(f"{p['passage_ms']:g} ({p['device']} {p['precision']})" for p in known)
            apart: dict[str, Points] = {
                f"{published.SOURCE}: {said}": [
                    (float(p["length"]), float(p["passage_ms"])) for p in known
                ]
            }
            yield lines(
                f"{model}: one passage",
                _series(mine, "length", "passage_ms"),
                x="tokens, with padding",
                y="ms",
                apart=apart if known else None,
            )
    elif name == "embedder":
        for model in dict.fromkeys(str(row["model"]) for row in rows):
            for texts in sorted({int(row["texts"]) for row in rows if row["model"] == model}):
                mine = [r for r in rows if (r["model"], r["texts"]) == (model, texts)]
                mine = [r for r in mine if not str(r.get("sample")).startswith("own")]
                yield lines(
                    f"{model}: {texts} text{'s in one call' if texts > 1 else ''}",
                    _series(mine, "length", "total_ms"),
                    x="tokens of a text",
                    y="ms",
                )
    elif name == "query":
        yield bars(
            "Where the time of a query goes",
            {
                f"{row['embedder']}; reranker {row['reranker']}": {
                    step: float(row[step]) for step in STEPS if row.get(step) is not None
                }
                for row in rows
            },
            unit="ms",
        )


def _series(rows: list[Row], x: str, y: str) -> dict[str, Points]:
    """A line for each place; of several rows at one length (batches) the first."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        if row.get(x) is not None and row.get(y) is not None:
            found.setdefault(place(row), {}).setdefault(float(row[x]), float(row[y]))
    return {name: sorted(points.items()) for name, points in found.items()}


_STYLE: Final = """
:root { color-scheme: light dark; --back: #fbfbf9; --text: #1d2126; --soft: #5a626b;
  --line: #d9dcdf; --head: #f0f1ef; --warn: #9a3412;
  --c0: #1f6fb2; --c1: #c2570c; --c2: #14804a; --c3: #9a3b8f; --c4: #8a6d00; --c5: #3f7f86; }
@media (prefers-color-scheme: dark) { :root { --back: #15181b; --text: #e6e8ea; --soft: #a3abb3;
  --line: #343a40; --head: #1e2327; --warn: #fdba74;
  --c0: #6cb4f0; --c1: #f59a56; --c2: #5cc98e; --c3: #d78ccd; --c4: #d9bd4a; --c5: #7cc3ca; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 1rem; background: var(--back);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .9rem; margin: .75rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.warn { color: var(--warn); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr));
  gap: 1.25rem; align-items: start; }
figure { margin: 0; } figcaption { font-weight: 600; overflow-wrap: anywhere; }
svg { display: block; width: 100%; max-width: 520px; height: auto; }
svg text { fill: var(--soft); font: 10px system-ui, sans-serif; }
.grid { stroke: var(--line); stroke-width: .6; } .line { fill: none; stroke-width: 1.8; }
.apart { fill: none; stroke: var(--soft); stroke-width: 1.4; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); } .c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
.dot.c0, .bar.c0 { fill: var(--c0); } .dot.c1, .bar.c1 { fill: var(--c1); }
.dot.c2, .bar.c2 { fill: var(--c2); } .dot.c3, .bar.c3 { fill: var(--c3); }
.dot.c4, .bar.c4 { fill: var(--c4); } .dot.c5, .bar.c5 { fill: var(--c5); }
.bar { stroke: var(--back); stroke-width: .5; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; }
th { background: var(--head); font-weight: 600; }
tbody tr + tr td { border-top: 1px solid var(--line); }
th:first-child, td:first-child, .query td:nth-child(2), .query th:nth-child(2),
.verdict td, .verdict th { text-align: left; }
.verdict td:last-child { white-space: normal; min-width: 22rem; }
ul { padding-left: 1.1rem; color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
"""
_FRAME: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tars-rag bench</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""
