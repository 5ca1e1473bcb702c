"""How long each step of a query took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a query.

    Attributes:
        name: embed, lexical, vectors, fuse or rerank.
        milliseconds: Wall-clock time.
        device: ``"cpu"`` or ``"npu"``.
        note: What a reader should know, e.g. "12 of 20 within the budget".
    """

    name: str
    milliseconds: float
    device: str = "cpu"
    note: str = ""


class Stopwatch:
    """Collects steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @contextlib.contextmanager
    def step(self, name: str, device: str = "cpu", note: str = "") -> Iterator[list[str]]:
        """Time the block; what it appends to the list it is given becomes the note."""
        notes = [note] if note else []
        start = time.perf_counter()
        yield notes
        milliseconds = (time.perf_counter() - start) * 1e3
        self.steps.append(Step(name, milliseconds, device, "; ".join(notes)))
