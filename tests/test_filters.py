"""The filter language: what is refused, with which words, and how large filters are decided."""

from __future__ import annotations

import copy
import sys
from enum import Enum
from typing import Any

import numpy as np
import pytest

from tars_rag import Passage
from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.indexes.chroma import filter_plan
from tars_rag.retrieval.indexes.chroma.filters import Condition, parse
from tars_rag.retrieval.indexes.codec import check_passage, filterable


class Colour(str, Enum):
    RED = "red"


DEEP: Any = {"a": 1}
for _ in range(5000):
    DEEP = {"$and": [DEEP, {"b": 2}]}

REFUSED: list[tuple[Any, str]] = [
    # dates, and other strings, have no order
    (
        {"day": {"$gt": "2024-05-01"}},
        r"compares numbers.*20240501.*\{'day': \{'\$gt': 20240501\}\}",
    ),
    ({"day": {"$gte": "2024-05-01T10:00:00Z"}}, r"\{'day': \{'\$gte': 20240501\}\}"),
    ({"day": {"$lt": "20240501"}}, r"\{'day': \{'\$lt': 20240501\}\}"),
    ({"n": {"$gte": "3"}}, r"Write \{'n': \{'\$gte': 3\}\}"),
    ({"n": {"$gte": "-2.5"}}, r"Write \{'n': \{'\$gte': -2\.5\}\}"),
    ({"name": {"$lte": "m"}}, r"\{'name': \{'\$in': \['m'\]\}\}"),
    ({"n": {"$gt": True}}, r"Write \{'n': True\}"),
    ({"n": {"$gt": [1]}}, r"takes one value, not a list"),
    # two at once
    (
        {"n": {"$gt": 1, "$lt": 3}},
        r"\{'\$and': \[\{'n': \{'\$gt': 1\}\}, \{'n': \{'\$lt': 3\}\}\]\}",
    ),
    ({"n": 1, "day": "x"}, r"\{'\$and': \[\{'n': 1\}, \{'day': 'x'\}\]\}"),
    ({"$and": [{"n": 1, "m": 2}, {"n": 3}]}, r"\{'\$and': \[\{'n': 1\}, \{'m': 2\}\]\}"),
    # lists of values
    ({"n": {"$in": [1, 2.5]}}, r"one type, not float and int.*\{'n': \{'\$in': \[1\.0, 2\.5\]\}\}"),
    ({"n": {"$in": [1, "2"]}}, r"\{'\$or': \[\{'n': \{'\$in': \[1\]\}\}, \{'n': \{'\$in': \['2'\]"),
    ({"n": {"$nin": [True, 1]}}, r"not bool and int.*\{'\$and': \["),
    ({"n": {"$in": []}}, r"empty list. No passage could match"),
    ({"n": {"$nin": []}}, r"empty list. Every passage could match"),
    ({"n": {"$in": 1}}, r"takes a list of values, not 1. Write \{'n': \{'\$in': \[1\]\}\}"),
    ({"n": {"$in": {1, 2}}}, "takes a list of values"),
    ({"n": {"$in": [[1]]}}, "a list is no str, int, float or bool"),
    (
        {"n": [1]},
        r"takes one value, not a list.*\{'n': \{'\$contains': 1\}\}.*\{'n': \{'\$in': \[1\]",
    ),
    ({"n": []}, "takes one value, not a list"),
    ({"n": {"$eq": [1]}}, r"\{'\$in': \[1\]\}"),
    ({"n": {"$ne": ["a"]}}, r"\{'\$nin': \['a'\]\}"),
    ({"n": {"$contains": ["a", "b"]}}, r"\{'n': \{'\$contains': 'a'\}\}"),
    # values that are none
    ({"n": None}, "None is kept as if the key were missing"),
    ({"n": {"$eq": None}}, "None is kept"),
    ({"n": {"$in": [None]}}, "None is kept"),
    ({"n": {"$contains": None}}, "None is kept"),
    ({"n": float("nan")}, "nan is no number to compare with"),
    ({"n": {"$lt": float("inf")}}, "inf is no number to compare with"),
    ({"n": {"$lt": sys.float_info.max}}, "no number to compare with"),
    ({"n": 2**63}, r"beyond 64 bits.*\{'n': \{'\$eq': 9\.22"),
    ({"n": {"$gt": -(2**63) - 1}}, r"beyond 64 bits.*\{'n': \{'\$gt': -9\.22"),
    ({"n": {"$in": [2**70]}}, "beyond 64 bits"),
    ({"n": 10**400}, "beyond 64 bits"),
    ({"n": {"$lt": -(10**5000)}}, "beyond 64 bits"),
    ({"n": b"a"}, "a bytes is no str"),
    ({"n": np.int64(3)}, r"int64 is no str.*Write its \.item\(\)"),
    ({"n": {"$in": np.arange(3)}}, "takes a list of values"),
    ({"n": object()}, "an? object is no str"),
    ({"n": {"a": 1}}, "compared with a dict"),
    ({"n": {"$eq": {"a": 1}}}, "a dict is no str"),
    # operators
    ({"n": {}}, r"has no operator. Write \{\"n\": \{\"\$eq\": \.\.\.\}\}"),
    ({"n": {"$near": 1}}, r"no operator '\$near'.*There are \$eq, \$ne, \$gt"),
    ({"n": {"$not": {"$eq": 1}}}, "Turn the operator round"),
    ({"$not": {"n": 1}}, "Turn the operator round"),
    ({"$nor": [{"n": 1}, {"n": 2}]}, "Turn the conditions round"),
    ({"n": {"$regex": "1"}}, "strategy='lexical'"),
    ({"n": {"$exists": True}}, "has_date"),
    ({"n": {1: 2}}, "compared with a dict"),
    ({"$x": 1}, r"no '\$x' in Chroma's filter language"),
    ({"$gt": 1}, r"stands where a key must. Write \{\"KEY\": \{\"\$gt\": \.\.\.\}\}"),
    ({"$contains": "x"}, "stands where a key must"),
    # joining
    ({"$and": []}, "has none"),
    ({"$or": []}, "has none"),
    ({"$and": [{"n": 1}]}, r"has one. Write \{'n': 1\}"),
    ({"$or": {"n": 1}}, "takes a list of conditions"),
    ({"$or": [{"n": 1}, None]}, "a condition is a dict, not None"),
    ({"$or": [{"n": 1}, {}]}, "a condition is empty"),
    (DEEP, "nested more than 62 deep"),
    # keys
    ({"#document": "x"}, "the text of a passage is not filtered"),
    ({"#document": {"$contains": "x"}}, "the text of a passage is not filtered"),
    ({"#id": "x"}, "ids are no metadata"),
    ({"#x": 1}, "cannot be filtered on"),
    ({"": 1}, "cannot be filtered on"),
    ({"chroma:x": 1}, "cannot be filtered on"),
    ({"_tars": "x"}, "cannot be filtered on"),
    ({"_tars:lists": "x"}, "cannot be filtered on"),
    ({1: 2}, "the key 1 is not a string"),
    # no filters at all
    ({}, "a condition is empty"),
    ("n = 1", "a condition is a dict, not 'n = 1'"),
    ([{"n": 1}], "a condition is a dict"),
    (7, "a condition is a dict, not 7"),
]


@pytest.mark.parametrize(("where", "message"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_what_cannot_be_answered_is_refused_with_what_to_write(where: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"(?s)filter.*{message}") as caught:
        parse(where)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "suggested",
    [
        {"day": {"$gt": 20240501}},
        {"$and": [{"n": {"$gt": 1}}, {"n": {"$lt": 3}}]},
        {"$or": [{"n": {"$in": [1]}}, {"n": {"$in": ["2"]}}]},
        {"tags": {"$contains": "a"}},
        {"n": {"$in": [1.0, 2.5]}},
    ],
)
def test_what_is_suggested_is_a_filter(suggested: Any) -> None:
    before = copy.deepcopy(suggested)
    assert filter_plan.encoded(parse(suggested)) == before == suggested


def test_tuples_and_subclasses_are_read_as_what_they_are() -> None:
    where = {"$or": ({"colour": Colour.RED}, {"n": {"$in": (1, 2)}})}
    assert filter_plan.encoded(parse(where)) == {
        "$or": [{"colour": {"$eq": "red"}}, {"n": {"$in": [1, 2]}}]
    }


def test_keys_and_strings_are_sent_as_they_are_stored() -> None:
    lone = "\ud800"
    passage = Passage("a", "x", {lone: lone, "list": [lone, "b"], "plain": "tars-b64:"})
    held = filterable(passage)
    for where in ({lone: lone}, {"plain": "tars-b64:"}, {"list": {"$contains": lone}}):
        ((key, test),) = filter_plan.encoded(parse(where)).items()
        (operand,) = test.values()
        assert held[key] == operand or operand in held[key]
        f"{key}{operand}".encode()  # UTF-8 can express it


# -- what is held ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "held"),
    [
        ("a", "a"),
        (True, True),
        (2**63 - 1, 2**63 - 1),
        (2**63, float(2**63)),
        (-(10**400), -sys.float_info.max),
        (["a", "b"], ["a", "b"]),
        (("a",), ["a"]),
        ([1, 2], [1, 2]),
        ([1.0, 2.5], [1.0, 2.5]),
        ([True, False], [True, False]),
        (["a", None, ["b"], {"c": 1}], ["a"]),  # no value to compare with is left out
    ],
)
def test_chroma_is_given_what_it_can_hold(value: Any, held: Any) -> None:
    found = filterable(Passage("a", "x", {"v": value}))
    assert found == {"v": held}
    assert type(found["v"]) is type(held)


@pytest.mark.parametrize("value", [None, {"a": 1}, [], [[]], [None], [["a"]], [{"a": "b"}]])
def test_what_no_test_could_hold_for_is_left_out(value: Any) -> None:
    assert filterable(Passage("a", "x", {"v": value})) == {}


@pytest.mark.parametrize(
    "value", [["a", 1], [1, 2.5], [True, 1], [2**63], [10**400], [1, 2**63], list(range(6000))]
)
def test_a_list_that_chroma_cannot_hold_is_named(value: Any) -> None:
    assert filterable(Passage("a", "x", {"v": value, "w": 1})) == {"_tars:lists": ["v"], "w": 1}


def test_no_passage_holds_more_than_chroma_survives() -> None:
    """From 5,462 values of one kind on, Chroma never answers for the collection again."""
    lists = {f"k{n}": [str(n)] * 1000 for n in range(50)} | {f"m{n}": [1, "a"] for n in range(6000)}
    held = filterable(Passage("a", "x", lists))
    assert sum(len(value) for value in held.values()) <= 5000
    assert held["_tars:lists"] == [""]
    with pytest.raises(InvalidInputError, match=r"'a' has more than 5,000.*\"fields\""):
        check_passage(Passage("a", "x", dict.fromkeys(map(str, range(5001)), 1)))
    check_passage(Passage("a", "x", {"fields": dict.fromkeys(map(str, range(9001)), 1)}))


# -- large filters --------------------------------------------------------------------------------

UNIVERSE = set(range(70_000))
LARGE = list(range(5_000, 65_000))
FEW = set(range(1000))


def ask(condition: Condition) -> set[str]:
    """Decides what fits as Chroma would, on whole numbers that are the ids too."""
    assert filter_plan.fits(condition)
    return set(map(str, _pass(filter_plan.encoded(condition))))


def _pass(where: Any) -> set[int]:
    ((key, value),) = where.items()
    if key in ("$and", "$or"):
        parts = [_pass(part) for part in value]
        return set.intersection(*parts) if key == "$and" else set.union(*parts)
    ((operator, operand),) = value.items()
    if operator == "$lt":
        return {n for n in UNIVERSE if n < operand}
    if operator == "$ne" and not isinstance(operand, list):
        return FEW - {operand}
    found = UNIVERSE & (set(operand) if isinstance(operand, list) else {operand})
    return found if operator in ("$eq", "$in") else UNIVERSE - found


def decided(where: Any) -> set[int]:
    found = filter_plan.decide(parse(where), ask, lambda: set(map(str, UNIVERSE)))
    return set(map(int, found))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"n": {"$in": LARGE}}, set(LARGE)),
        ({"n": {"$nin": LARGE}}, UNIVERSE - set(LARGE)),
        ({"$and": [{"n": {"$in": LARGE}}, {"n": {"$lt": 5_005}}]}, set(range(5_000, 5_005))),
        ({"$or": [{"n": {"$in": LARGE}}, {"n": 3}]}, {3, *LARGE}),
        (
            {"$and": [{"n": {"$nin": LARGE}}, {"$or": [{"n": 3}, {"n": {"$in": LARGE[:40_000]}}]}]},
            {3},
        ),
        ({"$or": [{"n": n} for n in range(900)]}, set(range(900))),
        ({"$and": [{"n": {"$ne": n}} for n in range(900)]}, FEW - set(range(900))),
    ],
    ids=["in", "nin", "in and", "in or", "nin and nested", "many or", "many and"],
)
def test_a_filter_of_any_size_is_decided_in_pieces(where: Any, expected: set[int]) -> None:
    assert not filter_plan.fits(parse(where))
    assert decided(where) == expected
