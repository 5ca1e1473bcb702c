"""What keeps a store quick, done beside the writes by whoever writes: LanceDB's `optimize`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from tars_rag.retrieval.lance.table import WORDS_INDEX, configs

_log = logging.getLogger(__name__)

OLD: Final = timedelta(hours=1)
"""Versions that are older are removed: a search elsewhere that takes longer would be cut off."""
_LOOK_AFTER: Final = 16  # writes
_MOST_ROWS: Final = 1000  # that are in no index, or an eighth of those that are
_MOST_FILES: Final = 64


class Upkeep:
    """Brings the indexes up to date and joins small files, in a thread, where it is due.

    Args:
        opened: Opens the table anew.
    """

    def __init__(self, opened: Callable[[], Any]) -> None:
        self._opened = opened
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._writes = 0

    def written(self) -> None:
        """A write was acknowledged."""
        with self._mutex:
            self._writes += 1
            if self._writes >= _LOOK_AFTER and (
                self._thread is None or not self._thread.is_alive()
            ):
                self._begin()

    def close(self) -> None:
        """Wait for what goes on; look once more if anything was written."""
        with self._mutex:
            if self._writes and (self._thread is None or not self._thread.is_alive()):
                self._begin()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _begin(self) -> None:
        self._writes = 0
        self._thread = threading.Thread(target=self._keep, name="lance-upkeep", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        try:
            table = self._opened()
            if due(table):
                optimise(table)
        except Exception as error:  # another machine may do the same, or come between: next time
            _log.info("the indexes of a store in LanceDB stay as they are for now: %s", error)


def due(table: Any) -> bool:
    """Whether there is much that searches have to scan."""
    its = table.index_stats(WORDS_INDEX)
    if its is None:
        return True
    if its.num_unindexed_rows > max(_MOST_ROWS, its.num_indexed_rows // 8):
        return True
    return scattered(table)


def optimise(table: Any) -> None:
    """Bring the indexes up to date, join files, remove versions that are old."""
    for column, config in configs().items():
        # Made anew: LanceDB takes ten times as long to add to a list index that is there.
        table.create_index(column, config=config, replace=True)
    tidy(table)


def tidy(table: Any) -> None:
    """Join files, remove versions that are old."""
    table.optimize(cleanup_older_than=OLD)


def scattered(table: Any) -> bool:
    """Whether it is in many small files."""
    return int(table.stats()["fragment_stats"]["num_small_fragments"]) > _MOST_FILES
