"""Whether a Parquet file can be loaded into a store, found out before anything is written."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from itertools import islice

import numpy as np

from tars_rag.errors import FingerprintError, InvalidInputError
from tars_rag.ingest.parquet import ParquetReader
from tars_rag.retrieval.indexes.checks import check_passages, check_vectors
from tars_rag.retrieval.storage.store_json import named

_DIGEST = 16  # bytes of an id's hash; of a million ids that is 16 MB


def check_kind(source: ParquetReader, fingerprint: str, where: object) -> None:
    """The file's vectors are of this kind.

    Raises:
        FingerprintError: They are of another.
    """
    if source.about.fingerprint != fingerprint:
        theirs = named(source.about.model or None, source.about.fingerprint)
        msg = (
            f"The vectors of {source.path} were made with {theirs}, those of {where} with "
            f"{fingerprint!r}: they cannot be mixed. Load the file into another store: tars-rag "
            f"index --from-parquet {shlex.quote(str(source.path))} --store NEW"
        )
        raise FingerprintError(msg)


def check_file(source: ParquetReader, dimension: int | None) -> None:
    """Every row can be stored, and no id occurs twice; read in pieces.

    Args:
        source: The file.
        dimension: Of the store's vectors; None: that of the first row.

    Raises:
        InvalidInputError: Which row cannot, and why.
    """
    digests = bytearray()
    for passages, vectors in source.batches():
        check_passages(passages, set())
        names = [f"passage {passage.id!r}" for passage in passages]
        dimension = check_vectors(vectors, names, dimension).shape[1]
        for passage in passages:
            key = passage.id.encode("utf-8", "surrogatepass")
            digests += hashlib.blake2b(key, digest_size=_DIGEST).digest()
    ordered = np.sort(np.frombuffer(digests, f"V{_DIGEST}").view(_PAIR), order=["a", "b"])
    if (ordered[1:] == ordered[:-1]).any():
        twice = ordered[:-1][ordered[1:] == ordered[:-1]][0].tobytes()
        row = next(n for n in range(source.rows) if _digest_at(digests, n) == twice)
        again = next(n for n in range(row + 1, source.rows) if _digest_at(digests, n) == twice)
        name = next(islice(_ids(source), row, None))
        msg = (
            f"{source.path} has the id {name!r} in row {row} and again in row {again}. Give each "
            "passage its own id."
        )
        raise InvalidInputError(msg)


_PAIR = np.dtype([("a", "<u8"), ("b", "<u8")])


def _digest_at(digests: bytearray, row: int) -> bytes:
    return bytes(digests[row * _DIGEST : (row + 1) * _DIGEST])


def _ids(source: ParquetReader) -> Iterator[str]:
    return (passage.id for passages, _ in source.batches() for passage in passages)
