"""What the benchmarks share: texts, interleaved timing, a table."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

Thing = TypeVar("Thing")
WORDS = (
    "the of a to and in wing flow pressure layer boundary heat transfer mach number lift drag "
    "theory results method surface temperature supersonic laminar turbulent equation shock body "
    "plate cylinder velocity gas stress model experimental analysis effects problem solution"
)


def passages(data: Path | None, count: int) -> list[str]:
    """Abstracts of a BEIR corpus, or as many made-up ones of like length."""
    if data:
        lines = (data / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        return [f"{d['title']} {d['text']}".strip() for d in map(json.loads, lines)]
    choose = random.Random(0)
    return [notes(choose, 60, 240) for _ in range(count)]


def queries(data: Path | None, count: int) -> list[str]:
    if data:
        lines = (data / "queries.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        return [json.loads(line)["text"] for line in lines]
    choose = random.Random(1)
    return [notes(choose, 8, 20) for _ in range(count)]


def notes(choose: random.Random, least: int, most: int) -> str:
    return " ".join(choose.choices(WORDS.split(), k=choose.randint(least, most)))


def made_up(number: int) -> str:
    """A word of letters that no other number has; not a word of English, and without an ending."""
    consonants, vowels = "bdfgkmpvxz", "aou"
    word = ""
    for _ in range(3):
        number, syllable = divmod(number, len(consonants) * len(vowels))
        word += consonants[syllable // len(vowels)] + vowels[syllable % len(vowels)]
    return word + "k"


SETTLED = 0.08
"""Seconds after which the threads of a program no longer look for work: ONNX Runtime's do so for 55
milliseconds, in which the next program would have a core less."""


def interleaved(engines: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each engine, round by round, so that a slow moment of the machine hits all.

    A first round, which is not counted, warms them up. Another one begins each round, and each
    waits until the threads of the one before have come to rest.
    """
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number, counted in enumerate([False, *[True] * rounds]):
        for name, run in rotated(engines, number):
            time.sleep(SETTLED)
            start = time.perf_counter()
            run()
            if counted:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def warm(
    engines: Sequence[Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each engine, in turn, each run again at once after one that is not counted.

    So its weights are in the processor's cache.
    """
    seconds: list[list[float]] = [[] for _ in engines]
    for number in range(rounds):
        for which in range(len(engines)) if number % 2 else reversed(range(len(engines))):
            engines[which]()
            start = clock()
            engines[which]()
            seconds[which].append(clock() - start)
    return seconds


def rotated(things: Mapping[str, Thing], turn: int) -> list[tuple[str, Thing]]:
    """All of them, each turn another one first."""
    first = turn % len(things)
    return [*things.items()][first:] + [*things.items()][:first]


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of one call's time over another's."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
