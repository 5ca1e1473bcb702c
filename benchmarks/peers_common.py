"""What the comparisons with other packages share: turns in a given time, what cannot be had."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from common import SETTLED, rotated
from tars_rag.models.cache import ModelCache
from tars_rag.models.random_model import flashrank_name, write_random_model
from tars_rag.models.weights import BertConfig

Result = TypeVar("Result")
RERANKER = "ms-marco-MiniLM-L-12-v2"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")


def built(makers: Mapping[str, Callable[[], Callable]]) -> dict[str, Callable]:
    """What could be made; the reason, on a line, of what could not."""
    made = {name: attempted(name, make) for name, make in makers.items()}
    return {name: program for name, program in made.items() if program is not None}


def attempted(name: str, call: Callable[[], Result]) -> Result | None:
    """What the call gives; None, and a line that says why, where it cannot."""
    try:
        return call()
    except Exception as error:  # of a dozen libraries
        print(f"left out: {name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        return None


def turns(
    calls: Mapping[str, Callable[[], object]], seconds: float, most_rounds: int = 9
) -> dict[str, list[float]]:
    """Seconds of each call, round by round; at least two rounds after one that is not counted.

    Another one begins each round, and each waits until the threads of the one before have stopped
    looking for more work. Where the first round alone takes longer than `seconds`, one round after
    it has to do.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    for call in calls.values():
        call()
    least = 1 if time.perf_counter() - begun > seconds else 2
    for done in range(most_rounds):
        if done >= least and time.perf_counter() - begun > seconds:
            break
        for name, call in rotated(calls, done):
            time.sleep(SETTLED)
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return found


def ms(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds)


def machine(*packages: str) -> str:
    """A line for the head of a table."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    known = [f"{name} {version(name)}" for name in ("tars-rag", *packages) if installed(name)]
    cores = len(os.sched_getaffinity(0))
    return (
        f"{model}, {cores} cores, load {os.getloadavg()[0]:.1f} at the start, Python "
        f"{platform.python_version()}; {', '.join(known)}. Command: python {' '.join(sys.argv)}"
    )


def installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def random_reranker(root: Path) -> Path:
    """A FlashRank cache directory with a model of random weights of the published one's shape."""
    write_random_model(
        root / RERANKER,
        BertConfig(layers=12, hidden=384, heads=12, intermediate=1536, vocabulary=30522),
        tokenizer=ModelCache().get("all-MiniLM-L6-v2").directory / "tokenizer.json",
        onnx=flashrank_name(RERANKER),
        quantised=True,
    )
    return root
