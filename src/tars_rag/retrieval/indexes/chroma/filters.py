"""Chroma's filter language: what a filter may say, and what to write instead of what it may not.

A filter that comes through here is answered as Chroma 1.5 answers it (docs/filters.md has the whole
table); everything else is the caller's slip and is refused before Chroma is asked. How a filter is
sent to Chroma is in `filter_plan`.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

from tars_rag.errors import InvalidInputError, shown
from tars_rag.retrieval.indexes.codec import INT64, RESERVED, kind_of, usable_key

Where: TypeAlias = Mapping[str, Any]
"""A filter as the caller writes it."""
Scalar: TypeAlias = str | int | float | bool

ORDER = ("$gt", "$gte", "$lt", "$lte")
EQUALITY = ("$eq", "$ne")
MEMBERSHIP = ("$in", "$nin")
LISTS = ("$contains", "$not_contains")
OPERATORS = (*EQUALITY, *ORDER, *MEMBERSHIP, *LISTS)
MAX_DEPTH = 62
"""Levels of $and and $or; Chroma reads no more."""

_DATE = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)(?:[T ].*)?")
_INSTEAD = {
    "$not": "Turn the operator round: $ne for $eq, $nin for $in, $not_contains for $contains, "
    "$lte for $gt.",
    "$nor": 'Turn the conditions round and join them with "$and".',
    "$exists": "No filter can tell whether a key is there: store a value that says so, e.g. "
    '{"has_date": true}, and filter on that.',
    "$regex": "Filter on whole values ($eq, $in), or search for words: strategy='lexical'.",
}
_INSTEAD |= dict.fromkeys(("$not_regex", "$like", "$ilike", "$text"), _INSTEAD["$regex"])


@dataclass(frozen=True, slots=True)
class Test:
    """One operator on one key; `operand` is a tuple for $in and $nin."""

    key: str
    operator: str
    operand: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """At least two conditions of which all, or any, must hold."""

    word: Literal["$and", "$or"]
    parts: tuple[Condition, ...]


Condition: TypeAlias = Test | Group


def parse(where: object) -> Condition:
    """The filter, if it is one.

    Args:
        where: As the caller wrote it; not changed.

    Raises:
        InvalidInputError: It is not; the message says which part, why, and what to write instead.
    """
    return _parse(where, 1)


def tests(condition: Condition) -> Iterable[Test]:
    """Every test of a condition."""
    if isinstance(condition, Test):
        yield condition
    else:
        for part in condition.parts:
            yield from tests(part)


def _parse(where: object, depth: int) -> Condition:
    if not isinstance(where, Mapping):
        _refuse(
            f"a condition is a dict, not {shown(where)}",
            'Write for instance {"topic": "sailing"} or {"page": {"$gte": 3}}.',
        )
    if len(where) != 1:
        if not where:
            _refuse("a condition is empty", 'Leave it out, or name a key: {"topic": "sailing"}.')
        both = {"$and": [{key: value} for key, value in where.items()]}
        _refuse(
            f"a condition names one key, {shown(where)} has {len(where)}",
            f"Join them: {shown(both)}.",
        )
    ((key, value),) = where.items()
    if not isinstance(key, str):
        _refuse(f"the key {shown(key)} is not a string", 'Metadata keys are strings: {"1": ...}.')
    if key in ("$and", "$or"):
        return _group(key, value, depth)
    _check_key(key, value)
    if isinstance(value, Mapping):
        return _test(key, value)
    return _checked(key, "$eq", value, implicit=True)


def _group(word: str, value: object, depth: int) -> Group:
    if depth > MAX_DEPTH:
        _refuse(
            f"its conditions are nested more than {MAX_DEPTH} deep",
            'Conditions of one kind need no nesting: {"$and": [A, B, C]}.',
        )
    if not isinstance(value, list | tuple):
        example = f'{{"{word}": [{{"a": 1}}, {{"b": 2}}]}}'
        _refuse(f"{word} takes a list of conditions, not {shown(value)}", f"Write {example}.")
    if len(value) == 1:
        _refuse(f"{word} joins two conditions or more, it has one", f"Write {shown(value[0])}.")
    if not value:
        _refuse(f"{word} joins two conditions or more, it has none", "Leave it out.")
    parts = tuple(_parse(part, depth + 1) for part in value)
    return Group(word, parts)  # type: ignore[arg-type]


def _check_key(key: str, value: object) -> None:
    if usable_key(key):
        return
    if key in OPERATORS:
        _refuse(
            f"the operator {key} stands where a key must", f'Write {{"KEY": {{"{key}": ...}}}}.'
        )
    if key.startswith("$"):
        known = "$and and $or join conditions; everything else that begins with $ is no key."
        _refuse(f"there is no {shown(key)} in Chroma's filter language", _INSTEAD.get(key, known))
    if key == "#document":
        _refuse(
            "the text of a passage is not filtered",
            "Search for its words: strategy='lexical', or 'hybrid'.",
        )
    if key == "#id":
        _refuse("ids are no metadata", "Use get(ids) or delete(ids); or store the id as metadata.")
    _refuse(
        f"the key {shown(key)} cannot be filtered on",
        "Keys that are empty or begin with $, # or chroma:, and this package's own "
        f"({', '.join(RESERVED)}), are kept and returned only. Store the value under another key.",
    )


def _test(key: str, value: Mapping[Any, Any]) -> Test:
    if len(value) != 1:
        if not value:
            _refuse(f"{shown(key)} has no operator", f'Write {{"{key}": {{"$eq": ...}}}}.')
        both = {"$and": [{key: {word: operand}} for word, operand in value.items()]}
        _refuse(
            f"{shown(key)} has {len(value)} operators, one is taken", f"Join them: {shown(both)}."
        )
    ((operator, operand),) = value.items()
    if operator not in OPERATORS:
        what = f"there is no operator {shown(operator)} (on {shown(key)}) in Chroma's language"
        if not isinstance(operator, str) or not operator.startswith("$"):
            _refuse(
                f"{shown(key)} is compared with a dict, {shown(value)}",
                "Dicts are kept and returned only. Store what you filter on under a key of its "
                f'own, e.g. {{"{key}.{operator}": ...}}.',
            )
        known = f"There are {', '.join(OPERATORS)}; $and and $or join conditions."
        _refuse(what, _INSTEAD.get(operator, known))
    return _checked(key, operator, operand)


def _checked(key: str, operator: str, operand: object, *, implicit: bool = False) -> Test:
    if operator in MEMBERSHIP:
        return Test(key, operator, _members(key, operator, operand))
    if isinstance(operand, list | tuple):
        values = list(operand)
        holds = {key: {"$contains": values[0] if values else "a"}}
        instead = f"To ask whether a list holds a value: {shown(holds)}"
        if operator not in LISTS:
            word = "$nin" if operator == "$ne" else "$in"
            instead += f". To ask for one of several values: {shown({key: {word: values}})}"
        _refuse(f"{_on(key, operator, implicit)} takes one value, not a list", f"{instead}.")
    value = _scalar(key, operator, operand, implicit=implicit)
    if operator in ORDER and (isinstance(value, str | bool)):
        _refuse(
            f"{operator} (on {shown(key)}) compares numbers, not {shown(value)}",
            _as_number(key, operator, value),
        )
    return Test(key, operator, value)


def _members(key: str, operator: str, operand: object) -> tuple[Scalar, ...]:
    if not isinstance(operand, list | tuple):
        instead = [operand] if kind_of(operand) else ["a", "b"]
        _refuse(
            f"{operator} (on {shown(key)}) takes a list of values, not {shown(operand)}",
            f"Write {shown({key: {operator: instead}})}.",
        )
    if not operand:
        match = "No passage" if operator == "$in" else "Every passage"
        _refuse(
            f"{operator} (on {shown(key)}) has an empty list",
            f"{match} could match: name a value, or do without the condition.",
        )
    values = tuple(_scalar(key, operator, value) for value in operand)
    kinds = sorted({str(kind_of(value)) for value in values})
    if len(kinds) > 1:
        what = f"{operator} (on {shown(key)}) takes values of one type, not {' and '.join(kinds)}"
        if kinds == ["float", "int"]:
            floats = [float(value) for value in values]
            _refuse(what, f"Write {shown({key: {operator: floats}})}.")
        each = [
            {key: {operator: [value for value in values if kind_of(value) == kind]}}
            for kind in kinds
        ]
        word = "$or" if operator == "$in" else "$and"
        _refuse(what, f"Join one for each type: {shown({word: each})}.")
    return values


def _scalar(key: str, operator: str, value: object, *, implicit: bool = False) -> Scalar:
    """The value, if Chroma compares with it."""
    where = _on(key, operator, implicit)
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if -INT64 <= value < INT64:
            return value
        instead = shown({key: {"$eq" if implicit else operator: _as_float(value)}})
        _refuse(f"{where}: {shown(value)} is beyond 64 bits", f"As a float it can be: {instead}.")
    if isinstance(value, float):
        if math.isfinite(value) and abs(value) < sys.float_info.max:
            return value
        _refuse(f"{where}: {value!r} is no number to compare with", "Leave the condition out.")
    if value is None:
        problem = f"{where}: None is kept as if the key were missing, and no filter can tell that"
        instead = f'Store a value that stands for it, e.g. {{"{key}": "none"}}, and filter on that.'
        raise refusal(problem, instead)
    how = "its .item()" if hasattr(value, "item") else "a string or a number, e.g. str(...)"
    problem = f"{where}: a {type(value).__name__} is no str, int, float or bool: {shown(value)}"
    raise refusal(problem, f"Write {how}.")


def _as_number(key: str, operator: str, value: str | bool) -> str:
    """What to write instead of ordering by something that is no number."""
    if isinstance(value, bool):
        return f"Write {shown({key: value})}."
    date = _DATE.fullmatch(value.strip())
    if date:
        number = int("".join(date.groups()))
        return (
            f"Store dates as numbers that sort, e.g. {{{key!r}: {number}}}, and write "
            f"{shown({key: {operator: number}})}; or name the dates: "
            f"{shown({key: {'$in': [value]}})}."
        )
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if math.isfinite(found):
        exact: float = int(found) if found.is_integer() else found
        return f"Write {shown({key: {operator: exact}})}, on values that are stored as numbers."
    return f"Name the values: {shown({key: {'$in': [value]}})}; or store numbers that sort."


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return 1e308 if value > 0 else -1e308


def _on(key: str, operator: str, implicit: bool) -> str:
    return f"the filter on {shown(key)}" if implicit else f"{operator} (on {shown(key)})"


def refusal(problem: str, instead: str) -> InvalidInputError:
    """The error for a filter that is not answered."""
    return InvalidInputError(f"The filter `where` cannot be answered: {problem}. {instead}")


def _refuse(problem: str, instead: str) -> NoReturn:
    raise refusal(problem, instead)
