"""Any model of the hub by ``organisation/name``: which of its files are needed, and fetching them.

A model of the catalogue has a row that says all this beforehand; here the repository says it. What
cannot be run is refused by its small files, before the weights are fetched.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tars_rag.errors import ModelError
from tars_rag.files import sha256_of
from tars_rag.models.architectures.config import CONFIG_NAME, BertConfig
from tars_rag.models.fetch import (
    HUB_TIMEOUT_S,
    disk_error,
    first_line,
    is_offline,
    reported,
    size_of,
)
from tars_rag.models.local import (
    INDEX_NAME,
    RECORD_NAME,
    WEIGHTS_NAME,
    index_files,
    repository_of,
)
from tars_rag.models.modules import MODULES_NAME, read_chain, read_pooling
from tars_rag.models.tokenizer import TOKENIZER_CONFIG_NAME, TOKENIZER_NAME
from tars_rag.progress import NamedProgress

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SMALL: Final = (
    CONFIG_NAME,
    MODULES_NAME,
    TOKENIZER_NAME,
    TOKENIZER_CONFIG_NAME,
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
_MOST_JSON_BYTES: Final = 1 << 26  # a tokenizer of 250,000 words has 17 MB
_MOST_WEIGHT_BYTES: Final = 1 << 33  # of one file; no model that a board can run has more
_OTHER: Final = "Choose another model: tars-rag models list"


def is_repository(name: str) -> bool:
    """Whether a name is ``organisation/name``."""
    return bool(_REPOSITORY.fullmatch(name)) and "--" not in name and ".." not in name


def directory_name(repository: str) -> str:
    """The name of its directory in the cache."""
    return repository.replace("/", "--")


def is_directory(name: str) -> bool:
    """Whether `directory_name` may have made it."""
    return name.count("--") == 1 and is_repository(name.replace("--", "/"))


def most_bytes(file: str) -> int | None:
    """Of a file that may have been fetched, in an archive; None for any other."""
    folder, _, name = file.rpartition("/")
    if name.endswith(".safetensors") and (not folder or name == WEIGHTS_NAME):
        return _MOST_WEIGHT_BYTES
    small = (CONFIG_NAME,) if folder else (*_SMALL, INDEX_NAME)
    return _MOST_JSON_BYTES if name in small else None


def is_record_of(record: Mapping[str, Any], folder: str) -> bool:
    """Whether the record of a model directory says that it was fetched, and under this name."""
    repository = repository_of(dict(record))
    return repository is not None and directory_name(repository) == folder


def check_archived(directory: Path, record: Mapping[str, Any]) -> None:
    """Look into the directory of an archive, whose files are as its record says.

    Raises:
        ModelError: The record is of another model or does not name every file, or it is a model
            that is not supported.
    """
    files = {path for path in directory.rglob("*") if path.is_file()}
    named = {directory / name for name in (*record["files"], RECORD_NAME)}
    if not is_record_of(record, directory.name) or files - named:
        again = directory.name.replace("--", "/")
        msg = (
            f"{directory.name} of the archive is not what its {RECORD_NAME} says. Export it again "
            f"where it was fetched: tars-rag models export {again}"
        )
        raise ModelError(msg)
    BertConfig.from_json(directory / CONFIG_NAME)
    read_chain(directory)


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a repository, with its size and, of a large one, its sha256."""

    bytes: int | None
    sha256: str | None


def fetch_repository(repository: str, staging: Path, progress: NamedProgress | None) -> str:
    """Put what is needed of a repository into the empty directory `staging`.

    Returns:
        The source, with the commit, for the record.

    Raises:
        ModelError: The hub does not have it or cannot be reached, or it is of a kind that is not
            supported; the message says which.
    """
    if is_offline():
        msg = (
            f"{repository} is not on this machine, and HF_HUB_OFFLINE is set. Fetch it where there "
            f"is a network (tars-rag models pull {repository}), or give the path of its directory."
        )
        raise ModelError(msg)
    download = staging / ".download"
    download.mkdir()
    try:
        commit, files = _listing(repository)
        source = _Source(repository, commit, files, staging, download)
        source.fetch_small()
        weights = source.weights()
        total = sum(files[name].bytes or 0 for name in weights)
        with reported(download, repository, total or None, progress):
            source.fetch(weights)
    finally:
        shutil.rmtree(download, ignore_errors=True)
    return f"hub {repository}@{commit}"


def _listing(repository: str) -> tuple[str, dict[str, _File]]:
    """The commit of a repository, and its files."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repository, timeout=HUB_TIMEOUT_S, files_metadata=True)
    except Exception as error:  # of the hub's library, or its HTTP library
        raise _unavailable(repository, error) from error
    files = {}
    for one in info.siblings or ():
        lfs: Any = one.lfs
        digest = getattr(lfs, "sha256", None) or (lfs.get("sha256") if _is_mapping(lfs) else None)
        files[one.rfilename] = _File(one.size, digest)
    return info.sha or "main", files


@dataclass(frozen=True, slots=True)
class _Source:
    repository: str
    commit: str
    files: Mapping[str, _File]
    staging: Path
    download: Path

    def fetch_small(self) -> None:
        """The configuration, refused here if it is of a kind that is not supported."""
        for name in (CONFIG_NAME, TOKENIZER_NAME):
            if name not in self.files:
                there = ", ".join(sorted(self.files)[:8]) or "nothing"
                msg = f"{self.repository} has no {name} (it has {there}). {_OTHER}"
                raise ModelError(msg)
        self.fetch(name for name in _SMALL if name in self.files and name != TOKENIZER_NAME)
        # Of modules that are not supported the settings may be anything, so all of them are here.
        folders = [name for name in self.files if name.endswith(f"/{CONFIG_NAME}")]
        self.fetch(name for name in folders if name.count("/") == 1 and "onnx" not in name)
        try:
            BertConfig.from_json(self.staging / CONFIG_NAME)
            if pooling := read_chain(self.staging).pooling_file:
                read_pooling(self.staging, pooling)
        except ModelError as error:
            said = str(error).replace(str(self.staging), self.repository)
            raise ModelError(said) from error
        self.fetch([TOKENIZER_NAME])

    def weights(self) -> tuple[str, ...]:
        """The names of the files with tensors: of the network, and of the modules behind it."""
        if WEIGHTS_NAME in self.files:
            names: tuple[str, ...] = (WEIGHTS_NAME,)
        elif INDEX_NAME in self.files:
            self.fetch([INDEX_NAME])
            try:
                names = index_files((self.staging / INDEX_NAME).read_bytes())
            except ValueError as error:
                msg = f"{INDEX_NAME} of {self.repository} cannot be read ({error}). {_OTHER}"
                raise ModelError(msg) from error
        else:
            names = (WEIGHTS_NAME,)
        names += tuple(f"{folder}/{WEIGHTS_NAME}" for folder in read_chain(self.staging).folders)
        if missing := [name for name in names if name not in self.files]:
            msg = (
                f"{self.repository} has no {missing[0]}; weights that are pickles "
                f"(pytorch_model.bin) or ONNX are not read. {_OTHER}"
            )
            raise ModelError(msg)
        return names

    def fetch(self, names: Iterable[str]) -> None:
        """Fetch files, check them, and put them in their places."""
        for name in names:
            known = self.files[name]
            if name.endswith(".json") and (known.bytes or 0) > _MOST_JSON_BYTES:
                msg = f"{name} of {self.repository} has {known.bytes:,} bytes. {_OTHER}"
                raise ModelError(msg)
            path = self._fetch_one(name)
            if known.sha256 and sha256_of(path) != known.sha256:
                msg = (
                    f"{name} of {self.repository} did not come as the hub lists it. Fetch it "
                    f"again: tars-rag models pull {self.repository}"
                )
                raise ModelError(msg)
            target = self.staging / name
            target.parent.mkdir(exist_ok=True)
            path.replace(target)

    def _fetch_one(self, name: str) -> Path:
        """Fetch a file; a connection that broke is taken up again as long as more comes."""
        from huggingface_hub import hf_hub_download

        while True:
            before = size_of(self.download)
            try:
                return Path(
                    hf_hub_download(
                        self.repository,
                        name,
                        revision=self.commit,
                        local_dir=self.download,
                        etag_timeout=HUB_TIMEOUT_S,
                    )
                )
            except Exception as error:  # of the hub's library, or its HTTP library
                told = _unavailable(self.repository, error)
                answered = getattr(error, "response", None) is not None
                if answered or isinstance(told, OSError) or size_of(self.download) <= before:
                    raise told from error


def _unavailable(repository: str, error: Exception) -> Exception:
    """What an answer of the hub means, and what to do."""
    disk = disk_error(error)
    if disk is not None:
        return disk
    status = getattr(getattr(error, "response", None), "status_code", None)
    again = f"tars-rag models pull {repository}"
    if status in (401, 403):
        what = (
            f"the hub answers {status}: it does not exist, is private, or asks for its terms to be "
            "accepted. Check the name; if it is right, accept the terms on its page, make a token "
            f"there, and run: HF_TOKEN=hf_... {again}"
        )
    elif status == 404:
        what = (
            "the hub does not have it (404), and there is no such directory here. Check the name, "
            "or give the path of a directory; known models: tars-rag models list"
        )
    elif status == 429:
        what = (
            "the hub was asked too often (429). Wait some minutes and run it again; with a token "
            f"more is allowed: HF_TOKEN=hf_... {again}"
        )
    elif isinstance(status, int) and status >= 500:
        what = f"the hub is out of order ({status}). Run it again later: {again}"
    else:
        what = (
            f"{first_line(error)}. Connect to the network and run `{again}`, or give the path of "
            "its directory."
        )
    return ModelError(f"{repository} cannot be fetched: {what}")


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)
