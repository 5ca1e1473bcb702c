"""The texts of a store as its readers see them: Chroma's, or the word index's while it must do.

Embedded Chroma writes even to be read, and a write that was cut short is mended before the next
read. On a full disk neither can be, and reading goes on all the same: the word index holds every
passage whole, and filters are decided here. That is slower, and as right: what was acknowledged is
in both, and of a write that failed each passage is as it was before or after.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tars_rag.errors import StoreError
from tars_rag.files import writing_problem
from tars_rag.retrieval.indexes.chroma import filters
from tars_rag.retrieval.indexes.chroma.filters import Where
from tars_rag.retrieval.indexes.chroma.predicates import predicate
from tars_rag.retrieval.indexes.codec import filterable
from tars_rag.retrieval.indexes.exact.index import ExactIndex
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.passage import Passage

_BATCH = 1000
_ROOM = 64 << 20
_RETRY_S, _MOST_RETRY_S = 1.0, 60.0
_log = logging.getLogger(__name__)


class Texts(Protocol):
    """Who answers for texts and filters."""

    def get(
        self,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        limit: int | None = None,
    ) -> dict[str, Passage]:
        """Passages by id (unknown ones left out) and filter."""

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """Which of the ids (None: of all) exist and pass the filter."""

    def count(self) -> int:
        """Number of passages."""

    def decided(
        self, where: Where | None, others: Mapping[str, Mapping[str, Any]]
    ) -> Callable[[Mapping[str, Any]], bool]:
        """The filter, to be decided on other metadata; see `VectorIndex.decided`."""


class WordTexts:
    """The word index in Chroma's place.

    Args:
        exact: Knows the ids. What it alone has, or has not, is of the write that failed.
        lexical: Has the passages.
    """

    def __init__(self, exact: ExactIndex, lexical: LexicalIndex) -> None:
        self._exact = exact
        self._lexical = lexical

    def get(
        self,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        limit: int | None = None,
    ) -> dict[str, Passage]:
        """See `Texts`."""
        return {p.id: p for p in islice(self._passing(ids, where), limit)}

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """See `Texts`."""
        return [passage.id for passage in self._passing(ids, where)]

    def count(self) -> int:
        """See `Texts`."""
        return sum(1 for _ in self._passing(None, None))

    def decided(
        self, where: Where | None, others: Mapping[str, Mapping[str, Any]]
    ) -> Callable[[Mapping[str, Any]], bool]:
        """See `Texts`."""
        return predicate(filters.parse(where)) if where else lambda _: True

    def _passing(self, ids: Sequence[str] | None, where: Where | None) -> Iterator[Passage]:
        passes = predicate(filters.parse(where)) if where else None
        keys = self._exact.ids() if ids is None else ids
        for start in range(0, len(keys), _BATCH):
            held = self._lexical.passages(keys[start : start + _BATCH])
            for key in keys[start : start + _BATCH]:
                if key in held and (passes is None or passes(filterable(held[key]))):
                    yield held[key]


class FullDisk:
    """Whether a store's disk has no room to mend it, and when that is to be tried again.

    Args:
        path: The store's directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._again = 0.0
        self._wait = _RETRY_S

    @property
    def waits(self) -> bool:
        """Whether mending failed a short while ago, and is not to be tried before each read."""
        return time.monotonic() < self._again

    def is_to_blame(self) -> bool:
        """Whether an error that was just raised can be the disk's; then mending waits."""
        problem = writing_problem(self._path, _ROOM)
        if problem is None:
            return False
        _log.warning("%s: %s: it is read as it is, and mended later", self._path, problem)
        self._again, self._wait = time.monotonic() + self._wait, min(2 * self._wait, _MOST_RETRY_S)
        return True

    def has_room(self) -> None:
        """What had to be written was."""
        self._again, self._wait = 0.0, _RETRY_S

    def named(self, error: StoreError) -> StoreError:
        """The error of a write, or one that names the disk, if that has no room."""
        problem = writing_problem(self._path, _ROOM) if type(error) is StoreError else None
        if problem is None:
            return error
        msg = (
            f"Writing to the store {self._path} failed: {problem}. Nothing that was acknowledged "
            "is lost, and it can be read. Make room, then repeat what failed: "
            f"df {self._path} ({error})"
        )
        return StoreError(msg)


class ReadableTexts:
    """Chroma's texts, and the word index's where the disk is too full even for reading Chroma.

    Args:
        chroma: Chroma.
        words: What stands in for it.
        disk: The store's.
    """

    def __init__(self, chroma: Texts, words: WordTexts, disk: FullDisk) -> None:
        self._chroma, self._words, self._disk = chroma, words, disk

    def get(
        self,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        limit: int | None = None,
    ) -> dict[str, Passage]:
        """See `Texts`."""
        try:
            return self._chroma.get(ids, where, limit)
        except StoreError:
            if not self._disk.is_to_blame():
                raise
            return self._words.get(ids, where, limit)

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """See `Texts`."""
        try:
            return self._chroma.matching(ids, where)
        except StoreError:
            if not self._disk.is_to_blame():
                raise
            return self._words.matching(ids, where)

    def count(self) -> int:
        """See `Texts`."""
        try:
            return self._chroma.count()
        except StoreError:
            if not self._disk.is_to_blame():
                raise
            return self._words.count()

    def decided(
        self, where: Where | None, others: Mapping[str, Mapping[str, Any]]
    ) -> Callable[[Mapping[str, Any]], bool]:
        """See `Texts`."""
        try:
            return self._chroma.decided(where, others)
        except StoreError:
            if not self._disk.is_to_blame():
                raise
            return self._words.decided(where, others)
