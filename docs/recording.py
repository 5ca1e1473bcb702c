"""Record commands in a real terminal, as SVG that plays once: docs/pictures/*-terminal.svg.

python docs/recording.py quickstart doctor bench

Needs pyte (dependency group `docs`). Each command runs in a pseudo-terminal of its own, from the
environment that runs this script, in an empty home with the embedder already there. Lines light up
as they came to stand there, in at most three seconds, whatever the command took. Readers that do
not animate, and people who asked for less motion, see the last screen. A recording that names this
machine, its user or a path of it is refused.
"""

from __future__ import annotations

import argparse
import fcntl
import getpass
import os
import pty
import shutil
import socket
import struct
import sys
import tempfile
import termios
import time
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyte

from tars_rag.models.cache import ModelCache

PICTURES = Path(__file__).with_name("pictures")
SECONDS = 3.0
CELL, LINE = 8.4, 19
COLOURS = {
    "default": "#d6deeb", "black": "#7b8794", "red": "#ff7b72", "green": "#7ee787",
    "brown": "#e3b341", "yellow": "#e3b341", "blue": "#79c0ff", "magenta": "#d2a8ff",
    "cyan": "#56d4dd", "white": "#ffffff",
}  # fmt: skip
STYLE = """text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;
white-space:pre}.b{font-weight:700}.i{font-style:italic}
@keyframes on{from{opacity:.3}to{opacity:1}}g{animation:on .1s linear both}
@media(prefers-reduced-motion:reduce){g{animation:none}}"""


class Recording(NamedTuple):
    """A command, and how many columns its terminal has."""

    command: str
    columns: int


RECORDINGS = {
    "quickstart": Recording("tars-rag quickstart --no-rerank --store first-store", 64),
    "doctor": Recording("tars-rag doctor", 64),
    "bench": Recording("tars-rag bench --quick --part query", 80),
}


def run(words: list[str], columns: int, env: dict[str, str], cwd: str) -> list[tuple[float, bytes]]:
    """What a command writes to its terminal, with the seconds at which it did."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(cwd)
        os.execvpe(words[0], words, env)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    events = []
    start = time.monotonic()
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the child has closed its side
            break
        if not data:
            break
        events.append((time.monotonic() - start, data))
    os.close(terminal)
    if os.waitpid(child, 0)[1]:
        sys.exit(b"".join(data for _, data in events).decode())
    return events


def played(events: list[tuple[float, bytes]], columns: int) -> list[tuple[float, dict[int, Any]]]:
    """The lines of the last screen, each with the second since when it stood there."""
    screen = pyte.Screen(columns, 400)
    stream = pyte.ByteStream(screen)
    settled = [0.0] * 400
    before = list(screen.display)
    pace = min(1.0, SECONDS / events[-1][0])
    for second, data in events:
        stream.feed(data)
        now = list(screen.display)
        for number in screen.dirty:
            if number < 400 and now[number] != before[number]:
                settled[number] = second * pace
        screen.dirty.clear()
        before = now
    count = max((n + 1 for n, line in enumerate(before) if line.strip()), default=0)
    return [(settled[n], dict(screen.buffer[n])) for n in range(count)]


def svg(recording: Recording, lines: list[tuple[float, dict[int, Any]]]) -> str:
    width, height = recording.columns * CELL + 32, (len(lines) + 2) * LINE + 24
    parts = [f'<text x="16" y="30" fill="#7ee787">$ {escape(recording.command)}</text>']
    since = 0.0
    for number, (settled, cells) in enumerate(lines):
        since = max(since, settled)  # from above to below, as one reads
        y = 30 + LINE * (number + 1)
        runs = []
        row = [cells.get(column) for column in range(recording.columns)]
        style = [(c.fg, c.bold, c.italics) if c and c.data.strip() else None for c in row]
        for (kind, _), group in groupby(
            zip(range(recording.columns), style, strict=True),
            lambda pair: (pair[1], pair[1] is None),
        ):
            places = [column for column, _ in group]
            if kind is None:
                continue
            words = "".join(row[column].data for column in places)  # type: ignore[union-attr]
            fill = COLOURS.get(kind[0].removeprefix("bright"), COLOURS["default"])
            marks = ("b" if kind[1] else "") + (" i" if kind[2] else "")
            runs.append(
                f'<text x="{16 + places[0] * CELL:.1f}" y="{y}" fill="{fill}" '
                f'textLength="{len(words) * CELL:.1f}" class="{marks.strip()}">'
                f"{escape(words)}</text>"
            )
        if runs:
            parts.append(f'<g style="animation-delay:{since + 0.6:.1f}s">{"".join(runs)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img">\n'
        f"<title>{escape(recording.command)} in a terminal</title>\n<style>{STYLE}</style>\n"
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#161b22"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=list(RECORDINGS))
    for name in parser.parse_args().names:
        recording = RECORDINGS[name]
        with tempfile.TemporaryDirectory() as home:
            models = Path(home, "models")
            shutil.copytree(ModelCache().root / "all-MiniLM-L6-v2", models / "all-MiniLM-L6-v2")
            path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
            env = {"HOME": home, "PATH": path, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
            env |= {"MODEL_CACHE_DIR": str(models), "HF_HUB_OFFLINE": "1"}
            if "PYTHONPATH" in os.environ:
                env["PYTHONPATH"] = os.environ["PYTHONPATH"]
            events = run(recording.command.split(), recording.columns, env, home)
            made = svg(recording, played(events, recording.columns))
            told = [w for w in (home, str(Path.cwd()), socket.gethostname(), "/tmp/") if w in made]
            told += [w for w in (getpass.getuser(),) if f"/{w}/" in made or f"{w}@" in made]
            if told:
                sys.exit(f"{name}: the recording names {told}")
            (PICTURES / f"{name}-terminal.svg").write_text(made, "utf-8")


if __name__ == "__main__":
    main()
