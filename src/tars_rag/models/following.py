"""What the verdict of this machine says about a model that is being opened: `plan_for`.

And for whoever measures: what there is to measure (`candidates`), and what a verdict of it holds
for (`current_key`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tars_rag.errors import InvalidInputError, ModelError
from tars_rag.models import verdict
from tars_rag.models.assignment import Candidate, Measurement, Plan
from tars_rag.models.cpu import onnx_file
from tars_rag.models.local import LocalModel
from tars_rag.models.spec import Pooling
from tars_rag.models.verdict import Stale, Verdict
from tars_rag.runtimes.npu.manifest import ModelKind
from tars_rag.runtimes.openvino import is_installed
from tars_rag.settings import Engine, Placement, Precision

if TYPE_CHECKING:
    from tars_rag.runtimes.npu.probe import Machine

logger = logging.getLogger("tars_rag")

_told: Final[set[tuple[Path, str, str]]] = set()


def current_key(
    model: LocalModel,
    kind: ModelKind,
    cache: Path,
    placement: Placement,
    machine: Machine,
    pooling: Pooling = "mean",
) -> dict[str, str]:
    """What a verdict of this model, measured now, would hold for."""
    ready = onnx_file(model.directory) if kind == "cross-encoder" else None
    weights = model.digest(ready.name) if ready else model.weights_digest
    bundle = None
    if machine.has_npu and not machine.reason:
        from tars_rag.models import npu

        try:
            file = npu.find_model(model, kind, pooling, placement, cache, machine)
            bundle = file.contents or file.identity
        except ModelError:
            pass  # none that could be run
    return {
        **verdict.machine_key(machine),
        **verdict.model_key(weights, bundle, placement.threads),
    }


def look_up(
    model: LocalModel,
    kind: ModelKind,
    cache: Path,
    placement: Placement,
    machine: Machine,
    pooling: Pooling = "mean",
) -> Verdict | Stale | None:
    """The verdict of a model on this machine, stale or not.

    Raises:
        ModelError: The file is damaged.
    """
    if not (cache / verdict.NAME).is_file():
        return None
    key = current_key(model, kind, cache, placement, machine, pooling)
    return verdict.read(cache, model.name, kind, key)


def plan_for(
    model: LocalModel,
    kind: ModelKind,
    cache: Path,
    placement: Placement,
    machine: Machine,
    pooling: Pooling = "mean",
) -> Plan | None:
    """The plan to follow; None: nothing holds that was measured, which is said once.

    An embedder keeps the precision class that it has without a verdict: that of the NPU's bundle
    where the NPU would be taken, else that of its precision on the CPU. So a verdict changes how
    long an answer takes, never which stores a model can read.
    """
    try:
        found = look_up(model, kind, cache, placement, machine, pooling)
    except ModelError as error:
        _say(cache, model, str(error))
        return None
    if found is None:
        return None
    if isinstance(found, Stale):
        _say(cache, model, f"What was measured of it holds no more: {found.reason}")
        return None
    rows = [row for row in found.rows if _is_allowed(row.candidate, kind, placement, machine)]
    on_npu = any(row.candidate.device == "npu" for row in rows)
    if kind == "embedder" and placement.device == "auto" and found.key.get("bundle") and not on_npu:
        return None  # the NPU could not be measured: without a verdict it is what runs
    try:
        return Plan(rows, _class(rows, placement) if kind == "embedder" else None)
    except InvalidInputError:
        return None  # nothing was measured of what is allowed here


def placement_of(candidate: Candidate, placement: Placement) -> Placement:
    """The placement that opens a candidate."""
    if candidate.device == "npu":
        return replace(placement, device="npu", fallback_cpu=placement.may_fall_back)
    engine: Engine = "openvino" if candidate.engine == "openvino" else "onnxruntime"
    precision: Precision = "int8" if candidate.precision == "int8" else "fp32"
    return replace(placement, device="cpu", engine=engine, precision=precision)


def candidates(placement: Placement, kind: ModelKind, machine: Machine) -> list[Placement]:
    """Every placement that is worth measuring on this machine, each to be opened on its own."""
    engines: list[Engine] = ["onnxruntime", *(["openvino"] if is_installed() else [])]  # type: ignore[list-item]
    cpu = [replace(placement, device="cpu", engine=engine, precision="fp32") for engine in engines]
    if kind == "embedder":
        cpu.append(replace(placement, device="cpu", engine="onnxruntime", precision="int8"))
    npu = replace(placement, device="npu", fallback_cpu=False, precision="fp32")
    return [*cpu, *([npu] if machine.has_npu and not machine.reason else [])]


def _class(rows: Sequence[Measurement], placement: Placement) -> str:
    """The class that an embedder has without a verdict."""
    npu = [row.candidate.precision_class for row in rows if row.candidate.device == "npu"]
    if npu or placement.precision == "fp32":
        return npu[0] if npu else "exact"
    quantised = [row.candidate.precision_class for row in rows]
    return quantised[0] if quantised else "int8"


def _is_allowed(
    candidate: Candidate, kind: ModelKind, placement: Placement, machine: Machine
) -> bool:
    if placement.device not in ("auto", candidate.device):
        return False
    if candidate.device == "npu":
        return not machine.reason
    if placement.engine not in ("auto", candidate.engine):
        return False
    is_int8 = candidate.precision == "int8"
    return kind == "cross-encoder" or is_int8 == (placement.precision == "int8")


def _say(cache: Path, model: LocalModel, what: str) -> None:
    said = (cache, model.name, what)
    if said not in _told:
        _told.add(said)
        logger.warning("%s: %s", model.name, what)
