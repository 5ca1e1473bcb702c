"""The models this package knows: one row each, with what it takes to fetch and check them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tars_rag.errors import ModelError
from tars_rag.models.embedders import EMBEDDERS
from tars_rag.models.rerankers import RERANKERS
from tars_rag.models.spec import ModelSpec

CATALOG: Final[tuple[ModelSpec, ...]] = (*EMBEDDERS, *RERANKERS)

_BY_NAME: Final = {alias.lower(): spec for spec in CATALOG for alias in (spec.name, *spec.aliases)}


def find_spec(name: str) -> ModelSpec | None:
    """The row of a model by its name or an alias, without regard to case; None if unknown."""
    return _BY_NAME.get(name.lower())


def fetch_again(directory: Path) -> str:
    """The sentence that says how a model directory that is not sound is mended."""
    spec = find_spec(directory.name)
    if spec is None and "--" in directory.name:  # of the hub, see `hub.directory_name`
        return f"Fetch it again: tars-rag models pull {directory.name.replace('--', '/', 1)}"
    if spec is None:
        return f"Copy it again, whole, to {directory}."
    return f"Fetch it again: tars-rag models pull {spec.name}"


def get_spec(name: str) -> ModelSpec:
    """As `find_spec`.

    Raises:
        ModelError: The name is unknown; the message lists the known ones.
    """
    spec = find_spec(name)
    if spec is None:
        known = ", ".join(spec.name for spec in CATALOG)
        msg = (
            f"Unknown model {name!r}. Known: {known}; or give the path of a directory with "
            "config.json, tokenizer.json and model.safetensors, or a model of the hub as "
            "organisation/name. More: tars-rag models list"
        )
        raise ModelError(msg)
    return spec
