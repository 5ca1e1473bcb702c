"""Run notebooks from a clean kernel: `nox -s notebooks`, or `python notebooks/run.py 01`.

Each runs in a process and kernel of its own, in this directory, as Jupyter does it. With `--write`
the notebook keeps what was printed and drawn, if `faults` finds nothing in it; without, it only has
to run and leave nothing behind, for a library may warn on one machine and not on another. Needs the
extra `notebooks`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CELL_SECONDS = 600  # a limit for what hangs; a whole notebook is meant to take 30 s
LARGEST = 1_500_000  # bytes: a notebook is read in a browser, and kept for ever in the history
LOCAL = re.compile(r"(?:/tmp|/home|/root|/Users|/private|/var/folders)/[\w.]|[A-Z]:\\\\")


def faults(notebook: dict[str, Any]) -> list[str]:
    """What is wrong with what a notebook has kept of its run, one line each; none if it is sound.

    The figures are those of one run, from the first cell to the last: counts from 1 without a
    gap, no error, no warnings, and nothing that names a directory of the machine.
    """
    found = []
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        place = f"code cell {number}"
        if cell["execution_count"] != number:
            found.append(f"{place} was run as number {cell['execution_count']}")
        for output in cell["outputs"]:
            kind = output["output_type"]
            if kind == "error":
                found.append(f"{place} ended in {output['ename']}: {output['evalue']}")
            elif output.get("name") == "stderr":
                found.append(f"{place} wrote to stderr: {_text(output['text'])[:200]!r}")
            elif local := LOCAL.search(_readable(output)):
                found.append(f"{place} shows a path of this machine: {local.group()}...")
    if not any(cell["outputs"] for cell in cells):
        found.append("no cell has an output")
    if len(json.dumps(notebook)) > LARGEST:
        found.append(f"it is larger than {LARGEST} bytes")
    return found


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def _readable(output: dict[str, Any]) -> str:
    """What a reader of an output sees as text; pictures are left out."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    return "\n".join(_text(text) for kind, text in data.items() if kind.startswith("text/"))


def beside() -> set[str]:
    """The names in this directory that a notebook could have made."""
    return {
        path.name
        for path in HERE.iterdir()
        if path.suffix not in (".ipynb", ".py") and path.name != "__pycache__"
    }


def execute(path: Path, *, write: bool) -> tuple[float, list[str]]:
    """Run a notebook in a new kernel of this interpreter.

    Returns:
        Seconds, and what is wrong: a cell that failed, files left beside the notebook, `faults`.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    before = beside()
    began = time.monotonic()
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(HERE)}},
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    try:
        client.execute()
    except (CellControlSignal, RuntimeError) as error:  # a cell failed, hangs, or has no kernel
        return time.monotonic() - began, [re.sub(r"\x1b\[[\d;]*m", "", str(error))]
    seconds = time.monotonic() - began
    # Which Python ran it is no part of the notebook.
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    found = [f"it leaves {name} behind" for name in sorted(beside() - before)]
    if write:
        found += faults(notebook)
    if write and not found:
        nbformat.validate(notebook)
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        path.write_text(text, encoding="utf-8")
    return seconds, found


def main() -> int:
    """Run those whose name begins with one of the arguments, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="how their names begin: 01, 06-drop-in; none: all")
    parser.add_argument("-n", type=int, default=1, help="how many at a time")
    parser.add_argument("--write", action="store_true", help="keep the outputs")
    arguments = parser.parse_args()
    paths = sorted(HERE.glob("*.ipynb"))
    if arguments.names:
        paths = [path for path in paths if path.name.startswith(tuple(arguments.names))]
    if not paths:
        print(f"no notebook in {HERE} begins with {arguments.names}", file=sys.stderr)
        return 2
    failed = 0
    with ProcessPoolExecutor(arguments.n) as processes:
        results = processes.map(partial(execute, write=arguments.write), paths)
        for path, (seconds, found) in zip(paths, results, strict=True):
            print(f"{path.name}: {seconds:.0f} s", "FAILED" if found else "", flush=True)
            for line in found:
                print(f"  {line}", flush=True)
            failed += bool(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
