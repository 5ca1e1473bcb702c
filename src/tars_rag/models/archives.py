"""Models in one tar file, to carry to a board that has no network."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tars_rag.errors import ModelError
from tars_rag.files import replacing


def pack(models: Sequence[Path], archive: Path) -> Path:
    """Write the files of model directories as ``<name>/<file>``; whole, or not at all.

    Raises:
        ModelError: The archive cannot be written.
    """
    try:
        # Not compressed: weights do not shrink.
        with replacing(archive) as part, tarfile.open(part, "w") as tar:
            for model in models:
                for file in sorted(model.iterdir()):
                    if file.is_file():
                        tar.add(file, f"{model.name}/{file.name}", recursive=False)
    except OSError as error:
        msg = f"{archive} cannot be written ({error}). Choose another place for the archive."
        raise ModelError(msg) from error
    return archive


def unpack(archive: Path, target: Path) -> None:
    """Write ``<name>/<file>`` entries under `target`, and refuse any other.

    Only names and contents are taken: links, devices, absolute names, ``..``, owners and modes
    are not.

    Raises:
        ModelError: Not a tar file, truncated, empty, or with an entry that has no place here.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            for entry in tar:
                parts = PurePosixPath(entry.name).parts
                plain = len(parts) == 2 and not {"..", "/"} & set(parts) and "\\" not in entry.name
                if not (entry.isreg() and plain):
                    msg = f"{archive} has the entry {entry.name!r}, which no export writes."
                    raise ModelError(msg)
                source = tar.extractfile(entry)
                path = target.joinpath(*parts)
                path.parent.mkdir(exist_ok=True)
                if source:
                    with source, path.open("xb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
    except (tarfile.TarError, EOFError, FileExistsError) as error:
        msg = f"{archive} is not a whole archive of models ({error}). Export and copy it again."
        raise ModelError(msg) from error
    except OSError as error:
        msg = f"{archive} cannot be unpacked ({error}). Check the path and the free space."
        raise ModelError(msg) from error
    if not any(target.iterdir()):
        msg = f"{archive} holds no models. Export it again: tars-rag models export"
        raise ModelError(msg)
