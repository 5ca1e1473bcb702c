"""Models in one tar file, to carry to a board that has no network."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from typing_extensions import Self

from tars_rag.errors import ModelError
from tars_rag.files import replacing

# Extended headers hold a time or a name; Python reads one as a whole into memory.
_MOST_HEADER_BYTES: Final = 1 << 16
_TYPES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.XHDTYPE)


def pack(models: Mapping[Path, Sequence[str]], archive: Path) -> Path:
    """Write files of model directories as ``<name>/<file>``; whole, or not at all.

    Args:
        models: The directories, and the names of the files to take from each.
        archive: The file to write.

    Raises:
        ModelError: The archive cannot be written.
    """
    try:
        # Not compressed: weights do not shrink.
        with replacing(archive) as part, tarfile.open(part, "w") as tar:
            for model, names in models.items():
                for name in sorted(names):
                    tar.add(model / name, f"{model.name}/{name}", recursive=False, filter=_plain)
    except OSError as error:
        msg = f"{archive} cannot be written ({error}). Choose another place for the archive."
        raise ModelError(msg) from error
    return archive


def unpack(archive: Path, target: Path, most_bytes: Callable[[str], int | None]) -> None:
    """Write the ``<name>/<file>`` and ``<name>/<folder>/<file>`` entries under `target`.

    Only names and contents are taken. Links, devices, sparse files, other names, owners and modes
    are not; so no more can be written than the archive itself has bytes.

    Args:
        archive: The file to read.
        target: An empty directory.
        most_bytes: Of an entry by its name; None: it may not be there.

    Raises:
        ModelError: Not a tar file, truncated, empty, or with an entry that has no place here.
    """
    try:
        with tarfile.open(archive, "r:", tarinfo=_Entry) as tar:
            for entry in tar:
                name = _checked_name(entry, most_bytes)
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(entry)
                if source:
                    with source, path.open("xb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
    except _RefusedError as error:
        msg = f"{archive} {error}. Make the archive again: tars-rag models export"
        raise ModelError(msg) from error
    except FileExistsError as error:
        msg = f"{archive} is not a whole archive of models ({error}). Export and copy it again."
        raise ModelError(msg) from error
    except OSError as error:
        msg = f"{archive} cannot be unpacked ({error}). Check the path and the free space."
        raise ModelError(msg) from error
    except Exception as error:  # whatever a made-up header can provoke
        msg = f"{archive} is not a whole archive of models ({error}). Export and copy it again."
        raise ModelError(msg) from error
    if not any(target.iterdir()):
        msg = f"{archive} holds no models. Export it again: tars-rag models export"
        raise ModelError(msg)


class _RefusedError(Exception):
    """What an archive has that no export writes."""


class _Entry(tarfile.TarInfo):
    """A header, refused before anything is read by what it says."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        entry = super().frombuf(buf, encoding, errors)
        if entry.type not in _TYPES or entry.size < 0:
            msg = f"has the entry {entry.name!r} of type {entry.type!r}, which no export writes"
            raise _RefusedError(msg)
        if entry.type == tarfile.XHDTYPE and entry.size > _MOST_HEADER_BYTES:
            msg = f"has an extended header of {entry.size:,} bytes, which no export writes"
            raise _RefusedError(msg)
        return entry


def _checked_name(entry: tarfile.TarInfo, most_bytes: Callable[[str], int | None]) -> str:
    """``<name>/<file>`` of an entry that may be unpacked."""
    parts = PurePosixPath(entry.name).parts
    plain = len(parts) in (2, 3) and not {"..", "/"} & set(parts) and "\\" not in entry.name
    # An extended header may have made another thing of it since `frombuf`.
    if not plain or not entry.isreg() or entry.issparse() or entry.size < 0:
        msg = f"has the entry {entry.name!r}, which no export writes"
        raise _RefusedError(msg)
    name = "/".join(parts)
    most = most_bytes(name)
    if most is None:
        msg = f"has the entry {name!r}, which is no file of a model that this tars-rag knows"
        raise _RefusedError(msg)
    if entry.size > most:
        msg = f"has {entry.size:,} bytes for {name!r}, of which {most:,} are allowed"
        raise _RefusedError(msg)
    return name


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what tells of the machine that wrote it."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o644
    entry.mtime = 0
    return entry
