"""Text in, unit-length vectors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from tars_rag.errors import ConfigError
from tars_rag.models import layout
from tars_rag.models.architectures.config import CONFIG_NAME, BertConfig
from tars_rag.models.background import unrelated_cosine
from tars_rag.models.batching import TOKENS_PER_BATCH, run_batched
from tars_rag.models.cache import ModelCache
from tars_rag.models.long_texts import LongTexts
from tars_rag.models.opening import open_runtime
from tars_rag.models.prompts import NO_PROMPTS
from tars_rag.models.tokenizer import TOKENIZER_NAME, Tokenizer, require_text, require_texts
from tars_rag.progress import NamedProgress
from tars_rag.runtimes.base import FloatArray
from tars_rag.settings import CoreMask, Device, Engine, Placement, Precision, Settings

# Texts tokenised at a time: bounds the memory, and is enough to find rows of like length.
_WINDOW: Final = 4096
# Tokens for a text beside the prompt, with those at its ends.
_LEAST_ROOM: Final = 16


class Embedder:
    """An embedding model on the NPU or the CPU. Safe to call from any number of threads.

    Pickling and copying carry the configuration only; the copy opens the model again.

    Args:
        model: A name of the catalogue, ``organisation/name`` of the hub, or the path of a
            directory (config.json, tokenizer.json, safetensors) of an architecture that
            docs/models.md names.
        device: ``auto``: the NPU where it is usable, else the CPU.
        engine: On the CPU. ``auto``: what `tars-rag bench` found to be fastest, else ONNX Runtime;
            ``onnxruntime``; ``openvino``, which is an extra.
        precision: On the CPU. ``fp32`` gives the published model's vectors, which those of the
            NPU in FP16 may be mixed with; ``int8`` is faster and mixes with neither.
        cache_dir: Where models are kept. None: MODEL_CACHE_DIR, or the user's cache directory.
        threads: On the CPU. None: one for each core, of big.LITTLE processors the big ones.
        rknn_path: For the NPU: a bundle directory or a single .rknn file.
        core_mask: Which NPU cores to use.
        fallback_cpu: With ``npu``: go on on the CPU, with one warning, where the NPU cannot be
            used or fails.
        prompts: Put before texts: ``query`` before those of `embed_query`, ``passage`` before
            those of `embed`. Those left out are the model's own (of the catalogue, or of the
            directory's config_sentence_transformers.json); an empty string means none.
        progress: Told (what is being fetched, bytes so far, bytes in all or None).

    Raises:
        ModelError: The model is unknown, damaged, not of this kind, or cannot be fetched.
        DeviceError: ``npu`` was asked for and cannot be used.
        ConfigError: An argument is not one of those allowed, or the prompts leave no room for
            a text.
    """

    def __init__(
        self,
        model: str | Path = "all-MiniLM-L6-v2",
        *,
        device: Device = "auto",
        engine: Engine = "auto",
        precision: Precision = "fp32",
        cache_dir: str | Path | None = None,
        threads: int | None = None,
        rknn_path: str | Path | None = None,
        core_mask: CoreMask = "auto",
        fallback_cpu: bool = False,
        prompts: Mapping[str, str] | None = None,
        progress: NamedProgress | None = None,
    ) -> None:
        placement = Placement(
            device=device,
            engine=engine,
            precision=precision,
            threads=threads,
            rknn_path=rknn_path,
            core_mask=core_mask,
            fallback_cpu=fallback_cpu,
            cache_dir=cache_dir,
        )
        self._open(model, placement, prompts, progress)

    @classmethod
    def placed(
        cls,
        model: str | Path,
        placement: Placement,
        prompts: Mapping[str, str] | None = None,
        progress: NamedProgress | None = None,
    ) -> Embedder:
        """As the constructor, with all that says where and how it runs as one value."""
        embedder = cls.__new__(cls)
        embedder._open(model, placement, prompts, progress)
        return embedder

    def _open(
        self,
        model: str | Path,
        placement: Placement,
        prompts: Mapping[str, str] | None,
        progress: NamedProgress | None,
    ) -> None:
        self.placement = placement
        NO_PROMPTS.changed(prompts)  # a wrong one is told before anything is fetched
        self._asked_for = (model, placement, None if prompts is None else dict(prompts))
        cache = ModelCache(placement.cache_dir)
        local = cache.get(model, progress)
        config = BertConfig.from_json(local.directory / CONFIG_NAME)
        pooling, self.prompts = layout.pooling(local), layout.prompts(local).changed(prompts)
        layout.require_prompts(local, self.prompts)
        opened = open_runtime(
            local, cache.root, output="pooled", pooling=pooling, placement=placement
        )
        self._runtime = opened.runtime
        self._tokens_per_batch = opened.tokens_per_batch or TOKENS_PER_BATCH
        self.model = local.name
        self.reference = local.reference
        self.dimension = layout.width(local, config)
        length = layout.max_length(local, config)
        self.max_length = min(length, opened.max_length or config.positions)
        digest = local.weights_digest[:16]
        made = f"{pooling}+{self.prompts.digest}" if self.prompts else pooling
        self.fingerprint = f"{digest}:{made}:{self.max_length}:{opened.precision}"
        self._pad_id = config.pad_id
        self.tokenizer_path = local.directory / TOKENIZER_NAME
        try:
            self._tokenizer = Tokenizer(local.directory, self.max_length)
            self._long_texts = LongTexts(self.model, self._tokenizer)
            layout.require_case(local, self._tokenizer)
            self.passage_length = self._room(self.prompts.passage)
            self._room(self.prompts.query)
        except BaseException:
            self._runtime.close()
            raise

    @property
    def asked_for(self) -> tuple[str | Path, Placement, dict[str, str] | None]:
        """What it was opened as: the arguments of `placed`."""
        return self._asked_for

    @property
    def device(self) -> str:
        """Where it runs: ``cpu`` or ``npu``."""
        return self._runtime.device

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts.

        Args:
            texts: Any number of strings. Longer ones than `passage_length` tokens are cut: the
                model's `max_length`, less what the prompt takes. An empty one, or white space,
                has the vector that the model gives to no words at all.

        Returns:
            float32 [len(texts), dimension], rows of unit length in the order of `texts`.

        Raises:
            InvalidInputError: Not a list of strings; the message names the index and the type.
            DeviceError: The device failed.
        """
        return self._embed(require_texts(texts), self.prompts.passage, urgent=False)

    def embed_query(self, text: str) -> FloatArray:
        """Embed one text ahead of the bulk work that is waiting, float32 [dimension].

        Raises:
            InvalidInputError: Not a string.
            DeviceError: The device failed.
        """
        texts = [require_text(text, "text")]
        row: FloatArray = self._embed(texts, self.prompts.query, urgent=True)[0]
        return row

    def embed_queries(self, texts: Sequence[str]) -> FloatArray:
        """As `embed_query`, for several that wait at once, float32 [len(texts), dimension]."""
        return self._embed(require_texts(texts), self.prompts.query, urgent=True)

    @cached_property
    def unrelated_cosine(self) -> float:
        """The cosine that texts have which have nothing to do with each other, 0 to 0.95.

        Measured on a few fixed texts when it is first asked for. A store counts cosines from
        there when it adds them to what words say.
        """
        return unrelated_cosine(self)

    def close(self) -> None:
        """Release the device. May be called twice; the embedder cannot be used afterwards."""
        self._runtime.close()

    @classmethod
    def from_settings(cls, settings: Settings, **overrides: Any) -> Embedder:
        """The embedder that the settings describe; keyword arguments win over them."""
        model = overrides.pop("model", settings.embed_model)
        prompts = overrides.pop("prompts", settings.embed_prompts)
        progress = overrides.pop("progress", None)
        placement = replace(settings.embedder_placement, **overrides)
        return cls.placed(model, placement, prompts, progress)

    @classmethod
    def from_env(cls, **overrides: Any) -> Embedder:
        """The embedder that the environment and ``.env`` describe."""
        return cls.from_settings(Settings.from_env(), **overrides)

    def _room(self, prompt: str) -> int:
        """How many tokens of a text are read beside a prompt."""
        nothing, taken = self._tokenizer.encode(["", prompt])
        room = self.max_length - (len(taken) - len(nothing))
        if room < _LEAST_ROOM:
            msg = (
                f"The prompt {prompt!r:.80} takes {len(taken)} of the {self.max_length} tokens "
                f"that {self.model} reads. Use a shorter one."
            )
            raise ConfigError(msg)
        return room

    def _embed(self, texts: list[str], prompt: str, *, urgent: bool) -> FloatArray:
        rows = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), _WINDOW):
            window = texts[start : start + _WINDOW]
            prompted = [prompt + text for text in window]
            encodings = self._tokenizer.encode(prompted)
            if not urgent:
                self._long_texts.look(prompted, encodings)
            rows[start : start + _WINDOW] = run_batched(
                self._runtime,
                encodings,
                tokens_per_batch=self._tokens_per_batch,
                pad_id=self._pad_id,
                urgent=urgent,
            )
        return rows

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).placed, self._asked_for

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Embedder({self.model!r}, device={self.device!r}, fingerprint={self.fingerprint!r})"
