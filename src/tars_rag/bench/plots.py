"""Plots as inline SVG: colours and text come from the page's style sheet.

Drawn 360 units wide, which is the width of a phone, so that letters stay readable there.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Final

WIDTH: Final = 360
COLOURS: Final = 6
"""Classes ``c0`` to ``c5`` of the style sheet; more lines than that begin again, dashed."""
_LEFT, _RIGHT, _TOP, _HEIGHT = 38, 12, 22, 170

_Place = Callable[[float, float], tuple[float, float]]
Points = Sequence[tuple[float, float]]


def lines(
    title: str,
    series: Mapping[str, Points],
    *,
    x: str,
    y: str,
    apart: Mapping[str, Points] | None = None,
) -> str:
    """A line for each series, and single points, hollow, for what was measured elsewhere.

    Args:
        title: What is shown.
        series: Name -> (x, y), by x.
        x: Name and unit of the horizontal axis.
        y: Of the vertical one, which begins at 0.
        apart: Name -> points that belong to no line.
    """
    apart = apart or {}
    every = [point for points in (*series.values(), *apart.values()) for point in points]
    if not every:
        return ""
    most_x, step_x = _axis(max(px for px, _ in every))
    most_y, step_y = _axis(max(py for _, py in every))
    inner = WIDTH - _LEFT - _RIGHT

    def place(px: float, py: float) -> tuple[float, float]:
        return _LEFT + inner * px / most_x, _TOP + _HEIGHT * (1 - py / most_y)

    drawn = [_grid(most_x, step_x, most_y, step_y, place)]
    for number, points in enumerate(series.values()):
        dashed = ' stroke-dasharray="4 3"' if number >= COLOURS else ""
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*point) for point in points))
        drawn.append(f'<polyline class="line c{number % COLOURS}"{dashed} points="{path}"/>')
        for point in points:
            a, b = place(*point)
            said = escape(f"{point[0]:g}: {point[1]:.1f}")
            drawn.append(
                f'<circle class="dot c{number % COLOURS}" cx="{a:.1f}" cy="{b:.1f}" r="2.6">'
                f"<title>{said}</title></circle>"
            )
    for points in apart.values():
        for point in points:
            a, b = place(*point)
            drawn.append(
                f'<rect class="apart" x="{a - 3:.1f}" y="{b - 3:.1f}" width="6" height="6">'
                f"<title>{escape(f'{point[0]:g}: {point[1]:.1f}')}</title></rect>"
            )
    below = _TOP + _HEIGHT + 28
    drawn.append(_text(_LEFT, 12, y))
    drawn.append(_text(WIDTH - _RIGHT, below, x, "end"))
    legend, height = _legend([*series], [*apart], below + 16)
    return _svg(title, height, "".join(drawn) + legend)


def bars(title: str, rows: Mapping[str, Mapping[str, float]], *, unit: str) -> str:
    """A bar for each row, made of its parts one behind the other, with the sum at its end.

    Args:
        title: What is shown.
        rows: Name of a bar -> part -> length.
        unit: Of the lengths.
    """
    rows = {name: parts for name, parts in rows.items() if parts}
    if not rows:
        return ""
    most = max(sum(parts.values()) for parts in rows.values()) or 1.0
    names = list(dict.fromkeys(part for parts in rows.values() for part in parts))
    inner, y, drawn = WIDTH - 8 - 62, 6.0, []
    for name, parts in rows.items():
        for line in _wrapped(name, 62):
            y += 12
            drawn.append(_text(8, y, line))
        x = 8.0
        for part, value in parts.items():
            width = inner * value / most
            drawn.append(
                f'<rect class="bar c{names.index(part) % COLOURS}" x="{x:.1f}" y="{y + 4:.1f}" '
                f'width="{max(width, 0.3):.1f}" height="12">'
                f"<title>{escape(f'{part}: {value:.1f} {unit}')}</title></rect>"
            )
            x += width
        drawn.append(_text(x + 4, y + 14, f"{sum(parts.values()):,.1f} {unit}"))
        y += 24
    legend, height = _legend(names, [], y + 12)
    return _svg(title, height, "".join(drawn) + legend)


def _axis(most: float) -> tuple[float, float]:
    """The end of an axis and the distance of its marks, round figures both."""
    rough = max(most, 1e-9) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= rough)
    return step * math.ceil(most / step - 1e-9), step


def _grid(most_x: float, step_x: float, most_y: float, step_y: float, place: _Place) -> str:
    drawn = []
    for number in range(round(most_y / step_y) + 1):
        a, b = place(0, number * step_y)
        drawn.append(f'<path class="grid" d="M{a:.1f} {b:.1f}H{WIDTH - _RIGHT}"/>')
        drawn.append(_text(_LEFT - 5, b + 3.5, f"{number * step_y:g}", "end"))
    for number in range(round(most_x / step_x) + 1):
        a, b = place(number * step_x, 0)
        drawn.append(_text(a, b + 14, f"{number * step_x:g}", "middle"))
    return "".join(drawn)


def _legend(names: Sequence[str], apart: Sequence[str], y: float) -> tuple[str, float]:
    drawn = []
    marks = [f'class="bar c{n % COLOURS}"' for n in range(len(names))]
    marks += ['class="apart"'] * len(apart)
    for mark, name in zip(marks, [*names, *apart], strict=True):
        drawn.append(f'<rect {mark} x="8" y="{y - 8:.1f}" width="9" height="9"/>')
        for number, line in enumerate(_wrapped(name, 58)):
            drawn.append(_text(22, y + 12 * number, line))
        y += 12 * len(_wrapped(name, 58)) + 3
    return "".join(drawn), y


def _wrapped(text: str, most: int) -> list[str]:
    return textwrap.wrap(text, most) or [""]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: float, body: str) -> str:
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height:.0f}" '
        f'role="img" aria-label="{escape(title, quote=True)}">{body}</svg></figure>'
    )
