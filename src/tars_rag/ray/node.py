"""A model on a node of a cluster: found there, or brought there through Ray's object store."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import ConfigError, ModelError
from tars_rag.models.cache import ModelCache
from tars_rag.models.embedder import Embedder
from tars_rag.settings import Placement


@dataclass(frozen=True, slots=True)
class NodeModel:
    """What a node opens; small, but for the archive, which stays in the object store.

    Attributes:
        model: Its name; or a directory that every node has.
        placement: Where and how it runs on the node.
        prompts: As `Embedder` has them.
        fingerprint: What its vectors must be.
        archive: A reference to the model's files (`archive_of`); None: each node has them.
    """

    model: str
    placement: Placement
    prompts: dict[str, str] | None
    fingerprint: str
    archive: Any = None

    def open(self, cpus: int | None = None) -> Embedder:
        """The embedder, on this node.

        Args:
            cpus: How many Ray gave; None, or all that there are: its own choice of cores.

        Raises:
            ConfigError: Its vectors are of another kind than the others'.
            ModelError: The model is not here and was not brought.
        """
        placement = self.placement
        if placement.threads is None and cpus is not None and cpus < (os.cpu_count() or 1):
            placement = replace(placement, threads=cpus)
        cache = ModelCache(placement.cache_dir)
        if self.archive is not None and _missing(cache, self.model):
            _unpack(cache, self.archive)
        embedder = Embedder.placed(self.model, placement, self.prompts)
        if embedder.fingerprint != self.fingerprint:
            found = embedder.fingerprint
            embedder.close()
            msg = (
                f"A node ({os.uname().nodename}, {embedder.device}) makes vectors of {found!r}, "
                f"the others of {self.fingerprint!r}: they cannot be mixed. Give --device cpu, or "
                "nodes and bundles of one kind."
            )
            raise ConfigError(msg)
        return embedder


def archive_of(model: str, cache_dir: str | Path | None) -> NDArray[np.uint8] | None:
    """The files of a model as bytes; None for a directory, which every node must have."""
    cache = ModelCache(cache_dir)
    if Path(model).expanduser().is_dir():
        return None
    cache.get(model)
    with tempfile.TemporaryDirectory() as folder:
        path = cache.export([model], Path(folder) / "model.tar")
        return np.fromfile(path, np.uint8)


def _missing(cache: ModelCache, model: str) -> bool:
    try:
        return cache.find(model) is None
    except ModelError:  # damaged: what was brought takes its place
        return True


def _unpack(cache: ModelCache, archive: Any) -> None:
    import ray

    held: NDArray[np.uint8] = ray.get(archive)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tar"
        held.tofile(path)
        cache.import_(path)
