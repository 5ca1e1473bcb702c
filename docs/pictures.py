"""Draw the pictures of the pages, as SVG, or check that they are what this draws.

python docs/pictures.py --write
python docs/pictures.py --check

Every figure in them is read from a table of a page, so that a picture and its table cannot differ.
They have a background of their own, light or dark as the reader's screen is, and letters that can
be read on a telephone.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
WIDTH = 520
STYLE = """
text{font:15px system-ui,sans-serif;fill:#1f2933}.small{font-size:13px}.soft{fill:#52606d}
.bold{font-weight:600}.end{text-anchor:end}.mid{text-anchor:middle}
.back{fill:#fcfcfb}.box{fill:#fff;stroke:#9aa5b1}.band{fill:#edf2f7}.line{stroke:#9aa5b1;fill:none}
.ours{fill:#0b7285;stroke:#0b7285}.other{fill:#9aa5b1;stroke:#9aa5b1}.bad{fill:#c92a2a}
.c1{fill:#b45309;stroke:#b45309}.c2{fill:#6741d9;stroke:#6741d9}.c3{fill:#2b8a3e;stroke:#2b8a3e}
.c4{fill:#c2255c;stroke:#c2255c}polyline{fill:none!important;stroke-width:2}
@media(prefers-color-scheme:dark){text{fill:#e4e7eb}.soft{fill:#b0bac5}.back{fill:#1b2027}
.box{fill:#252c35;stroke:#616e7c}.band{fill:#2c3540}.line{stroke:#616e7c}
.ours{fill:#3bc9db;stroke:#3bc9db}.other{fill:#7b8794;stroke:#7b8794}.bad{fill:#ff8787}
.c1{fill:#ffa94d;stroke:#ffa94d}.c2{fill:#b197fc;stroke:#b197fc}.c3{fill:#69db7c;stroke:#69db7c}
.c4{fill:#faa2c1;stroke:#faa2c1}}
"""


def picture(height: float, title: str, *parts: str) -> str:
    """A whole SVG; `title` is what a screen reader says."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH * 1.25:g}" height="{height * 1.25:g}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="back" width="{WIDTH}" height="{height:g}" rx="8"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}">{escape(words)}</text>'


def bar(x: float, y: float, width: float, style: str, height: float = 16) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{max(width, 1.5):.4g}" height="{height:g}" rx="2" '
        f'class="{style}"/>'
    )


def box(x: float, y: float, width: float, *lines: str) -> str:
    """A box with centred lines, the first in bold."""
    height = 18 + 18 * len(lines)
    rows = [
        text(x + width / 2, y + 23 + 18 * n, line, "mid bold" if n == 0 else "mid small soft")
        for n, line in enumerate(lines)
    ]
    rect = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height}" rx="6" class="box"/>'
    return "\n".join([rect, *rows])


def arrow(x: float, y: float, x2: float, y2: float) -> str:
    tip = f'<path class="line" d="M{x2 - 5:g} {y2 - 6:g}L{x2:g} {y2:g}L{x2 + 5:g} {y2 - 6:g}"/>'
    return f'<path class="line" d="M{x:g} {y:g}L{x2:g} {y2:g}"/>{tip}'


def rows(page: str, after: str) -> list[list[str]]:
    """The cells of the first table of a page behind a line that holds `after`, without its head."""
    lines = (DOCS / page).read_text("utf-8").split("\n")
    start = next(n for n, line in enumerate(lines) if after in line)
    table: list[list[str]] = []
    for line in lines[start + 1 :]:
        if line.startswith("|"):
            table.append([cell.strip(" *`") for cell in line.strip("|").split("|")])
        elif table:
            break
    return table[2:]


def cell(table: list[list[str]], name: str, column: int) -> float:
    """The number in a column of the row that begins with `name`."""
    [row] = [row for row in table if row[0] == name]
    return float(row[column].replace(",", ""))


def pipeline() -> str:
    return picture(
        458,
        "A question becomes a vector and words; both sides of the store are searched and fused; "
        "a reranker reads the best passages; what comes back are passages with their places.",
        box(170, 14, 180, "question"),
        arrow(215, 50, 130, 76),
        arrow(305, 50, 390, 76),
        box(20, 76, 220, "embedder", "NPU, or CPU"),
        box(280, 76, 220, "words", "as the language cuts them"),
        '<rect x="8" y="156" width="504" height="108" rx="8" class="band"/>',
        text(260, 176, "store: one directory; what is acknowledged is on disk", "mid small soft"),
        arrow(130, 130, 130, 156),
        arrow(390, 130, 390, 156),
        box(20, 186, 220, "vectors", "compared exactly"),
        box(280, 186, 220, "BM25", "words of every script"),
        arrow(130, 240, 215, 286),
        arrow(390, 240, 305, 286),
        box(130, 286, 260, "fusion", "cosine + share of the words"),
        arrow(260, 340, 260, 362),
        box(90, 362, 340, "reranker, if you want one", "CPU or NPU, within a budget of ms"),
        arrow(260, 416, 260, 430),
        text(260, 447, "passages, with file, page and heading", "mid bold"),
    )


def query_time() -> str:
    embedding = rows("performance.md", "**Embedding**")
    search = rows("performance.md", "10,000 passages, k = 5")
    reranking = rows("performance.md", "weights in FP32 for CrossEncoder")
    steps = [
        ("embed the question", cell(embedding, "tars-rag, ONNX Runtime fp32", 3)),
        ("search 10,000 passages", cell(search, "tars-rag", 3)),
        ("rerank 5 of 250 words", cell(reranking, "5 x 250 words", 2)),
        ("rerank 20 of 250 words", cell(reranking, "20 x 250 words", 2)),
    ]
    scale = 230 / max(ms for _, ms in steps)
    drawn = []
    for n, (name, ms) in enumerate(steps):
        y = 52 + 30 * n
        drawn += [
            text(180, y + 13, name, "end small"),
            bar(190, y, ms * scale, "ours"),
            text(198 + max(ms * scale, 1.5), y + 13, f"{ms:g} ms", "small bold"),
        ]
    return picture(
        212,
        "Milliseconds of each step of a query: " + ", ".join(f"{n}: {ms:g}" for n, ms in steps),
        text(20, 30, "Where a query's time goes, on two x86-64 cores", "bold"),
        *drawn,
        text(20, 184, "ONNX Runtime. Without a reranker the first two are all.", "small soft"),
        text(20, 202, "From three tables of docs/performance.md, measured apart.", "small soft"),
    )


def fidelity() -> str:
    table = [row for row in rows("quantisation.md", "71 held-out texts") if row[1] == "128"]
    everything = (DOCS / "quantisation.md").read_text("utf-8")
    [shared] = set(re.findall(r"\+ table ([\d.]+) \| \d+ \| \d+ \| \d{3} \|", everything))
    drawn = []
    x, width = 120, 170
    for n, (name, _, mean, least, size, *_) in enumerate(table):
        y = 78 + 28 * n
        mib = float(size.split()[0]) + (float(shared) if "+" in size else 0)
        drawn += [
            text(x - 10, y + 13, name.replace(" (refused)", ""), "end small"),
            bar(x, y, width * float(mean), "bad" if "refused" in name else "ours"),
            bar(x + width * float(least) - 1, y - 3, 2, "back", 22),
            text(x + width + 78, y + 13, mean, "end small bold"),
            text(x + width + 142, y + 13, least, "end small"),
            text(WIDTH - 20, y + 13, f"{mib:.1f}", "end small"),
        ]
    bottom = 78 + 28 * len(table)
    return picture(
        bottom + 52,
        "Cosine of the NPU's vectors to FP32 by precision: "
        + ", ".join(f"{row[0]} {row[2]}" for row in table),
        text(20, 30, "What each precision keeps of all-MiniLM-L6-v2", "bold"),
        text(x, 64, "cosine, 0 to 1", "small soft"),
        text(x + width + 78, 64, "mean", "end small soft"),
        text(x + width + 142, 64, "worst", "end small soft"),
        text(WIDTH - 20, 64, "MiB", "end small soft"),
        *drawn,
        text(
            20,
            bottom + 18,
            "Red: INT8 as the toolkit's documentation has it; refused.",
            "small soft",
        ),
        text(
            20, bottom + 36, "Simulator, 71 texts of 128 tokens: docs/quantisation.md", "small soft"
        ),
    )


def growth() -> str:
    programs: dict[str, list[tuple[int, float, float]]] = {}
    for size in (1_000, 10_000, 100_000):
        for name, _, disk, ms, *_ in rows("performance.md", f"{size:,} passages, k = 5"):
            programs.setdefault(name, []).append((size, float(ms), float(disk)))
    programs = {name: points for name, points in programs.items() if points[0][0] == 1_000}
    styles = dict(zip(programs, ("ours", "c1", "c2", "c3", "c4", "other"), strict=True))

    def height(value: float) -> float:
        return 250 - 57 * math.log10(value)

    parts = [text(20, 30, "Hybrid search and disk, by number of passages", "bold")]
    for title, column, left in (("search, ms (median)", 1, 62), ("on disk, MB", 2, 318)):
        parts.append(text(left, 64, title, "small soft"))
        for value in (1, 10, 100, 1_000):
            y = height(value)
            parts.append(f'<path class="line" opacity=".5" d="M{left} {y:g}h180"/>')
            parts.append(text(left - 6, y + 4, f"{value:,}", "end small soft"))
        for n, style in enumerate(("", "mid", "end")):
            parts.append(text(left + 90 * n, 270, f"{10 ** (n + 3):,}", f"small soft {style}"))
        for name, points in programs.items():
            spots = [
                (left + 90 * (math.log10(point[0]) - 3), height(point[column])) for point in points
            ]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            wide = ' style="stroke-width:3.5"' if name == "tars-rag" else ""
            parts.append(f'<polyline class="{styles[name]}" points="{line}"{wide}/>')
            parts += [
                f'<circle class="{styles[name]}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
                for x, y in spots
            ]
    for n, name in enumerate(programs):
        y = 300 + 22 * n
        parts += [bar(20, y - 9, 22, styles[name], 6), text(52, y, name, "small")]
    bottom = 304 + 22 * len(programs)
    parts.append(text(20, bottom, "Logarithmic; tables: docs/performance.md", "small soft"))
    return picture(bottom + 16, "Growth of search time and disk, as in the tables", *parts)


PICTURES: dict[str, Callable[[], str]] = {
    "pipeline": pipeline,
    "query-time": query_time,
    "fidelity": fidelity,
    "growth": growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true")
    action.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for name, draw in PICTURES.items():
        path = DOCS / "pictures" / f"{name}.svg"
        if options.write:
            path.write_text(draw(), "utf-8")
        elif not path.exists() or path.read_text("utf-8") != draw():
            stale.append(path.name)
    if stale:
        sys.exit(f"{', '.join(stale)}: not what the tables say; python docs/pictures.py --write")


if __name__ == "__main__":
    main()
