"""The table of a store: its columns, what it says of itself, and how it is made by one of many."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag import advice
from tars_rag.errors import FingerprintError, InvalidInputError, StoreError
from tars_rag.retrieval.indexes.codec import encode, filterable, pack_content
from tars_rag.retrieval.indexes.words.analysers import ANALYSER_VERSION, analyser
from tars_rag.retrieval.lance.facts import facts
from tars_rag.retrieval.lance.library import arrow, asking, library
from tars_rag.retrieval.passage import FilePassage, Passage
from tars_rag.retrieval.storage.store_json import named

PASSAGES: Final = "passages"
PROBE: Final = "probe"
FILES: Final = "files"
WORDS_INDEX: Final = "terms_idx"
_SAYS: Final = b"tars-rag"
_FORMAT: Final = "tars-rag-lance"
_VERSION: Final = 2  # 1 did not name the files that passages were read from
_PRIMARY_KEY: Final = {b"lance-schema:unenforced-primary-key": b"true"}
"""Without it two writers of one new id store it twice (tests/test_lance_processes.py)."""
_LENGTHS: Final = 1e-18, 1e18  # whose squares single precision holds


@dataclass(frozen=True, slots=True)
class About:
    """What a store says of itself, in its table from the first moment on.

    Attributes:
        fingerprint: Of the embedder that made the vectors.
        model: Name of the embedder's model, for people; None where it has none.
        language: How the words of the store are read.
        created: UTC, ISO 8601.
        dimension: Length of the vectors.
    """

    fingerprint: str
    model: str | None
    language: str
    dimension: int
    created: str = ""


def create(connection: Any, address: str, about: About) -> None:
    """Make the table; where another machine was faster, its table is the store's."""
    pa = arrow()
    said = {
        "format": _FORMAT,
        "version": _VERSION,
        "analyser": ANALYSER_VERSION,
        "fingerprint": about.fingerprint,
        "model": about.model,
        "language": about.language,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    fields = [
        pa.field("id", pa.string(), nullable=False, metadata=_PRIMARY_KEY),
        pa.field("content", pa.binary(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("facts", pa.list_(pa.string()), nullable=False),
        pa.field("terms", pa.string(), nullable=False),
        pa.field("words", pa.list_(pa.int64()), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("vector", pa.list_(pa.float32(), about.dimension), nullable=False),
        pa.field("origin", pa.string()),
        pa.field("embedded", pa.string()),
    ]
    schema = pa.schema(fields, metadata={_SAYS: json.dumps(said).encode("ascii")})
    with asking(address, "made"):
        if not exists(connection, PASSAGES):
            make(connection, PASSAGES, schema=schema)


def files_schema() -> Any:
    """Of the table that says which files are done."""
    pa = arrow()
    source = pa.field("source", pa.string(), nullable=False, metadata=_PRIMARY_KEY)
    others = [pa.field(one, pa.string(), nullable=False) for one in ("version", "stamp", "sum")]
    return pa.schema([source, *others])


def make(connection: Any, name: str, **what: Any) -> None:
    """Make a table, which is one atomic step, unless another was faster."""
    try:
        connection.create_table(name, **what)
    except (ValueError, RuntimeError, OSError):
        if not exists(connection, name):
            raise


def exists(connection: Any, name: str) -> bool:
    """Whether there is a table of this name."""
    return name in connection.list_tables().tables


def configs() -> dict[str, Any]:
    """The indexes, by the column that each is of.

    None is of the facts, nor of the ids: scanning them takes no longer than what is done with what
    they find, and a write that looks an id up must not depend on an index that is being made anew.
    """
    its = library().index
    return {
        "words": its.LabelList(),
        # The terms are analysed already: they are split where they have a space, and kept.
        "terms": its.FTS(
            with_position=False,
            base_tokenizer="whitespace",
            max_token_length=None,
            lower_case=False,
            stem=False,
            remove_stop_words=False,
            ascii_folding=False,
        ),
    }


def index(table: Any) -> None:
    """Make what is missing of the indexes; cheap while the table is empty."""
    for column, config in configs().items():
        if column not in _indexed(table):
            try:
                table.create_index(column, config=config, replace=False)
            except (ValueError, RuntimeError, OSError):
                table.checkout_latest()
                if column not in _indexed(table):  # another was not faster: it is an error
                    raise


def _indexed(table: Any) -> set[str]:
    return {column for one in table.list_indices() for column in one.columns}


def about(table: Any, address: str) -> About:
    """What a store says of itself.

    Raises:
        StoreError: The table is not that of a store, or is of another version.
    """
    schema = table.schema
    try:
        said = json.loads((schema.metadata or {})[_SAYS])
        ours = said["format"] == _FORMAT
        whole = said["version"] == _VERSION and said["analyser"] == ANALYSER_VERSION
    except (KeyError, ValueError, TypeError):
        ours = whole = False
    if not ours:
        msg = (
            f"The table {PASSAGES} at {address} is not that of a store: it does not say what made "
            "its vectors. Give another place."
        )
        raise StoreError(msg)
    if not whole:
        msg = (
            f"The store {address} is of version {said['version']} with words of version "
            f"{said['analyser']}; this tars-rag has {_VERSION} and {ANALYSER_VERSION}. Update it "
            f"({advice.update()}), or export the store with the tars-rag that made it and load the "
            "file into another place."
        )
        raise StoreError(msg)
    dimension = schema.field("vector").type.list_size
    return About(said["fingerprint"], said["model"], said["language"], dimension, said["created"])


def check_fingerprint(held: About, embedder: Any, address: str) -> None:
    """The embedder is the one that made the store's vectors.

    Raises:
        FingerprintError: It is another one.
    """
    if embedder.fingerprint != held.fingerprint:
        ours = named(getattr(embedder, "model", None), embedder.fingerprint)
        msg = (
            f"The store {address} was made with {named(held.model, held.fingerprint)}, and this "
            f"embedder is {ours}. Use the embedder that made it, or another place."
        )
        raise FingerprintError(msg)


def rows(batch: Sequence[Passage], vectors: NDArray[np.float32], language: str, schema: Any) -> Any:
    """Checked passages as rows of the table, as pyarrow has them.

    Raises:
        InvalidInputError: A vector is so long or short that LanceDB's cosine would be none.
    """
    pa = arrow()
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    least, most = _LENGTHS
    wrong = (norms < least) | (norms > most)
    if wrong.any():
        number = int(np.argmax(wrong))
        msg = (
            f"The vector of passage {batch[number].id!r} has a length of {norms[number]:.3g}, and "
            f"a store in LanceDB compares those of {least:g} to {most:g}. Scale the vectors."
        )
        raise InvalidInputError(msg)
    contents = [pack_content(passage) for passage in batch]
    packed = [filterable(passage) for passage in batch]
    terms = [analyser(language).passage_terms(passage.indexed) for passage in batch]
    split = [text.split() for text in terms]
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    columns = {
        "id": [encode(passage.id) for passage in batch],
        "content": contents,
        "digest": [digest(content) for content in contents],
        "metadata": [json.dumps(one, separators=(",", ":")) for one in packed],
        "facts": [facts(one) for one in packed],
        "terms": terms,
        "words": [list(map(word, dict.fromkeys(one))) for one in split],
        "length": [len(one) for one in split],
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        "origin": [one.origin if isinstance(one, FilePassage) else None for one in batch],
        "embedded": [one.embedded if isinstance(one, FilePassage) else None for one in batch],
    }
    return pa.table(columns, schema=schema)


def word(term: str) -> int:
    """What a term is counted by: whole numbers take a third of the time of strings."""
    made = hashlib.blake2b(term.encode(), digest_size=8).digest()
    return int.from_bytes(made, "big", signed=True)


def digest(content: bytes) -> str:
    """Stands for a passage's text and metadata."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
