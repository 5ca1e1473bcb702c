"""Find, fetch and check models. Offline first; nothing half, nothing unverified.

A model is a directory ``<cache>/<name>/`` with its files and ``files.json``, the record of what
was put there: size and sha256 of each file, and where it came from. The directory appears by one
rename, when all of it has been checked, so an interrupted pull leaves nothing to mistake for a
model. It is laid out as FlashRank lays out its own cache, so each can use the other's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tars_rag.errors import ModelError
from tars_rag.files import replace_directory, restore_directory, set_aside, size_of
from tars_rag.models import archives, fetch, hub
from tars_rag.models.catalog import CATALOG, find_spec, get_spec
from tars_rag.models.local import (
    RECORD_NAME,
    LocalModel,
    checked,
    is_plain,
    pull_anew,
    read_record,
    repository_of,
    write_record,
)
from tars_rag.models.spec import ModelSpec
from tars_rag.progress import NamedProgress
from tars_rag.runtimes.npu.manifest import MANIFEST_NAME, verify_bundle

_MOST_RECORD_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Listing:
    """A row of `ModelCache.list`: what the catalogue says, and what is on this machine."""

    spec: ModelSpec
    present: bool
    directory: Path
    bytes: int | None
    source: str | None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name

    @property
    def kind(self) -> str:
        """What it is: see `ModelSpec`."""
        return self.spec.kind


def default_cache_dir() -> Path:
    """MODEL_CACHE_DIR, or ``tars-rag/models`` in the user's cache directory."""
    named = os.environ.get("MODEL_CACHE_DIR", "").strip()
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("tars-rag", appauthor=False)) / "models"


class ModelCache:
    """The models of one cache directory.

    Args:
        cache_dir: Where they are kept; None for `default_cache_dir`.
    """

    def __init__(self, cache_dir: str | Path | None = None) -> None:
        self.root = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()

    def directory(self, spec: ModelSpec) -> Path:
        """Where a model of the catalogue is, or would be."""
        return self.root / spec.name

    def find(self, model: str | Path) -> LocalModel | None:
        """A model that is on this machine, checked; None if it has to be pulled.

        Args:
            model: A path to a model directory, a catalogue name, an alias, the name of a
                directory in the cache (such as FlashRank's other models), or the name of a model
                on the hub.

        Raises:
            ModelError: The name is unknown, or a file is missing, truncated or altered.
        """
        directory, spec = self._resolve(model)
        if not directory.is_dir():
            return None
        return checked(directory, spec)

    def get(self, model: str | Path, progress: NamedProgress | None = None) -> LocalModel:
        """As `find`, and pulled first where it is not on this machine.

        Raises:
            ModelError: As `find`, or no source of it can be reached.
        """
        return self.find(model) or self.pull(str(model), progress)

    def pull(self, name: str, progress: NamedProgress | None = None) -> LocalModel:
        """Fetch a model of the catalogue, or of the hub, unless it is there and sound.

        Safe to interrupt, and to run in several processes at once: the others wait.

        Raises:
            ModelError: The name is unknown, the cache cannot be written, no source can be
                reached, or what came is not what the catalogue asks for.
        """
        spec = find_spec(name)
        if spec is None and hub.is_repository(name):
            return self._pull_repository(name, progress)
        spec = spec or get_spec(name)
        with self._staging(spec.name) as staging:
            target = self.directory(spec)
            # Sound, or put there by the user: another process may also have just pulled it.
            with contextlib.suppress(ModelError):
                if target.is_dir():
                    return checked(target, spec)
            source = fetch.fetch(spec, staging, progress)
            write_record(staging, [file.name for file in spec.files], source)
            checked(staging, spec)
            replace_directory(staging, target)
        return checked(target, spec)

    def _pull_repository(self, name: str, progress: NamedProgress | None) -> LocalModel:
        """Fetch a model of the hub that has no row in the catalogue."""
        folder = hub.directory_name(name)
        target = self.root / folder
        with self._staging(folder) as staging:
            with contextlib.suppress(ModelError):
                if target.is_dir():
                    return checked(target, None)
            source = hub.fetch_repository(name, staging, progress)
            files = [path for path in staging.rglob("*") if path.is_file()]
            names = sorted(path.relative_to(staging).as_posix() for path in files)
            write_record(staging, names, source)
            replace_directory(staging, target)
        return checked(target, None)

    def verify(self, model: str | Path) -> LocalModel | None:
        """Hash every file of a model, or of a ``.rknn`` bundle directory.

        Returns:
            The model; None for a bundle, which has its own manifest.

        Raises:
            ModelError: It is not there, or a file is missing, truncated or altered: each named.
        """
        path = Path(model)
        if (path / MANIFEST_NAME).is_file():
            verify_bundle(path)
            return None
        directory, spec = self._resolve(model)
        if not directory.is_dir():
            msg = f"{model} is not in {self.root}. Fetch it: tars-rag models pull {model}"
            raise ModelError(msg)
        found = checked(directory, spec, strict=True)
        if not found.digests:
            msg = (
                f"{directory} has no record to compare it with ({RECORD_NAME}): it was not fetched "
                "by tars-rag. It can be used by its path, but not verified."
            )
            raise ModelError(msg)
        return found

    def export(self, names: Sequence[str], archive: str | Path) -> Path:
        """Pack models into one tar file for a board without a network.

        Raises:
            ModelError: A model is not here or damaged, or the file cannot be written.
        """
        models: dict[Path, list[str]] = {}
        for name in names:
            directory, spec = self._resolve(name)
            self.verify(name)
            record = read_record(directory)
            if record is None or (spec is None and not hub.is_record_of(record, directory.name)):
                msg = (
                    f"{directory} was not fetched by tars-rag, so it cannot be vouched for. "
                    f"{pull_anew(directory)}"
                )
                raise ModelError(msg)
            models[directory] = [RECORD_NAME, *record["files"]]
        return archives.pack(models, Path(archive))

    def import_(self, archive: str | Path) -> list[LocalModel]:
        """Unpack a file of `export` into the cache; every file is verified first.

        Nothing is put into the cache unless the whole archive is sound. A model that is already
        there is replaced. What a model of the catalogue must be is known here; of another the
        archive's own record is what its files are compared with.

        Raises:
            ModelError: It is not such an archive, is damaged, or its files are not those of the
                catalogue.
        """
        with self._staging("import") as staging:
            archives.unpack(Path(archive), staging, _most_bytes)
            names = sorted(directory.name for directory in staging.iterdir())
            for name in names:
                record = read_record(staging / name)
                if record is None:
                    msg = (
                        f"{archive} lacks {name}/{RECORD_NAME}. Export it again: "
                        f"tars-rag models export {name.replace('--', '/')}"
                    )
                    raise ModelError(msg)
                checked(staging / name, find_spec(name))
                if find_spec(name) is None:
                    hub.check_archived(staging / name, record)
            for name in names:
                with self._staging(name) as own:
                    own.rmdir()
                    (staging / name).rename(own)
                    replace_directory(own, self.root / name)
        return [checked(self.root / name, find_spec(name)) for name in names]

    def list(self) -> tuple[Listing, ...]:
        """Every model of the catalogue, and whether it is here (not hashed)."""
        rows = []
        for spec in CATALOG:
            directory = self.directory(spec)
            present = directory.is_dir()
            size = size_of(directory) if present else spec.bytes
            source = (read_record(directory) or {}).get("source") if present else None
            rows.append(
                Listing(
                    spec=spec,
                    present=present,
                    directory=directory,
                    bytes=size,
                    source=source,
                )
            )
        return tuple(rows)

    def fetched(self) -> tuple[LocalModel, ...]:
        """The models of the hub that are here and have no row in the catalogue (not hashed)."""
        found = []
        for directory in sorted(self.root.glob("*--*")):
            record = read_record(directory) if directory.is_dir() else None
            if record and (name := repository_of(record)):
                found.append(LocalModel(name, directory, None, {}))
        return tuple(found)

    def _resolve(self, model: str | Path) -> tuple[Path, ModelSpec | None]:
        path = Path(model).expanduser()
        name = str(model)
        spec = find_spec(name)
        if spec is None and name and path.is_dir():
            return path.resolve(), None
        if spec is None and is_plain(name) and (self.root / name).is_dir():
            return self.root / name, None
        if spec is None and hub.is_repository(name):
            return self.root / hub.directory_name(name), None
        if spec is None and (path.is_absolute() or name.startswith((".", "~"))):
            msg = f"The model directory {path} does not exist. Give the path of an existing one."
            raise ModelError(msg)
        spec = spec or get_spec(name)
        return self.directory(spec), spec

    @contextlib.contextmanager
    def _staging(self, name: str) -> Iterator[Path]:
        """An empty directory beside the models, held by one process at a time.

        A model that a killed process had set aside, to put another in its place, is brought back.
        """
        from filelock import FileLock

        staging = self.root / ".staging" / name
        try:
            locks = self.root / ".locks"
            locks.mkdir(parents=True, exist_ok=True)
            with FileLock(locks / f"{name}.lock"):
                restore_directory(set_aside(staging), self.root / name)
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
                try:
                    yield staging
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
        except OSError as error:
            msg = (
                f"The model cache {self.root} cannot be written ({error}). Check the free space, "
                "or choose another directory: export MODEL_CACHE_DIR=~/models"
            )
            raise ModelError(msg) from error


def _most_bytes(entry: str) -> int | None:
    """Of ``<name>/<file>`` in an archive; None for what has no place in one."""
    name, _, file = entry.partition("/")
    spec = find_spec(name)
    known = {one.name: one.most_bytes for one in spec.files} if spec and spec.name == name else None
    if known is None and (spec or not hub.is_directory(name)):
        return None
    if file == RECORD_NAME:
        return _MOST_RECORD_BYTES
    return hub.most_bytes(file) if known is None else known.get(file)
