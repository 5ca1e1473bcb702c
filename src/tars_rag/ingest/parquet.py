"""Passages with their vectors as a Parquet file: the one place that knows pyarrow and the columns.

``id``, ``text`` (strings), ``metadata`` (a JSON object) and ``vector`` (float32, a fixed number of
them); what made the vectors stands in the schema's metadata. A string that UTF-8 cannot express is
kept as in the store's indexes (`codec.encode`). Pages carry checksums, which are verified.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from tars_rag import advice
from tars_rag.errors import ConfigError, InvalidInputError, shown
from tars_rag.retrieval.indexes.codec import decode, encode
from tars_rag.retrieval.passage import Passage

_KEY: Final = "tars_rag."
_ROWS: Final = 1024
_BUFFER: Final = 1 << 20  # bytes of a column that are read at once


@dataclass(frozen=True, slots=True)
class About:
    """What a file says of its vectors.

    Attributes:
        fingerprint: Of the embedder that made them.
        model: Its model's name; empty where it has none.
        language: How the words of the store were read; empty: not said.
        probe: What that embedder made of one fixed text, where its fingerprint says too little.
    """

    fingerprint: str
    model: str = ""
    language: str = ""
    probe: tuple[float, ...] | None = None


def check_installed() -> None:
    """Find out whether Parquet files can be read and written.

    Raises:
        ConfigError: The library for it is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        msg = f"Parquet files need an extra: {advice.install('parquet')}"
        raise ConfigError(msg) from error


class ParquetWriter:
    """Writes such a file; a context manager.

    Args:
        path: Written over.
        about: What made the vectors.
        dimension: Of the vectors; None: there will be none.
    """

    def __init__(self, path: Path, about: About, dimension: int | None) -> None:
        check_installed()
        import pyarrow as pa
        import pyarrow.parquet as pq

        said = {
            "fingerprint": about.fingerprint,
            "model": about.model,
            "language": about.language,
            **({} if about.probe is None else {"probe": json.dumps(about.probe)}),
        }
        self._schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("text", pa.string(), nullable=False),
                pa.field("metadata", pa.string(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), dimension or -1), nullable=False),
            ],
            metadata={_KEY + name: value for name, value in said.items()},
        )
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )

    def write(self, passages: Sequence[Passage], vectors: NDArray[np.float32]) -> None:
        """Append passages and their vectors [n, dim] as one row group."""
        import pyarrow as pa

        flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        columns = [
            pa.array([encode(passage.id) for passage in passages], pa.string()),
            pa.array([encode(passage.text) for passage in passages], pa.string()),
            pa.array([_json(passage) for passage in passages], pa.string()),
            pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()


class ParquetReader:
    """Reads such a file, one that another program has written included; a context manager.

    Args:
        path: The file. ``metadata`` may be missing, and vectors may be lists of any float type.
        vectors: Whether they are wanted; without them the file need not say what made them.

    Raises:
        ConfigError: The library for it is not installed.
        InvalidInputError: It is no Parquet file, or has not these columns or no fingerprint.
    """

    def __init__(self, path: Path, *, vectors: bool = True) -> None:
        check_installed()
        import pyarrow.parquet as pq

        self.path = path
        with self._translated():
            self._file = pq.ParquetFile(
                path, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
            )
        try:
            self.rows: int = self._file.metadata.num_rows
            self._names = self._checked_columns(["id", "text", *(["vector"] if vectors else [])])
            self.about = self._about() if vectors else About("")
        except BaseException:
            self._file.close()
            raise

    def batches(self) -> Iterator[tuple[list[Passage], NDArray[np.float32]]]:
        """All passages and their vectors [n, dim], by 1,024 at most; may be called again.

        Raises:
            InvalidInputError: The file is damaged, or a row is no passage; the message says which.
        """
        for batch, done in self._batches():
            with self._translated():
                passages, vectors = self._passages(batch, done), self._vectors(batch, done)
            yield passages, vectors

    def passages(self) -> Iterator[Passage]:
        """All passages without their vectors.

        Raises:
            InvalidInputError: As in `batches`.
        """
        for batch, done in self._batches():
            with self._translated():
                passages = self._passages(batch, done)
            yield from passages

    def _batches(self) -> Iterator[tuple[Any, int]]:
        """The rows as Arrow has them, and how many came before."""
        done = 0
        if not self.rows:  # pyarrow 18 raises where there is no row group
            return
        found = self._file.iter_batches(_ROWS, columns=self._names, use_threads=False)
        while True:
            with self._translated():
                batch = next(found, None)
            if batch is None:
                break
            yield batch, done
            done += len(batch)
        if done != self.rows:
            self._refuse(f"it has {done} of its {self.rows} rows")

    def _passages(self, batch: Any, done: int) -> list[Passage]:
        columns = {name: batch.column(name).to_pylist() for name in self._names if name != "vector"}
        ids, texts = columns["id"], columns["text"]
        metadata = columns.get("metadata", [None] * len(ids))
        passages = []
        for row, (key, text, held) in enumerate(zip(ids, texts, metadata, strict=True), done):
            if not key or text is None:
                self._refuse(f"row {row} has no {'text' if key else 'id'}")
            try:
                passage = Passage(decode(key), decode(text), json.loads(decode(held or "{}")))
            except (ValueError, RecursionError) as error:
                self._refuse(f"the metadata of row {row} ({shown(key)}) is no JSON: {error}", error)
            passages.append(passage)
        return passages

    def _vectors(self, batch: Any, done: int) -> NDArray[np.float32]:
        column = batch.column("vector")
        lengths = {len(column[row]) if column[row].is_valid else 0 for row in range(len(column))}
        if len(lengths) > 1 or 0 in lengths:
            self._refuse(
                f"of rows {done} to {done + len(column) - 1} the vectors have "
                f"{' or '.join(map(str, sorted(lengths)))} numbers"
            )
        flat = column.flatten()
        if flat.null_count:
            self._refuse(f"a vector of rows {done} to {done + len(column) - 1} has a null in it")
        with np.errstate(over="ignore"):  # infinite then, and refused for that
            rows = flat.to_numpy(zero_copy_only=False).astype(np.float32)
        made: NDArray[np.float32] = rows.reshape(len(column), -1)
        return made

    def _checked_columns(self, needed: list[str]) -> list[str]:
        import pyarrow as pa

        schema = self._file.schema_arrow
        missing = [name for name in needed if schema.get_field_index(name) < 0]
        if missing:
            self._refuse(
                f"it has no single column {' and no '.join(missing)}. It has: "
                f"{', '.join(schema.names)}"
            )
        names = [*needed, *(["metadata"] if schema.get_field_index("metadata") >= 0 else [])]
        for name in names:
            kind = schema.field(name).type
            if name == "vector":
                lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
                fits = any(is_one(kind) for is_one in lists)
                fits = fits and pa.types.is_floating(kind.value_type)
            else:
                fits = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            if not fits:
                wanted = "lists of floats" if name == "vector" else "strings"
                self._refuse(f"its column {name} has {kind}, where {wanted} are needed")
        return names

    def _about(self) -> About:
        held = {
            key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for key, value in (self._file.schema_arrow.metadata or {}).items()
        }
        if not held.get(_KEY + "fingerprint"):
            self._refuse(
                f"its schema's metadata has no {_KEY}fingerprint, so it is not known what made the "
                "vectors. Write the embedder's own there (Embedder.fingerprint)"
            )
        fingerprint, model, language = (
            held.get(_KEY + name, "") for name in ("fingerprint", "model", "language")
        )
        return About(fingerprint, model, language, self._probe(held.get(_KEY + "probe")))

    def _probe(self, text: str | None) -> tuple[float, ...] | None:
        if text is None:
            return None
        try:
            row = np.asarray(json.loads(text), np.float32)
        except (ValueError, TypeError, RecursionError):
            row = np.empty(0, np.float32)
        if row.ndim != 1 or not 0 < np.linalg.norm(row) < np.inf:
            self._refuse(f"its schema's metadata has a {_KEY}probe that is no vector of numbers")
        return tuple(row.tolist())

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            self._refuse(f"it cannot be read: {error}", error)

    def _refuse(self, problem: str, cause: BaseException | None = None) -> NoReturn:
        msg = f"{self.path} cannot be loaded: {problem}. Write it anew: tars-rag store export"
        raise InvalidInputError(msg) from cause

    def __enter__(self) -> ParquetReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _json(passage: Passage) -> str:
    return encode(json.dumps(dict(passage.metadata), ensure_ascii=False))


def check_target(path: Path) -> None:
    """A Parquet file may be written here.

    Raises:
        InvalidInputError: Something else is there already.
    """
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_file() or not _is_parquet(path):
        msg = f"{path} is there already, and is no Parquet file. Give another name."
        raise InvalidInputError(msg)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"PAR1"
