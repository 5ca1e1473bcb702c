"""Bring a store up to date with files that are new, changed, unchanged or gone."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.files import sha256_of
from tars_rag.ingest.chunks import Piece, pieces
from tars_rag.ingest.digests import Claim, claim_of, content_of, from_file
from tars_rag.ingest.documents import DocumentReader, Limits
from tars_rag.ingest.files import find
from tars_rag.ingest.ledger import batches
from tars_rag.ingest.record import Record, record_of
from tars_rag.ingest.root import Root
from tars_rag.ingest.stamps import same_date, stamp_of, unchanged
from tars_rag.ingest.vectors import Known
from tars_rag.progress import NamedProgress
from tars_rag.retrieval.indexes.codec import same_content
from tars_rag.retrieval.passage import Passage
from tars_rag.splitting.splitter import Splitter

if TYPE_CHECKING:
    from tars_rag.retrieval.store import HybridStore

_BATCH = 256


@dataclass
class Report:
    """What `ingest` did.

    Attributes:
        indexed: Files read and stored as a whole.
        unchanged: Files that were skipped: same content and chunk settings, all passages present.
        failures: (file, what is wrong with it), several for a JSONL file with several bad rows.
        vanished: Files that were indexed earlier and are gone, below those of the given paths
            that exist.
        ignored: Suffix -> number of files found in directories that are of no known type.
        excluded: Files and directories that .gitignore or patterns leave out.
        written: Passages stored.
        reused: How many of them did not have to be embedded: a moved file, or the same text twice.
        copies: Files with the same content, two or more each.
        kept: Passages of changed files or interrupted runs that were stored already.
        deleted: Passages that are no longer in their file or, when pruning, whose file is gone.
        seconds: Wall time.
    """

    indexed: int = 0
    unchanged: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    excluded: int = 0
    written: int = 0
    reused: int = 0
    copies: list[list[str]] = field(default_factory=list)
    kept: int = 0
    deleted: int = 0
    seconds: float = 0.0


@dataclass
class _File:
    """A file being indexed. It is looked at and hashed before it is read: a later change shows."""

    source: str
    version: str
    stamp: str = ""
    ids: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def ingest(
    store: HybridStore,
    paths: Sequence[Path],
    splitter: Splitter,
    *,
    root: Root | None = None,
    prune: bool = False,
    exclude: Sequence[str] = (),
    limits: Limits | None = None,
    progress: NamedProgress | None = None,
) -> Report:
    """Index files and directories into `store`, as far as they are not indexed yet.

    JSONL files are read row by row; a text or Markdown file is held in memory as a whole. If the
    process is killed, call this again: it continues where it stopped.

    Args:
        store: An open, writable store.
        paths: Files and directories.
        splitter: Cuts long texts.
        root: Sources below it are named as seen from it; given when the first file is indexed,
            and again once that directory has moved. None: as the store has it.
        prune: Delete the passages of files that vanished.
        exclude: What to leave out of directories, as in a .gitignore.
        limits: What a document may cost.
        progress: Told the file being read, bytes done, and bytes in all.

    Raises:
        StoreError: The store or the record of indexed files cannot be written.
    """
    began = perf_counter()
    report = Report()
    found = find(paths, exclude)
    report.ignored, report.excluded = dict(found.ignored), found.excluded
    report.failures += sorted(found.failures.items())
    try:
        with record_of(store) as ledger, DocumentReader(limits) as reader:
            if root is not None:
                ledger.settle(root)
            _Run(store, ledger, splitter, reader, report, progress or _quiet).files(found.files)
            _vanished(store, ledger, paths, report, prune)
            _record_contents(store, ledger)
            report.copies = ledger.copies()
    except sqlite3.Error as error:
        msg = (
            f"The record of indexed files in {store.path} cannot be written ({error}). Make room "
            "on the disk, then run the same command again: it continues where it stopped."
        )
        raise StoreError(msg) from error
    report.seconds = perf_counter() - began
    return report


def nothing_to_ingest(
    paths: Sequence[Path],
    splitter: Splitter,
    *,
    exclude: Sequence[str] = (),
    limits: Limits | None = None,
) -> Report | None:
    """Find out whether no file holds a single passage, before a store is made.

    Returns:
        None if there is a passage; files are read only as far as the first one. Otherwise what
        `ingest` would report.
    """
    found = find(paths, exclude)
    report = Report(ignored=dict(found.ignored), failures=sorted(found.failures.items()))
    report.excluded = found.excluded
    with DocumentReader(limits) as reader:
        for path in found.files:
            try:
                source = Root().name(path)
            except InvalidInputError as error:
                report.failures.append((str(path), str(error)))
                continue
            for piece in pieces(path, splitter, reader, source):
                if piece.problem is None:
                    return None
                report.failures.append((source, piece.problem))
    return report


class _Run:
    """Collects the passages of many files into batches, embeds and stores them."""

    def __init__(
        self,
        store: HybridStore,
        ledger: Record,
        splitter: Splitter,
        reader: DocumentReader,
        report: Report,
        progress: NamedProgress,
    ) -> None:
        self._store, self._ledger, self._splitter = store, ledger, splitter
        self._root = ledger.root
        self._reader = reader
        self._report, self._progress = report, progress
        self._done = 0
        self._batch: list[tuple[_File, Passage]] = []
        self._read: list[_File] = []  # to the end; finished once their last passage is stored

    def files(self, paths: Sequence[Path]) -> None:
        sizes = [_size(path) for path in paths]
        total = sum(sizes)
        for path, size in zip(paths, sizes, strict=True):
            self._progress(path.name, self._done, total)
            try:
                source = self._root.name(path)
                if self._is_as_it_was(path, source):
                    self._report.unchanged += 1
                else:
                    stamp = stamp_of(path)
                    version = f"{_hash(path)} {self._splitter.settings}"
                    self._file(path, _File(source, version, stamp), size, total)
            except InvalidInputError as error:
                self._report.failures.append((str(path), str(error)))
            self._done += size
        self._flush()
        self._progress("", self._done, total)

    def _is_as_it_was(self, path: Path, source: str) -> bool:
        """Whether nothing is to be done for a file, by what the disk says of it."""
        version = self._ledger.version(source) or ""
        _, _, settings = version.partition(" ")
        return (
            settings == self._splitter.settings
            and unchanged(self._ledger.stamp(source), stamp_of(path))
            and self._ledger.is_whole(source, self._store)
        )

    def _file(self, path: Path, file: _File, size: int, total: int) -> None:
        same = self._ledger.version(file.source) == file.version
        same = same and same_date(self._ledger.stamp(file.source), file.stamp)
        if same and self._ledger.is_whole(file.source, self._store):
            self._ledger.restamp(file.source, file.stamp)
            self._report.unchanged += 1
            return
        self._ledger.reopen(file.source)
        for piece in pieces(path, self._splitter, self._reader, file.source):
            self._take(file, piece)
            if len(self._batch) >= _BATCH:
                self._flush()
                self._progress(path.name, self._done + min(piece.position, size), total)
        self._read.append(file)

    def _take(self, file: _File, piece: Piece) -> None:
        if piece.passage is not None:
            self._batch.append((file, piece.passage))
        if piece.problem is not None:
            file.problems.append(piece.problem)

    def _flush(self) -> None:
        self._write(self._batch)
        self._finish([file for file in self._read if not file.problems])
        for file in self._read:
            # A row with a slip may be one that is stored already: delete nothing, look again.
            self._report.failures += [(file.source, problem) for problem in file.problems]
        self._batch, self._read = [], []

    def _write(self, batch: list[tuple[_File, Passage]]) -> None:
        owners = self._ledger.owners(passage.id for _, passage in batch)
        chosen: dict[str, Passage] = {}
        claims: list[Claim] = []
        for file, passage in batch:
            owner = owners.setdefault(passage.id, file.source)
            if owner != file.source and not _gone(self._root.path(owner)):
                file.problems.append(f"the id {passage.id!r} is already used by {owner}")
                continue
            owners[passage.id] = file.source
            file.ids.add(passage.id)
            chosen[passage.id] = ours = from_file(passage, file.source)
            claims.append(claim_of(ours))
        known = Known(self._store, self._ledger)
        known.look_for(chosen.values())  # before the ids are claimed for other texts
        self._ledger.claim(claims)
        stored = {passage.id: passage for passage in self._store.get(ids=list(chosen))}
        fresh = [
            p for p in chosen.values() if p.id not in stored or not same_content(p, stored[p.id])
        ]
        self._report.reused += known.upsert(fresh)
        self._report.written += len(fresh)
        self._report.kept += len(chosen) - len(fresh)

    def _finish(self, files: Sequence[_File]) -> None:
        held = self._ledger.ids(*(file.source for file in files))
        right = {key for file in files for key in file.ids}
        stale = [key for key in held if key not in right]
        self._report.deleted += _delete(self._store, self._ledger, stale)
        for file in files:
            self._ledger.finish(file.source, file.version, file.stamp)
        self._ledger.flush()
        self._report.indexed += len(files)


def _vanished(
    store: HybridStore, ledger: Record, paths: Sequence[Path], report: Report, prune: bool
) -> None:
    # A path that is itself gone may be a drive that is not mounted: nothing below it is pruned.
    tops = [top for top in (path.expanduser().resolve() for path in paths) if not _gone(top)]
    root = ledger.root
    for source in ledger.sources():
        path = root.path(source)
        if not _gone(path) or not any(path.is_relative_to(top) for top in tops):
            continue
        report.vanished.append(source)
    if prune:
        report.deleted += _delete(store, ledger, ledger.ids(*report.vanished))
        for source in report.vanished:
            ledger.reopen(source)


def _record_contents(store: HybridStore, ledger: Record) -> None:
    """Record what those passages hold that were indexed before that was recorded."""
    for ids in batches(ledger.without_content(), 1000):
        held = store.get(ids=list(ids))
        ledger.record_content((content_of(passage.text), passage.id) for passage in held)


def _delete(store: HybridStore, ledger: Record, ids: Sequence[str]) -> int:
    deleted = 0
    for batch in batches(ids, 1000):
        deleted += store.delete(ids=list(batch))
        ledger.release(batch)
    return deleted


def _gone(path: Path) -> bool:
    try:
        return not path.exists()
    except OSError:  # it cannot be looked at, which is something else
        return False


def _hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}. Check its permissions."
        raise InvalidInputError(msg) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # reading it says what is wrong


def _quiet(what: str, done: int, total: int | None) -> None:
    """No progress wanted."""
