"""Move a Chroma directory in that LangChain's or LlamaIndex's own Chroma store has made.

The directory is copied and the copy is opened, by the Chroma of this package in a process of its
own: Chroma brings older directories to its own version when it opens them, and the original is to
stay as it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.ingest.chroma_records import Record, as_passage
from tars_rag.progress import Progress
from tars_rag.retrieval.indexes.chroma.client import ChromaError
from tars_rag.retrieval.indexes.chroma.process import ChromaProcess
from tars_rag.retrieval.indexes.codec import same_content
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage.layout import store_path

if TYPE_CHECKING:
    from tars_rag.retrieval.store import HybridStore

_DATABASE: Final = "chroma.sqlite3"
_BATCH: Final = 256
_SAMPLE: Final = 64
_EXACT: Final = (0.9999, 0.999)
"""Least mean and least single cosine of the sample for models of the class `exact`, which agree to
0.999999. See docs/architecture.md on fingerprints."""
_OTHER: Final = (0.99, 0.9)
"""The same for other models; dynamically quantised vectors depend on their batch."""


@dataclass(frozen=True)
class ImportedCollection:
    """What `import_chroma` did.

    Attributes:
        collection: Its name.
        documents: Documents that are in the store now.
        reused: Vectors taken over.
        recomputed: Documents embedded anew.
        unchanged: Documents that were in the store already, with the same text and metadata.
        without_text: Records that have no text (images, say) and were left out.
        reason: Why documents were embedded anew; empty if none was.
    """

    collection: str
    documents: int = 0
    reused: int = 0
    recomputed: int = 0
    unchanged: int = 0
    without_text: int = 0
    reason: str = ""


def import_chroma(
    directory: str | os.PathLike[str],
    store: HybridStore,
    *,
    collection: str | None = None,
    progress: Progress | None = None,
) -> ImportedCollection:
    """Put the documents of a Chroma collection into `store`; doing it again changes nothing.

    Ids and metadata are kept. Nodes that LlamaIndex stored come back as nodes through
    `tars_rag.llama_index.TarsVectorStore`. The vectors are used if an evenly spaced sample of 64
    documents, embedded again, agrees with them; otherwise all documents are embedded anew.

    Args:
        directory: The one that was given to Chroma as `persist_directory` or `path`. It is read
            only; no program may write to it meanwhile.
        store: An open, writable store.
        collection: Its name; None: the only one that holds anything.
        progress: Called with (documents done, documents in all).

    Raises:
        InvalidInputError: The directory is no Chroma's, there is no such collection or more than
            one to choose from, or a document cannot be stored.
        StoreError: The copy or the store cannot be written.
    """
    source = check_chroma(directory)
    with _opened(source) as client:
        name, records = _chosen(client, source, collection)
        total = records.count()
        usable, reason = _agreement(records, total, store)
        report = ImportedCollection(name, reason=reason)
        for start in range(0, total, _BATCH):
            report = _store(records.read(start, _BATCH), store, usable, report)
            if progress is not None:
                progress(min(start + _BATCH, total), total)
    return report


def check_chroma(directory: str | os.PathLike[str]) -> Path:
    """The absolute path of a Chroma directory.

    Raises:
        InvalidInputError: It is none, or that of a tars-rag store.
    """
    source = store_path(Path(directory))
    if (source / "store.json").is_file() or (source.parent / "store.json").is_file():
        msg = f"{source} belongs to a tars-rag store already: open it instead of importing it."
        raise InvalidInputError(msg)
    if not (source / _DATABASE).is_file():
        msg = (
            f"{source} is not a Chroma directory: it has no {_DATABASE}. Give the directory that "
            "was Chroma's persist_directory (or PersistentClient's path)."
        )
        raise InvalidInputError(msg)
    return source


class _Records:
    """A collection of a Chroma."""

    def __init__(self, client: ChromaProcess, name: str) -> None:
        self._collection = client.get_collection(name)

    def count(self) -> int:
        with self._collection.asking("count") as answer:
            return int(answer())

    def read(self, offset: int, limit: int) -> list[Record]:
        include = ["documents", "metadatas", "embeddings"]
        with self._collection.asking("get", offset=offset, limit=limit, include=include) as answer:
            found = answer()
        vectors = found["embeddings"]
        return [
            Record(
                key, text, dict(sorted((metadata or {}).items())), np.asarray(vector, np.float32)
            )
            for key, text, metadata, vector in zip(
                found["ids"], found["documents"], found["metadatas"], vectors, strict=True
            )
        ]


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[ChromaProcess]:
    """A Chroma on a copy of the directory."""
    with tempfile.TemporaryDirectory(prefix="tars-rag-import-") as temporary:
        copy = Path(temporary) / "chroma"
        before = _state(source)
        try:
            shutil.copytree(source, copy)
        except (OSError, shutil.Error) as error:
            msg = (
                f"{source} cannot be copied to {temporary}: {error}. Make room there, or name a "
                "directory on a larger disk in the environment variable TMPDIR."
            )
            raise StoreError(msg) from error
        if _state(source) != before:
            msg = f"{source} was written to while it was copied. End the program that has it open."
            raise InvalidInputError(msg)
        held = os.open(copy, os.O_RDONLY)  # stands for the lock that the process keeps
        client = None
        try:
            client = ChromaProcess(copy, held, 1)
            yield client
        except ChromaError as error:
            msg = f"Chroma cannot read {source}: {error}"
            raise InvalidInputError(msg) from error
        finally:
            if client is not None:
                client.close()
            os.close(held)


def _state(directory: Path) -> list[tuple[str, int, int]]:
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]


def _chosen(client: ChromaProcess, source: Path, wanted: str | None) -> tuple[str, _Records]:
    names = sorted(client.collection_names())
    if wanted is not None and wanted not in names:
        msg = f"{source} has no collection {wanted!r}. It has: {', '.join(names) or 'none'}."
        raise InvalidInputError(msg)
    counts = {name: _Records(client, name).count() for name in names if wanted in (None, name)}
    full = [name for name in counts if counts[name] or name == wanted]
    if not full:
        msg = f"{source} holds no documents, so there is nothing to import."
        raise InvalidInputError(msg)
    if len(full) > 1:
        held = ", ".join(f"{name} ({counts[name]})" for name in full)
        msg = f"{source} has several collections: {held}. Name one: --collection {full[0]}"
        raise InvalidInputError(msg)
    return full[0], _Records(client, full[0])


def _agreement(records: _Records, total: int, store: HybridStore) -> tuple[bool, str]:
    """Whether the store's embedder makes the same vectors, and why not."""
    rows = np.unique(np.linspace(0, max(total - 1, 0), min(_SAMPLE, total)).astype(int))
    sample = [record for row in rows for record in records.read(int(row), 1) if _sound(record)]
    if not sample:
        return False, "its vectors are all zero, or its records have no text" if total else ""
    passages = [as_passage(record) for record in sample]
    again = np.asarray(store.embedder.embed([passage.indexed for passage in passages]), np.float32)
    vectors = np.stack([record.vector for record in sample])
    if again.shape != vectors.shape:
        return False, f"its vectors have {vectors.shape[1]} numbers, this model's {again.shape[1]}"
    cosines = np.einsum("ij,ij->i", _unit(vectors), _unit(again))
    least_mean, least = _EXACT if store.fingerprint.endswith(":exact") else _OTHER
    if cosines.mean() < least_mean or cosines.min() < least:
        return False, (
            f"{len(sample)} documents embedded again agree with its vectors at a mean cosine of "
            f"{cosines.mean():.4f} only"
        )
    return True, ""


def _store(
    batch: Sequence[Record], store: HybridStore, usable: bool, report: ImportedCollection
) -> ImportedCollection:
    written = [(record, as_passage(record)) for record in batch if record.text is not None]
    held = {passage.id: passage for passage in store.get([p.id for _, p in written])}
    new = [(r, p) for r, p in written if p.id not in held or not same_content(p, held[p.id])]
    kept = [(record, passage) for record, passage in new if usable and _sound(record)]
    anew: list[Passage] = [p for record, p in new if not (usable and _sound(record))]
    if kept:
        vectors = _unit(np.stack([record.vector for record, _ in kept]))
        store.upsert([passage for _, passage in kept], vectors)
    if anew:
        store.upsert(anew)
    reason = report.reason
    if usable and anew:
        reason = "some of its vectors are zero or not numbers"
    return ImportedCollection(
        report.collection,
        documents=report.documents + len(written),
        reused=report.reused + len(kept),
        recomputed=report.recomputed + len(anew),
        unchanged=report.unchanged + len(written) - len(new),
        without_text=report.without_text + len(batch) - len(written),
        reason=reason,
    )


def _sound(record: Record) -> bool:
    """Whether it has a text, and a vector that can be compared with it."""
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(np.linalg.norm(record.vector))
    return record.text is not None and 1e-6 < norm < float("inf")


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
