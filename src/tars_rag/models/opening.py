"""Which device runs a model: resolved once, for embedder and reranker alike."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tars_rag.errors import DeviceError, ModelError
from tars_rag.models.bert_graph import Output
from tars_rag.models.local import LocalModel
from tars_rag.models.spec import Pooling
from tars_rag.runtimes.base import Runtime
from tars_rag.runtimes.npu.manifest import ModelKind
from tars_rag.settings import Placement, Precision

logger = logging.getLogger("tars_rag")


@dataclass(frozen=True, slots=True)
class Opened:
    """A model on its device.

    Attributes:
        runtime: Runs it.
        precision: The class its fidelity earns, for the fingerprint: see `precision_class`.
        max_length: The longest text it takes, in tokens, where the device limits it.
    """

    runtime: Runtime
    precision: str
    max_length: int | None = None


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


def precision_class(cosine: float, identity: str) -> str:
    """The class of a fingerprint that a mean cosine to FP32 earns.

    `identity` is the class of what is too far from FP32 to share one: the sha256 of its file.
    """
    for least, name in ((0.9999, "exact"), (0.9985, "hq"), (0.99, "int8")):
        if cosine >= least:
            return name
    return identity[:16]


def _open_cpu(
    model: LocalModel,
    cache: Path,
    output: Output,
    pooling: Pooling,
    placement: Placement,
) -> Opened:
    from tars_rag.models.cpu import identity, open_cpu

    runtime, fidelity, precision = open_cpu(model, cache, output, pooling, placement)
    if precision == "ready":
        return Opened(runtime, "exact")
    return Opened(runtime, precision_class(fidelity, identity(model, placement)))


def _open_npu(
    model: LocalModel,
    cache: Path,
    output: Output,
    pooling: Pooling,
    placement: Placement,
    cpu: Callable[[Precision], Opened],
) -> Opened | None:
    """Open the model on the NPU; None where the device is ``auto`` and there is none."""
    from tars_rag.runtimes.npu.interpreter import find
    from tars_rag.runtimes.npu.probe import probe

    named = placement.npu_python
    machine = probe(other=find(Path(named))) if named else probe()
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
    return Opened(pool, earned, file.max_length or (pool.lengths or (None,))[-1])
