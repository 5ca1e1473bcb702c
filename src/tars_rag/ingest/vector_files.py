"""A store's passages and vectors out to a Parquet file, and in again without embedding them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tars_rag.adapters.foreign import SAME_KIND, cosine_of
from tars_rag.errors import FingerprintError, InvalidInputError, StoreError, StoreLockedError
from tars_rag.files import replacing
from tars_rag.ingest.parquet import About, ParquetReader, ParquetWriter, check_target
from tars_rag.ingest.vector_checks import check_file, check_kind
from tars_rag.progress import Progress
from tars_rag.retrieval.address import is_lance, lance_address
from tars_rag.retrieval.commands import check_command
from tars_rag.retrieval.indexes.codec import same_content, unpack_content
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage.directory import StoreDirectory
from tars_rag.retrieval.storage.layout import read_probe_file, store_path
from tars_rag.retrieval.storage.snapshot import StoreSnapshot, snapshot_beside
from tars_rag.retrieval.storage.store_json import StoreJson, read_store_json
from tars_rag.retrieval.store import HybridStore

_ROWS = 4096


def export_parquet(
    store: str | os.PathLike[str], file: str | os.PathLike[str], progress: Progress | None = None
) -> int:
    """Write the passages of a store and their vectors, as they are at one moment, to a file.

    The store may be open, here or in another process, and be written to meanwhile. The file
    appears when it is whole; one that was there is replaced then.

    Args:
        store: Its directory, or its address in LanceDB.
        file: The Parquet file: see `ingest.parquet` for its columns.
        progress: Called with (done, total) passages.

    Returns:
        How many passages were written.

    Raises:
        ConfigError: The extra ``parquet`` is not installed.
        InvalidInputError: `file` lies in the store, or is there and is no Parquet file.
        StoreError: There is no store, or the file cannot be written.
    """
    target = store_path(Path(file))
    if is_lance(store):
        return _export_lance(str(store), target, progress)
    place = store_path(Path(store))
    if target.is_relative_to(place):
        msg = f"{target} lies in the store that is exported. Give a file elsewhere."
        raise InvalidInputError(msg)
    check_target(target)
    moment = _moment(place)
    its = moment.store
    held = its.probe or read_probe_file(place)
    probe = None if held is None else tuple(held)
    about = About(its.fingerprint, its.model or "", its.language, probe)
    batches = _batches(moment)
    return _write_file(target, about, its.dimension, batches, moment.words.count, progress)


def _export_lance(address: str, target: Path, progress: Progress | None) -> int:
    """The same for a store in LanceDB, of one version of its table."""
    from tars_rag.retrieval.lance.access import LanceAccess
    from tars_rag.retrieval.lance.library import no_store
    from tars_rag.retrieval.lance.told import Named, told

    its = told(address)
    if its is None:
        raise StoreError(no_store(address))
    check_target(target)
    with contextlib.closing(LanceAccess(address, Named(its.fingerprint), read_only=True)) as opened:
        held = opened.probe()
        probe = None if held is None else tuple(map(float, held))
        about = About(its.fingerprint, its.model or "", its.language, probe)
        total = opened.count()
        return _write_file(target, about, its.dimension, opened.whole(), total, progress)


def _batches(moment: StoreSnapshot) -> Iterator[tuple[list[Passage], NDArray[np.float32]]]:
    rows = moment.rows()
    while batch := list(islice(rows, _ROWS)):
        vectors = np.stack([np.frombuffer(row, "<f4") for _, _, row in batch])
        yield [unpack_content(key, content) for key, content, _ in batch], vectors


def _write_file(
    target: Path,
    about: About,
    dimension: int | None,
    batches: Iterator[tuple[list[Passage], NDArray[np.float32]]],
    total: int,
    progress: Progress | None,
) -> int:
    done = 0
    try:
        with replacing(target) as part, ParquetWriter(part, about, dimension) as writer:
            for passages, vectors in batches:
                writer.write(passages, vectors)
                done += len(passages)
                if progress is not None:
                    progress(done, max(done, total))
    except OSError as error:
        msg = (
            f"{target} cannot be written: {error}. Check space and permissions, then repeat the "
            "command; what was there before is untouched."
        )
        raise StoreError(msg) from error
    return done


def import_parquet(
    file: str | os.PathLike[str], store: HybridStore, progress: Progress | None = None
) -> int:
    """Store the passages of a Parquet file with the vectors that it has; nothing is embedded.

    The whole file is checked before anything is written, so that a file which cannot be loaded
    leaves the store as it was. Passages that are there already, with the same text, metadata and
    vector, are left alone: an import that was killed can simply be repeated.

    Args:
        file: Written by `export_parquet`, or by another program with the same columns.
        store: An open, writable store of the embedder that made the vectors.
        progress: Called with (done, total) passages, when they are stored.

    Returns:
        How many passages the file has; all are in the store now.

    Raises:
        ConfigError: The extra ``parquet`` is not installed.
        FingerprintError: Another embedder made the file's vectors.
        InvalidInputError: The file is damaged, or has a row that cannot be stored; the store is as
            it was.
        StoreError: Writing failed; the message says how many passages are in.
    """
    with ParquetReader(store_path(Path(file))) as source:
        check_kind(source, store.fingerprint, store.path)
        check_file(source, store.dimension)
        return _write(source, store, progress)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `load_parquet` did.

    Attributes:
        passages: How many the file has; all are in the store now.
        total: How many the store has.
        fingerprint: Of the embedder that made the vectors.
        model: Its model's name; empty where the file has none.
    """

    passages: int
    total: int
    fingerprint: str
    model: str


def load_parquet(
    file: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    language: str | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """As `import_parquet`, into a directory and without a model: one need not be here.

    A new store is one of the embedder that made the file's vectors, with the model's name, the
    language and the probe that the file has. A file that cannot be loaded makes no store.

    Args:
        file: As in `import_parquet`.
        store: A store's directory, or its address in LanceDB; made if there is none.
        language: Of a new store; None: the file's.
        progress: As in `import_parquet`.

    Raises:
        ConfigError: The extra ``parquet`` is not installed; or the store has another language.
        FingerprintError: As in `import_parquet`.
        InvalidInputError: As in `import_parquet`.
        StoreError: As in `import_parquet`; or the store has to be repaired first, or is open in
            this process: `import_parquet` takes it as it is.
    """
    path = lance_address(str(store)) if is_lance(store) else store_path(Path(store))
    with ParquetReader(store_path(Path(file))) as source:
        about, held = source.about, _held(path)
        if held is not None and not held.ready:
            held = None  # its making was cut short, and begins anew
        if held is not None:
            check_kind(source, held.fingerprint, path)
        check_file(source, None if held is None else held.dimension)
        if held is None:
            language = language or about.language or None
        with HybridStore(path, _MadeElsewhere(about, path), language=language) as opened:
            done = _write(source, opened, progress)
            return Loaded(done, opened.count(), about.fingerprint, about.model)


def _held(path: Path | str) -> StoreJson | None:
    if isinstance(path, Path):
        return read_store_json(path)
    from tars_rag.retrieval.lance.told import told

    return told(path)


class _MadeElsewhere:
    """Stands for the embedder that made a file's vectors, and embeds nothing."""

    def __init__(self, about: About, path: Path | str) -> None:
        self.fingerprint, self.model = about.fingerprint, about.model or None
        self._path = path

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        msg = (
            f"The store {self._path} needs vectors made anew, and loading a file opens no model. "
            f"Repair it first: {check_command(Path(self._path))}"
        )
        raise StoreError(msg)


def _write(source: ParquetReader, store: HybridStore, progress: Progress | None) -> int:
    """Store what is not there yet of a checked file; how many passages it has."""
    fresh, done = store.count() == 0, 0
    _check_probe(source, store, fresh)
    for passages, vectors in source.batches():
        wanted = list(range(len(passages)) if fresh else _changed(store, passages, vectors))
        try:
            if wanted:
                store.upsert([passages[n] for n in wanted], vectors[wanted])
        except StoreError as error:
            msg = (
                f"{error} {done} of the {source.rows} passages of {source.path} are in the "
                "store for certain. Repeat the command: it goes on from there."
            )
            raise StoreError(msg) from error
        done += len(passages)
        if progress is not None:
            progress(done, source.rows)
    return done


def _changed(
    store: HybridStore, passages: Sequence[Passage], vectors: NDArray[np.float32]
) -> Iterator[int]:
    """The rows that the store has not, or with another text, metadata or vector."""
    held = {passage.id: passage for passage in store.get([p.id for p in passages])}
    rows = store.vectors(list(held))
    for n, passage in enumerate(passages):
        if (
            passage.id not in held
            or not same_content(passage, held[passage.id])
            or not np.array_equal(rows.get(passage.id, ()), vectors[n])
        ):
            yield n


def _check_probe(source: ParquetReader, store: HybridStore, empty: bool) -> None:
    """Models whose fingerprints say too little made the same of one fixed text.

    Raises:
        FingerprintError: They did not, or one of them is not known.
    """
    told, known = source.about.probe, store.probe
    if known is None:
        known = getattr(store.embedder, "probe", None)
    if told is None and known is None:
        return
    if told is not None and known is None and empty:
        store.record_probe(np.asarray(told, np.float32))
        return
    both = f"The vectors of {source.path} and of {store.path} are of {store.fingerprint!r}"
    if told is None or known is None:
        which, step = (
            (source.path, "Export it anew from a store that its embeddings have opened.")
            if told is None
            else (store.path, "Open that store once with its embeddings, which records it.")
        )
        msg = (
            f"{both}, which does not say enough, and {which} has no probe (what those embeddings "
            f"make of one fixed text) to compare. {step}"
        )
        raise FingerprintError(msg)
    cosine = cosine_of(np.asarray(told, np.float32), np.asarray(known, np.float32))
    if cosine < SAME_KIND:
        msg = (
            f"{both}, but one text has a cosine of {cosine:.3f} between them, and {SAME_KIND} is "
            "needed: they cannot be mixed. Load the file into another store."
        )
        raise FingerprintError(msg)


def _moment(place: Path) -> StoreSnapshot:
    """The store as it is now, whoever has it open."""
    try:
        directory = StoreDirectory(place, None)
    except StoreLockedError:
        return snapshot_beside(place)
    try:
        with directory.still() as (indexes, tail):
            return StoreSnapshot.of(indexes, tail)
    finally:
        directory.close()
