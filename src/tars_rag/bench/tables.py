"""A report as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from rich.box import SIMPLE
from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table

from tars_rag.bench import published

Row = Mapping[str, Any]
Columns = dict[str, Callable[[Row], str]]


def number(value: Any, digits: int = 1) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def place(row: Row) -> str:
    """Where it ran: ``cpu onnxruntime int8 x2``, the last being threads, or cores of an NPU."""
    what = " ".join(str(row[k]) for k in ("device", "engine", "precision") if row.get(k))
    return what + (f" x{row['cores']}" if row.get("cores") else "")


def _random(row: Row) -> str:
    return " (random weights)" if row.get("random") else ""


def length(row: Row) -> str:
    """``122`` or, padded, ``122 in 512``."""
    tokens, padded = row.get("tokens"), row.get("length")
    if tokens is None:
        return "-"
    shown = f"{tokens}" if tokens == padded or padded is None else f"{tokens} in {padded}"
    sample = str(row.get("sample", ""))
    return f"{shown} {sample}" if sample.startswith("own") else shown


def milliseconds(row: Row) -> str:
    """``26.1 ± 0.4``."""
    if row.get("passage_ms") is None:
        return "-"
    spread = "" if row.get("spread_ms") is None else f" ± {row['spread_ms']:.1f}"
    return f"{row['passage_ms']:.1f}{spread}"


RERANKER: Final[Columns] = {
    "place": place,
    "tokens": length,
    "batch": lambda r: number(r.get("batch"), 0),
    "MB": lambda r: number(r.get("megabytes"), 0),
    "ms a passage": milliseconds,
    "for 5": lambda r: number(r.get("five_ms"), 0),
    "x CPU": lambda r: number(r.get("vs_cpu"), 2),
    "x FP16": lambda r: number(r.get("vs_fp16"), 2),
    "CPU s/100": lambda r: number(r.get("cpu_seconds_100"), 1),
}
QUALITY: Final[Columns] = {
    "reranker": lambda r: str(r["reranker"]) + _random(r),
    "tokens": lambda r: number(r.get("max_length"), 0),
    "queries": lambda r: number(r.get("queries"), 0),
    "nDCG@10": lambda r: number(r.get("ndcg_10"), 4),
    "gain": lambda r: "-" if r.get("gain") is None else f"{r['gain']:+.4f}",
}
EMBEDDER: Final[Columns] = {
    "place": place,
    "tokens": length,
    "texts": lambda r: number(r.get("texts"), 0),
    "tokenise": lambda r: number(r.get("tokenise_ms"), 2),
    "infer": lambda r: number(r.get("infer_ms"), 1),
    "total ms": lambda r: number(r.get("total_ms"), 1),
    "±": lambda r: number(r.get("spread_ms"), 1),
    "/s": lambda r: number(r.get("per_second"), 0),
    "CPU s/100": lambda r: number(r.get("cpu_seconds_100"), 1),
}
QUERY: Final[Columns] = {
    "embedder": lambda r: str(r["embedder"]),
    "reranker": lambda r: str(r["reranker"]) + _random(r),
    "embed": lambda r: number(r.get("embed"), 1),
    "vectors": lambda r: number(r.get("vectors"), 1),
    "BM25": lambda r: number(r.get("lexical"), 1),
    "fuse": lambda r: number(r.get("fuse"), 1),
    "rerank": lambda r: number(r.get("rerank"), 1),
    "total ms": lambda r: number(r.get("total_ms"), 1),
    "±": lambda r: number(r.get("spread_ms"), 1),
}
VERDICT: Final[Columns] = {
    "tokens": lambda r: number(r.get("length"), 0),
    "texts": lambda r: number(r.get("count"), 0),
    "class": lambda r: str(r.get("precision_class", "-")),
    "place": lambda r: str(r.get("place", "-")),
    "why": lambda r: str(r.get("reason", "")),
}
COLUMNS: Final[dict[str, tuple[str, Columns]]] = {
    "reranker": ("Reranker {model}: one passage alone, and five in a call", RERANKER),
    "quality": ("What reranking does to the order of judged queries", QUALITY),
    "embedder": ("Embedder {model}: where the time of a call goes", EMBEDDER),
    "query": ("The whole query: medians of its steps, ms", QUERY),
    "verdict": ("Placement of {model}: who runs what", VERDICT),
}


def rows_of(report: Mapping[str, Any], name: str) -> list[Row]:
    """The rows of one table of a report."""
    if name == "quality":
        found = report["reranker"].get("quality", [])
    else:
        found = report[name].get("rows", [])
    return list(found)


def tables_of(report: Mapping[str, Any], name: str) -> Iterator[tuple[str, list[Row]]]:
    """(heading, rows with figures): one for each model where rows are of one."""
    heading = COLUMNS[name][0]
    groups: dict[str, list[Row]] = {}
    for row in rows_of(report, name):
        if not row.get("absent"):
            model = f"{row['model']}{_random(row)}" if "{model}" in heading else ""
            groups.setdefault(model, []).append(row)
    for model, rows in groups.items():
        yield heading.format(model=model), rows


def notes_of(report: Mapping[str, Any], name: str) -> list[str]:
    """What is said below the tables of a part: of its rows, each thing once; what is absent."""
    rows = rows_of(report, name)
    counts: dict[str, int] = {}
    for row in rows:
        if row.get("note"):
            counts[str(row["note"])] = counts.get(str(row["note"]), 0) + 1
    found = [f"{note} ({count} row{'s' * (count > 1)})" for note, count in counts.items()]
    places = {str(row["pooled"]) for row in rows if row.get("pooled")}
    found += [f"pooling and normalising happen {where}: part of infer" for where in sorted(places)]
    absent: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        if row.get("absent"):
            why, model = str(row["absent"]), str(row.get("model") or "")
            mine = model and why.endswith(f" {model}")  # a command that ends in it
            general = f"{why.removesuffix(model)}NAME" if mine else why
            absent.setdefault(general, []).append((_what(row), why))
    for general, told in absent.items():
        names = list(dict.fromkeys(what for what, _ in told))
        found.append(f"not measured: {'; '.join(names)}: {general if names[1:] else told[0][1]}")
    return list(dict.fromkeys(found))


def _what(row: Row) -> str:
    """Of what a row has no figures."""
    if "model" not in row:
        return " / ".join(str(row[k]) for k in ("embedder", "reranker") if row.get(k))
    batch = f", batches of {row['batch']}" if row.get("batch") else ""
    return f"{row['model']}, {place(row)}{batch}"


def published_lines(name: str) -> list[str]:
    """The published figures, one line each."""
    lines = []
    if name == "reranker":
        lines += [
            f"{row['model']} {row['device']} {row['precision']}, {length(row)} tokens, "
            f"{row['megabytes']} MB: {milliseconds(row)} ms a passage"
            for row in published.RERANKER
        ]
    elif name == "embedder":
        npu, cpu = published.EMBEDDER
        lines.append(
            f"{npu['model']} npu {npu['precision']}, 256 tokens, one text: {npu['total_ms']:.0f} "
            f"ms (tokenise {npu['tokenise_ms']:.0f}, infer {npu['infer_ms']:.0f}, pool "
            f"{npu['pool_ms']:.0f}, normalise {npu['normalise_ms']:.0f}); cpu "
            f"{cpu['total_ms']:.0f} ms"
        )
    elif name == "query":
        search, whole = published.QUERY
        lines.append(
            f"{search['documents']} documents: vectors {search['vectors']:.0f} ms, BM25 "
            f"{search['lexical']:.0f}, fuse {search['fuse']:.0f}; with 5 passages reranked "
            f"{whole['total_ms']:.0f} ms"
        )
    return [f"{published.SOURCE}: {line}" for line in lines]


def terminal(report: Mapping[str, Any]) -> Iterator[Table | str]:
    """The report, piece by piece, for rich; plain lines are to be printed without markup."""
    yield str(report["how"])
    yield from report["notes"]
    for name, (_, columns) in COLUMNS.items():
        if not rows_of(report, name):
            continue
        yield ""
        for heading, rows in tables_of(report, name):
            table = Table(
                title=escape(heading), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0)
            )
            for column in columns:
                justify: JustifyMethod = "left" if column in _WORDS else "right"
                table.add_column(column, justify=justify, no_wrap=column in _WHOLE)
            for row in rows:
                table.add_row(*(escape(show(row)) for show in columns.values()))
            yield table
        yield from notes_of(report, name)
        yield from published_lines(name)
    if report["interrupted"]:
        yield "\nInterrupted: the tables hold what was measured until then."


_WHOLE: Final = ("place", "tokens", "ms a passage", "infer", "total ms")
_WORDS: Final = ("place", "class", "embedder", "reranker", "why")
