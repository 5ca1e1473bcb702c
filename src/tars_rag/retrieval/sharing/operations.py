"""What a guest may ask of a holder, one function each: from the message to the call and back.

Each yields the parts of its answer: a header and, where there are vectors, rows. What comes in is
checked as if a caller had given it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.indexes import checks
from tars_rag.retrieval.passage import Passage, Progress
from tars_rag.retrieval.searching import check_request
from tars_rag.retrieval.sharing.access import Local
from tars_rag.retrieval.sharing.wire import PART, hit_row, passage_of, passage_row
from tars_rag.retrieval.timing import Stopwatch

Rows: TypeAlias = NDArray[np.float32] | None
Part: TypeAlias = tuple[Any, Rows]
Operation: TypeAlias = Callable[[Local, Mapping[str, Any], Rows, Progress], Iterator[Part]]

_PART_ROWS = 2048


def _describe(local: Local, *_: Any) -> Iterator[Part]:
    yield asdict(local.store_json), None


def _probe(local: Local, *_: Any) -> Iterator[Part]:
    yield None, local.probe()


def _record_probe(
    local: Local, asked: Mapping[str, Any], rows: Rows, _: Progress
) -> Iterator[Part]:
    yield None, local.record_probe(_vector(local, rows))


def _changed(local: Local, asked: Mapping[str, Any], *_: Any) -> Iterator[Part]:
    changed = {passage.id for passage in local.changed(_passages(asked))}
    yield [row[0] for row in asked["passages"] if row[0] in changed], None


def _upsert(local: Local, asked: Mapping[str, Any], rows: Rows, _: Progress) -> Iterator[Part]:
    batch = _passages(asked)
    names = [f"passage {passage.id!r}" for passage in batch]
    vectors = np.empty((0, 0), np.float32) if rows is None else np.array(rows)
    checks.check_vectors(vectors, names, local.store_json.dimension)
    local.upsert(batch, vectors)
    yield None, None


def _matching(local: Local, asked: Mapping[str, Any], *_: Any) -> Iterator[Part]:
    yield from _parted(local.matching(_ids(asked), asked["where"]), len)


def _delete(local: Local, asked: Mapping[str, Any], *_: Any) -> Iterator[Part]:
    yield local.delete(_ids(asked) or [], asked["where"]), None


def _get(local: Local, asked: Mapping[str, Any], *_: Any) -> Iterator[Part]:
    held = local.get(_ids(asked), asked["where"], asked["limit"])
    yield from _parted(map(passage_row, held.values()), _size)


def _vectors(local: Local, asked: Mapping[str, Any], *_: Any) -> Iterator[Part]:
    held = iter(local.vectors(_ids(asked) or []).items())
    part = list(islice(held, _PART_ROWS))
    yield [key for key, _ in part], np.stack([row for _, row in part]) if part else None
    while part := list(islice(held, _PART_ROWS)):
        yield [key for key, _ in part], np.stack([row for _, row in part])


def _search(local: Local, asked: Mapping[str, Any], rows: Rows, _: Progress) -> Iterator[Part]:
    request = check_request(
        asked["query"],
        asked["k"],
        asked["strategy"],
        asked["where"],
        asked["weight"],
        asked["min_score"],
        has_vector=rows is not None,
    )
    request = replace(request, floor=float(asked["floor"]), every=bool(asked["every"]))
    vector = _vector(local, rows) if request.needs_vector else None
    watch = Stopwatch()
    hits = local.search(request, vector, watch)
    steps = [[step.name, step.milliseconds, step.device, step.note] for step in watch.steps]
    for part, _none in _parted(map(hit_row, hits), lambda row: _size(row[0])):
        yield {"hits": part, "steps": steps}, None


def _count(local: Local, *_: Any) -> Iterator[Part]:
    yield local.count(), None


def _flush(local: Local, *_: Any) -> Iterator[Part]:
    local.flush()
    yield None, None


def _compact(local: Local, asked: Mapping[str, Any], _: Rows, progress: Progress) -> Iterator[Part]:
    local.compact(progress)
    yield None, None


OPERATIONS: Mapping[str, Operation] = {
    "describe": _describe,
    "probe": _probe,
    "record_probe": _record_probe,
    "changed": _changed,
    "upsert": _upsert,
    "matching": _matching,
    "delete": _delete,
    "get": _get,
    "vectors": _vectors,
    "search": _search,
    "count": _count,
    "flush": _flush,
    "compact": _compact,
}


def _passages(asked: Mapping[str, Any]) -> list[Passage]:
    batch = [passage_of(row) for row in asked["passages"]]
    checks.check_passages(batch, set())
    return batch


def _ids(asked: Mapping[str, Any]) -> list[str] | None:
    ids = asked["ids"]
    return None if ids is None else checks.distinct_ids(ids)


def _vector(local: Local, rows: Rows) -> NDArray[np.float32]:
    if rows is None:
        msg = "There is no vector for the query. Give one."
        raise InvalidInputError(msg)
    made = checks.check_vectors(
        np.array(rows).reshape(1, -1), ["the query"], local.store_json.dimension
    )
    return made.ravel()


def _size(row: list[Any]) -> int:
    """Characters of a passage, about; of the metadata those of its values alone."""
    return len(row[1]) + sum(len(value) for value in row[2].values() if isinstance(value, str)) + 64


def _parted(rows: Iterable[Any], size: Callable[[Any], int]) -> Iterator[Part]:
    """Rows in parts of a few megabytes; at least one part."""
    part: list[Any] = []
    room = PART
    for row in rows:
        part.append(row)
        room -= size(row)
        if room < 0:
            yield part, None
            part, room = [], PART
    yield part, None
