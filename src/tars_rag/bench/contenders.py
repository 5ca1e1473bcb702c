"""What can be measured on this machine: each model on each device, and what is not there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tars_rag import advice
from tars_rag.errors import TarsRagError
from tars_rag.models import layout
from tars_rag.models.architectures.config import CONFIG_NAME, read_json
from tars_rag.models.assignment import Candidate
from tars_rag.models.batching import PAIR_TOKENS_PER_BATCH, TOKENS_PER_BATCH
from tars_rag.models.bert_graph import Output
from tars_rag.models.cache import ModelCache
from tars_rag.models.catalog import CATALOG, find_spec
from tars_rag.models.cpu import onnx_file
from tars_rag.models.local import LocalModel, weight_files
from tars_rag.models.opening import candidate_of, open_runtime
from tars_rag.models.tokenizer import Tokenizer
from tars_rag.runtimes.base import Runtime
from tars_rag.runtimes.cores import big_cores
from tars_rag.runtimes.npu.bundle import find_bundles
from tars_rag.runtimes.npu.manifest import Manifest, ModelKind, load_manifest
from tars_rag.runtimes.openvino import is_installed
from tars_rag.settings import CoreMask, Engine, Placement, Precision

if TYPE_CHECKING:
    from tars_rag.runtimes.npu.probe import Machine

FASTEST: Final = "its fastest"
"""The precision of what OpenVINO opens, until it is open: the processor decides."""

_MEGA: Final = 1e6


@dataclass(frozen=True, slots=True)
class Contender:
    """A model in one place, or the reason why it is not there.

    Attributes:
        model: Its name, as tables have it.
        kind: ``embedder`` or ``cross-encoder``.
        device: ``cpu`` or ``npu``.
        engine: Of the CPU; empty on the NPU.
        precision: Of the weights, as the file or the recipe says.
        cores: Threads of the CPU, or cores of the NPU.
        placement: What opens it there.
        reference: Name or path of the model.
        absent: Why it cannot be measured, and what mends that; empty if it can.
        random: Its weights are random: the times mean something, the scores nothing.
    """

    model: str
    kind: ModelKind
    device: str
    engine: str
    precision: str
    cores: int | None
    placement: Placement = field(default_factory=lambda: Placement(device="cpu"))
    reference: str = ""
    absent: str = ""
    random: bool = False


@dataclass(slots=True)
class Subject:
    """A contender that is open.

    Attributes:
        contender: What was opened.
        runtime: Runs it.
        tokenizer: Cuts at what the model reads.
        pad_id: Token that fills up.
        earned: Class of its fingerprint; of an embedder.
        megabytes: Of the files it was opened from, 10^6 bytes.
        pooled: Where tokens' vectors become the text's, in words; of an embedder.
        candidate: What a verdict calls it.
        tokens_per_batch: Padded tokens in one run, as `Embedder` and `Reranker` would send them.
    """

    contender: Contender
    runtime: Runtime
    tokenizer: Tokenizer
    pad_id: int = 0
    earned: str = ""
    megabytes: float | None = None
    pooled: str = "in the graph"
    candidate: Candidate | None = None
    tokens_per_batch: int = PAIR_TOKENS_PER_BATCH


def contenders(
    model: str | Path,
    kind: ModelKind,
    *,
    cache: ModelCache,
    machine: Machine,
    rknn_path: Path | None = None,
    thorough: bool = True,
    random: bool = False,
) -> list[Contender]:
    """Every place of a model that this machine has, and a row for each that it lacks.

    Args:
        model: A name of the catalogue, or a directory.
        kind: What it is measured as.
        cache: Where models are; nothing is fetched.
        machine: What `probe` found.
        rknn_path: A bundle outside the cache.
        thorough: One thread besides all of them, one core of the NPU besides all.
        random: It was made with random weights.
    """
    spec = find_spec(str(model))
    name = spec.name if spec else Path(str(model)).name
    nothing = Contender(name, kind, "cpu", "onnxruntime", "", None, random=random)
    try:
        local = cache.find(model)
    except TarsRagError as error:
        return [dataclasses.replace(nothing, absent=str(error))]
    if local is None:
        absent = f"not on this machine; fetch it: tars-rag models pull {name}"
        return [dataclasses.replace(nothing, absent=absent)]
    base = dataclasses.replace(
        nothing,
        reference=str(model),
        placement=Placement(device="cpu", cache_dir=cache.root),
    )
    return [
        *_on_cpu(base, local, thorough),
        *_on_npu(base, local, cache, machine, rknn_path, thorough),
    ]


def rerankers(cache: ModelCache) -> list[str]:
    """The cross-encoders of the catalogue, those on this machine first."""
    rows = [spec for spec in CATALOG if spec.kind != "embedder"]
    rows.sort(key=lambda spec: not cache.directory(spec).is_dir())  # stable
    return [spec.name for spec in rows]


def open_subject(contender: Contender) -> Subject:
    """Open a contender by the same way as `Embedder` and `Reranker`.

    Raises:
        TarsRagError: It cannot be opened.
    """
    placement = contender.placement
    cache = ModelCache(placement.cache_dir)
    local = cache.get(contender.reference)
    output: Output = "pooled" if contender.kind == "embedder" else "logit"
    pooling = layout.pooling(local) if contender.kind == "embedder" else "mean"
    usual = TOKENS_PER_BATCH if contender.kind == "embedder" else PAIR_TOKENS_PER_BATCH
    opened = open_runtime(local, cache.root, output=output, pooling=pooling, placement=placement)
    if contender.precision == FASTEST:
        contender = dataclasses.replace(contender, precision=opened.arithmetic)
    try:
        config = read_json(local.directory / CONFIG_NAME)
        positions = int(config.get("max_position_embeddings") or 512)
        longest = min(512, positions, opened.max_length or positions)
        return Subject(
            contender,
            opened.runtime,
            Tokenizer(local.directory, longest),
            int(config.get("pad_token_id") or 0),
            opened.precision,
            _megabytes(contender, local),
            _where_pooled(contender),
            candidate_of(placement, opened),
            opened.tokens_per_batch or usual,
        )
    except BaseException:
        opened.runtime.close()
        raise


def _on_cpu(base: Contender, local: LocalModel, thorough: bool) -> list[Contender]:
    ready = onnx_file(local.directory) if base.kind == "cross-encoder" else None
    precisions: tuple[tuple[str, Precision], ...] = (("fp32", "fp32"), ("int8", "int8"))
    if ready:
        precisions = (("int8" if _is_quantised(ready) else "fp32", "fp32"),)
    elif base.kind == "cross-encoder":
        precisions = (("fp32", "fp32"),)
    everything = len(big_cores())
    threads = [None, 1] if thorough and everything > 1 else [None]
    engines: tuple[Engine, ...] = ("onnxruntime", "openvino")
    rows = [
        dataclasses.replace(
            base,
            engine=engine,
            precision=FASTEST if (engine, shown) == ("openvino", "fp32") else shown,
            cores=count or everything,
            placement=dataclasses.replace(
                base.placement, engine=engine, precision=precision, threads=count
            ),
        )
        for count in threads
        for engine in engines
        if engine != "openvino" or is_installed()
        for shown, precision in precisions
        # Our INT8 graphs are ONNX Runtime's kind: by OpenVINO they are slower, where measured.
        if thorough or engine != "openvino" or base.kind != "embedder" or precision == "fp32"
    ]
    if not is_installed():
        row = dataclasses.replace(base, engine="openvino")
        absent = f"OpenVINO is not installed: {advice.install('openvino')}"
        rows.append(dataclasses.replace(row, absent=absent))
    return rows


def _on_npu(
    base: Contender,
    local: LocalModel,
    cache: ModelCache,
    machine: Machine,
    rknn_path: Path | None,
    thorough: bool,
) -> list[Contender]:
    row = dataclasses.replace(base, device="npu", engine="")
    if machine.reason:
        return [dataclasses.replace(row, absent=machine.reason)]
    found: list[tuple[Path, Manifest | None]] = [
        (folder, manifest)
        for folder, manifest in find_bundles(cache.root)
        if (manifest.model, manifest.kind) == (local.name, base.kind)
        and manifest.target == machine.soc
    ]
    if rknn_path and rknn_path not in [folder for folder, _ in found]:
        found.append((rknn_path, _manifest(rknn_path)))
    if not found:
        absent = (
            f"no bundle of it for {machine.soc}; make one on a PC: tars-rag convert {local.name} "
            f"--target {machine.soc}"
        )
        return [dataclasses.replace(row, absent=absent)]
    masks: list[CoreMask] = ["auto", "0"] if thorough and machine.npu_cores > 1 else ["auto"]
    rows = []
    for folder, manifest in found:
        for mask in masks:
            count = machine.npu_cores if mask == "auto" else 1
            rows.append(
                dataclasses.replace(
                    row,
                    precision=manifest.precision if manifest else "not said",
                    cores=count,
                    placement=Placement(
                        device="npu", rknn_path=folder, core_mask=mask, cache_dir=cache.root
                    ),
                )
            )
    return rows


def _is_quantised(graph: Path) -> bool:
    return b"DynamicQuantizeLinear" in graph.read_bytes()


def _manifest(path: Path) -> Manifest | None:
    try:
        return load_manifest(path)
    except TarsRagError:
        return None  # a single file: it says nothing of itself


def _megabytes(contender: Contender, local: LocalModel) -> float | None:
    """Of the files that were opened."""
    from tars_rag.models.graphs import cpu_graph

    path = contender.placement.rknn_path
    if contender.device == "npu" and path is not None:
        files = Path(path).glob("*") if Path(path).is_dir() else [Path(path)]
        return sum(file.stat().st_size for file in files if file.is_file()) / _MEGA
    file = onnx_file(local.directory) if contender.kind == "cross-encoder" else None
    if file is None and contender.placement.precision == "int8":
        graph = cpu_graph(
            local,
            ModelCache(contender.placement.cache_dir).root,
            output="pooled",
            pooling=layout.pooling(local),
            precision="int8",
        ).source
        if isinstance(graph, bytes):
            return len(graph) / _MEGA
        file = graph
    files = [file] if file else [local.directory / name for name in weight_files(local.directory)]
    return sum(one.stat().st_size for one in files) / _MEGA


def _where_pooled(contender: Contender) -> str:
    """A figure of its own could only be had where pooling is a step of its own on the host."""
    if contender.kind != "embedder" or contender.device == "cpu":
        return "in the graph"
    path = contender.placement.rknn_path
    manifest = _manifest(Path(path)) if path else None
    if manifest and manifest.output == "pooled":
        return "in the graph"
    return "in the core's process"
