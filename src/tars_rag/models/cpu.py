"""A model on the CPU: which engine runs it, and how faithful that was measured to be."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from tars_rag.errors import ModelError
from tars_rag.files import publishing, sha256_of
from tars_rag.guests import version_of
from tars_rag.models import attention
from tars_rag.models.batching import run_batched
from tars_rag.models.bert_graph import Output
from tars_rag.models.graphs import SAMPLE, cpu_graph, mean_cosine, sample_tokenizer, unpadded_form
from tars_rag.models.local import LocalModel
from tars_rag.models.spec import Pooling
from tars_rag.runtimes.base import Runtime
from tars_rag.runtimes.onnx import OnnxRuntime
from tars_rag.runtimes.openvino import Arithmetic, OpenVinoRuntime
from tars_rag.settings import Placement

_NOTE: Final = "measured.json"
_FAITHFUL: Final = {"pooled": 0.9999, "logit": 0.99, "tokens": 0.9999}
"""Least fidelity with which another arithmetic than float32 is used: of an embedder the mean
cosine; of a cross-encoder one minus the largest difference of scores, which is what FlashRank's
INT8 files are off by."""


def open_cpu(
    model: LocalModel, cache: Path, output: Output, pooling: Pooling, placement: Placement
) -> tuple[Runtime, float, str]:
    """Open a model on the CPU, by ONNX Runtime unless OpenVINO is asked for.

    Returns:
        What runs it; its fidelity, 1.0 for float32 on ONNX Runtime; what it computes in.

    Raises:
        DeviceError: OpenVINO is asked for and not installed.
        ModelError: The model's files do not make a graph of the kind asked for.
    """
    openvino = placement.engine == "openvino"
    ready = onnx_file(model.directory) if output == "logit" else None
    if ready:  # has its own arithmetic, which another one on top of it would only blur
        if openvino:
            ours = OpenVinoRuntime(ready, threads=placement.threads, arithmetic="f32")
            return ours, 1.0, "ready"
        unpadded = unpadded_form(attention.fused, ready, _name(model, ready), cache)
        return OnnxRuntime(ready, unpadded=unpadded, threads=placement.threads), 1.0, "ready"
    graph = cpu_graph(model, cache, output=output, pooling=pooling, precision=placement.precision)
    if not openvino:
        unpadded = unpadded_form(attention.fused, graph.source, graph.name, cache)
        runtime = OnnxRuntime(graph.source, unpadded=unpadded, threads=placement.threads)
        return runtime, graph.cosine, placement.precision

    def measured(runtime: Runtime) -> float:
        exact = cpu_graph(model, cache, output=output, pooling=pooling)
        reference = OnnxRuntime(exact.source, threads=placement.threads)
        try:
            return _fidelity(model, output, runtime, reference)
        finally:
            reference.close()

    fastest, fidelity = _compiled(graph.source, placement.threads, None, measured)
    if fidelity >= _FAITHFUL[output] or fastest.arithmetic == "f32":
        return fastest, fidelity, _precision(placement, fastest)
    fastest.close()
    plain, fidelity = _compiled(graph.source, placement.threads, "f32", measured)
    return plain, fidelity, _precision(placement, plain)


def open_as_others(model: LocalModel, cache: Path, placement: Placement) -> Runtime:
    """A ready-made graph as other programs open it: for one text alone it gives the same bits.

    Raises:
        ModelError: The graph cannot be loaded.
    """
    ready = onnx_file(model.directory)
    if ready is None:
        msg = f"{model.directory} has no graph any more. Fetch the model again."
        raise ModelError(msg)
    alone = unpadded_form(attention.without_masks, ready, _name(model, ready), cache)
    return OnnxRuntime(alone or ready, threads=placement.threads, as_others=True)


def identity(model: LocalModel, placement: Placement) -> str:
    """The class of what is too far from float32 to share one."""
    return f"{model.weights_digest[:8]}{placement.precision}"


def onnx_file(directory: Path) -> Path | None:
    """The ready-made graph of a model directory (FlashRank's layout); None if it has none.

    Raises:
        ModelError: There are several.
    """
    files = sorted(directory.glob("*.onnx"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        msg = f"{directory} has several graphs ({names}). Leave only the one to run."
        raise ModelError(msg)
    return files[0] if files else None


def _name(model: LocalModel, ready: Path) -> str:
    """What a ready-made graph's other forms are kept under."""
    return model.digest(ready.name)[:32]


def _precision(placement: Placement, runtime: OpenVinoRuntime) -> str:
    if placement.precision == "int8":
        return "int8"
    return "fp32" if runtime.arithmetic == "f32" else runtime.arithmetic


def _fidelity(model: LocalModel, output: Output, runtime: Runtime, reference: Runtime) -> float:
    """How close a runtime comes to FP32 on a few texts; see `_FAITHFUL`."""
    tokenizer = sample_tokenizer(model, 128)
    if output == "logit":
        encodings = tokenizer.encode_pairs(SAMPLE[0], SAMPLE)
        logits = [run_batched(r, encodings).astype(np.float64) for r in (runtime, reference)]
        scores = [1 / (1 + np.exp(-x)) for x in logits]
        return 1 - float(np.abs(scores[0] - scores[1]).max())
    return mean_cosine(runtime, reference, tokenizer.encode(SAMPLE))


def _compiled(
    source: Path | bytes,
    threads: int | None,
    arithmetic: Arithmetic | None,
    measure: Callable[[Runtime], float],
) -> tuple[OpenVinoRuntime, float]:
    """A graph compiled and measured, of the cache or now.

    A directory beside the graph holds what OpenVINO compiled, and a note with the checksums of its
    files, for OpenVINO itself does not see a letter that was altered.
    """
    if isinstance(source, bytes):  # a cache that cannot be written
        runtime = OpenVinoRuntime(source, threads=threads, arithmetic=arithmetic)
        return runtime, measure(runtime)
    stem = f"{source.stem}-openvino-{arithmetic or 'fastest'}-"
    folder = source.with_name(stem + _machine())
    try:
        note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        if note["files"] == _sums(folder):
            tables = {str(name): int(rows) for name, rows in note["tables"].items()}
            runtime = OpenVinoRuntime(
                source, threads=threads, arithmetic=arithmetic, compiled=folder, tables=tables
            )
            return runtime, float(note["fidelity"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # not made yet, or damaged: what is made now replaces it
    for old in source.parent.glob(f"{stem}*"):  # of another version, or damaged
        shutil.rmtree(old, ignore_errors=True)
    made: tuple[OpenVinoRuntime, float] | None = None
    try:
        with publishing(folder) as part:
            runtime = OpenVinoRuntime(source, threads=threads, arithmetic=arithmetic, compiled=part)
            made = runtime, measure(runtime)
            runtime.prepare()
            note = {"files": _sums(part), "fidelity": made[1], "tables": runtime.tables}
            (part / _NOTE).write_text(json.dumps(note), encoding="utf-8")
    except (OSError, ModelError):
        pass  # no room, or somebody else made it meanwhile; else the same happens again below
    if made is None:
        runtime = OpenVinoRuntime(source, threads=threads, arithmetic=arithmetic)
        made = runtime, measure(runtime)
    return made


def _sums(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in sorted(folder.iterdir()) if file.name != _NOTE}


def _machine() -> str:
    """What a compiled graph depends on: the version, and the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    kept = {
        line for line in text.splitlines() if line.startswith(("flags", "Features", "CPU part"))
    }
    digest = hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()
    return f"{version_of('openvino')}-{digest[:8]}"
