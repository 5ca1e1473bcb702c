"""Text in, unit-length vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from tars_rag.errors import ModelError
from tars_rag.models.batching import run_batched
from tars_rag.models.bert_graph import Pooling
from tars_rag.models.cache import ModelCache
from tars_rag.models.local import LocalModel
from tars_rag.models.opening import open_runtime
from tars_rag.models.tokenizer import TOKENIZER_NAME, Tokenizer, require_text, require_texts
from tars_rag.models.weights import CONFIG_NAME, WEIGHTS_NAME, BertConfig, read_json
from tars_rag.progress import NamedProgress
from tars_rag.runtimes.base import FloatArray
from tars_rag.settings import CoreMask, Device, Placement, Precision, Settings

# Texts tokenised at a time: bounds the memory, and is enough to find rows of like length.
_WINDOW: Final = 4096


class Embedder:
    """An embedding model on the NPU or the CPU. Safe to call from any number of threads.

    Pickling and copying carry the configuration only; the copy opens the model again.

    Args:
        model: A name of the catalogue, or the path of a directory with a BERT encoder
            (config.json, tokenizer.json, model.safetensors).
        device: ``auto``: the NPU where it is usable, else the CPU.
        precision: On the CPU. ``fp32`` gives the published model's vectors, which those of the
            NPU in FP16 may be mixed with; ``int8`` is faster and mixes with neither.
        cache_dir: Where models are kept. None: MODEL_CACHE_DIR, or the user's cache directory.
        threads: On the CPU. None: one for each core, of big.LITTLE processors the big ones.
        rknn_path: For the NPU: a bundle directory or a single .rknn file.
        core_mask: Which NPU cores to use.
        fallback_cpu: With ``npu``: go on on the CPU, with one warning, where the NPU cannot be
            used or fails.
        progress: Told (what is being fetched, bytes so far, bytes in all or None).

    Raises:
        ModelError: The model is unknown, damaged, not of this kind, or cannot be fetched.
        DeviceError: ``npu`` was asked for and cannot be used.
        ConfigError: An argument is not one of those allowed.
    """

    def __init__(
        self,
        model: str | Path = "all-MiniLM-L6-v2",
        *,
        device: Device = "auto",
        precision: Precision = "fp32",
        cache_dir: str | Path | None = None,
        threads: int | None = None,
        rknn_path: str | Path | None = None,
        core_mask: CoreMask = "auto",
        fallback_cpu: bool = False,
        progress: NamedProgress | None = None,
    ) -> None:
        placement = Placement(
            device=device,
            precision=precision,
            threads=threads,
            rknn_path=rknn_path,
            core_mask=core_mask,
            fallback_cpu=fallback_cpu,
            cache_dir=cache_dir,
        )
        self._open(model, placement, progress)

    @classmethod
    def placed(
        cls,
        model: str | Path,
        placement: Placement,
        progress: NamedProgress | None = None,
    ) -> Embedder:
        """As the constructor, with all that says where and how it runs as one value."""
        embedder = cls.__new__(cls)
        embedder._open(model, placement, progress)
        return embedder

    def _open(
        self, model: str | Path, placement: Placement, progress: NamedProgress | None
    ) -> None:
        self._asked_for, self.placement = model, placement
        cache = ModelCache(placement.cache_dir)
        local = cache.get(model, progress)
        config = BertConfig.from_json(local.directory / CONFIG_NAME)
        pooling = _pooling(local)
        opened = open_runtime(
            local, cache.root, output="pooled", pooling=pooling, placement=placement
        )
        self._runtime = opened.runtime
        self.model = local.name
        self.reference = local.name if local.spec else str(local.directory.resolve())
        self.dimension = config.hidden
        self.max_length = min(_max_length(local, config), opened.max_length or config.positions)
        digest = local.digest(WEIGHTS_NAME)[:16]
        self.fingerprint = f"{digest}:{pooling}:{self.max_length}:{opened.precision}"
        self._pad_id = config.pad_id
        self.tokenizer_path = local.directory / TOKENIZER_NAME
        self._tokenizer = Tokenizer(local.directory, self.max_length)

    @property
    def device(self) -> str:
        """Where it runs: ``cpu`` or ``npu``."""
        return self._runtime.device

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts.

        Args:
            texts: Any number of strings. Longer ones than `max_length` tokens are cut. An empty
                one, or white space, has the vector that the model gives to no words at all.

        Returns:
            float32 [len(texts), dimension], rows of unit length in the order of `texts`.

        Raises:
            InvalidInputError: Not a list of strings; the message names the index and the type.
            DeviceError: The device failed.
        """
        return self._embed(require_texts(texts), urgent=False)

    def embed_query(self, text: str) -> FloatArray:
        """Embed one text ahead of the bulk work that is waiting, float32 [dimension].

        Raises:
            InvalidInputError: Not a string.
            DeviceError: The device failed.
        """
        row: FloatArray = self._embed([require_text(text, "text")], urgent=True)[0]
        return row

    def close(self) -> None:
        """Release the device. May be called twice; the embedder cannot be used afterwards."""
        self._runtime.close()

    @classmethod
    def from_settings(cls, settings: Settings, **overrides: Any) -> Embedder:
        """The embedder that the settings describe; keyword arguments win over them."""
        model, progress = (
            overrides.pop("model", settings.embed_model),
            overrides.pop("progress", None),
        )
        return cls.placed(model, replace(settings.embedder_placement, **overrides), progress)

    @classmethod
    def from_env(cls, **overrides: Any) -> Embedder:
        """The embedder that the environment and ``.env`` describe."""
        return cls.from_settings(Settings.from_env(), **overrides)

    def _embed(self, texts: list[str], *, urgent: bool) -> FloatArray:
        rows = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), _WINDOW):
            encodings = self._tokenizer.encode(texts[start : start + _WINDOW])
            rows[start : start + _WINDOW] = run_batched(
                self._runtime, encodings, pad_id=self._pad_id, urgent=urgent
            )
        return rows

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).placed, (self._asked_for, self.placement)

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Embedder({self.model!r}, device={self.device!r}, fingerprint={self.fingerprint!r})"


def _pooling(model: LocalModel) -> Pooling:
    """Mean, unless the model's own pooling file says otherwise."""
    path = model.directory / "1_Pooling" / CONFIG_NAME
    if model.spec or not path.is_file():
        return "mean"
    modes = {
        key.removeprefix("pooling_mode_")
        for key, on in read_json(path).items()
        if key.startswith("pooling_mode_") and on
    }
    if modes == {"mean_tokens"}:
        return "mean"
    if modes == {"cls_token"}:
        return "cls"
    msg = f"{path} asks for {', '.join(sorted(modes))}; only mean and cls pooling are supported."
    raise ModelError(msg)


def _max_length(model: LocalModel, config: BertConfig) -> int:
    path = model.directory / "sentence_bert_config.json"
    if model.spec:
        return model.spec.max_length
    if path.is_file() and (length := read_json(path).get("max_seq_length")):
        return min(int(length), config.positions)
    return config.positions
