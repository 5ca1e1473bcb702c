"""What can be checked of a store in LanceDB: each passage against what is kept beside it."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.codec import decode, unpack_content
from tars_rag.retrieval.indexes.words.analysers import analyser
from tars_rag.retrieval.lance import library, table
from tars_rag.retrieval.lance.access import LanceAccess
from tars_rag.retrieval.lance.told import Named, told
from tars_rag.retrieval.passage import Progress

_AT_ONCE: Final = 1000
_TOLD: Final = 20
_AGAIN: Final = "Delete it (HybridStore.delete), and write it again."


@dataclass
class LanceReport:
    """What `check` found.

    Attributes:
        path: The store's address.
        fingerprint: Of the embedder that made the vectors.
        dimension: Length of the vectors.
        version: Of the table, all of which is of one.
        passages: How many there are.
        unindexed: How many of them are scanned, as the word index has not got them yet.
        problems: What is wrong.
    """

    path: str
    fingerprint: str
    dimension: int | None
    version: int = 0
    passages: int = 0
    unindexed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems


def check(address: str, progress: Progress | None = None) -> LanceReport:
    """Read all of one version, and compare it with what is kept beside it. Nothing is written.

    Raises:
        StoreError: There is no store, or it cannot be read.
    """
    its = told(address)
    if its is None:
        raise StoreError(library.no_store(address))
    report = LanceReport(address, its.fingerprint, its.dimension)
    access = LanceAccess(address, Named(its.fingerprint), read_only=True)
    with contextlib.closing(access), library.asking(access.path, "read"):
        now = access.now()
        assert now is not None
        moment, _ = now
        report.version, report.passages = moment.version, moment.count()
        stats = moment.table.index_stats(table.WORDS_INDEX)
        if stats is None:
            report.problems.append(
                "The word index is missing. Open the store for writing, which makes it."
            )
        else:
            report.unindexed = int(stats.num_unindexed_rows)
        ids = moment.matching(None, None)
        twice = sorted(key for key, times in Counter(ids).items() if times > 1)
        report.problems += [f"{key!r} is there more than once. {_AGAIN}" for key in twice]
        ids = list(dict.fromkeys(ids))
        done = 0
        columns = ("content", "digest", "terms", "vector")
        for start in range(0, len(ids), _AT_ONCE):
            for part in moment.of(ids[start : start + _AT_ONCE], columns):
                report.problems += _wrong(part, its.language)
                done += len(part)
            if progress is not None:
                progress(done, max(done, len(ids)))
        if done != report.passages:
            report.problems.append(
                f"{report.passages} passages are counted, and {done} are found by id."
            )
    more = len(report.problems) - _TOLD
    if more > 0:
        report.problems[_TOLD:] = [f"and {more} more"]
    return report


def _wrong(part: Any, language: str) -> list[str]:
    analysed, problems = analyser(language), []
    rows = np.asarray(part["vector"].combine_chunks().flatten(), np.float32)
    norms = np.linalg.norm(rows.reshape(len(part), -1).astype(np.float64), axis=1)
    columns = (part[name].to_pylist() for name in ("id", "content", "digest", "terms"))
    for key, content, digest, terms, norm in zip(*columns, norms, strict=True):
        name = repr(decode(key))
        if table.digest(content) != digest:
            problems.append(f"{name}: text and metadata are not what was written. {_AGAIN}")
            continue
        if analysed.passage_terms(unpack_content(key, content).indexed) != terms:
            problems.append(f"{name}: its words are not those of its text. {_AGAIN}")
        if not 0 < norm < np.inf:
            problems.append(f"{name}: its vector cannot be compared. {_AGAIN}")
    return problems
