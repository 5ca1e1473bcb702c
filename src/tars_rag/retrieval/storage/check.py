"""Do the indexes of a store agree, are its files whole, and what can be mended."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.chroma.files import Seal
from tars_rag.retrieval.indexes.chroma.layout import DATABASE
from tars_rag.retrieval.indexes.chroma.layout import problem as database_problem
from tars_rag.retrieval.indexes.chroma.requests import operation_timeout
from tars_rag.retrieval.indexes.chroma.vectors import VectorIndex
from tars_rag.retrieval.indexes.codec import matches
from tars_rag.retrieval.indexes.exact.index import ExactIndex
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.passage import Progress
from tars_rag.retrieval.storage import halves, layout
from tars_rag.retrieval.storage.directory import StoreDirectory
from tars_rag.retrieval.storage.journal import Journal
from tars_rag.retrieval.storage.lock import StoreLock
from tars_rag.retrieval.storage.moments import moments
from tars_rag.retrieval.storage.opening import exact_damage, lexical_damage, open_vectors
from tars_rag.retrieval.storage.recent import read_tail
from tars_rag.retrieval.storage.state import Mark, read_state
from tars_rag.retrieval.storage.store_json import StoreJson
from tars_rag.retrieval.storage.write_ahead_log import WriteAheadLog


@dataclass
class StoreReport:
    """What `check_store` found.

    Attributes:
        path: The store's directory.
        fingerprint: Of the embedder that made the vectors.
        dimension: Length of the vectors; None: none stored yet.
        passages: In Chroma (texts, metadata, vectors); None: it could not be read.
        exact_passages: In the exact vector index; None: it could not be read.
        lexical_passages: In the lexical index; None: it could not be read.
        problems: What is wrong now, each with what to do about it.
        repaired: What was wrong and has been mended.
        notes: What is not wrong but good to know.
    """

    path: Path
    fingerprint: str = ""
    dimension: int | None = None
    passages: int | None = None
    exact_passages: int | None = None
    lexical_passages: int | None = None
    problems: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing is wrong (any more)."""
        return not self.problems


def check_store(
    path: str | Path, repair: bool = False, progress: Progress | None = None
) -> StoreReport:
    """Compare every passage of the indexes, and every vector with its sketch.

    Without `repair` nothing is written, save that SQLite undoes what a process that died had not
    committed. With it they are made to agree (see `halves`); damaged vectors need an
    embedder, so they are left to `reembed`.

    Args:
        path: The store's directory.
        repair: Mend what can be mended.
        progress: Called with (done, total) passages.

    Raises:
        StoreLockedError: Another process has the store open; the message names its pid.
        StoreError: There is no store at `path`.
    """
    directory = layout.store_path(path)
    report = _inspect(directory, progress)
    if not repair or report.ok:
        return report
    try:
        opened = StoreDirectory(directory, None, progress=progress, salvage=True)
        try:
            with opened.writing() as indexes:
                halves.mend(indexes, halves.BOTH, None, progress)
        finally:
            opened.close()
    except StoreError as error:
        report.problems.append(f"Not repaired: {error}")
        return report
    after = _inspect(directory, progress)
    after.repaired = [problem for problem in report.problems if problem not in after.problems]
    return after


def _inspect(directory: Path, progress: Progress | None) -> StoreReport:
    layout.prepare_directory(directory, create=False)
    report = StoreReport(directory)
    lock = StoreLock(directory / layout.LOCK, read_only=True)
    try:
        store_json = layout.open_store_json(directory, None, None)
        lock.acquire(shared=True, seconds=operation_timeout() if store_json.chroma_url else None)
        report.fingerprint, report.dimension = store_json.fingerprint, store_json.dimension
        _inspect_log(directory, store_json, report)
        if store_json.ready:
            _inspect_indexes(directory, store_json, lock, report, progress)
        else:
            report.problems.append("The store was never finished: open it once for writing.")
        if store_json.reembedding:
            report.notes.append(
                f"A change of embedder to {store_json.reembedding['fingerprint']!r} was begun: "
                "call it again and it goes on where it was. The old vectors are in use."
            )
    finally:
        lock.close()
    return report


def _inspect_indexes(
    directory: Path,
    store_json: StoreJson,
    lock: StoreLock,
    report: StoreReport,
    progress: Progress | None,
) -> None:
    say = report.problems.append
    intent = Journal(directory / layout.JOURNAL).pending()
    if intent is not None:
        what = "its journal is torn" if intent.ids is None else f"{len(intent.ids)} ids in flight"
        say(
            f"A write was interrupted ({what}): open the store for writing, or {_repair(directory)}"
        )
    with contextlib.ExitStack() as stack:
        vectors = _open_vectors(directory, store_json, lock, report)
        if vectors is not None:
            stack.callback(vectors.close)
            if not _check_vectors(vectors, store_json, report):
                vectors = None
        exact = _open_exact(directory, store_json, report)
        if exact is not None:
            stack.callback(exact.close)
            report.exact_passages = exact.count()
        lexical = _open_lexical(directory, store_json.language, report)
        if lexical is not None:
            stack.callback(lexical.close)
            report.lexical_passages = lexical.count()
        state = read_state(directory)
        now = moments(directory, store_json, lexical.opstamp if lexical else None)
        behind = halves.behind(directory, state, now)
        if behind:
            say(f"{behind} To go on without them: {_repair(directory)}")
        if vectors is None:
            return
        found = halves.compare(vectors, exact, lexical, progress)
        its = halves.right(directory, state, Mark.of(exact.stamp if exact else ""), now)
        right = its or halves.BOTH
        whole = exact is not None and lexical is not None
        if its is not None and whole and not found.ids and intent is None:
            report.notes.append(
                "The indexes were not written here, or not together (a copy?), but agree: the "
                "next opening for writing records that."
            )
        if found.ids:
            say(
                f"The indexes disagree about {len(found.ids)} passages: "
                f"{'; '.join(found.told(right))}. By: {_repair(directory)}"
            )


def _inspect_log(directory: Path, store_json: StoreJson, report: StoreReport) -> None:
    try:
        tail, damage = read_tail(
            WriteAheadLog(directory / layout.LOG, store_json.fingerprint), store_json.dimension
        )
    except OSError as error:
        report.problems.append(f"The log of small writes cannot be read: {error}. Check the disk.")
        return
    if damage:
        report.problems.append(
            f"The log of small writes is damaged ({damage}). To go on with what can be read of it: "
            f"{_repair(directory)}"
        )
    elif len(tail):
        report.notes.append(
            f"{len(tail)} passages were written or deleted last, and are in the log as yet: the "
            "store has them, and its next opening brings them into the indexes."
        )


def _open_vectors(
    directory: Path, store_json: StoreJson, lock: StoreLock, report: StoreReport
) -> VectorIndex | None:
    """Chroma, if opening it is safe: it does not survive truncated vector files."""
    if store_json.chroma_url is None:
        damaged = Seal(directory / layout.SEAL, directory / layout.CHROMA).damage()
        problem = database_problem(directory / layout.CHROMA / DATABASE)
        if problem:
            report.problems.append(
                f"The texts are damaged ({problem}): restore the directory from a backup, or "
                "index the sources again."
            )
        if damaged:
            lost = exact_damage(directory) is not None  # it has the same vectors
            fix = store_json.reembed_command(directory) if lost else _repair(directory)
            report.problems.append(
                f"The vectors are damaged ({damaged.problem}), the texts are kept apart: make them "
                f"anew: {fix}"
            )
        if problem or damaged:
            return None
    try:
        return open_vectors(directory, store_json, store_json.chroma_url, lock, read_only=True)
    except StoreError as error:
        report.problems.append(str(error))
        return None


def _check_vectors(vectors: VectorIndex, store_json: StoreJson, report: StoreReport) -> bool:
    """Whether they could be read, be they right or wrong."""
    try:
        report.passages = vectors.count()
        wrong = [
            passage.id
            for batch in vectors.scan(vectors=True)
            for passage, vector, sketch in batch
            if not matches(vector, sketch)
        ]
    except StoreError as error:
        report.problems.append(str(error))
        return False
    if wrong:
        report.problems.append(
            f"{len(wrong)} vectors are not the ones that were stored ({halves.some(wrong)}): make "
            f"the vectors anew: {store_json.reembed_command(report.path)}"
        )
    return True


def _open_exact(directory: Path, store_json: StoreJson, report: StoreReport) -> ExactIndex | None:
    problem = exact_damage(directory)
    if problem is None:
        exact = ExactIndex(directory / layout.EXACT, store_json.dimension, read_only=True)
        if Mark.of(exact.stamp).collection == store_json.collection:
            return exact
        exact.close()
        problem = "it is not of the store's present vectors"
    report.problems.append(
        f"The vector index must be made anew ({problem}): open the store for writing, or "
        f"{_repair(directory)}"
    )
    return None


def _open_lexical(directory: Path, language: str, report: StoreReport) -> LexicalIndex | None:
    problem = lexical_damage(directory, language)
    if problem is None:
        return LexicalIndex(directory / layout.LEXICAL, language=language, read_only=True)
    report.problems.append(
        f"The lexical index is damaged ({problem}): open the store for writing, or "
        f"{_repair(directory)}"
    )
    return None


def _repair(directory: Path) -> str:
    return f"tars-rag store check {shlex.quote(str(directory))} --repair"
