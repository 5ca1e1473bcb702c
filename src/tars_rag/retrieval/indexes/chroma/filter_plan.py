"""How a checked filter is put to Chroma: encoded, in pieces that it can take, and with its doubts.

SQLite, under Chroma, takes 32,766 values and a tree of a thousand conditions in one question;
beyond that Chroma fails, and with ten thousand conditions its process dies. Larger filters are
asked in pieces, and the ids put together here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tars_rag.errors import InvalidInputError, shown
from tars_rag.retrieval.indexes.chroma.filters import (
    LISTS,
    MEMBERSHIP,
    Condition,
    Group,
    Scalar,
    Test,
    refusal,
    tests,
)
from tars_rag.retrieval.indexes.chroma.predicates import whole
from tars_rag.retrieval.indexes.codec import ALL_KEYS, UNHELD_LISTS, encode

Ids: TypeAlias = set[str]

_MAX_TESTS = 400
_MAX_VALUES = 30_000
_PER_TEST = 6
_HARMED = {True: ("$gte", "$lt"), False: ("$gt", "$lte")}


@dataclass(frozen=True, slots=True)
class Doubt:
    """Passages for which Chroma's answer could be wrong: if there is one, the filter is refused.

    Attributes:
        condition: What such a passage fulfils.
        problem: Why, given its id.
        instead: What to do.
    """

    condition: Condition
    problem: Callable[[str], str]
    instead: str

    def error(self, passage_id: str) -> InvalidInputError:
        """The error, once such a passage was found."""
        return refusal(self.problem(shown(passage_id)), self.instead)


def encoded(condition: Condition) -> dict[str, Any]:
    """The condition as Chroma reads it, with keys and strings as the codec stores them."""
    if isinstance(condition, Group):
        return {condition.word: [encoded(part) for part in condition.parts]}
    operand = condition.operand
    value = [_encoded(v) for v in operand] if isinstance(operand, tuple) else _encoded(operand)
    return {encode(condition.key): {condition.operator: value}}


def fits(condition: Condition) -> bool:
    """Whether Chroma can take it in one question."""
    return _within(*_size(condition))


def decide(
    condition: Condition, ask: Callable[[Condition], Ids], everything: Callable[[], Ids]
) -> Ids:
    """Which ids fulfil a condition of any size.

    Args:
        condition: The condition.
        ask: The ids that fulfil one that fits.
        everything: All ids.
    """
    if fits(condition):
        return ask(condition)
    if isinstance(condition, Test):
        assert isinstance(condition.operand, tuple)
        found: Ids = set()
        step = _MAX_VALUES // 2 - _PER_TEST
        for start in range(0, len(condition.operand), step):
            found |= ask(Test(condition.key, "$in", condition.operand[start : start + step]))
        return found if condition.operator == "$in" else everything() - found
    parts = [decide(piece, ask, everything) for piece in _packed(condition)]
    return set.union(*parts) if condition.word == "$or" else set.intersection(*parts)


def doubts(condition: Condition) -> list[Doubt]:
    """Where Chroma's answer could be wrong."""
    found: list[Doubt] = []
    keys = dict.fromkeys(test.key for test in tests(condition) if test.operator in LISTS)
    found.extend(_list_doubt(key) for key in keys)
    for test in tests(condition):
        fractions = _harmed(test)
        if fractions:
            found.append(_fraction_doubt(test, fractions))
    return found


def any_of(conditions: Sequence[Condition]) -> Condition:
    """The condition that one of these holds."""
    return conditions[0] if len(conditions) == 1 else Group("$or", tuple(conditions))


def _packed(group: Group) -> list[Condition]:
    """The parts of a group joined into as few conditions that fit as can be."""
    packed: list[list[Condition]] = []
    count = values = 0
    for part in group.parts:
        more, room = _size(part)
        if not packed or not _within(count + more, values + room):
            packed.append([])
            count = values = 0
        packed[-1].append(part)
        count, values = count + more, values + room
    return [parts[0] if len(parts) == 1 else Group(group.word, tuple(parts)) for parts in packed]


def _within(count: int, values: int) -> bool:
    return count <= _MAX_TESTS and values <= _MAX_VALUES


def _size(condition: Condition) -> tuple[int, int]:
    """How many tests, and how many values SQLite is given for them."""
    sizes = [_PER_TEST + _values(test) for test in tests(condition)]
    return len(sizes), sum(sizes)


def _values(test: Test) -> int:
    """Numbers are compared with two columns."""
    if not isinstance(test.operand, tuple):
        return 2
    return len(test.operand) * (1 if isinstance(test.operand[0], str) else 2)


def _encoded(value: Scalar) -> Scalar:
    return encode(value) if isinstance(value, str) else value


def _list_doubt(key: str) -> Doubt:
    # As any operand these are encoded on the way: done here as well, the name would be another.
    held = (Test(UNHELD_LISTS, "$contains", name) for name in (key, ALL_KEYS))
    return Doubt(
        any_of(tuple(held)),
        lambda passage: (
            f"passage {passage} has a list under {shown(key)} that Chroma cannot hold (values of "
            "several types, numbers beyond 64 bits, or some thousand values)"
        ),
        "Store values of one type, for instance all as strings; or put what you filter on under a "
        "key of its own.",
    )


def _harmed(test: Test) -> list[float]:
    """The numbers of a test that Chroma, comparing them with whole numbers, cuts to one."""
    if test.operator in LISTS:
        return []
    operands = test.operand if isinstance(test.operand, tuple) else (test.operand,)
    cut = [n for n in operands if isinstance(n, float) and (n != int(n) or whole(n) != int(n))]
    if test.operator in MEMBERSHIP or test.operator in ("$eq", "$ne"):
        return cut
    return [number for number in cut if test.operator in _HARMED[number > 0]]


def exactly(key: str, operator: str, number: float) -> dict[str, Any] | None:
    """What asks for the same numbers where Chroma cuts a fraction; None: there is nothing.

    Chroma compares whole numbers with 4 where it is given 4.5, so {"$gte": 4.5} finds 4, and
    {"$gt": 4.499...} does not.
    """
    below, above = math.nextafter(number, -math.inf), math.nextafter(number, math.inf)
    between = (
        [{"$gt": below}, {"$lte": number}] if number > 0 else [{"$gte": number}, {"$lt": above}]
    )
    same: dict[str, dict[str, Any]] = {
        "$gte": {key: {"$gt": below}},
        "$lt": {key: {"$lte": below}},
        "$gt": {key: {"$gte": above}},
        "$lte": {key: {"$lt": above}},
        "$eq": {"$and": [{key: condition} for condition in between]},
    }
    return same.get(operator) if _harmed(Test(key, operator, number)) else None


def _fraction_doubt(test: Test, fractions: list[float]) -> Doubt:
    """Whole numbers that equal a fraction once it is cut: found by both, floats only by one."""
    number = fractions[0]
    cut = dict.fromkeys(whole(n) for n in fractions)
    both: tuple[Condition, ...] = tuple(
        Test(test.key, "$in", tuple(values)) for values in (fractions, cut)
    )
    instead = "Store every value of it as a float (1.0, not 1)"
    same = exactly(test.key, test.operator, number)
    if same is not None:
        instead += f", or write, which means the same: {same}"
    return Doubt(
        Group("$and", both),
        lambda passage: (
            f"Chroma compares {number!r} with whole numbers as {whole(number)}, which is wrong "
            f"for the whole number that passage {passage} has under {shown(test.key)}"
        ),
        f"{instead}.",
    )
