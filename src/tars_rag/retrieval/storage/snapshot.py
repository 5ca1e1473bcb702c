"""A store as it is at one moment: nothing that is written later changes what was taken hold of.

The word index has the passages, the exact index the vectors, and neither ever changes what was
committed; what is only in the log comes beside them. So a moment is taken in an instant, in the
process that has the store open or beside it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import StoreError
from tars_rag.retrieval.commands import check_command
from tars_rag.retrieval.indexes.codec import decode, encode, pack_content
from tars_rag.retrieval.indexes.exact.index import ExactIndex
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.indexes.words.snapshot import Snapshot
from tars_rag.retrieval.storage.index_set import IndexSet
from tars_rag.retrieval.storage.layout import EXACT, LEXICAL, LOG, SOURCES, open_store_json
from tars_rag.retrieval.storage.recent import read_tail
from tars_rag.retrieval.storage.state import Mark, Moment, read_session, read_state
from tars_rag.retrieval.storage.store_json import StoreJson
from tars_rag.retrieval.storage.tail import Tail
from tars_rag.retrieval.storage.write_ahead_log import WriteAheadLog

_BATCH = 1000
_BESIDE_SECONDS = 60.0
_PAUSE_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class StoreSnapshot:
    """A store at one moment; nothing that is written later changes it."""

    path: Path
    store: StoreJson
    line: tuple[str, ...]
    words: Snapshot
    vectors: Callable[[Sequence[str]], dict[str, NDArray[np.float32]]]
    tail: Tail
    records: dict[str, bytes]

    @classmethod
    def of(cls, indexes: IndexSet, tail: Tail) -> StoreSnapshot:
        """The present one. Nobody may write meanwhile."""
        state = read_state(indexes.path)
        return cls(
            indexes.path,
            indexes.store_json,
            state.line if state else (),
            indexes.lexical.snapshot,
            indexes.exact.vectors_of_now(),
            tail,
            _records(indexes.path),
        )

    def rows(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Encoded id, packed content and vector (float32) of every passage.

        Raises:
            StoreError: One has no vector: the indexes disagree.
        """
        newer = self.tail.held
        contents = self.words.contents()
        while batch := list(islice(contents, _BATCH)):
            kept = [(key, decode(key), content) for key, content in batch]
            kept = [row for row in kept if row[1] not in newer]
            held = self.vectors([passage_id for _, passage_id, _ in kept])
            for key, passage_id, content in kept:
                if passage_id not in held:
                    see = check_command(self.path)
                    msg = f"Passage {passage_id!r} has no vector. Repair the store first: {see}"
                    raise StoreError(msg)
                yield key, content, held[passage_id].astype("<f4").tobytes()
        for passage_id, entry in self.tail.stored.items():
            vector = entry.vector.astype("<f4").tobytes()
            yield encode(passage_id), pack_content(entry.passage), vector


def snapshot_beside(path: Path) -> StoreSnapshot:
    """Of a store that another process has open and may be writing to.

    The exact index is written last, and says which state of the word index it belongs to: as long
    as they fit, they are of one moment. The log is emptied only after that, so what it held while
    the exact index stayed the same is what belongs to it.

    Raises:
        StoreError: The store changes too fast, or is damaged.
    """
    deadline = time.monotonic() + _BESIDE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(StoreError, OSError):  # a file that was replaced meanwhile
            return _beside(path, deadline)
        time.sleep(_PAUSE_SECONDS)
    return _beside(path, time.monotonic() + 1)


def _beside(path: Path, deadline: float) -> StoreSnapshot:
    store_json = open_store_json(path, None, None)
    log = WriteAheadLog(path / LOG, store_json.fingerprint)
    with contextlib.ExitStack() as stack:
        language = store_json.language
        words = stack.enter_context(LexicalIndex(path / LEXICAL, language=language, read_only=True))
        exact = ExactIndex(path / EXACT, store_json.dimension, read_only=True)
        stack.callback(exact.close)
        while time.monotonic() < deadline:
            exact.refresh()
            words.refresh()
            stamp, state = exact.stamp, read_state(path)
            its = Moment(read_session(path / LEXICAL), words.opstamp)
            if Mark.of(stamp).words == its and state is not None:
                records = _records(path)  # before the log: of no file more than the store has
                tail, damage = read_tail(log, store_json.dimension)
                exact_then = exact.vectors_of_now()
                exact.refresh()
                same = read_state(path) == state and open_store_json(path, None, None) == store_json
                if damage is None and exact.stamp == stamp and same:
                    return StoreSnapshot(
                        path, store_json, state.line, words.snapshot, exact_then, tail, records
                    )
            time.sleep(_PAUSE_SECONDS)
    msg = (
        f"The store {path} is open in another process, which changes it too fast for a backup from "
        "here. Call HybridStore.backup there, or try again."
    )
    raise StoreError(msg)


def _records(path: Path) -> dict[str, bytes]:
    """The record of indexed files, if there is one: as it is now, whoever has it open."""
    source = path / SOURCES
    if not source.is_file():
        return {}
    with tempfile.NamedTemporaryFile(prefix="tars-rag-") as copy:
        with (
            contextlib.closing(sqlite3.connect(source)) as old,
            contextlib.closing(sqlite3.connect(copy.name)) as new,
        ):
            old.backup(new)
        return {SOURCES: Path(copy.name).read_bytes()}
