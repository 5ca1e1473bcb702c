"""Write the tables of docs/filters.md from experiments, or check that they say the same.

    python docs/filters_table.py --write
    python docs/filters_table.py --check

Each answer is asked of a plain Chroma collection and of a HybridStore that hold the same, and the
two must agree. Values that Chroma does not take are asked of the HybridStore alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np

from tars_rag import HybridStore, Passage
from tars_rag.errors import InvalidInputError

PAGE = Path(__file__).with_name("filters.md")
START, END = "<!-- made by filters_table.py: {} -->\n", "<!-- end -->\n"

# What is stored, each type under a key of its own: values that a test may hold for, and others.
STORED: dict[str, list[Any]] = {
    "string": ["b", "a", "c"],
    "int": [2, 1, 3],
    "float": [2.0, 1.0, 3.0],
    "bool": [True, False],
    "int beyond 64 bits": [2**70],
    "list of strings": [["a", "b"], ["a"]],
    "list of ints": [[1, 2], [1]],
    "list of floats": [[1.0, 2.0], [1.0]],
    "list of bools": [[True, False], [False]],
    "no such key": [],
    "None": [None],
    "dict": [{"b": "b", "2": 2}],
    "empty list": [[]],
    "list of several types": [["b", 2, 2.0, True]],
    "list of 6,000": [["b", *["a"] * 5999], ["a"] * 6000],
}
NOT_CHROMAS = {"None", "dict", "empty list", "list of several types", "list of 6,000"}
SCALARS = {"string": "b", "int or float": 2, "float": 2.0, "bool": True}
TESTS: list[tuple[str, str, Any]] = [
    *(("$eq", kind, SCALARS[kind]) for kind in ("string", "int or float", "bool")),
    *(("$ne", kind, SCALARS[kind]) for kind in ("string", "int or float", "bool")),
    *((word, "int or float", 2) for word in ("$gt", "$gte", "$lt", "$lte")),
    ("$in", "strings", ["b", "z"]),
    ("$in", "ints or floats", [2, 9]),
    ("$in", "bools", [True]),
    ("$nin", "strings", ["b", "z"]),
    ("$nin", "ints or floats", [2.0, 9.0]),
    ("$nin", "bools", [True]),
    *(("$contains", kind.split(" ")[0], value) for kind, value in SCALARS.items()),
    *(("$not_contains", kind.split(" ")[0], value) for kind, value in SCALARS.items()),
]
REFUSED: list[Any] = [
    {"day": {"$gte": "2024-05-01"}},
    {"n": {"$gte": "3"}},
    {"n": {"$gt": True}},
    {"n": {"$gt": 1, "$lt": 3}},
    {"n": 1, "day": "x"},
    {"n": {"$in": [1, 2.5]}},
    {"n": {"$in": [1, "2"]}},
    {"n": {"$in": []}},
    {"n": {"$in": 1}},
    {"n": [1, 2]},
    {"n": None},
    {"n": 2**70},
    {"n": {"a": 1}},
    {"n": {"$not": {"$eq": 1}}},
    {"n": {"$exists": True}},
    {"n": {"$regex": "a.*"}},
    {"$and": [{"n": 1}]},
    {"$or": {"n": 1}},
    {"#document": {"$contains": "pump"}},
    {"#x": 1},
]


class Vectors:
    """No test looks at them."""

    fingerprint, dimension = "none:2", 2

    def embed(self, texts: Any) -> Any:
        """The same for each."""
        return np.ones((len(texts), 2), np.float32)


def rows() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Id, type and metadata of every passage."""
    for kind, values in STORED.items():
        for number, value in enumerate(values):
            yield f"{kind} {number}", kind, {kind: value, "all": 1}
        if not values:
            yield kind, kind, {"all": 1}


def tables() -> tuple[str, str]:
    """Both tables."""
    held = {name: metadata for name, kind, metadata in rows() if kind not in NOT_CHROMAS}
    with tempfile.TemporaryDirectory() as folder, HybridStore(f"{folder}/s", Vectors()) as store:
        client = chromadb.PersistentClient(f"{folder}/c")
        plain: Any = client.create_collection("plain", embedding_function=None)
        vectors = [[1.0] * 2] * len(held)
        plain.add(ids=list(held), embeddings=vectors, metadatas=list(held.values()))
        store.upsert([Passage(name, "x", metadata) for name, _, metadata in rows()])
        made = answered(store, plain), "\n".join(refusals(store))
        client.close()
    return made


def answered(store: HybridStore, plain: Any) -> str:
    """What each type of value does in each test; types that do the same are one column."""
    columns = {
        kind: [cell(store, plain, kind, word, operand) for word, _, operand in TESTS]
        for kind in STORED
    }
    merged: dict[tuple[str, ...], list[str]] = {}
    for kind, cells in columns.items():
        merged.setdefault(tuple(cells), []).append(kind + (" †" if kind in NOT_CHROMAS else ""))
    lines = [f"| | {' | '.join(', '.join(kinds) for kinds in merged.values())} |"]
    lines.append("|---" * (len(merged) + 1) + "|")
    for number, (word, kind, _) in enumerate(TESTS):
        lines.append(f"| `{word}` {kind} | {' | '.join(cells[number] for cells in merged)} |")
    return "\n".join(lines)


def cell(store: HybridStore, plain: Any, kind: str, word: str, operand: Any) -> str:
    """How the values of one type fare in a test."""
    ids = {name for name, its, _ in rows() if its == kind}
    where = {kind: {word: operand}}
    try:
        found = {passage.id for passage in store.get(where=where)} & ids
    except InvalidInputError:
        return "refused"
    if kind not in NOT_CHROMAS:
        theirs = set(plain.get(where=where, include=[])["ids"]) & ids
        if found != theirs:
            sys.exit(f"{where}: {found} is not Chroma's {theirs}")
    return "**by value**" if found and found != ids else "all" if found else "none"


def refusals(store: HybridStore) -> Iterator[str]:
    """Filters that are refused, and what the error says."""
    yield "| filter | error |"
    yield "|---|---|"
    for where in REFUSED:
        yield f"| `{where}` | {refusal(store, where)} |"


def refusal(store: HybridStore, where: Any) -> str:
    """What the error says."""
    try:
        store.get(where=where)
    except InvalidInputError as error:
        return str(error).split("cannot be answered: ", 1)[1]
    return sys.exit(f"{where} is answered")


def page() -> str:
    """The page with both tables made anew."""
    text = PAGE.read_text("utf-8")
    for name, table in zip(("answers", "refusals"), tables(), strict=True):
        head, rest = text.split(START.format(name), 1)
        text = f"{head}{START.format(name)}\n{table}\n\n{END}{rest.split(END, 1)[1]}"
    return text


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    made = page()
    if arguments.write:
        PAGE.write_text(made, "utf-8")
    elif made != PAGE.read_text("utf-8"):
        sys.exit("docs/filters.md is not current: python docs/filters_table.py --write")


if __name__ == "__main__":
    main()
