"""Migration from py-tars' memory worker, whose HyperDB kept its memory in a pickle.

A pickle is a program. This reader never runs one: of the operations it lets through those that
build plain values, and in place of numpy's functions it hands out inert stand-ins that only
remember what they were called with. The array is then put together here, from bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import pickletools
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError
from tars_rag.progress import Progress
from tars_rag.retrieval.passage import Passage

if TYPE_CHECKING:
    from tars_rag.retrieval.store import HybridStore

MAX_BYTES: Final = 1 << 30
_SAMPLE: Final = 64
_BATCH: Final = 512
# FP16 on the NPU against FP32 here: mean cosine 0.999999. Another model, or a ruined one, is far
# below; see docs/architecture.md on fingerprints.
_MEAN_COSINE: Final = 0.9999
_LEAST_COSINE: Final = 0.999

_NUMPY = {
    (module, name): name
    for prefix in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{prefix}.multiarray", "_reconstruct"),
        (f"{prefix}.numeric", "_frombuffer"),
    )
} | {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): "dtype"}
_DTYPES = {(order, kind): order + kind for order in "<>" for kind in ("f2", "f4", "f8")}
_PLAIN_VALUES = """
    PROTO FRAME STOP MARK EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG
    LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES
    BINBYTES BINBYTES8 BYTEARRAY8 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_OPERATIONS = frozenset(_PLAIN_VALUES.split())
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
    data = _read(path, max_bytes)
    try:
        _check_operations(path, data)
        value = _Unpickler(path, io.BytesIO(data)).load()
    except InvalidInputError:
        raise
    except Exception as error:  # whatever a made-up pickle can provoke
        msg = f"{path} is damaged or not a pickle ({error}). Copy it again from the board."
        raise InvalidInputError(msg) from error
    return _memory(path, value)


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            unpacked: BinaryIO = gzip.GzipFile(fileobj=stream) if packed else stream  # type: ignore[assignment]
            data = unpacked.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{path} cannot be read: {error}. Copy it again from the board."
        raise InvalidInputError(msg) from error
    if len(data) > max_bytes:
        msg = f"{path} unpacks to more than {max_bytes:,} bytes, too much for such a memory."
        raise InvalidInputError(msg)
    return data


def _check_operations(path: Path, data: bytes) -> None:
    """Read the whole program before a part of it is carried out."""
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        if operation.name not in _OPERATIONS:
            raise InvalidInputError(_refusal(path, f"uses the pickle operation {operation.name}"))
        # A huge memo index would make the unpickler reserve a table of that size.
        if operation.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise InvalidInputError(_refusal(path, f"uses memo slot {argument}"))
        if operation.name == "GLOBAL":
            _stand_in(path, *str(argument).split(" ", 1))


def _refusal(path: Path, what: str) -> str:
    return (
        f"{path} {what}, which a memory file has no need of. It was refused and nothing of it was "
        "run: do not open it with pickle either."
    )


class _Call:
    """What a stand-in was called with, and the state it was given."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name, self.args, self.state = name, args, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _StandIn:
    """Takes the place of a function of numpy: remembers, does nothing."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any) -> _Call:
        return _Call(self._name, args)

    def __setstate__(self, state: Any) -> None:
        msg = f"the state of {self._name} cannot be set"
        raise pickle.UnpicklingError(msg)


def _stand_in(path: Path, module: str, name: str) -> _StandIn:
    if (module, name) not in _NUMPY:
        raise InvalidInputError(_refusal(path, f"asks for {module}.{name}"))
    return _StandIn(_NUMPY[module, name])


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        return _stand_in(self._path, module, name)


def _memory(path: Path, value: Any) -> Memory:
    if not isinstance(value, dict) or set(value) != {"vectors", "documents"}:
        what = sorted(map(str, value)) if isinstance(value, dict) else type(value).__name__
        msg = f"{path} is not a HyperDB memory: it holds {what}, not 'vectors' and 'documents'."
        raise InvalidInputError(msg)
    documents = value["documents"]
    if not isinstance(documents, list):
        msg = f"{path}: 'documents' is a list, not {type(documents).__name__}."
        raise InvalidInputError(msg)
    checked = [_document(path, n, document) for n, document in enumerate(documents)]
    return Memory(checked, _array(path, value["vectors"], len(checked)))


def _document(path: Path, number: int, document: Any) -> Document:
    if isinstance(document, str):
        plain: Any = document
    elif isinstance(document, dict):
        plain = {str(key): value for key, value in document.items()}
    else:
        msg = f"{path}: document {number} is {type(document).__name__}, not a string or a dict."
        raise InvalidInputError(msg)
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{path}: document {number} cannot be stored as JSON: {error}."
        raise InvalidInputError(msg) from error
    return plain  # type: ignore[no-any-return]


def _array(path: Path, value: Any, rows: int) -> NDArray[np.float32] | None:
    """The matrix a `_Call` describes; None if it is not one row per document."""
    if value is None:
        return None
    try:
        if value.name == "_reconstruct":
            _, shape, kind, fortran, raw = value.state
        elif value.name == "_frombuffer":
            raw, kind, shape, order = value.args
            fortran = order == "F"
        else:
            raise ValueError(value.name)
        dtype = np.dtype(_DTYPES[kind.state[1], kind.args[0]])
        matrix = np.frombuffer(raw, dtype)
        matrix = matrix.reshape(tuple(map(int, shape)), order="F" if fortran else "C")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        msg = f"{path}: 'vectors' is not a plain array of floating-point numbers ({error!r})."
        raise InvalidInputError(msg) from error
    return matrix.astype(np.float32) if matrix.ndim == 2 and len(matrix) == rows else None


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
    again = store.embedder.embed([passages[row].text for row in sample])
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
