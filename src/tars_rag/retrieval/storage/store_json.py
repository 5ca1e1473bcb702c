"""store.json: what a store directory is, and which embedder made its vectors."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tars_rag import advice
from tars_rag.errors import StoreError
from tars_rag.files import write_atomically
from tars_rag.retrieval.indexes.words.languages import DEFAULT_LANGUAGE

NAME = "store.json"
FORMAT = "tars-rag-store"
VERSION = 4
_PRECISIONS = {"exact": "fp32", "int8": "int8"}
PARTS = 4  # of an embedder's fingerprint, its precision class being the last
_READABLE = (2, 3, VERSION)


@dataclass(frozen=True, slots=True)
class StoreJson:
    """The contents of store.json.

    Attributes:
        fingerprint: Of the embedder that made the vectors.
        collection: Name of the Chroma collection that holds them.
        chroma_url: The Chroma server; None: embedded, in the directory.
        dimension: Length of the vectors; None until the first passage.
        created: UTC, ISO 8601.
        ready: False while the store is being made: nothing was acknowledged yet.
        reembedding: A half-done change of embedder: its fingerprint and collection.
        model: Name of the embedder's model, for people; None where it has none.
        language: How the words of the store are read.
        probe: What the embedder made of one fixed text, where its fingerprint says too little.
    """

    fingerprint: str
    collection: str
    chroma_url: str | None = None
    dimension: int | None = None
    created: str = ""
    ready: bool = False
    reembedding: dict[str, str] | None = None
    model: str | None = None
    language: str = DEFAULT_LANGUAGE
    probe: list[float] | None = None
    format: str = FORMAT
    version: int = VERSION

    @classmethod
    def new(cls, fingerprint: str, collection: str, **others: Any) -> StoreJson:
        """What a store that is about to be made says of itself."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(fingerprint, collection, created=now, **others)

    @property
    def embedder(self) -> str:
        """The embedder as a person reads it."""
        return named(self.model, self.fingerprint)

    def reembed_command(
        self, directory: Path, model: str | None = None, fingerprint: str | None = None
    ) -> str:
        """The command that makes the vectors anew, by default with the same embedder."""
        name = shlex.quote(model or self.model or "MODEL")
        command = f"tars-rag store reembed {shlex.quote(str(directory))} --model {name}"
        precision = precision_of(fingerprint or self.fingerprint)
        return command if precision in (None, "fp32") else f"{command} --precision {precision}"

    def write(self, directory: Path, **changes: Any) -> StoreJson:
        """Write this, with `changes`, atomically and durably; return what was written."""
        changed = replace(self, **changes, version=VERSION)
        data = json.dumps(asdict(changed), indent=2).encode("ascii")
        write_atomically(directory / NAME, data + b"\n")
        return changed


def precision_of(fingerprint: str) -> str | None:
    """The ``--precision`` that makes vectors of this kind on the CPU; None if there is none."""
    parts = fingerprint.split(":")  # see models/embedder
    return _PRECISIONS.get(parts[-1]) if len(parts) == PARTS else None


def named(model: str | None, fingerprint: str) -> str:
    """An embedder as a person reads it: the model's name, and what tells its vectors apart."""
    return f"{model} ({fingerprint!r})" if model else repr(fingerprint)


def read_store_json(directory: Path) -> StoreJson | None:
    """What a store says of itself; None if the directory has no store.json.

    Raises:
        StoreError: It cannot be read, or is of another format or version.
    """
    path = directory / NAME
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path} cannot be read ({error}). Restore it from a backup of the store."
        raise StoreError(msg) from error
    known = {field.name for field in fields(StoreJson)}
    if (
        not isinstance(raw, dict)
        or raw.get("format") != FORMAT
        or not isinstance(raw.get("fingerprint"), str)
        or not isinstance(raw.get("collection"), str)
    ):
        msg = f"{path} does not describe a tars-rag store. Give the directory of a store."
        raise StoreError(msg)
    if raw.get("version") not in _READABLE or not raw.keys() <= known:
        step = f"Update tars-rag: {advice.update()}"
        if raw.get("version") == 1:
            step = "That one was never released: index the sources into another directory."
        msg = (
            f"{path} is of version {raw.get('version')}, this tars-rag reads versions "
            f"{' and '.join(map(str, _READABLE))}. {step}"
        )
        raise StoreError(msg)
    return StoreJson(**raw)
