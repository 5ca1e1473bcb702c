"""The weights of an encoder, read from safetensors in one file or in several."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import ModelError
from tars_rag.models.architectures import tensors
from tars_rag.models.architectures.config import CONFIG_NAME, BertConfig, read_json
from tars_rag.models.architectures.head import Dense, Module
from tars_rag.models.catalog import fetch_again
from tars_rag.models.local import WEIGHTS_NAME, weight_files
from tars_rag.models.modules import Chain, read_chain, read_pooling
from tars_rag.models.spec import Pooling

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "BertConfig", "BertWeights", "load_weights", "read_json"]

Arrays = Mapping[str, NDArray[np.float32]]
_NUMBERS: Final = ("F16", "F32", "BF16")


@dataclass(frozen=True, slots=True)
class BertWeights:
    """An encoder, or a cross-encoder with one logit, in float32.

    Attributes:
        config: Its sizes.
        arrays: The tensors by BERT's names, or by those of its own architecture, without their
            prefix; linear layers as stored, [out, in].
        head: It ends in a logit: a cross-encoder.
        modules: After the pooling: the classification head, or what sentence-transformers adds.
        pooling: Of a cross-encoder: what its head is given.
    """

    config: BertConfig
    arrays: Arrays
    head: bool
    modules: tuple[Module, ...] = ()
    pooling: Pooling = "cls"

    @property
    def width(self) -> int:
        """Width of what comes out: of an embedding, or 1."""
        dense = [module for module in self.modules if isinstance(module, Dense)]
        return len(self.arrays[f"{dense[-1].name}.weight"]) if dense else self.config.hidden


def load_weights(directory: Path) -> BertWeights:
    """Read ``config.json``, ``modules.json`` and the safetensors of a model directory.

    float16, bfloat16 and float32 are read, all into float32. Names may have the prefix of the
    architecture. A classifier with two logits becomes one: the second less the first, whose
    sigmoid is the softmax of the second.

    Raises:
        ModelError: A file is missing or damaged, a tensor is missing or of another shape, or
            the classifier has more than two logits.
    """
    config = BertConfig.from_json(directory / CONFIG_NAME)
    chain = read_chain(directory)
    files = weight_files(directory)
    if not files:
        msg = f"{directory} has no {WEIGHTS_NAME}. {fetch_again(directory)}"
        raise ModelError(msg)
    stored = _Stored(directory, files)
    prefix = tensors.NAMES[config.architecture].prefix
    head = not chain.modules and _classifier(config) in stored.names
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, shape in tensors.shapes(config, head=head).items():
        if head and name in _last(config):
            shape = (2 if stored.rows(_classifier(config)) == 2 else 1, *shape[1:])
        arrays[name] = stored.read(tensors.stored_name(config, name), prefix, shape)
    for name, shape in tensors.optional(config, head=head).items():
        if (found := stored.find(tensors.stored_name(config, name), prefix)) is not None:
            arrays[name] = stored.read(found, "", shape)
    if head:
        arrays |= {
            name: arrays[name][1:] - arrays[name][:1]
            for name in _last(config)
            if len(arrays[name]) == 2
        }
        return BertWeights(
            config, arrays, True, tensors.classifier(config), config.classifier_pooling
        )
    arrays |= _module_arrays(directory, chain, config.hidden)
    scored = chain.width == 1 and chain.pooling_file is not None
    pooling = read_pooling(directory, chain.pooling_file or "") if scored else "cls"
    return BertWeights(config, arrays, scored, chain.modules, pooling)


def random_weights(config: BertConfig, *, head: bool = True, seed: int = 0) -> BertWeights:
    """Seeded random weights, scaled so that outputs spread like a trained model's."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, shape in tensors.shapes(config, head=head).items():
        if len(shape) == 1 and name.endswith("weight"):
            array = np.ones(shape)
        elif name.endswith("bias"):
            array = random.standard_normal(shape) * 0.02
        else:
            array = random.standard_normal(shape) / math.sqrt(shape[-1])
        arrays[name] = array.astype(np.float32)
    modules = tensors.classifier(config) if head else ()
    return BertWeights(config, arrays, head, modules, config.classifier_pooling)


def _last(config: BertConfig) -> tuple[str, str]:
    name = tensors.classifier(config)[-1].name
    return f"{name}.weight", f"{name}.bias"


def _classifier(config: BertConfig) -> str:
    return _last(config)[0]


def _module_arrays(directory: Path, chain: Chain, width: int) -> dict[str, NDArray[np.float32]]:
    """The tensors of what comes after the pooling."""
    arrays: dict[str, NDArray[np.float32]] = {}
    for module, folder in zip(chain.modules, chain.folders, strict=True):
        path = directory / folder / WEIGHTS_NAME
        if not path.is_file():
            msg = (
                f"{directory} has no {folder}/{WEIGHTS_NAME}. Weights that are pickles "
                f"(pytorch_model.bin) are not read. {fetch_again(directory)}"
            )
            raise ModelError(msg)
        stored = _Stored(directory / folder, (WEIGHTS_NAME,))
        own = module.name.removeprefix(f"{folder}.")
        rows = stored.rows(f"{own}.weight") or width
        shape = (rows, width) if isinstance(module, Dense) else (width,)
        arrays[f"{module.name}.weight"] = stored.read(f"{own}.weight", "", shape)
        if f"{own}.bias" in stored.names:
            arrays[f"{module.name}.bias"] = stored.read(f"{own}.bias", "", (rows,))
        width = rows
    return arrays


class _Stored:
    """The tensors of some safetensors files of a directory; each is read when it is asked for."""

    def __init__(self, directory: Path, files: tuple[str, ...]) -> None:
        self.directory = directory
        self.names: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            path = directory / file
            with _readable(path) as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    self.names[name] = path
                    self._shapes[name] = tuple(opened.get_slice(name).get_shape())

    def rows(self, name: str) -> int | None:
        """The first dimension of a tensor; None where it is not there."""
        shape = self._shapes.get(name)
        return shape[0] if shape else None

    def find(self, name: str, prefix: str) -> str | None:
        """The name as it stands in the file, with the architecture's prefix or without it."""
        return next((n for n in (name, f"{prefix}{name}") if n in self.names), None)

    def read(self, name: str, prefix: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """One tensor, in float32.

        Raises:
            ModelError: It is missing, or of another shape or type.
        """
        found = self.find(name, prefix)
        if found is None:
            msg = (
                f"{self.directory} lacks the tensor {name}, so it is not a complete model. "
                f"{fetch_again(self.directory)}"
            )
            raise ModelError(msg)
        path = self.names[found]
        with _readable(path) as opened:
            kind = opened.get_slice(found).get_dtype()
            if self._shapes[found] != shape or kind not in _NUMBERS:
                self._refuse(path, name, kind, shape, self._shapes[found])
            array = _bfloat16(path, found) if kind == "BF16" else opened.get_tensor(found)
        return np.asarray(array, np.float32).reshape(shape)

    @staticmethod
    def _refuse(
        path: Path, name: str, kind: str, shape: tuple[int, ...], found: tuple[int, ...]
    ) -> None:
        if name.endswith(("classifier.weight", "out_proj.weight")) and found[1:] == shape[1:]:
            msg = (
                f"{path} has {found[0]} logits; only cross-encoders with a single logit, or with "
                "two, are supported. Choose one that gives a single score for a pair; those of "
                "`tars-rag models list` do."
            )
            raise ModelError(msg)
        msg = (
            f"{path}: {name} is {kind} {found}, where config.json asks for F16, BF16 or F32 "
            f"{shape}."
        )
        raise ModelError(msg)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[Any]:
    """A safetensors file, opened; what is wrong with it is told as a `ModelError`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, TypeError) as error:
        msg = f"{path} cannot be read ({error}). {fetch_again(path.parent)}"
        raise ModelError(msg) from error


def _bfloat16(path: Path, name: str) -> NDArray[np.float32]:
    """A tensor that NumPy has no type for: the upper half of a float32."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))[name]
        start, end = header["data_offsets"]
        file.seek(8 + length + start)
        raw = np.frombuffer(file.read(end - start), "<u2")
    wide = raw.astype(np.uint32) << np.uint32(16)
    array: NDArray[np.float32] = wide.view(np.float32).reshape(header["shape"])
    return array
