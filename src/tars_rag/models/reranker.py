"""A query and passages in, scores out: FlashRank's models, order and scale, in less time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Final

import numpy as np

from tars_rag.errors import ConfigError, InvalidInputError
from tars_rag.models import layout
from tars_rag.models.architectures.config import CONFIG_NAME, read_json
from tars_rag.models.batching import PAIR_TOKENS_PER_BATCH, Batch, feed, plan
from tars_rag.models.cache import ModelCache
from tars_rag.models.opening import open_runtime
from tars_rag.models.tokenizer import Encoding, Tokenizer, require_text, require_texts
from tars_rag.progress import NamedProgress
from tars_rag.runtimes.base import FloatArray
from tars_rag.settings import CoreMask, Device, Engine, Placement, Settings

MAX_LENGTH: Final = 512
"""FlashRank's default: query and passage together, in tokens."""

# Room for a short question and a few words of a passage.
_LEAST_LENGTH: Final = 16


class Reranker:
    """A cross-encoder. Safe to call from any number of threads.

    Scores are those of `flashrank.Ranker.rerank` for the same model files, for a passage that is
    ranked alone: FlashRank's models quantise over the whole batch, so in a batch a score depends
    a little on its batch mates (see docs/models.md).

    Pickling and copying carry the configuration only; the copy opens the model again.

    Args:
        model: A name of the catalogue, the name of a directory in `cache_dir`, or the path of a
            model directory: FlashRank's files, or a single-logit BERT cross-encoder in
            safetensors.
        device: ``cpu``; ``npu``; ``auto``: the NPU where it is usable.
        engine: On the CPU. ``auto``: what `tars-rag bench` found to be fastest, else ONNX Runtime;
            ``onnxruntime``; ``openvino``, which is an extra.
        max_length: Query and passage together, in tokens: longer passages are cut. None: 512, or
            as much as the model takes.
        cache_dir: Where models are kept; a FlashRank cache directory is taken as it is. None:
            MODEL_CACHE_DIR, or the user's cache directory.
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
        model: str | Path = "ms-marco-MiniLM-L-12-v2",
        *,
        device: Device = "cpu",
        engine: Engine = "auto",
        max_length: int | None = None,
        cache_dir: str | Path | None = None,
        threads: int | None = None,
        rknn_path: str | Path | None = None,
        core_mask: CoreMask = "auto",
        fallback_cpu: bool = False,
        progress: NamedProgress | None = None,
    ) -> None:
        placement = Placement(
            device=device,
            engine=engine,
            threads=threads,
            rknn_path=rknn_path,
            core_mask=core_mask,
            fallback_cpu=fallback_cpu,
            cache_dir=cache_dir,
        )
        self._open(model, placement, max_length, progress)

    @classmethod
    def placed(
        cls,
        model: str | Path,
        placement: Placement,
        max_length: int | None = None,
        progress: NamedProgress | None = None,
    ) -> Reranker:
        """As the constructor, with all that says where and how it runs as one value.

        Raises:
            ConfigError: Its precision is not ``fp32``: a reranker's file has its own.
        """
        reranker = cls.__new__(cls)
        reranker._open(model, placement, max_length, progress)
        return reranker

    def _open(
        self,
        model: str | Path,
        placement: Placement,
        max_length: int | None,
        progress: NamedProgress | None,
    ) -> None:
        if placement.precision != "fp32":
            msg = (
                f"precision={placement.precision!r} is not valid for a reranker. Leave it out, or "
                "name a model that is INT8, such as ms-marco-MiniLM-L-12-v2."
            )
            raise ConfigError(msg)
        _require_length(max_length)
        self._asked_for, self.placement = (model, placement, max_length), placement
        cache = ModelCache(placement.cache_dir)
        local = cache.get(model, progress)
        config = read_json(local.directory / CONFIG_NAME)
        opened = open_runtime(local, cache.root, output="logit", placement=placement)
        self._runtime = opened.runtime
        self._tokens_per_batch = opened.tokens_per_batch or PAIR_TOKENS_PER_BATCH
        self.model = local.name
        length = layout.pair_length(local, MAX_LENGTH if max_length is None else max_length)
        self.max_length = min(length, opened.max_length or length)
        self._pad_id = int(config.get("pad_token_id") or 0)
        self._tokenizer = Tokenizer(local.directory, self.max_length)
        self._seconds_per_token: float | None = None

    @property
    def device(self) -> str:
        """Where it runs: ``cpu`` or ``npu``."""
        return self._runtime.device

    def score(self, query: str, texts: Sequence[str], budget_ms: float | None = None) -> FloatArray:
        """Score passages against a query.

        Args:
            query: What is asked.
            texts: The passages. With a budget: best first, since that is the order in which they
                are scored.
            budget_ms: Milliseconds this may take. A batch is begun only if, by the time that
                the batches before it took per token, it ends in time; the first one always is.

        Returns:
            float32 [len(texts)] in 0 to 1 (sigmoid of the logit) in the order of `texts`; NaN
            for those that the budget left no time for.

        Raises:
            InvalidInputError: `query` is not a string, `texts` not a list of them (the message
                names the index and the type), or `budget_ms` is negative or not a number.
            DeviceError: The device failed.
        """
        start = time.perf_counter()
        query = require_text(query, "query")
        texts = require_texts(texts)
        if budget_ms is not None and not budget_ms >= 0:  # not (NaN >= 0) is true
            msg = f"budget_ms={budget_ms} is not valid: give milliseconds, or None for no limit."
            raise InvalidInputError(msg)
        scores = np.full(len(texts), np.nan, np.float32)
        encodings = self._tokenizer.encode_pairs(query, texts)
        batches = plan(
            [len(encoding) for encoding in encodings],
            buckets=self._runtime.lengths,
            # Within a budget small steps count: what is begun is finished.
            tokens_per_batch=self._tokens_per_batch if budget_ms is None else PAIR_TOKENS_PER_BATCH,
            max_rows=self._runtime.max_rows,
            ordered=budget_ms is not None,
        )
        deadline = math.inf if budget_ms is None else start + budget_ms / 1000
        while batches:
            count = self._affordable(batches, deadline, begun=not np.isnan(scores).all())
            if not count:
                break
            self._run(batches[:count], encodings, scores)
            del batches[:count]
        return scores

    def close(self) -> None:
        """Release the device. May be called twice; the reranker cannot be used afterwards."""
        self._runtime.close()

    @classmethod
    def from_settings(cls, settings: Settings, **overrides: Any) -> Reranker | None:
        """The reranker that the settings describe; None where RERANK_MODEL is empty.

        Keyword arguments win over the settings.
        """
        model = overrides.pop("model", settings.rerank_model.strip())
        if not model:
            return None
        progress = overrides.pop("progress", None)
        max_length = overrides.pop("max_length", None)
        placement = replace(settings.reranker_placement, **overrides)
        return cls.placed(model, placement, max_length, progress)

    @classmethod
    def from_env(cls, **overrides: Any) -> Reranker | None:
        """The reranker that the environment and ``.env`` describe, as `from_settings`."""
        return cls.from_settings(Settings.from_env(), **overrides)

    def _affordable(self, batches: Sequence[Batch], deadline: float, *, begun: bool) -> int:
        """How many batches to send next; 0: none can end before the deadline.

        Half of what fits, so that several workers are kept busy and the estimate is still
        corrected before the time is up.
        """
        if math.isinf(deadline):
            return len(batches)
        rate, left = self._seconds_per_token, deadline - time.perf_counter()
        if rate is None:
            return 1
        fitting, tokens = 0, 0
        for batch in batches:
            tokens += batch.tokens
            if tokens * rate > left:
                break
            fitting += 1
        return max(fitting and (fitting + 1) // 2, 0 if begun else 1)

    def _run(
        self, batches: Sequence[Batch], encodings: Sequence[Encoding], scores: FloatArray
    ) -> None:
        """Run batches, write their scores, and note the time they took per token."""
        start = time.perf_counter()
        names = self._runtime.input_names
        feeds = [feed(batch, encodings, names, self._pad_id) for batch in batches]
        # A person waits for a ranking: it goes before bulk work.
        for batch, logits in zip(batches, self._runtime.run(feeds, urgent=True), strict=True):
            scores[list(batch.rows)] = _probability(logits)
        tokens = sum(batch.tokens for batch in batches)
        self._seconds_per_token = (time.perf_counter() - start) / tokens

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).placed, self._asked_for

    def __enter__(self) -> Reranker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Reranker({self.model!r}, device={self.device!r})"


def _require_length(value: object) -> None:
    if value is None:
        return
    whole = not isinstance(value, bool) and isinstance(value, Integral)
    if not whole or value < _LEAST_LENGTH:  # type: ignore[operator]
        msg = (
            f"max_length={value!r} is not valid. Use a whole number of at least {_LEAST_LENGTH}, "
            "or None for as much as the model takes."
        )
        raise ConfigError(msg)


def _probability(logits: FloatArray) -> FloatArray:
    """[rows, 1] -> sigmoid; [rows, 2] -> softmax of the second: as FlashRank does, [rows]."""
    x = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
    with np.errstate(over="ignore"):  # exp of a very negative logit: the score is 0
        return np.asarray(1 / (1 + np.exp(-x)), np.float32)
