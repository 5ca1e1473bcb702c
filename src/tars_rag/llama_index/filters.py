"""LlamaIndex's metadata filters in Chroma's filter language."""

from __future__ import annotations

import math
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
from tars_rag.retrieval.indexes.chroma.filter_plan import exactly
from tars_rag.retrieval.indexes.chroma.filters import ORDER

Where = dict[str, Any]

_COMPARISONS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
}
_MEMBERSHIPS = {FilterOperator.IN: "$in", FilterOperator.NIN: "$nin"}
_OVER_LISTS = {FilterOperator.ANY: "$or", FilterOperator.ALL: "$and"}
_SUPPORTED = (*_COMPARISONS, *_MEMBERSHIPS, FilterOperator.CONTAINS, *_OVER_LISTS)
_INSTEAD = {
    FilterOperator.TEXT_MATCH: "Metadata are compared whole (==, in). To find words in the text: "
    "vector_store_query_mode='text_search' or 'hybrid'.",
    FilterOperator.IS_EMPTY: "The store cannot tell a node without that key: give every node a "
    "value, for instance 'none', and filter by ==.",
}
_INSTEAD[FilterOperator.TEXT_MATCH_INSENSITIVE] = _INSTEAD[FilterOperator.TEXT_MATCH]
# Only these are each other's opposite for nodes that lack the key, too.
_OPPOSITES = {
    "$eq": "$ne",
    "$in": "$nin",
    "$contains": "$not_contains",
}
_OPPOSITES |= {opposite: word for word, opposite in _OPPOSITES.items()}


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
    operator, value = leaf.operator, leaf.value
    if operator not in _SUPPORTED:
        supported = f"Supported: {', '.join(known.value for known in _SUPPORTED)}."
        msg = (
            f"Filter operator {operator.value!r} (on {leaf.key!r}) is not supported. "
            f"{_INSTEAD.get(operator, supported)}"
        )
        raise InvalidInputError(msg)
    takes_list = operator in _MEMBERSHIPS or operator in _OVER_LISTS
    if value is None or isinstance(value, list) != takes_list or value == []:
        wanted = "a list that is not empty" if takes_list else "one string or number"
        msg = f"Filter {leaf.key!r} {operator.value} takes {wanted}, not {value!r}."
        raise InvalidInputError(msg)
    if isinstance(value, list):
        if operator in _MEMBERSHIPS:
            return {leaf.key: {_MEMBERSHIPS[operator]: value}}
        held = [_contains(leaf.key, one) for one in value]
        return held[0] if len(held) == 1 else {_OVER_LISTS[operator]: held}
    if operator == FilterOperator.CONTAINS:
        return _contains(leaf.key, value)
    word = _COMPARISONS[operator]
    if word in ORDER and isinstance(value, float) and math.isfinite(value):
        return exactly(leaf.key, word, value) or {leaf.key: {word: value}}
    return {leaf.key: {word: value}}


def _contains(key: str, value: str | float) -> Where:
    """A list holds the value; 2 is 2.0 here, as in LlamaIndex's own store."""
    if isinstance(value, str) or (isinstance(value, float) and not value.is_integer()):
        return {key: {"$contains": value}}
    if abs(value) >= 1 << 53:  # beyond, a float is not every whole number
        return {key: {"$contains": value}}
    return {"$or": [{key: {"$contains": number}} for number in (int(value), float(value))]}


def _negate(where: Where) -> Where:
    ((key, value),) = where.items()
    if key in {"$and", "$or"}:
        return {"$or" if key == "$and" else "$and": [_negate(part) for part in value]}
    ((operator, operand),) = value.items()
    if operator not in _OPPOSITES:
        msg = (
            f"The condition 'not' cannot be applied to {operator[1:]!r} (on {key!r}): the store "
            "cannot tell a node without that key. It can be applied to ==, !=, in, nin, contains, "
            "any and all."
        )
        raise InvalidInputError(msg)
    return {key: {_OPPOSITES[operator]: operand}}
