"""The texts of a store as its readers see them: Chroma's, or the word index's while it must do.

Embedded Chroma writes even to be read, and a write that was cut short is mended before the next
read. On a full disk neither can be, and reading goes on all the same: the word index holds every
passage whole, and filters are decided here. That is slower, and as right: what was acknowledged is
in both, and of a write that failed each passage is as it was before or after.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

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
_ROOM, _LEAST_ROOM = 64 << 20, 2 << 20
_RETRY_S, _MOST_RETRY_S = 1.0, 60.0
T = TypeVar("T")
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

    In a directory that was moved every write fails: whether it is still there is asked first.

    Args:
        path: The store's directory.
        check_in_place: Raises an error that says so if that is not the store's any more.
    """

    def __init__(self, path: Path, check_in_place: Callable[[], None]) -> None:
        self._path = path
        self._check_in_place = check_in_place
        self._again = 0.0
        self._wait = _RETRY_S

    @property
    def waits(self) -> bool:
        """Whether mending failed a short while ago, and is not to be tried before each read."""
        return time.monotonic() < self._again

    @property
    def is_tight(self) -> bool:
        """Whether there is so little room that Chroma is not to be tried: it might never answer."""
        try:
            status = os.statvfs(self._path)
        except OSError:
            return False
        # Where no blocks are told, nothing is known of the room.
        return 0 <= status.f_bavail * status.f_frsize < _LEAST_ROOM and status.f_blocks > 0

    def _check_room(self) -> None:
        """Refuse a write that could only fail half-way.

        Raises:
            StoreError: The disk is full.
        """
        if self.is_tight:
            msg = f"less than {_LEAST_ROOM >> 20} MB are free, and Chroma needs that to write"
            raise StoreError(msg)

    def is_to_blame(self) -> bool:
        """Whether an error that was just raised can be the disk's; then mending waits.

        Raises:
            StoreError: It comes of the directory's having been moved.
        """
        problem = self._problem()
        if problem is None:
            return False
        _log.warning("%s: %s: it is read as it is, and mended later", self._path, problem)
        self._again, self._wait = time.monotonic() + self._wait, min(2 * self._wait, _MOST_RETRY_S)
        return True

    @contextlib.contextmanager
    def excusing(self, give_up: Callable[[], None]) -> Iterator[None]:
        """Mend while the block runs; if the disk has no room for that, it is put off.

        Args:
            give_up: Called then.
        """
        try:
            yield
        except StoreError:
            if not self.is_to_blame():
                raise
            give_up()

    @contextlib.contextmanager
    def named_in_errors(self, give_up: Callable[[], None]) -> Iterator[None]:
        """Write while the block runs; an error names the disk, if that is full.

        Args:
            give_up: Called then.
        """
        try:
            self._check_room()
            yield
        except StoreError as error:
            problem = self._problem() if type(error) is StoreError else None
            if problem is None:
                raise
            give_up()
            msg = (
                f"Writing to the store {self._path} failed: {problem}. Nothing that was "
                "acknowledged is lost, and it can be read. Check space and permissions (df "
                f"{self._path}, ls -ld {self._path}), then repeat what failed. ({error})"
            )
            raise StoreError(msg) from error
        self._again, self._wait = 0.0, _RETRY_S

    def _problem(self) -> str | None:
        self._check_in_place()
        return writing_problem(self._path, _ROOM)


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
        return self._answer(lambda texts: texts.get(ids, where, limit))

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """See `Texts`."""
        return self._answer(lambda texts: texts.matching(ids, where))

    def count(self) -> int:
        """See `Texts`."""
        return self._answer(lambda texts: texts.count())

    def decided(
        self, where: Where | None, others: Mapping[str, Mapping[str, Any]]
    ) -> Callable[[Mapping[str, Any]], bool]:
        """See `Texts`."""
        return self._answer(lambda texts: texts.decided(where, others))

    def _answer(self, question: Callable[[Texts], T]) -> T:
        if self._disk.is_tight:
            return question(self._words)
        try:
            return question(self._chroma)
        except StoreError:
            if not self._disk.is_to_blame():
                raise
            return question(self._words)
