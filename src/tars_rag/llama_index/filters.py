"""LlamaIndex's metadata filters in Chroma's filter language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from tars_rag.adapters.arguments import require_kind
from tars_rag.errors import InvalidInputError

Where = dict[str, Any]

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
}
# Only these are each other's opposite for nodes that lack the key, too.
_OPPOSITES = {"$eq": "$ne", "$ne": "$eq", "$in": "$nin", "$nin": "$in"}


def to_where(filters: MetadataFilters | None) -> Where | None:
    """Translate filters, nested ones included.

    Args:
        filters: As a query carries them.

    Returns:
        The same in Chroma's language; None for no restriction.

    Raises:
        InvalidInputError: An operator or value that the store cannot decide.
    """
    require_kind("filters", filters, (MetadataFilters, type(None)), "a MetadataFilters object")
    if filters is None or not filters.filters:
        return None
    condition = filters.condition or FilterCondition.AND
    parts = [
        to_where(part) if isinstance(part, MetadataFilters) else _leaf(part)
        for part in filters.filters
    ]
    found = [part for part in parts if part]
    if condition == FilterCondition.NOT:  # LlamaIndex: none of them matches
        return both(*map(_negate, found))
    return both(*found) if condition == FilterCondition.AND else _join("$or", found)


def both(*parts: Where | None) -> Where | None:
    """All of these at once; None stands for no restriction."""
    return _join("$and", [part for part in parts if part])


def _join(word: str, parts: Sequence[Where]) -> Where | None:
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else {word: list(parts)}


def _leaf(leaf: MetadataFilter) -> Where:
    operator = _OPERATORS.get(leaf.operator)
    if operator is None:
        msg = (
            f"Filter operator {leaf.operator.value!r} (on {leaf.key!r}) is not supported. "
            f"Supported: {', '.join(op.value for op in _OPERATORS)}."
        )
        raise InvalidInputError(msg)
    takes_list = operator in {"$in", "$nin"}
    if leaf.value is None or isinstance(leaf.value, list) != takes_list:
        wanted = "a list" if takes_list else "one string or number"
        msg = f"Filter {leaf.key!r} {leaf.operator.value} takes {wanted}, not {leaf.value!r}."
        raise InvalidInputError(msg)
    return {leaf.key: {operator: leaf.value}}


def _negate(where: Where) -> Where:
    ((key, value),) = where.items()
    if key in {"$and", "$or"}:
        return {"$or" if key == "$and" else "$and": [_negate(part) for part in value]}
    ((operator, operand),) = value.items()
    if operator not in _OPPOSITES:
        msg = (
            f"The condition 'not' cannot be applied to {operator[1:]!r} (on {key!r}): the store "
            "cannot tell a node without that key. It can be applied to ==, !=, in and nin."
        )
        raise InvalidInputError(msg)
    return {key: {_OPPOSITES[operator]: operand}}
