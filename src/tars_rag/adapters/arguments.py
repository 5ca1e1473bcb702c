"""What both frameworks' constructors and calls are given, checked at the door."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import get_args

from tars_rag.errors import InvalidInputError, shown
from tars_rag.settings import Strategy

STRATEGIES: tuple[str, ...] = get_args(Strategy)


def refuse(
    unknown: Collection[str], *, allowed: str, instead: Mapping[str, str] | None = None
) -> None:
    """Raise for keyword arguments that a framework's signature lets through.

    Args:
        unknown: Their names.
        allowed: The names that are known.
        instead: What to write in place of some that other stores know.

    Raises:
        InvalidInputError: `unknown` is not empty; the message names its keys and what is allowed.
    """
    if unknown:
        advice = "".join(f" {instead[name]}" for name in unknown if instead and name in instead)
        msg = f"Unknown argument {', '.join(map(repr, unknown))}.{advice} Allowed: {allowed}."
        raise InvalidInputError(msg)


def require_strategy(value: object) -> None:
    """Refuse a search strategy that is none.

    Raises:
        InvalidInputError: It is not.
    """
    if value not in STRATEGIES:
        msg = f"strategy={shown(value)} is not valid. Use one of: {', '.join(STRATEGIES)}."
        raise InvalidInputError(msg)


def require_count(name: str, value: object) -> None:
    """Refuse a number of passages that is not a whole number of at least 1.

    Raises:
        InvalidInputError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = f"{name} must be a whole number of at least 1, got {shown(value)}."
        raise InvalidInputError(msg)


def require_kind(what: str, value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """Refuse an object of another type.

    Args:
        what: Where it was given.
        value: The object.
        kind: Its type.
        wanted: What to give, in words.

    Raises:
        InvalidInputError: It is of another type; the message shows it.
    """
    if not isinstance(value, kind):
        found = f"the class {value.__name__}" if isinstance(value, type) else f"{shown(value)}"
        msg = f"{what} is {found} and not {wanted}."
        raise InvalidInputError(msg)


def require_all(what: str, values: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """Refuse anything but a list (or another collection) whose items are all of one type.

    Raises:
        InvalidInputError: It is none; the message names the first item that is of another type.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Collection):
        msg = f"{what} is {shown(values)} and not a list. Each item is to be {wanted}."
        raise InvalidInputError(msg)
    for number, value in enumerate(values):
        require_kind(f"{what}[{number}]", value, kind, wanted)
