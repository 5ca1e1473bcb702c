"""What can be filtered on, as tokens that a column holds, and filters as conditions on them.

LanceDB has no columns of any key. So a row has a list of tokens, one for each value of its metadata
(a digest of key, kind and value), and a filter asks which tokens are there. What has an order is
not in a token: of such a test only "a number is there" is asked, and the rows that pass are decided
here, by the same predicates as everywhere (`chroma.predicates`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tars_rag.retrieval.indexes.chroma.filters import LISTS, ORDER, Condition, Group, Test, tests
from tars_rag.retrieval.indexes.chroma.predicates import NEGATED, equals
from tars_rag.retrieval.indexes.codec import encode, kind_of

_MOST_TESTS: Final = 200
_MOST_VALUES: Final = 2000
ALL: Final = "all"
"""In every row, as a list that is empty has no value in some conditions."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """A filter as LanceDB decides it.

    Attributes:
        sql: The condition.
        exact: Whether what passes it passes the filter; otherwise what does not, does not.
    """

    sql: str
    exact: bool


EVERYTHING: Final = Pushed("true", exact=False)


def facts(packed: Mapping[str, Any]) -> list[str]:
    """The tokens of metadata that were packed by `codec.filterable`."""
    found = [ALL]
    for key, value in packed.items():
        found.append(_token("key", key))
        if isinstance(value, list):
            found.extend(_token("item", key, kind_of(element), element) for element in value)
            continue
        found.append(_token("value", key, kind_of(value), value))
        if kind_of(value) in ("int", "float"):
            found.append(_token("number", key))
    return list(dict.fromkeys(found))


def pushed(condition: Condition) -> Pushed:
    """A filter as a condition on the tokens."""
    all_tests = list(tests(condition))
    values = sum(len(test.operand) for test in all_tests if isinstance(test.operand, tuple))
    if len(all_tests) > _MOST_TESTS or values > _MOST_VALUES:
        return EVERYTHING
    return _pushed(condition)


def _pushed(condition: Condition) -> Pushed:
    if isinstance(condition, Group):
        parts = [_pushed(part) for part in condition.parts]
        word = " AND " if condition.word == "$and" else " OR "
        return Pushed(f"({word.join(p.sql for p in parts)})", all(part.exact for part in parts))
    if condition.operator in ORDER:
        return Pushed(has_any([_token("number", encode(condition.key))]), exact=False)
    sql = has_any(_wanted(condition))
    return Pushed(f"(NOT {sql})" if condition.operator in NEGATED else sql, exact=True)


def _wanted(test: Test) -> list[str]:
    """The tokens of which one must be there for a test, or none for its opposite."""
    key = encode(test.key)
    operands = test.operand if isinstance(test.operand, tuple) else (test.operand,)
    if test.operator in LISTS:
        return [
            _token("item", key, kind_of(one), encode(one) if isinstance(one, str) else one)
            for one in operands
        ]
    return [_token("value", key, kind, value) for one in operands for kind, value in equals(one)]


def has_any(tokens: Sequence[str]) -> str:
    """The condition that a row has one of the tokens."""
    if len(tokens) == 1:
        return f"array_has(facts, {quoted(tokens[0])})"
    return f"array_has_any(facts, [{', '.join(map(quoted, tokens))}])"


def quoted(text: str) -> str:
    """A string as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def with_ids(ids: Sequence[str]) -> str:
    """The condition that a row has one of the ids."""
    return f"id IN ({', '.join(quoted(encode(key)) for key in ids)})"


def _token(*parts: Any) -> str:
    parts = tuple(part + 0.0 if isinstance(part, float) else part for part in parts)  # no -0.0
    data = json.dumps(parts, ensure_ascii=True).encode()
    made = hashlib.blake2b(data, digest_size=16).digest()
    return base64.urlsafe_b64encode(made).decode("ascii").rstrip("=")
