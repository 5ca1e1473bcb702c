"""Files in, a Parquet file of passages with their vectors out; a run that was cut short goes on.

What is read is cut into shards. The vectors of each are kept as a file of its own, named by its
contents and the embedder, until all are there; they become the output together.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.files import replacing
from tars_rag.ingest.chunks import Piece, cut, pieces
from tars_rag.ingest.documents import DocumentReader, Limits
from tars_rag.ingest.files import find
from tars_rag.ingest.parquet import About, ParquetReader, ParquetWriter, check_target
from tars_rag.ingest.root import Root
from tars_rag.progress import NamedProgress
from tars_rag.retrieval.indexes.checks import check_vectors
from tars_rag.retrieval.indexes.codec import check_passage, encode
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage.layout import store_path
from tars_rag.splitting.splitter import Splitter

SHARD = 512
_DIGEST = 16  # bytes of an id's hash; a million ids take about 100 MB as they are looked up
_PART = re.compile(r"\d{8}-[0-9a-f]{32}\.parquet")

Shard: TypeAlias = tuple[int, list[str]]
VectorSource: TypeAlias = Callable[[Iterable[Shard]], Iterator[tuple[int, NDArray[np.float32]]]]
"""Takes (number, texts) and gives (number, vectors [n, dim]) of each once, in any order.

It asks for the next shard when it has room for one, so that few are in memory.
"""


class HasKind(Protocol):
    """What is asked of an embedder about the vectors that it makes."""

    fingerprint: str
    model: str
    dimension: int


@dataclass
class EmbedReport:
    """What `embed_files` did.

    Attributes:
        passages: How many the output has.
        embedded: How many of them this run embedded; the others an earlier run, cut short, had.
        failures: (file, what is wrong with it), several for a file with several bad rows.
        ignored: Suffix -> number of files found in directories that are of no known type.
        seconds: Wall time.
    """

    passages: int = 0
    embedded: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def embed_files(
    paths: Sequence[Path],
    output: Path,
    splitter: Splitter,
    kind: HasKind,
    vectors: VectorSource,
    *,
    exclude: Sequence[str] = (),
    limits: Limits | None = None,
    root: Root | None = None,
    progress: NamedProgress | None = None,
) -> EmbedReport:
    """Embed the passages of files into a Parquet file, which appears when it is whole.

    Repeat the call if it was cut short: shards that are done are not embedded again, as long as
    what comes before them in the files is unchanged. Each id is in the output once; a second row
    with the same id is reported and left out.

    Args:
        paths: Files, directories of them, and Parquet files with the columns ``id`` and ``text``.
        output: The file to write. What is done so far lies in ``<output>.parts`` beside it.
        splitter: Cuts long texts.
        kind: Of the vectors.
        vectors: Makes them.
        exclude: What to leave out of directories, as in a .gitignore.
        limits: What a document may cost.
        root: Sources below it are named as seen from it.
        progress: Told ("embed", passages done, None).

    Raises:
        ConfigError: The extra ``parquet`` is not installed.
        InvalidInputError: `output` is something else, or there is nothing to embed.
        StoreError: `output` cannot be written, or another process is writing it.
    """
    began, report = perf_counter(), EmbedReport()
    target = store_path(output)
    check_target(target)
    found = find(paths, exclude)
    report.ignored = dict(found.ignored)
    report.failures += sorted(found.failures.items())
    with _Parts(target, kind) as parts, DocumentReader(limits) as reader:
        rows = _Rows(found.files, splitter, reader, root or Root(), report)
        waiting: dict[int, list[Passage]] = {}

        def shards() -> Iterator[Shard]:
            source = iter(rows)
            for number in range(10**8):
                passages = list(islice(source, SHARD))
                if not passages:
                    return
                report.passages += len(passages)
                if not parts.take(number, passages):
                    waiting[number] = passages
                    yield number, [passage.indexed for passage in passages]

        for number, made in vectors(shards()):
            passages = waiting.pop(number)
            parts.write(number, passages, made)
            report.embedded += len(passages)
            if progress is not None:
                progress("embed", report.embedded, None)
        if waiting:
            msg = f"{len(waiting)} shards came back without vectors, which is an error in tars-rag."
            raise StoreError(msg)
        if not report.passages:
            problems = "".join(f" {source}: {problem}" for source, problem in report.failures[:3])
            msg = f"There is no text to embed in {', '.join(map(str, paths))}.{problems}"
            raise InvalidInputError(msg)
        parts.join()
    report.seconds = perf_counter() - began
    return report


class _Rows:
    """The passages of files in their order, each id once; problems go into the report."""

    def __init__(
        self,
        files: Sequence[Path],
        splitter: Splitter,
        reader: DocumentReader,
        root: Root,
        report: EmbedReport,
    ) -> None:
        self._files, self._splitter, self._reader = files, splitter, reader
        self._root, self._report = root, report
        self._seen: set[bytes] = set()

    def __iter__(self) -> Iterator[Passage]:
        for path in self._files:
            for piece in self._pieces(path):
                if piece.passage is None:
                    self._report.failures.append((str(path), piece.problem or ""))
                    continue
                key = piece.passage.id.encode("utf-8", "surrogatepass")
                digest = hashlib.blake2b(key, digest_size=_DIGEST).digest()
                if digest in self._seen:
                    problem = f"the id {piece.passage.id!r} was already given; it is left out here"
                    self._report.failures.append((str(path), problem))
                    continue
                self._seen.add(digest)
                yield piece.passage

    def _pieces(self, path: Path) -> Iterator[Piece]:
        try:
            name = self._root.name(path)
            if path.suffix.lower() != ".parquet":
                yield from pieces(path, self._splitter, self._reader, name)
                return
            with ParquetReader(path, vectors=False) as source:
                for row in source.passages():
                    for passage in cut(row, self._splitter):
                        yield Piece(0, check_passage(passage))
        except InvalidInputError as error:
            yield Piece(0, problem=str(error))


class _Parts:
    """Finished shards of an output, each a Parquet file; one process at a time has them."""

    def __init__(self, target: Path, kind: HasKind) -> None:
        self._target, self._kind = target, kind
        self._about = About(kind.fingerprint, kind.model or "")
        self._folder = target.with_name(target.name + ".parts")
        self._paths: dict[int, Path] = {}

    def __enter__(self) -> _Parts:
        try:
            self._descriptor = self._locked()
        except BlockingIOError as error:
            msg = f"Another process is writing {self._target}. Wait for it, or give another output."
            raise StoreError(msg) from error
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # not empty: for the next run
            self._folder.rmdir()
        os.close(self._descriptor)

    def _locked(self) -> int:
        """The folder itself is what is locked: a file in it would keep it from being removed."""
        while True:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), self._folder.stat()):
                    return descriptor
            except FileNotFoundError:  # its owner was just done with it
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def take(self, number: int, passages: Sequence[Passage]) -> bool:
        """Whether an earlier run has made the vectors of this shard; they are taken then."""
        path = self._folder / f"{number:08d}-{self._digest(passages)}.parquet"
        self._paths[number] = path
        return path.exists()

    def write(self, number: int, passages: Sequence[Passage], made: NDArray[np.float32]) -> None:
        """Keep the vectors of a shard; they survive a crash from here on."""
        names = [f"passage {passage.id!r}" for passage in passages]
        rows = check_vectors(made, names, self._kind.dimension)
        try:
            with (
                replacing(self._paths[number]) as part,
                ParquetWriter(part, self._about, self._kind.dimension) as writer,
            ):
                writer.write(passages, rows)
        except OSError as error:
            raise self._unwritable(error) from error

    def join(self) -> None:
        """Make the output of all shards in their order, then remove them."""
        try:
            with (
                replacing(self._target) as part,
                ParquetWriter(part, self._about, self._kind.dimension) as writer,
            ):
                for number in sorted(self._paths):
                    for passages, rows in self._rows(self._paths[number]):
                        writer.write(passages, rows)
            for path in self._folder.iterdir():
                if _PART.fullmatch(path.name):
                    path.unlink()
        except OSError as error:
            raise self._unwritable(error) from error

    def _rows(self, path: Path) -> Iterator[tuple[list[Passage], NDArray[np.float32]]]:
        try:
            with ParquetReader(path) as source:
                yield from source.batches()
        except InvalidInputError as error:
            path.unlink(missing_ok=True)
            msg = (
                f"A shard that was done is damaged and was removed ({error}). Repeat the command: "
                "it is embedded again, the others are not."
            )
            raise StoreError(msg) from error

    def _digest(self, passages: Sequence[Passage]) -> str:
        digest = hashlib.sha256(self._kind.fingerprint.encode())
        for passage in passages:
            about = json.dumps(dict(passage.metadata), ensure_ascii=False)
            for text in (passage.id, passage.text, about):
                data = encode(text).encode()
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()[:32]

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self._target} cannot be written: {error}. Check space and permissions, then repeat "
            f"the command: what is done is kept in {self._folder}."
        )
