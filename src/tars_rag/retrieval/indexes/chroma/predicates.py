"""A condition decided here, on metadata as Chroma holds it, and as Chroma would decide it.

Chroma takes seconds for a hundred ids and a filter that half of the passages pass; for few ids it
is asked for their metadata instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from tars_rag.retrieval.indexes.chroma.filters import Condition, Group, Scalar, Test
from tars_rag.retrieval.indexes.codec import INT64, encode, kind_of

Predicate: TypeAlias = Callable[[Mapping[str, Any]], bool]
_Compare: TypeAlias = Callable[[Any, Any], bool]

_ORDER: Mapping[str, _Compare] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
NEGATED = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains"}


def predicate(condition: Condition) -> Predicate:
    """Whether metadata, packed by the codec, fulfil the condition."""
    if isinstance(condition, Group):
        parts = [predicate(part) for part in condition.parts]
        if condition.word == "$and":
            return lambda metadata: all(part(metadata) for part in parts)
        return lambda metadata: any(part(metadata) for part in parts)
    key, positive = encode(condition.key), _positive(condition)
    if condition.operator in NEGATED:
        return lambda metadata: not positive(metadata.get(key))
    return lambda metadata: positive(metadata.get(key))


def whole(number: float) -> int:
    """What Chroma makes of a float to compare it with whole numbers."""
    return max(-INT64, min(INT64 - 1, int(number)))


def _positive(test: Test) -> Callable[[Any], bool]:
    """The test on a value, or on a list or None; of a negated one the opposite."""
    word = NEGATED.get(test.operator, test.operator)
    operands = test.operand if isinstance(test.operand, tuple) else (test.operand,)
    if word == "$contains":
        wanted = (kind_of(operands[0]), _encoded(operands[0]))
        return lambda value: (
            isinstance(value, list)
            and any((kind_of(element), element) == wanted for element in value)
        )
    if word in _ORDER:
        (number,) = operands
        assert isinstance(number, int | float)
        compare, as_int, as_float = _ORDER[word], whole(number), float(number)

        def ordered(value: Any) -> bool:
            if isinstance(value, bool) or not isinstance(value, int | float):
                return False
            return compare(value, as_int if isinstance(value, int) else as_float)

        return ordered
    among = {(kind, value) for operand in operands for kind, value in equals(operand)}
    return lambda value: not isinstance(value, list) and (kind_of(value), value) in among


def equals(operand: Scalar) -> list[tuple[str | None, Scalar]]:
    """What is held equals the operand: a number is compared as the kind that is held."""
    if isinstance(operand, str | bool):
        return [(kind_of(operand), _encoded(operand))]
    return [("int", whole(operand)), ("float", float(operand))]


def _encoded(value: Scalar) -> Scalar:
    return encode(value) if isinstance(value, str) else value
