"""What a question from the shell takes beside a server, and without one.

    python benchmarks/warm_query.py --rounds 15

The same command in turns: beside `tars-rag serve`, which has a process standing by; and without a
server, where it imports its libraries and opens store and model itself. Told as milliseconds after
the interpreter's own start (the same Python with nothing to do, measured in the same turns).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tars_rag.retrieval.storage.listener import STANDBY

QUESTION = ["query", "how loud is the fan", "--no-rerank", "--store"]


def milliseconds(*words: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "note.md").write_text("# Fan\n\nThe fan makes 30 dB at full speed.\n")
        stores = folder / "warm", folder / "cold"
        for store in stores:
            command = ["-m", "tars_rag", "index", str(folder / "note.md"), "--store", str(store)]
            milliseconds(*command)
        served = [sys.executable, "-m", "tars_rag", "serve", "--port", "0", "--no-rerank"]
        server = subprocess.Popen([*served, "--store", str(stores[0])], stderr=subprocess.DEVNULL)
        while not (stores[0] / STANDBY).exists():
            time.sleep(0.1)
        taken: dict[str, list[float]] = {"python": [], "warm": [], "cold": []}
        for turn in range(rounds + 2):
            row = {
                "python": milliseconds("-c", "pass"),
                "warm": milliseconds("-m", "tars_rag", *QUESTION, str(stores[0])),
                "cold": milliseconds("-m", "tars_rag", *QUESTION, str(stores[1])),
            }
            if turn >= 2:  # files are in memory
                for what, value in row.items():
                    taken[what].append(value)
        server.terminate()
        server.wait()
    middle = {what: statistics.median(values) for what, values in taken.items()}
    work = {what: middle[what] - middle["python"] for what in ("warm", "cold")}
    told = {"load": os.getloadavg()[0], "median_ms": middle, "after_start_ms": work}
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
