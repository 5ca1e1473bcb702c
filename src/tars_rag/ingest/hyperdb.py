"""Migration from py-tars' memory worker, whose HyperDB kept its memory in a pickle.

A pickle is a program, which is never run: see `plain_pickle`. The array is put together here, from
bytes, and what is small in the file and huge in memory is refused.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError
from tars_rag.ingest import plain_pickle
from tars_rag.progress import Progress
from tars_rag.retrieval.passage import Passage

if TYPE_CHECKING:
    from tars_rag.retrieval.store import HybridStore

MAX_BYTES: Final = 1 << 30
MAX_DOCUMENTS: Final = 1_000_000
MAX_DOCUMENT: Final = 1 << 24
"""Characters of one document, written out as JSON."""
MAX_DEPTH: Final = 50
MAX_DIMENSION: Final = 1 << 14
_SAMPLE: Final = 64
_BATCH: Final = 512
# FP16 on the NPU against FP32 here: mean cosine 0.999999. Another model, or a ruined one, is far
# below; see docs/architecture.md on fingerprints.
_MEAN_COSINE: Final = 0.9999
_LEAST_COSINE: Final = 0.999

Document = str | dict[str, Any]


@dataclass(frozen=True)
class Memory:
    """What a HyperDB file holds.

    Attributes:
        documents: Texts, or exchanges with ``user_input`` and ``bot_response``.
        vectors: float32 [documents, dim]; None where the file has none that fit its documents.
    """

    documents: list[Document]
    vectors: NDArray[np.float32] | None


@dataclass(frozen=True)
class Imported:
    """What `import_hyperdb` did.

    Attributes:
        documents: Documents in the file, all of them in the store now.
        reused: Vectors taken over from the file.
        recomputed: Documents embedded anew.
        reason: Why some were embedded anew; empty if none was.
    """

    documents: int
    reused: int
    recomputed: int
    reason: str


def import_hyperdb(
    memory: Memory, store: HybridStore, progress: Progress | None = None
) -> Imported:
    """Put the memory of py-tars into `store`; importing it again changes nothing.

    Its vectors are used if they have the store's dimension and an evenly spaced sample of
    documents, embedded again, agrees with them (mean cosine >= 0.9999, none below 0.999). Single
    vectors that are no direction at all (the memory worker stored zeros when its NPU failed) are
    computed anew in any case.

    Args:
        memory: What `load_hyperdb` read.
        store: An open, writable store.
        progress: Called with (documents done, documents in all).

    Raises:
        StoreError: The store cannot be written.
    """
    passages = _passages(memory.documents)
    usable, reason = _usable(memory.vectors, passages, store)
    done = reused = 0
    for start in range(0, len(passages), _BATCH):
        rows = range(start, min(start + _BATCH, len(passages)))
        kept = [row for row in rows if usable[row]]
        if kept and memory.vectors is not None:
            store.upsert([passages[row] for row in kept], vectors=_unit(memory.vectors[kept]))
        if anew := [passages[row] for row in rows if not usable[row]]:
            store.upsert(anew)
        reused += len(kept)
        done += len(rows)
        if progress:
            progress(done, len(passages))
    return Imported(len(passages), reused, len(passages) - reused, reason)


def load_hyperdb(path: Path, max_bytes: int = MAX_BYTES) -> Memory:
    """Read a HyperDB file without running anything that it says.

    Args:
        path: A pickle of ``{"vectors": ndarray, "documents": [...]}``, gzip or plain.
        max_bytes: The largest unpacked size to accept.

    Raises:
        InvalidInputError: It cannot be read, is damaged, is larger, or holds anything else; what
            it asked for is named.
    """
    try:
        with path.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            source = gzip.GzipFile(fileobj=stream) if packed else stream
            value = plain_pickle.load(io.BufferedReader(_Limited(source, max_bytes), 1 << 20))
    except _TooLargeError:
        msg = f"{path} unpacks to more than {max_bytes:,} bytes, too much for such a memory."
        raise InvalidInputError(msg) from None
    except plain_pickle.RefusedError as error:
        raise InvalidInputError(_refusal(path, str(error))) from error
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{path} cannot be read: {error}. Copy it again from the board."
        raise InvalidInputError(msg) from error
    except Exception as error:  # whatever a made-up pickle can provoke
        msg = (
            f"{path} is damaged or not a pickle ({str(error)[:200]}). Copy it again from the board."
        )
        raise InvalidInputError(msg) from error
    return _memory(path, value, max_bytes)


class _TooLargeError(Exception):
    """More bytes than were to be read."""


class _Limited(io.RawIOBase):
    """A stream that refuses to give more than so many bytes."""

    def __init__(self, source: IO[bytes] | gzip.GzipFile, left: int) -> None:
        self._source, self._left = source, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(min(len(buffer), self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise _TooLargeError
        buffer[: len(data)] = data
        return len(data)


def _refusal(path: Path, what: str) -> str:
    return (
        f"{path} {what}, which a memory file has no need of. It was refused and nothing of it was "
        "run: do not open it with pickle either."
    )


def _memory(path: Path, value: Any, max_bytes: int) -> Memory:
    if not isinstance(value, dict) or set(value) != {"vectors", "documents"}:
        keys = sorted(str(key)[:40] for key in value)[:5] if isinstance(value, dict) else ""
        what = keys or type(value).__name__
        msg = f"{path} is not a HyperDB memory: it holds {what}, not 'vectors' and 'documents'."
        raise InvalidInputError(msg)
    documents = value["documents"]
    if not isinstance(documents, list):
        msg = f"{path}: 'documents' is a list, not {type(documents).__name__}."
        raise InvalidInputError(msg)
    if len(documents) > MAX_DOCUMENTS:
        msg = f"{path} has {len(documents):,} documents, more than {MAX_DOCUMENTS:,}."
        raise InvalidInputError(msg)
    _require_sizes(path, documents, max_bytes)
    checked = [_document(path, n, document) for n, document in enumerate(documents)]
    return Memory(checked, _array(path, value["vectors"], len(checked)))


def _require_sizes(path: Path, documents: list[Any], max_bytes: int) -> None:
    """Refuse documents that are small in the file, where parts are shared, and huge written out."""
    measure = plain_pickle.Measure(MAX_DEPTH)
    total = 0
    for number, document in enumerate(documents):
        size, depth = measure(document)
        total += size
        if depth > MAX_DEPTH:
            msg = f"{path}: document {number} is nested more than {MAX_DEPTH} deep."
            raise InvalidInputError(msg)
        if size > MAX_DOCUMENT:
            msg = (
                f"{path}: document {number} has more than {MAX_DOCUMENT:,} characters written out."
            )
            raise InvalidInputError(msg)
        if total > max_bytes:
            msg = f"{path}: its documents have more than {max_bytes:,} characters written out."
            raise InvalidInputError(msg)


def _document(path: Path, number: int, document: Any) -> Document:
    if not isinstance(document, str | dict):
        msg = f"{path}: document {number} is {type(document).__name__}, not a string or a dict."
        raise InvalidInputError(msg)
    plain: Any = document
    try:
        if isinstance(document, dict):
            # As JSON has it, where every key is a string and a tuple is a list.
            plain = json.loads(json.dumps(_with_text_keys(document), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{path}: document {number} cannot be stored as JSON: {error}."
        raise InvalidInputError(msg) from error
    return plain  # type: ignore[no-any-return]


def _with_text_keys(document: dict[Any, Any]) -> dict[str, Any]:
    found = {str(key): value for key, value in document.items()}
    if len(found) < len(document):
        msg = "two of its keys are the same text"
        raise ValueError(msg)
    return found


def _array(path: Path, value: Any, rows: int) -> NDArray[np.float32] | None:
    """The matrix a `Call` describes; None if it is not one row per document."""
    if value is None:
        return None
    try:
        matrix = plain_pickle.matrix(value, MAX_DIMENSION)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        msg = (
            f"{path}: 'vectors' is not a plain array of floating-point numbers "
            f"({str(error)[:200]})."
        )
        raise InvalidInputError(msg) from error
    return None if matrix is None or len(matrix) != rows else matrix


def _passages(documents: Sequence[Document]) -> list[Passage]:
    """One passage per document.

    The id follows from the content and, for a copy, from how many came before it.
    """
    copies: Counter[str] = Counter()
    passages = []
    for document in documents:
        content = json.dumps(document, sort_keys=True).encode()
        key = "hyperdb-" + hashlib.sha256(content).hexdigest()[:24]
        copies[key] += 1
        number = copies[key]
        passages.append(
            Passage(
                key if number == 1 else f"{key}-{number}",
                _text(document),
                {"source": "hyperdb"} | (document if isinstance(document, dict) else {}),
            )
        )
    return passages


def _text(document: Document) -> str:
    """The text that the memory worker embedded, so that its vectors can be compared with ours."""
    if isinstance(document, str):
        return document
    known = [str(document[key]) for key in ("user_input", "bot_response") if key in document]
    return " ".join(known or map(str, document.values())).strip()


def _usable(
    vectors: NDArray[np.float32] | None, passages: Sequence[Passage], store: HybridStore
) -> tuple[NDArray[np.bool_], str]:
    """Which rows of `vectors` can be used, and why not all."""
    none = np.zeros(len(passages), bool)
    if vectors is None:
        return none, "the file has no vectors that fit its documents" if passages else ""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
        sound = np.isfinite(lengths) & (lengths > 1e-6)
    sample = np.flatnonzero(sound)
    if not sample.size:
        return none, "the file's vectors are all zero" if passages else ""
    sample = sample[np.unique(np.linspace(0, len(sample) - 1, _SAMPLE).astype(int))]
    again = store.embedder.embed([passages[row].indexed for row in sample])
    if again.shape[1] != vectors.shape[1]:
        return none, f"its vectors have {vectors.shape[1]} numbers, this model's {again.shape[1]}"
    cosines = np.einsum("ij,ij->i", _unit(vectors[sample]), _unit(again))
    if cosines.mean() < _MEAN_COSINE or cosines.min() < _LEAST_COSINE:
        return none, (
            f"{len(sample)} documents embedded again agree with its vectors at a mean cosine of "
            f"{cosines.mean():.4f} only"
        )
    lost = int((~sound).sum())
    return sound, f"{lost} of its vectors are zero or not numbers" if lost else ""


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
