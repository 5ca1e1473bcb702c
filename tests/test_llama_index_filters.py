"""LlamaIndex's metadata filters over lists and fractions, beside the framework's own store."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from tars_rag.errors import InvalidInputError
from tars_rag.llama_index import TarsVectorStore

METADATA: dict[str, dict[str, Any]] = {
    "both": {"tags": ["red", "blue"], "sizes": [1, 2], "rating": 4},
    "red": {"tags": ["red"], "sizes": [2.0, 3.5], "rating": 4.5},
    "none": {"tags": [], "sizes": [], "rating": 5},
    "bare": {"rating": -4},
    "null": {"tags": None, "rating": -4.5},
    "large": {"tags": ["blue", "green"], "sizes": [2**60], "rating": 10.0},
}


def nodes() -> list[TextNode]:
    return [
        TextNode(id_=name, text=name, embedding=[1.0, 0.0], metadata=metadata)
        for name, metadata in METADATA.items()
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TarsVectorStore]:
    opened = TarsVectorStore(tmp_path_factory.mktemp("nodes") / "store", fingerprint="by hand")
    opened.add(nodes())
    yield opened
    opened.close()


def where(*filters: tuple[str, str, Any], condition: str = "and") -> MetadataFilters:
    leaves: list[Any] = [
        MetadataFilter(key=key, operator=FilterOperator(word), value=value)
        for key, word, value in filters
    ]
    return MetadataFilters(filters=leaves, condition=FilterCondition(condition))


LISTS = [
    where(("tags", "contains", "red")),
    where(("tags", "contains", "re")),
    where(("sizes", "contains", 2)),
    where(("sizes", "contains", 2.0)),
    where(("sizes", "contains", 3.5)),
    where(("sizes", "contains", 2**60)),
    where(("tags", "any", ["red", "green"])),
    where(("tags", "any", ["green"])),
    where(("sizes", "any", [1, 3])),
    where(("tags", "all", ["red", "blue"])),
    where(("tags", "all", ["blue"])),
    where(("sizes", "all", [2.0, 3.5])),
    where(("tags", "contains", "red"), ("tags", "contains", "green"), condition="or"),
    where(("tags", "contains", "red"), ("tags", "all", ["blue", "green"]), condition="not"),
    where(("tags", "any", ["red", "green"]), condition="not"),
]
FRACTIONS = [
    where(("rating", word, number))
    for word in (">", ">=", "<", "<=")
    for number in (4.5, 4.0, 4, -4.5, -4.0, 3.99, -3.99, 0.5, 1e300)
]


@pytest.mark.parametrize("filters", LISTS + FRACTIONS)
def test_filters_mean_what_they_mean_to_llama_index(
    store: TarsVectorStore, filters: MetadataFilters
) -> None:
    simple = SimpleVectorStore()
    simple.add(nodes())
    before = copy.deepcopy(filters)
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=9, filters=filters)
    try:
        expected = set(simple.query(query).ids or [])
    except ValueError as error:
        pytest.skip(f"this version's own store cannot say: {error}")
    assert set(store.query(query).ids or []) == expected
    assert {node.node_id for node in store.get_nodes(filters=filters)} == expected
    assert filters == before


def test_nested_filters_over_lists(store: TarsVectorStore) -> None:
    inner = where(("tags", "any", ["red", "green"]), ("rating", ">", 9.5), condition="or")
    both = MetadataFilters(filters=[inner, *where(("sizes", "contains", 2)).filters])
    assert {node.node_id for node in store.get_nodes(filters=both)} == {"both", "red"}
    neither = MetadataFilters(filters=[*where(("tags", "all", ["red", "blue"])).filters])
    neither.condition = FilterCondition.NOT
    assert {n.node_id for n in store.get_nodes(filters=neither)} == set(METADATA) - {"both"}


def test_a_fraction_that_the_store_would_cut_is_refused_by_equality_only(
    store: TarsVectorStore,
) -> None:
    for word in ("==", "!="):
        with pytest.raises(InvalidInputError, match=r"'both'.*Store every value of it as a float"):
            store.get_nodes(filters=where(("rating", word, 4.5)))
    with pytest.raises(InvalidInputError, match="inf is no number"):
        store.get_nodes(filters=where(("rating", "<", float("inf"))))
