"""How those who wait are told that work goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int | None], None]
"""Told (done, total) of one piece of work; the total is None where it is not known."""

NamedProgress: TypeAlias = Callable[[str, int, int | None], None]
"""Told (what, done, total) of several pieces of work, one after the other; `what` is in words.

``functools.partial(named, "embed")`` is the `Progress` of the piece called "embed".
"""
