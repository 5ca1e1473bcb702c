"""A model on the NPU, and what takes over when the NPU does not."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from tars_rag.errors import DeviceError, ModelError
from tars_rag.models.batching import run_batched
from tars_rag.models.local import LocalModel, weight_files
from tars_rag.models.modules import read_chain
from tars_rag.models.spec import Pooling
from tars_rag.models.tokenizer import Tokenizer
from tars_rag.runtimes.base import Feeds, FloatArray, Runtime
from tars_rag.runtimes.npu import faults
from tars_rag.runtimes.npu.bundle import NpuModel, find_bundles, read_model
from tars_rag.runtimes.npu.gate import CoreGate
from tars_rag.runtimes.npu.isolate import IsolatedSession
from tars_rag.runtimes.npu.library import compare
from tars_rag.runtimes.npu.manifest import ModelKind
from tars_rag.runtimes.npu.measured import Measured
from tars_rag.runtimes.npu.pool import NpuPool
from tars_rag.runtimes.npu.probe import Machine
from tars_rag.runtimes.npu.turns import find_turns
from tars_rag.settings import Placement

logger = logging.getLogger("tars_rag")

# Of a cosine in float16.
_NOISE: Final = 2e-5

# Embedded on both devices to find out how faithful a file without a manifest is.
_SAMPLES: Final = (
    "boundary layer",
    "What is the maximum operating temperature of the motor controller?",
    "The pump was replaced on Tuesday; pressure has been stable at 4.2 bar since then.",
    "A passage of several sentences. It says little. It is here because long texts and short "
    "ones do not suffer alike from quantisation, and because a wrong pooling shows in both.",
    "Käse, naïve façade, Übergröße",
    "if (rc != 0) { return -1; }",
)


def open_pool(
    model: LocalModel,
    npu: NpuModel,
    machine: Machine,
    placement: Placement,
    fallback: Callable[[], Runtime] | None,
) -> NpuPool:
    """Open a model on the cores of this machine.

    Raises:
        ModelError: The file was made for another SoC or from other weights.
        DeviceError: No core can run it.
    """
    if npu.target and npu.target.lower() != machine.soc:
        msg = (
            f"{npu.path} was converted for {npu.target}, this board is a {machine.soc}. "
            f"Convert it again: tars-rag convert {model.name} --target {machine.soc}"
        )
        raise ModelError(msg)
    has_weights = bool(weight_files(model.directory))
    if npu.weights_sha256 and has_weights and npu.weights_sha256 != model.weights_digest:
        msg = (
            f"{npu.path} was made from other weights than the weights in {model.directory}. "
            f"Convert it again: tars-rag convert {model.name}"
        )
        raise ModelError(msg)

    convert = f"tars-rag convert {model.name} --target {machine.soc}"
    if npu.precision:
        convert += f" --precision {npu.precision}"
    odd = compare(npu.path, npu.toolkit, machine.library_version, convert)
    if odd:
        logger.warning("%s", odd)

    measured = Measured(npu.contents, _versions(machine)) if npu.contents else None

    def open_session(mask: int) -> IsolatedSession:
        known = measured is not None and measured.of(mask) is not None
        spec = dataclasses.replace(npu.spec, lazy=known)
        if machine.npu_python:
            return IsolatedSession(spec, mask, python=Path(machine.npu_python))
        return IsolatedSession(spec, mask)

    def fault(mask: int, reason: str) -> None:
        faults.record(model.name, mask, reason)

    try:
        pool = NpuPool(
            open_session,
            machine.core_masks(placement.core_mask),
            fallback=fallback,
            on_fault=fault,
            gate=CoreGate(
                machine.soc,
                machine.library_version,
                chosen=placement.core_mask != "auto",
                driver=machine.driver,
            ),
            turns=find_turns(Path(placement.npu_lock) if placement.npu_lock else None),
        )
    except DeviceError as error:
        if odd is None:
            raise
        msg = f"{error} It may be that {odd}"
        raise DeviceError(msg) from error
    for mask, gaps in pool.gaps.items() if measured else ():
        if measured and measured.of(mask) is None:
            measured.keep(mask, gaps)
    return pool


def find_model(
    model: LocalModel,
    kind: ModelKind,
    pooling: Pooling,
    placement: Placement,
    cache: Path,
    machine: Machine,
) -> NpuModel:
    """The file to run: the one named, else the most faithful bundle in the model cache.

    Bundles made for the version of this machine's librknnrt come before the others.

    Raises:
        ModelError: There is none, or it is not sound.
    """
    path = placement.rknn_path
    if path is None:
        wanted = (model.name, kind, machine.soc)
        fitting = [
            (folder, manifest)
            for folder, manifest in find_bundles(cache)
            if (manifest.model, manifest.kind, manifest.target) == wanted
        ]
        # Of those that the library can run; else any: it is told what is wrong with it.
        made_for = [
            f for f in fitting if not compare("", f[1].toolkit, machine.library_version, "")
        ]
        if made_for or fitting:
            path = (made_for or fitting)[0][0]
        else:
            variable = "RKNN_EMBEDDER_PATH" if kind == "embedder" else "RKNN_RERANKER_PATH"
            msg = (
                f"There is no file of {model.name} for the NPU of {machine.soc}. Make one on a PC "
                f"(tars-rag convert {model.name}) and put it into {cache}, or set {variable}."
            )
            raise ModelError(msg)
    npu = read_model(Path(path), kind)
    if kind == "embedder" and npu.spec.output != "pooled" and read_chain(model.directory).modules:
        msg = (
            f"{npu.path} is not known to hold the modules that {model.name} has behind its "
            f"pooling. Convert it: tars-rag convert {model.name} --target {machine.soc}"
        )
        raise ModelError(msg)
    return dataclasses.replace(npu, spec=dataclasses.replace(npu.spec, pooling=pooling))


def fidelity(
    model: LocalModel,
    npu: NpuModel,
    pool: NpuPool,
    machine: Machine,
    cpu: Callable[[], Runtime],
) -> float:
    """The mean cosine to FP32 that this board gives.

    What the manifest recorded is the simulator's word. It holds unless the known answers, run on
    every core when it was opened, came out worse than the worst text there; then it is what was
    measured here. A file without a manifest is measured on a few texts.
    """
    recorded = npu.fidelity
    if recorded and recorded.mean_cosine is not None:
        # Of a core that opened only one length now, what it gave at all of them is known.
        kept = Measured(npu.contents or "", _versions(machine))
        all_gaps = [kept.of(mask) or gaps for mask, gaps in pool.gaps.items()]
        worst = max(all_gaps, key=lambda gaps: sum(gaps) / (len(gaps) or 1), default=())
        return _lower(npu, recorded.mean_cosine, recorded.min_cosine, worst)
    longest = (pool.lengths or (256,))[-1]
    encodings = Tokenizer(model.directory, longest).encode(list(_SAMPLES))
    reference = SameFeeds(cpu())
    try:
        found, right = (run_batched(r, encodings) for r in (pool, reference))
    finally:
        reference.close()
    return float((found * right).sum(axis=1).mean())


def _versions(machine: Machine) -> str:
    return f"librknnrt {machine.library_version}, driver {machine.driver}"


def _lower(npu: NpuModel, mean: float, worst: float | None, gaps: Sequence[float]) -> float:
    """The simulator's mean cosine, or what was measured here if that is worse."""
    if not gaps or 1 - max(gaps) >= (mean if worst is None else worst) - _NOISE:
        return mean
    measured = 1 - sum(gaps) / len(gaps)
    if measured >= mean:
        return mean
    logger.warning(
        "%s is less faithful on this board than in the simulator: mean cosine to FP32 %.5f (worst "
        "%.5f) over %d known answers, the manifest says %.5f. It counts as what was measured here.",
        npu.path,
        measured,
        1 - max(gaps),
        len(gaps),
        mean,
    )
    return measured


class SameFeeds:
    """A CPU runtime behind the input names of the NPU's file."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.device = runtime.device
        self.input_names = runtime.input_names
        self.lengths = runtime.lengths
        self.max_rows = runtime.max_rows

    def run(self, feeds: Sequence[Feeds], *, urgent: bool = False) -> list[FloatArray]:
        """See `Runtime`; token types that the NPU's file does not take are all 0."""
        zeros = {"token_type_ids": np.zeros_like}
        fitted = [
            {
                name: feed[name] if name in feed else zeros[name](feed["attention_mask"])
                for name in self.input_names
            }
            for feed in feeds
        ]
        return self._runtime.run(fitted, urgent=urgent)

    def close(self) -> None:
        """See `Runtime`."""
        self._runtime.close()
