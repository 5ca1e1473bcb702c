"""A folder of mixed files, indexed by the command, and again: what each run costs.

    python benchmarks/index_folder.py [--files 1000] [--model all-MiniLM-L6-v2]

The files are those of tests/trees.py: text, Markdown, code, tables, JSONL, mail, HTML, PDF and
office documents, a fifth of them unreadable. The cost of a run is CPU seconds of the command and of
all its children, which other programs on the machine change less than the time that passes.
Start-up (imports, model, store) is what the command costs over one unchanged file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def command(*words: str) -> tuple[dict[str, Any], float, float, int]:
    """Run `tars-rag`: what it printed, seconds, CPU seconds, megabytes of its largest process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "tars_rag", *words, "--json"], capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told: dict[str, Any] = json.loads(done.stdout)
    return told, seconds, used, after.ru_maxrss >> 10


def main() -> None:
    from trees import mixed

    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--files", type=int, default=1000)
    arguments.add_argument("--model", default="all-MiniLM-L6-v2")
    given = arguments.parse_args()
    os.environ["EMBED_MODEL"] = given.model
    with tempfile.TemporaryDirectory() as folder:
        top, store = Path(folder) / "files", str(Path(folder) / "store")
        bad = mixed(top, given.files)
        costs = []
        for name in ("first", "again"):
            told, seconds, used, peak = command("index", str(top), "--store", store)
            named = {one["source"] for one in told["failures"]} == bad
            costs.append(used)
            print(
                f"{name}: {told['indexed']} indexed, {told['unchanged']} unchanged, "
                f"{len(bad)} unreadable {'all named' if named else 'NOT ALL NAMED'}, "
                f"{told['written']} passages written; {seconds:.1f} s, {used:.1f} s of CPU; "
                f"{peak} MB at most"
            )
        one = str(next(top.rglob("note0.txt")))
        _, _, idle, _ = command("index", one, "--store", store)
        share = (costs[1] - idle) / (costs[0] - idle)
        print(f"start-up: {idle:.1f} s of CPU")
        print(f"again / first: {costs[1] / costs[0]:.1%}, without start-up {share:.1%}")


if __name__ == "__main__":
    main()
