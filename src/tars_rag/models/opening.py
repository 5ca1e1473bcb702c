"""Which device runs a model: resolved once, for embedder and reranker alike."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tars_rag.errors import DeviceError, ModelError
from tars_rag.models.architectures.config import CONFIG_NAME, read_json
from tars_rag.models.assignment import Candidate
from tars_rag.models.batching import OPENVINO_TOKENS, PAIR_TOKENS_PER_BATCH, TOKENS_PER_BATCH
from tars_rag.models.bert_graph import Output
from tars_rag.models.local import LocalModel
from tars_rag.models.spec import Pooling
from tars_rag.models.verdict import MEASURE
from tars_rag.models.verdict import NAME as VERDICT
from tars_rag.runtimes.base import Runtime
from tars_rag.runtimes.npu.manifest import ModelKind
from tars_rag.settings import Placement, Precision

if TYPE_CHECKING:
    from tars_rag.runtimes.npu.probe import Machine

logger = logging.getLogger("tars_rag")

# Tokens of a text that decides what is opened first: a question.
_SHORT = 12


@dataclass(frozen=True, slots=True)
class Opened:
    """A model on its device.

    Attributes:
        runtime: Runs it.
        precision: The class its fidelity earns, for the fingerprint: see `precision_class`.
        max_length: The longest text it takes, in tokens, where the device limits it.
        tokens_per_batch: Padded tokens in the batches that it is fastest with, where they are not
            those that are usual for the model's kind.
        arithmetic: What it computes in: ``fp32``, ``bf16``, ``f16``, ``int8``; ``ready``: what its
            ready-made graph says; on the NPU the precision of the bundle.
        alone: What runs one text alone as other programs run the same file, where that gives
            other bits than `runtime`.
    """

    runtime: Runtime
    precision: str
    max_length: int | None = None
    arithmetic: str = "fp32"
    tokens_per_batch: int | None = None
    alone: Later = field(default_factory=lambda: Later(None))


class Later:
    """What is opened when it is first needed, if at all. Any number of threads may ask for it."""

    def __init__(self, open_now: Callable[[], Runtime] | None) -> None:
        self._open, self._lock = open_now, threading.Lock()
        self._opened: Runtime | None = None

    def get(self) -> Runtime | None:
        """None: there is nothing to open, or its files went away meanwhile."""
        with self._lock:
            if self._opened is None and self._open is not None:
                try:
                    self._opened = self._open()
                except ModelError:
                    self._open = None
            return self._opened

    def close(self) -> None:
        """Release it, and open it no more."""
        with self._lock:
            self._open = None
            if self._opened:
                self._opened.close()


def open_runtime(
    model: LocalModel,
    cache: Path,
    *,
    output: Output,
    pooling: Pooling = "mean",
    placement: Placement,
) -> Opened:
    """Open a model on the NPU or the CPU.

    Args:
        model: Its directory, checked.
        cache: Where graphs made from weights are kept.
        output: ``pooled`` for an embedder, ``logit`` for a cross-encoder.
        pooling: Of an embedder.
        placement: Where and how to run it.

    Raises:
        DeviceError: ``npu`` was asked for and cannot be used.
        ModelError: The model's files do not make a graph of the kind asked for.
    """
    if placement.device == "auto" or (placement.device == "cpu" and placement.engine == "auto"):
        planned = _open_planned(model, cache, output, pooling, placement)
        if planned:
            return planned

    def cpu(precision: Precision = placement.precision) -> Opened:
        return _open_cpu(model, cache, output, pooling, replace(placement, precision=precision))

    if placement.device != "cpu":
        try:
            opened = _open_npu(model, cache, output, pooling, placement, cpu)
        except (DeviceError, ModelError) as error:
            if not placement.may_fall_back:
                raise
            logger.warning("%s runs on the CPU instead of the NPU: %s", model.name, error)
        else:
            if opened:
                return opened
    return cpu()


def candidate_of(placement: Placement, opened: Opened) -> Candidate:
    """How measurements name what a placement of one device and engine opened."""
    if placement.device == "npu":
        return Candidate("npu", "rknn", opened.arithmetic, opened.precision)
    return Candidate(
        "cpu", placement.engine, opened.arithmetic, opened.precision, opened.tokens_per_batch
    )


def precision_class(cosine: float, identity: str) -> str:
    """The class of a fingerprint that a mean cosine to FP32 earns.

    `identity` is the class of what is too far from FP32 to share one: the sha256 of its file.
    """
    for least, name in ((0.9999, "exact"), (0.9985, "hq"), (0.99, "int8")):
        if cosine >= least:
            return name
    return identity[:16]


def _open_planned(
    model: LocalModel, cache: Path, output: Output, pooling: Pooling, placement: Placement
) -> Opened | None:
    """Open the model as this machine's verdict says; None: there is none that holds."""
    if not (cache / VERDICT).is_file():
        return None
    from tars_rag.models import following
    from tars_rag.models.planned import PlannedRuntime

    kind: ModelKind = "embedder" if output == "pooled" else "cross-encoder"
    plan = following.plan_for(model, kind, cache, placement, _machine(placement), pooling)
    if plan is None:
        return None

    def opened(candidate: Candidate) -> Opened:
        chosen = following.placement_of(candidate, placement)
        one = open_runtime(model, cache, output=output, pooling=pooling, placement=chosen)
        if one.precision != candidate.precision_class:
            one.runtime.close()
            msg = (
                f"{candidate} was measured as class {candidate.precision_class} and is "
                f"{one.precision}. Measure again: {MEASURE}"
            )
            raise ModelError(msg)
        return one

    # Where the NPU has a part it is opened at once: its bundle says how long a text may be.
    on_npu = [candidate for candidate in plan.candidates if candidate.device == "npu"]
    first = on_npu[0] if on_npu else plan.assign([_SHORT])[0][0]
    try:
        one = opened(first)
    except (DeviceError, ModelError) as error:
        logger.warning("%s is not run as it was measured: %s", model.name, error)
        return None
    if len(plan.candidates) == 1:
        return replace(one, tokens_per_batch=first.tokens_per_batch)
    runtime = PlannedRuntime(
        plan,
        lambda candidate: opened(candidate).runtime,
        opened={first: one.runtime},
        tokens_per_batch=TOKENS_PER_BATCH if output == "pooled" else PAIR_TOKENS_PER_BATCH,
        pad_id=int(read_json(model.directory / CONFIG_NAME).get("pad_token_id") or 0),
    )
    return replace(one, runtime=runtime, tokens_per_batch=None, alone=Later(None))


def _machine(placement: Placement) -> Machine:
    from tars_rag.runtimes.npu.interpreter import find
    from tars_rag.runtimes.npu.probe import probe

    named = placement.npu_python
    return probe(other=find(Path(named))) if named else probe()


def _open_cpu(
    model: LocalModel,
    cache: Path,
    output: Output,
    pooling: Pooling,
    placement: Placement,
) -> Opened:
    from tars_rag.models.cpu import identity, open_as_others, open_cpu

    runtime, fidelity, precision = open_cpu(model, cache, output, pooling, placement)
    if precision == "ready":
        if placement.engine == "openvino":
            return Opened(runtime, "ready by openvino", arithmetic=precision)
        alone = Later(partial(open_as_others, model, cache, placement))
        return Opened(runtime, "exact", arithmetic=precision, alone=alone)
    if output == "logit":  # scores of one ranking are of one arithmetic
        earned = "exact" if precision == "fp32" else precision
    else:
        earned = precision_class(fidelity, identity(model, placement))
    tokens = OPENVINO_TOKENS if placement.engine == "openvino" else None
    return Opened(runtime, earned, arithmetic=precision, tokens_per_batch=tokens)


def _open_npu(
    model: LocalModel,
    cache: Path,
    output: Output,
    pooling: Pooling,
    placement: Placement,
    cpu: Callable[[Precision], Opened],
) -> Opened | None:
    """Open the model on the NPU; None where the device is ``auto`` and there is none."""
    machine = _machine(placement)
    if placement.device == "auto" and not machine.has_npu:
        return None
    from tars_rag.models import npu

    if machine.reason:
        msg = f"{model.name} cannot run on the NPU: {machine.reason}. More: tars-rag doctor"
        raise DeviceError(msg)
    kind: ModelKind = "embedder" if output == "pooled" else "cross-encoder"
    file = npu.find_model(model, kind, pooling, placement, cache, machine)
    earned = "npu"

    def take_over() -> Runtime:
        opened = cpu("fp32")
        # A store's vectors are of one class; better no answer than one of another kind.
        if output == "pooled" and opened.precision != earned:
            msg = (
                f"The NPU failed, and the CPU cannot go on: its vectors are of class "
                f"{opened.precision}, those of {file.path.name} of class {earned}. Run: "
                "tars-rag doctor"
            )
            raise DeviceError(msg)
        return npu.SameFeeds(opened.runtime)

    fallback = take_over if placement.may_fall_back else None
    pool = npu.open_pool(model, file, machine, placement, fallback)
    if output == "pooled":
        try:
            earned = precision_class(
                npu.fidelity(model, file, pool, machine, lambda: cpu("fp32").runtime),
                file.identity,
            )
        except BaseException:
            pool.close()
            raise
    longest = file.max_length or (pool.lengths or (None,))[-1]
    return Opened(pool, earned, longest, file.precision or "fp16")
