"""How cost grows with a collection, as a picture: docs/growth.svg, from the tables of the page.

    python benchmarks/growth_plot.py [--page docs/performance.md] [--picture docs/growth.svg]

Reads what `peers_search.py` printed where the page has it, so that picture and tables cannot
differ. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

HEAD = re.compile(r"^([\d,]+) passages, k = \d+")
ROW = re.compile(r"^\| (?P<name>[^|]+) \| [\d.]+ \| (?P<disk>\d+) \| (?P<ms>[\d.]+) \|")


def read(page: Path) -> dict[str, list[tuple[int, float, float]]]:
    """(passages, milliseconds, MB on disk) by program."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    size = 0
    for line in page.read_text(encoding="utf-8").splitlines():
        if head := HEAD.match(line):
            size = int(head[1].replace(",", ""))
        elif size and (row := ROW.match(line)):
            point = size, float(row["ms"]), float(row["disk"])
            found.setdefault(row["name"], []).append(point)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    parser.add_argument("--picture", type=Path, default=Path("docs/growth.svg"))
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "tars-rag", "font.size": 9, "svg.fonttype": "none"}
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for name, points in read(options.page).items():
        sizes, *columns = zip(*points, strict=True)
        width = 2.4 if name == "tars-rag" else 1.2
        for panel, column in zip(panels, columns, strict=True):
            panel.plot(sizes, column, "o-", label=name, linewidth=width, markersize=3)
    for panel, title in zip(panels, ("hybrid search, ms (p50)", "on disk, MB"), strict=True):
        panel.set(xscale="log", yscale="log", xlabel="passages", title=title)
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(options.picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
