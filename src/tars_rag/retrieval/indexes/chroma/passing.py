"""Which passages pass a filter: asked of Chroma, and remembered until something is written."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.chroma import filter_plan, filters
from tars_rag.retrieval.indexes.chroma.errors import check_of
from tars_rag.retrieval.indexes.chroma.filter_plan import Doubt
from tars_rag.retrieval.indexes.chroma.filters import Condition, Where
from tars_rag.retrieval.indexes.chroma.predicates import Predicate, predicate

Ask: TypeAlias = Callable[["dict[str, Any] | None", "int | None"], "list[str]"]
"""The ids that Chroma finds for an encoded filter (None: all), at most so many (None: all)."""

_MOST_IDS = 200_000
_MOST_FILTERS = 64


class Passing:
    """Filters of one collection, and the ids that pass them.

    Any number of threads may ask at once; `written` and `deleted` are called by the one that
    writes, while nobody asks.

    Args:
        ask: Asks Chroma.
        place: Where that is, for messages.
        remembers: Whether nobody else writes to the collection, so that answers may be kept.
        holds_lists: Whether the collection's passages were written with their lists.
    """

    def __init__(self, ask: Ask, place: str, *, remembers: bool, holds_lists: bool) -> None:
        self.holds_lists = holds_lists
        self._ask = ask
        self._place = place
        self._remembers = remembers
        self._kept: dict[str, dict[str, None]] = {}
        self._settled: set[str] = set()
        self._mutex = threading.Lock()

    def condition(self, where: Where | None) -> Condition | None:
        """The filter, if it is one and Chroma's answer to it will be right.

        Raises:
            InvalidInputError: It is not.
            StoreError: The collection is older than filters on lists.
        """
        if where is None or where == {}:
            return None
        condition = filters.parse(where)
        used = {test.operator for test in filters.tests(condition)}
        if not self.holds_lists and used & set(filters.LISTS):
            msg = (
                f"{' and '.join(sorted(used & set(filters.LISTS)))} cannot be answered yet: the "
                "store was written by an earlier tars-rag, which kept lists from the filters. "
                f"Bring it up to date: {check_of(self._place, repair=True)}"
            )
            raise StoreError(msg)
        doubts = filter_plan.doubts(condition)
        if doubts:
            self._settle(filter_plan.any_of([doubt.condition for doubt in doubts]), doubts)
        return condition

    def decided(self, where: Where | None, others: Mapping[str, Mapping[str, Any]]) -> Predicate:
        """The filter, to be decided on metadata that Chroma does not hold.

        Args:
            where: The filter; None: everything passes.
            others: By id, all metadata (see `codec.filterable`) that it will be asked of.

        Raises:
            InvalidInputError: The filter cannot be answered, by Chroma or of these.
            StoreError: As for `condition`.
        """
        condition = self.condition(where)
        if condition is None:
            return lambda _: True
        for doubt in filter_plan.doubts(condition):
            doubtful = predicate(doubt.condition)
            for passage_id, metadata in others.items():
                if doubtful(metadata):
                    raise doubt.error(passage_id)
        return predicate(condition)

    def ids(self, condition: Condition) -> dict[str, None]:
        """The ids that pass, as the keys of a dict that is not to be changed."""
        key = json.dumps(filter_plan.encoded(condition))
        known = self._kept.get(key)
        if known is not None:
            return known
        if filter_plan.fits(condition):
            found = dict.fromkeys(self._ask(filter_plan.encoded(condition), None))
        else:
            found = dict.fromkeys(sorted(filter_plan.decide(condition, self._asked, self._all)))
        self._keep(key, found)
        return found

    def written(self) -> None:
        """Passages were written: forget what was found."""
        self._kept.clear()
        self._settled.clear()

    def deleted(self, ids: Iterable[str]) -> None:
        """Passages were deleted; the others pass what they passed."""
        for passage_id in ids:
            for found in self._kept.values():
                found.pop(passage_id, None)

    def _settle(self, any_doubt: Condition, doubts: Sequence[Doubt]) -> None:
        """Raise if there is a passage for which Chroma's answer could be wrong."""
        key = json.dumps(filter_plan.encoded(any_doubt))
        if key in self._settled:
            return
        if self._first(any_doubt) is None:
            if self._remembers and len(self._settled) < _MOST_FILTERS:
                self._settled.add(key)
            return
        for doubt in doubts:
            passage_id = self._first(doubt.condition)
            if passage_id is not None:
                raise doubt.error(passage_id)

    def _keep(self, key: str, found: dict[str, None]) -> None:
        if not self._remembers or len(found) > _MOST_IDS:
            return
        with self._mutex:
            self._kept[key] = found
            while len(self._kept) > _MOST_FILTERS or sum(map(len, self._kept.values())) > _MOST_IDS:
                del self._kept[next(iter(self._kept))]

    def _asked(self, condition: Condition) -> set[str]:
        return set(self._ask(filter_plan.encoded(condition), None))

    def _all(self) -> set[str]:
        return set(self._ask(None, None))

    def _first(self, condition: Condition) -> str | None:
        if not filter_plan.fits(condition):
            return min(filter_plan.decide(condition, self._asked, self._all), default=None)
        return next(iter(self._ask(filter_plan.encoded(condition), 1)), None)
