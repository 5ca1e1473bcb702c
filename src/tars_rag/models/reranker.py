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
from tars_rag.models.pace import Pace
from tars_rag.models.tokenizer import Encoding, Tokenizer, require_text, require_texts
from tars_rag.progress import NamedProgress
from tars_rag.runtimes.base import FloatArray, Runtime
from tars_rag.settings import CoreMask, Device, Engine, Placement, Settings

MAX_LENGTH: Final = 512
"""FlashRank's default: query and passage together, in tokens."""

# Texts tokenised at a time where there is a deadline.
_AHEAD: Final = 8
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
            model directory: FlashRank's files, or a cross-encoder in safetensors; or
            ``organisation/name`` of the hub.
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
        self._alone = opened.alone
        self._tokens_per_batch = opened.tokens_per_batch or PAIR_TOKENS_PER_BATCH
        self.model = local.name
        length = layout.pair_length(local, MAX_LENGTH if max_length is None else max_length)
        self.max_length = min(length, opened.max_length or length)
        self._pad_id = int(config.get("pad_token_id") or 0)
        self._tokenizer = Tokenizer(local.directory, self.max_length)
        self._pace = Pace()

    @property
    def asked_for(self) -> tuple[str | Path, Placement, int | None]:
        """What it was opened as: the arguments of `placed`."""
        return self._asked_for

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
            budget_ms: Milliseconds this may take. A batch is begun only if it will end in time by
                what the ones before it took; if not even the first will, nothing is scored.

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
        check_budget(budget_ms)
        scores = np.full(len(texts), np.nan, np.float32)
        if budget_ms is not None and math.isfinite(budget_ms):
            self._score_until(start + budget_ms / 1000, query, texts, scores)
        elif texts:
            encodings = self._tokenizer.encode_pairs(query, texts)
            batches = self._planned(encodings, self._tokens_per_batch)
            if len(texts) == 1 and (alone := self._alone.get()):
                self._scored(alone, batches, encodings, scores)
            else:
                self._run(batches, encodings, scores)
        return scores

    def close(self) -> None:
        """Release the device. May be called twice; the reranker cannot be used afterwards."""
        self._runtime.close()
        self._alone.close()

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

    def _score_until(
        self, deadline: float, query: str, texts: Sequence[str], scores: FloatArray
    ) -> None:
        """Score texts in their order, as many as there is time for.

        A few are tokenised at a time, which takes time too.
        """
        if texts and not self._pace.is_known and time.perf_counter() < deadline:
            self._learn(query)
        encodings: list[Encoding] = []
        batches: list[Batch] = []
        while time.perf_counter() < deadline:
            if len(batches) < _AHEAD and len(encodings) < len(texts):
                more = texts[len(encodings) : len(encodings) + _AHEAD]
                first = len(encodings)
                encodings += self._tokenizer.encode_pairs(query, more)
                batches += self._planned(encodings, PAIR_TOKENS_PER_BATCH, first)
            if not batches:
                return
            count = self._affordable(batches, deadline)
            if count:
                self._run(batches[:count], encodings, scores)
                del batches[:count]
            elif len(batches[0].rows) > 1:  # a part of it may fit
                lengths = [len(encoding) for encoding in encodings]
                batches[:1] = [Batch((row,), lengths[row]) for row in batches[0].rows]
            else:
                if np.isnan(scores).all():
                    self._pace.refused(batches[:1])
                return

    def _planned(
        self, encodings: Sequence[Encoding], tokens_per_batch: int, first: int | None = None
    ) -> list[Batch]:
        """Batches of the encodings; with `first` of those from there on, in their order."""
        batches = plan(
            [len(encoding) for encoding in encodings[first or 0 :]],
            buckets=self._runtime.lengths,
            tokens_per_batch=tokens_per_batch,
            max_rows=self._runtime.max_rows,
            ordered=first is not None,
        )
        if not first:
            return batches
        return [Batch(tuple(row + first for row in b.rows), b.length) for b in batches]

    def _learn(self, query: str) -> None:
        """Run the query alone, and once more for the time: the first run prepares much."""
        encodings = self._tokenizer.encode_pairs(query, [""])
        batches = self._planned(encodings, PAIR_TOKENS_PER_BATCH)
        feeds = [feed(b, encodings, self._runtime.input_names, self._pad_id) for b in batches]
        self._runtime.run(feeds, urgent=True)
        self._run(batches, encodings, np.empty(1, np.float32))

    def _affordable(self, batches: Sequence[Batch], deadline: float) -> int:
        """How many batches to send next; 0: none can end before the deadline.

        On the CPU one. On the NPU half of what fits, so that several cores are kept busy and the
        estimate is still corrected before the time is up.
        """
        left = deadline - time.perf_counter()
        fitting, most = 0, 1 if self._runtime.device == "cpu" else len(batches)
        while fitting < most and self._pace.seconds(batches[: fitting + 1]) <= left:
            fitting += 1
        return (fitting + 1) // 2

    def _run(
        self, batches: Sequence[Batch], encodings: Sequence[Encoding], scores: FloatArray
    ) -> None:
        """Run batches, write their scores, and note how long they took."""
        start = time.perf_counter()
        self._scored(self._runtime, batches, encodings, scores)
        self._pace.note(batches, time.perf_counter() - start)

    def _scored(
        self,
        runtime: Runtime,
        batches: Sequence[Batch],
        encodings: Sequence[Encoding],
        scores: FloatArray,
    ) -> None:
        names = runtime.input_names
        feeds = [feed(batch, encodings, names, self._pad_id) for batch in batches]
        # A person waits for a ranking: it goes before bulk work.
        for batch, logits in zip(batches, runtime.run(feeds, urgent=True), strict=True):
            scores[list(batch.rows)] = _probability(logits)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).placed, self._asked_for

    def __enter__(self) -> Reranker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Reranker({self.model!r}, device={self.device!r})"


def check_budget(budget_ms: float | None) -> None:
    """Refuse a time that is none.

    Raises:
        InvalidInputError: It is negative or not a number.
    """
    if budget_ms is not None and not budget_ms >= 0:  # not (NaN >= 0) is true
        msg = f"budget_ms={budget_ms} is not valid: give milliseconds, or None for no limit."
        raise InvalidInputError(msg)


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
