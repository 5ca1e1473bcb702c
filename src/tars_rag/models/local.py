"""A model directory on this machine: the record of what was put there, and whether it still is.

The record is ``files.json``: size and sha256 of each file, and where they came from.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tars_rag.errors import ModelError
from tars_rag.files import sha256_of, size_of
from tars_rag.models.catalog import fetch_again, find_spec
from tars_rag.models.modules import read_chain
from tars_rag.models.spec import ModelFile, ModelSpec

RECORD_NAME: Final = "files.json"
WEIGHTS_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
"""Where weights are in several files: which tensor is in which."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model directory that was checked.

    Attributes:
        name: Catalogue name, its name on the hub, or the directory's name.
        directory: Where its files are.
        spec: Its row of the catalogue; None for a directory the user named by its path.
        digests: The sha256 of the files that were hashed, by name.
    """

    name: str
    directory: Path
    spec: ModelSpec | None
    digests: dict[str, str]

    def digest(self, name: str) -> str:
        """The sha256 of one of its files.

        Raises:
            ModelError: There is no such file.
        """
        path = self.directory / name
        if not path.is_file():
            msg = (
                f"{self.directory} has no {name}, so it is not a complete model. "
                f"{fetch_again(self.directory)}"
            )
            raise ModelError(msg)
        return self.digests.get(name) or sha256_of(path)

    @property
    def reference(self) -> str:
        """What it is opened by again: its name, or where it lies if it has none."""
        known = self.spec or self.name != self.directory.name
        return self.name if known else str(self.directory.resolve())

    @property
    def bytes(self) -> int:
        """What it takes on disk."""
        return size_of(self.directory)

    @property
    def weights_digest(self) -> str:
        """What stands for the weights: the sha256 of their file.

        Where there are several, or modules behind the pooling, it is that of all they are.

        Raises:
            ModelError: There are none.
        """
        files = weight_files(self.directory) or (WEIGHTS_NAME,)
        chain = read_chain(self.directory)
        if files == (WEIGHTS_NAME,) and not chain.modules:
            return self.digest(WEIGHTS_NAME)
        files += tuple(f"{folder}/{WEIGHTS_NAME}" for folder in chain.folders)
        parts = [repr(chain.modules), *(f"{name} {self.digest(name)}" for name in files)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def weight_files(directory: Path) -> tuple[str, ...]:
    """The names of the safetensors of a model directory; empty if it has none.

    Raises:
        ModelError: The index of several files cannot be read.
    """
    path = directory / INDEX_NAME
    if (directory / WEIGHTS_NAME).is_file() or not path.is_file():
        return (WEIGHTS_NAME,) if (directory / WEIGHTS_NAME).is_file() else ()
    try:
        return index_files(path.read_bytes())
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read ({str(error)[:200]}). {fetch_again(directory)}"
        raise ModelError(msg) from error


def index_files(content: bytes) -> tuple[str, ...]:
    """The files that the index of weights in several files names.

    Raises:
        ValueError: It is no such index.
    """
    try:
        names = tuple(sorted(set(json.loads(content)["weight_map"].values())))
        good = all(is_plain(name) and name.endswith(".safetensors") for name in names)
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not names or not good:
        msg = f"it names the files {names!r:.80}"
        raise ValueError(msg)
    return names


def write_record(directory: Path, names: list[str], source: str) -> None:
    """Write ``files.json``: size and sha256 of each file, and where they came from."""
    files = {
        name: {"sha256": sha256_of(directory / name), "bytes": (directory / name).stat().st_size}
        for name in names
        if (directory / name).is_file()
    }
    record = {"format": "tars-rag-model", "version": 1, "source": source, "files": files}
    (directory / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_record(directory: Path) -> dict[str, Any] | None:
    """``files.json``, or None where the directory was not made by tars-rag.

    Raises:
        ModelError: It is there and cannot be read.
    """
    path = directory / RECORD_NAME
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = record["source"], _recorded(record)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{path} is damaged ({str(error)[:200]}). {fetch_again(directory)}"
        raise ModelError(msg) from error
    return record


def _recorded(record: dict[str, Any]) -> dict[str, ModelFile]:
    """The files of a record by name; fields that a later version adds are passed over."""
    files = {}
    for name, file in record["files"].items():
        digest, size = file["sha256"], file["bytes"]
        if not (is_inside(name) and re.fullmatch("[0-9a-f]{64}", digest) and type(size) is int):
            msg = f"{name!r:.80} is not described as a file"
            raise ValueError(msg)
        files[name] = ModelFile(name, digest, size)
    return files


def checked(directory: Path, spec: ModelSpec | None, *, strict: bool = False) -> LocalModel:
    """Compare the files with the record and the catalogue.

    A directory without a record was put there by the user. Then FlashRank's models are taken as
    they are, as FlashRank does (`strict`: held to the catalogue all the same), and an embedder
    must be the published one, since vectors of different models never mix.
    """
    record = read_record(directory)
    expected = _recorded(record) if record else {}
    if spec and (record or strict or not spec.archive):
        expected |= {f.name: f for f in spec.files if f.sha256 or f.name not in expected}
    digests: dict[str, str] = {}
    problems = []
    for name, file in expected.items():
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif file.bytes and (size := path.stat().st_size) != file.bytes:
            problems.append(f"{name} has {size} bytes instead of {file.bytes}")
        else:
            digests[name] = sha256_of(path)
            if file.sha256 and digests[name] != file.sha256:
                problems.append(f"{name} does not have the expected sha256 {file.sha256[:16]}…")
    if problems:
        msg = (
            f"The model in {directory} is damaged: {'; '.join(problems)}. {fetch_again(directory)}"
        )
        raise ModelError(msg)
    name = spec.name if spec else repository_of(record) or directory.name
    return LocalModel(name, directory, spec, digests)


def repository_of(record: dict[str, Any] | None) -> str | None:
    """The name on the hub of a model that was fetched by it."""
    if record is None:
        return None
    kind, _, rest = str(record["source"]).partition(" ")
    return rest.partition("@")[0] or None if kind == "hub" else None


def pull_anew(directory: Path) -> str:
    """The sentence that says how to put a fetched model in the place of a directory."""
    if find_spec(directory.name) is None:
        return f"Remove {directory}, and copy the model again."
    moved = shlex.quote(f"{directory}.old")
    return (
        f"Move it away and fetch it: mv {shlex.quote(str(directory))} {moved} && "
        f"tars-rag models pull {directory.name}"
    )


def is_inside(name: str) -> bool:
    """Whether a name is that of a file in a directory, or in a folder of it."""
    parts = name.split("/")
    return len(parts) <= 2 and all(map(is_plain, parts))


def is_plain(name: str) -> bool:
    """Whether a name is that of a file or directory, and leads nowhere else."""
    return name not in ("", ".", "..") and Path(name).name == name
