"""What comes after the network, as ``modules.json`` of sentence-transformers says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from tars_rag.errors import ModelError, shown
from tars_rag.models.architectures.config import CONFIG_NAME, read_json
from tars_rag.models.architectures.head import Dense, LayerNorm, Module
from tars_rag.models.catalog import fetch_again
from tars_rag.models.spec import Pooling

MODULES_NAME: Final = "modules.json"
_DEFAULT_POOLING: Final = f"1_Pooling/{CONFIG_NAME}"
_OTHER: Final = "Choose another model: tars-rag models list"
_KNOWN: Final = "Transformer, Pooling, Dense, LayerNorm, Dropout and Normalize"
_POOLINGS: Final[Mapping[str, Pooling]] = {
    "mean_tokens": "mean",
    "mean": "mean",
    "cls_token": "cls",
    "cls": "cls",
    "max_tokens": "max",
    "max": "max",
    "lasttoken": "lasttoken",
}
_ACTIVATIONS: Final[Mapping[str, str]] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.SiLU": "silu",
}


@dataclass(frozen=True, slots=True)
class Chain:
    """What comes after the network.

    Attributes:
        pooling_file: The settings of the pooling; None: there is none, but a classifier maybe.
        modules: After the pooling, in order; their tensors go by the names of their folders.
        width: Of what the last of them gives; None where none changes it.
    """

    pooling_file: str | None = _DEFAULT_POOLING
    modules: tuple[Module, ...] = ()
    width: int | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that hold tensors."""
        return tuple(module.name.rpartition(".")[0] for module in self.modules)


def read_chain(directory: Path) -> Chain:
    """The modules of a model directory.

    Raises:
        ModelError: ``modules.json`` cannot be read, or a module is none that is supported.
    """
    path = directory / MODULES_NAME
    if not path.is_file():
        return Chain()
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        named = [(str(row["type"]).rsplit(".", 1)[-1], _folder(row["path"])) for row in rows]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        msg = f"{path} cannot be read ({str(error)[:200]}). {fetch_again(directory)}"
        raise ModelError(msg) from error
    kinds = [kind for kind, _ in named]
    if kinds[:1] != ["Transformer"] or (len(kinds) > 1 and kinds[1] != "Pooling"):
        _refuse_chain(path, kinds)
    if named[0][1]:
        msg = f"{path} keeps the network in {named[0][1]}/, which is not supported. {_OTHER}"
        raise ModelError(msg)
    modules: list[Module] = []
    width: int | None = None
    for place, (kind, folder) in enumerate(named[2:], 2):
        if kind == "Dense":
            module, width = _dense(directory, folder)
            modules.append(module)
        elif kind == "LayerNorm":
            modules.append(LayerNorm(f"{folder}.norm"))
        # Dropout does nothing outside of training. Embeddings are made unit length anyway.
        elif kind != "Dropout" and (kind != "Normalize" or place != len(named) - 1):
            _refuse_chain(path, kinds)
    pooling = f"{named[1][1]}/{CONFIG_NAME}" if len(named) > 1 else None
    return Chain(pooling, tuple(modules), width)


def read_pooling(directory: Path, name: str) -> Pooling:
    """How the tokens' vectors become one; the mean where nothing is said.

    Raises:
        ModelError: The file cannot be read, or asks for what is not supported.
    """
    path = directory / name
    if not path.is_file():
        return "mean"
    said = read_json(path)
    prefix = "pooling_mode_"
    modes = {key.removeprefix(prefix) for key, on in said.items() if key.startswith(prefix) and on}
    if mode := said.get("pooling_mode"):
        modes = {str(one) for one in (mode if isinstance(mode, list) else [mode])}
    if len(modes) == 1 and (only := modes.copy().pop()) in _POOLINGS:
        return _POOLINGS[only]
    msg = (
        f"{path} asks for {', '.join(sorted(modes)) or 'no pooling'}; only mean, cls, max and "
        f"lasttoken pooling are supported, one at a time. {_OTHER}"
    )
    raise ModelError(msg)


def _dense(directory: Path, folder: str) -> tuple[Dense, int]:
    path = directory / folder / CONFIG_NAME
    if not path.is_file():
        msg = (
            f"{directory} has no {folder}/{CONFIG_NAME}, so it is not a complete model. "
            f"{fetch_again(directory)}"
        )
        raise ModelError(msg)
    said = read_json(path)
    names = {said.get(key) for key in ("module_input_name", "module_output_name")}
    if said.get("use_residual") or names - {None, "sentence_embedding"}:
        msg = (
            f"{path}: a Dense module with a residual, or one of anything but the text's vector, "
            f"is not supported. {_OTHER}"
        )
        raise ModelError(msg)
    activation: Any = said.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS:
        names_known = ", ".join(name.rpartition(".")[2] for name in _ACTIVATIONS)
        msg = (
            f"{path} has activation_function={shown(activation)}; only {names_known} are "
            f"supported. {_OTHER}"
        )
        raise ModelError(msg)
    try:
        width = int(said["out_features"])
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path} lacks or garbles {error}. {fetch_again(directory)}"
        raise ModelError(msg) from error
    return Dense(f"{folder}.linear", _ACTIVATIONS[activation]), width


def _folder(path: object) -> str:
    """The folder of a module, in the model's own directory."""
    folder = str(path).rstrip("/")
    if folder and (PurePosixPath(folder).name != folder or folder in (".", "..")):
        msg = f"the folder {folder!r:.80}"
        raise ValueError(msg)
    return folder


def _refuse_chain(path: Path, kinds: list[str]) -> None:
    msg = (
        f"{path} has the modules {', '.join(kinds) or 'none'}; only {_KNOWN} are supported, in "
        f"this order. {_OTHER}"
    )
    raise ModelError(msg)
