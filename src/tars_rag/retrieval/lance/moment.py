"""One version of a store's table: what a search looks into, whatever is written meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.indexes.chroma import filter_plan
from tars_rag.retrieval.indexes.chroma.filters import Condition, Where, parse
from tars_rag.retrieval.indexes.chroma.predicates import predicate
from tars_rag.retrieval.indexes.codec import decode, decode_all, unpack_content
from tars_rag.retrieval.indexes.exact.codes import Query
from tars_rag.retrieval.lance.facts import pushed, with_ids
from tars_rag.retrieval.passage import Passage, Ranking, ranked

CANDIDATE: Final = ("id", "vector", "terms")
"""What is read of whatever may be among the best."""
_AT_ONCE: Final = 1000  # ids that one condition names
_FEW: Final = 512  # passages that a filter leaves are named by their ids
_MORE: Final = 100  # are fetched beyond what is asked for: single precision chose them
_MOST_TIES: Final = 4096
_ALIKE: Final = 1e-5  # cosines that single precision may have in another order
_MOST_FILTERS: Final = 64
_MOST_SEEN: Final = 4096
_MOST_IDS: Final = 200_000


class Allowed(list[str]):
    """The ids that pass a filter, and the condition that LanceDB finds them by.

    Attributes:
        sql: The condition.
        exact: Whether it alone decides; otherwise more pass it.
    """

    def __init__(self, ids: Iterable[str], sql: str, *, exact: bool) -> None:
        super().__init__(ids)
        self.sql, self.exact = sql, exact


class Moment:
    """One version, asked by any number of threads.

    Args:
        table: LanceDB's, which stays at its version.
        version: Its number.
    """

    def __init__(self, table: Any, version: int) -> None:
        self.table, self.version = table, version
        self._seen: dict[str, tuple[NDArray[np.float32], str]] = {}
        self._passing: dict[str, Allowed] = {}
        self._settled: set[str] = set()

    def count(self) -> int:
        """Number of passages."""
        return self._count

    @cached_property
    def _count(self) -> int:
        return int(self.table.count_rows())

    def read(self, columns: Sequence[str], where: str | None, limit: int | None = None) -> Any:
        """Columns of the rows that a condition holds for, as pyarrow's table."""
        query = self.table.search().select(list(columns))
        if where is not None:
            query = query.where(where)
        if limit is not None:
            query = query.limit(limit)
        return query.to_arrow()

    def of(self, ids: Sequence[str], columns: Sequence[str]) -> Iterable[Any]:
        """The columns, with ``id`` among them, of those of the ids that are there, in parts."""
        for start in range(0, len(ids), _AT_ONCE):
            yield self.read(["id", *columns], with_ids(ids[start : start + _AT_ONCE]))

    def candidates(self, ids: Sequence[str]) -> dict[str, tuple[NDArray[np.float32], str]]:
        """The vectors [dim] and terms of those of the ids that are there.

        Both sides of a search want them of the same passages, and each reads them for the other.
        """
        known = self._seen
        found = {key: known[key] for key in ids if key in known}
        for part in self.of([key for key in ids if key not in found], ("vector", "terms")):
            found.update(self.seen(part))
        return found

    def seen(self, rows: Any) -> dict[str, tuple[NDArray[np.float32], str]]:
        """The same of rows that were read, with ``id``, ``vector`` and ``terms``; remembered."""
        made = zip(matrix_of(rows), rows["terms"].to_pylist(), strict=True)
        found = dict(zip(ids_of(rows), made, strict=True))
        if len(self._seen) + len(found) > _MOST_SEEN:
            self._seen = {}
        if len(found) <= _MOST_SEEN:
            self._seen.update(found)
        return found

    # -- filters ------------------------------------------------------------------------------

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """Those of the ids (None: all) that are there and pass the filter."""
        passing = None if where is None or where == {} else self.passing(where)
        if ids is None:
            return self._all() if passing is None else passing
        there = [key for part in self.of(ids, ()) for key in ids_of(part)]
        if passing is None:
            return there
        allowed = set(passing)
        return [key for key in there if key in allowed]

    def passing(self, where: Where) -> Allowed:
        """The ids that pass a filter.

        Raises:
            InvalidInputError: It is no filter, or Chroma's answer to it would be wrong.
        """
        condition = self.condition(where)
        name = json.dumps(filter_plan.encoded(condition))
        known = self._passing.get(name)
        if known is not None:
            return known
        plan = pushed(condition)
        if plan.exact:
            ids = ids_of(self.read(["id"], plan.sql))
        else:
            passes = predicate(condition)
            found = self.read(["id", "metadata"], plan.sql)
            pairs = zip(ids_of(found), found["metadata"].to_pylist(), strict=True)
            ids = [key for key, text in pairs if passes(json.loads(text))]
        allowed = Allowed(ids, plan.sql, exact=plan.exact)
        if len(self._passing) < _MOST_FILTERS and len(ids) <= _MOST_IDS:
            self._passing[name] = allowed
        return allowed

    def condition(self, where: Where) -> Condition:
        """The filter, if it is one that can be answered.

        Raises:
            InvalidInputError: It is not.
        """
        condition = parse(where)
        for doubt in filter_plan.doubts(condition):
            name = json.dumps(filter_plan.encoded(doubt.condition))
            if name not in self._settled:
                found = self.passing_condition(doubt.condition, 1)
                if found:
                    raise doubt.error(found[0])
                self._settled.add(name)
        return condition

    def passing_condition(self, condition: Condition, limit: int) -> list[str]:
        """Some ids for which a condition holds."""
        plan = pushed(condition)
        if plan.exact:
            return ids_of(self.read(["id"], plan.sql, limit))
        passes = predicate(condition)
        found = self.read(["id", "metadata"], plan.sql)
        pairs = zip(ids_of(found), found["metadata"].to_pylist(), strict=True)
        return [key for key, text in pairs if passes(json.loads(text))][:limit]

    def _all(self) -> list[str]:
        return ids_of(self.read(["id"], None))

    # -- vectors ------------------------------------------------------------------------------

    def nearest(
        self, vector: NDArray[np.floating], k: int, among: Iterable[str] | None = None
    ) -> Ranking:
        """The `k` nearest passages, with their cosines in double precision."""
        allowed = among if among is None or isinstance(among, Allowed) else None
        if among is not None and allowed is None:
            allowed = Allowed(among, "true", exact=False)
        room = self._count if allowed is None else len(allowed)
        k = min(k, room)
        if k < 1:
            return []
        if allowed is not None and (len(allowed) <= _FEW or len(allowed) <= k):
            return ranked(self.scores(vector, allowed))[:k]
        asked = np.asarray(vector)
        exact = Query(asked, asked.size)
        passes = None if allowed is None or allowed.exact else set(allowed)
        fetch = k + _MORE
        while True:
            query = self.table.search(exact.unit.astype(np.float32), vector_column_name="vector")
            query = query.distance_type("cosine").select([*CANDIDATE, "_distance"])
            if allowed is not None:
                query = query.where(allowed.sql, prefilter=True)
            found = query.limit(fetch).to_arrow()
            scores = _cosines(exact, self.seen(found))
            last = min(scores.values(), default=0.0)
            if passes is not None:
                scores = {key: cosine for key, cosine in scores.items() if key in passes}
            best = ranked(scores)[:k]
            if len(found) < fetch:
                return best
            whole = len(best) == k
            if whole and (best[-1][1] > last + _ALIKE or fetch > k + _MOST_TIES):
                return best
            fetch *= 4

    def scores(self, vector: NDArray[np.floating], ids: Sequence[str]) -> dict[str, float]:
        """The cosines of some, in double precision."""
        asked = np.asarray(vector)
        return _cosines(Query(asked, asked.size), self.candidates(ids))

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Stored vectors [dim] by id; unknown ids left out."""
        found: dict[str, NDArray[np.float32]] = {}
        for part in self.of(ids, ("vector",)):
            found.update(zip(ids_of(part), matrix_of(part).copy(), strict=True))
        return found

    # -- passages -----------------------------------------------------------------------------

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Passages by id, as they were stored; unknown ids left out."""
        return {key: one for part in self.of(ids, ("content",)) for key, one in _passages(part)}

    def get(
        self, ids: Sequence[str] | None, where: Where | None, limit: int | None
    ) -> dict[str, Passage]:
        """Those of the ids (None: all) that are there and pass the filter; at most `limit`."""
        if ids is None and (where is None or where == {}):
            if limit == 0:
                return {}
            return dict(_passages(self.read(["id", "content"], None, limit)))
        return self.passages(self.matching(ids, where)[:limit])

    def whole(self) -> Iterator[tuple[list[Passage], NDArray[np.float32]]]:
        """All passages and their vectors [n, dim], in parts."""
        ids = self._all()
        for start in range(0, len(ids), _AT_ONCE):
            for part in self.of(ids[start : start + _AT_ONCE], ("content", "vector")):
                yield [passage for _, passage in _passages(part)], matrix_of(part)

    def digests(self, ids: Sequence[str]) -> dict[str, str]:
        """By id what stands for the content of passages."""
        return {
            key: digest
            for part in self.of(ids, ("digest",))
            for key, digest in zip(ids_of(part), part["digest"].to_pylist(), strict=True)
        }


def ids_of(found: Any) -> list[str]:
    """The ids of rows that were read."""
    return decode_all(found["id"].to_pylist())


def _passages(found: Any) -> Iterable[tuple[str, Passage]]:
    for key, content in zip(found["id"].to_pylist(), found["content"].to_pylist(), strict=True):
        yield decode(key), unpack_content(key, content)


def matrix_of(found: Any) -> NDArray[np.float32]:
    """The vectors [n, dim] of rows."""
    column = found["vector"].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    dim = column.type.list_size
    rows: NDArray[np.float32] = np.asarray(flat, np.float32).reshape(len(found), dim)
    return rows


def _cosines(
    query: Query, found: Mapping[str, tuple[NDArray[np.float32], str]]
) -> dict[str, float]:
    """As a directory has them, to the last bit: equal vectors have equal ones."""
    if not found:
        return {}
    rows = np.stack([vector for vector, _ in found.values()])
    return dict(zip(found, query.cosines(rows).tolist(), strict=True))
