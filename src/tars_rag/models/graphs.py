"""Graphs made from a model's weights, kept in the cache so that they are made once."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tars_rag.files import sha256_of, write_atomically
from tars_rag.models import attention
from tars_rag.models.architectures.config import CONFIG_NAME, BertConfig
from tars_rag.models.batching import run_batched
from tars_rag.models.bert_graph import GRAPH_VERSION, Output, build_graph
from tars_rag.models.local import LocalModel
from tars_rag.models.spec import Pooling
from tars_rag.models.tokenizer import Encoding, Tokenizer
from tars_rag.models.weights import load_weights
from tars_rag.runtimes.base import Runtime
from tars_rag.runtimes.onnx import OnnxRuntime
from tars_rag.settings import Precision

if TYPE_CHECKING:
    import onnx

_SMALL: Final = 64 << 20
"""Bytes of a graph that is held in memory once more for batches without padding."""


@dataclass(frozen=True, slots=True)
class CpuGraph:
    """A graph ready to load.

    Attributes:
        source: Its file; its bytes, where the cache cannot be written.
        cosine: Mean cosine of its embeddings to the FP32 graph's; 1.0 for FP32 itself.
        name: That of its file in the cache, without the ending.
    """

    source: Path | bytes
    cosine: float
    name: str


def cpu_graph(
    model: LocalModel,
    cache: Path,
    *,
    output: Output,
    pooling: Pooling = "mean",
    precision: Precision = "fp32",
) -> CpuGraph:
    """The graph of a model's weights for the CPU, from the cache or built now.

    The cached file is named after the weights' sha256 and is checked against its own, which is
    beside it; a damaged one is built again.

    Raises:
        ModelError: The weights cannot be read or are of another kind than `output`.
    """

    def fp32() -> bytes:
        weights = load_weights(model.directory)
        graph: bytes = build_graph(weights, output=output, pooling=pooling).SerializeToString()
        return graph

    stem = f"{model.weights_digest[:32]}-v{GRAPH_VERSION}-{output}-{pooling}"
    folder = cache / ".graphs"
    exact = _cached(folder / f"{stem}-fp32", lambda: (fp32(), 1.0))
    if precision == "fp32":
        return exact
    # The quantiser is part of what the numbers depend on.
    name = f"{stem}-int8-ort{version('onnxruntime')}"
    return _cached(folder / name, lambda: _quantised(exact, model))


def unpadded_form(
    make: Callable[[Path | bytes], bytes | None], source: Path | bytes, name: str, cache: Path
) -> Path | bytes | None:
    """Another form of a graph, for batches without padding, from the cache or made now.

    Args:
        make: `attention.fused` or `attention.without_masks`.
        source: The graph.
        name: Its own; a graph with other content has another one.
        cache: The model cache.

    Returns:
        None: there is none, or the graph is too large to be held once more.
    """
    try:
        if _size(source) > _SMALL:
            return None
        stem = cache / ".graphs" / f"{name}-{make.__name__}-v{attention.VERSION}"
        form = _cached(stem, lambda: (make(source) or b"", 1.0)).source
        return form if _size(form) else None
    except Exception:  # of onnx and ONNX Runtime; whoever opens the graph itself is told
        return None


def quantise(model: onnx.ModelProto, *, per_channel: bool) -> bytes:
    """Dynamic INT8 quantisation of a graph's linear layers and word table."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as work, _silent_root_logger():
        target = Path(work) / "int8.onnx"
        quantize_dynamic(model, target, per_channel=per_channel, weight_type=QuantType.QInt8)
        return target.read_bytes()


@contextlib.contextmanager
def _silent_root_logger() -> Iterator[None]:
    """Keep the quantiser's chatter out of the user's log.

    It logs on the root logger itself, which would also install a handler there for good.
    """
    root = logging.getLogger()
    handler = logging.NullHandler()

    def refuse(_: logging.LogRecord) -> bool:
        return False

    root.addHandler(handler)
    root.addFilter(refuse)
    try:
        yield
    finally:
        root.removeFilter(refuse)
        root.removeHandler(handler)


def _cached(stem: Path, make: Callable[[], tuple[bytes, float]]) -> CpuGraph:
    path, note = stem.with_name(f"{stem.name}.onnx"), stem.with_name(f"{stem.name}.json")
    try:
        facts = json.loads(note.read_text(encoding="utf-8"))
        if sha256_of(path) == facts["sha256"]:
            return CpuGraph(path, float(facts["cosine"]), stem.name)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not made yet, or damaged: what is made now replaces it
    content, cosine = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        facts = {"sha256": sha256_of(path), "cosine": cosine}
        write_atomically(note, json.dumps(facts).encode())
    except OSError:
        # A read-only cache: slower to open, no less right.
        return CpuGraph(content, cosine, stem.name)
    return CpuGraph(path, cosine, stem.name)


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _quantised(exact: CpuGraph, model: LocalModel) -> tuple[bytes, float]:
    """Dynamic INT8, weights per output channel, and how close it comes to `exact`."""
    import onnx

    exact_model = (
        onnx.load_from_string(exact.source)
        if isinstance(exact.source, bytes)
        else onnx.load(exact.source)
    )
    content = quantise(exact_model, per_channel=True)
    encodings = sample_tokenizer(model, 256).encode(SAMPLE)
    return content, mean_cosine(OnnxRuntime(content), OnnxRuntime(exact.source), encodings)


def sample_tokenizer(model: LocalModel, most: int) -> Tokenizer:
    """The model's tokenizer; it cuts texts at `most` tokens, or where the positions end."""
    positions = BertConfig.from_json(model.directory / CONFIG_NAME).positions
    return Tokenizer(model.directory, min(most, positions))


def mean_cosine(ours: Runtime, exact: Runtime, encodings: Sequence[Encoding]) -> float:
    """How close the embeddings of one runtime come to those of another."""
    rows, right = (run_batched(runtime, encodings) for runtime in (ours, exact))
    return float(np.mean((rows * right).sum(1)))


# What the fidelity of a quantised embedder is measured on when it is made: short questions and
# sentences, a list, code, a title, and a longer paragraph.
SAMPLE: Final = (
    "How do I reset the router to its factory settings?",
    "The mitochondrion is the organelle that produces most of the cell's chemical energy.",
    "Lift and drag coefficients were measured at Mach numbers between 0.6 and 1.4.",
    "def area(radius): return 3.14159 * radius ** 2",
    "Milk, eggs, flour, butter, a pinch of salt",
    "She closed the window because the rain had started again.",
    "annual report 2023",
    "What are the side effects of ibuprofen when taken with alcohol?",
    "The committee approved the budget after three hours of debate, although two members left "
    "before the vote and one abstained for reasons that were not recorded in the minutes.",
    "Boundary layer separation occurs where the pressure gradient along the surface is adverse "
    "and strong enough to bring the fluid near the wall to rest. Downstream of that point the "
    "flow reverses, the layer thickens, and the wake that forms raises the pressure drag. "
    "Turbulent layers resist separation longer than laminar ones, since mixing carries momentum "
    "from the outer flow towards the wall; dimples and vortex generators make use of this.",
    "Error 0x80070057: the parameter is incorrect.",
    "In 1905 Einstein published four papers, each of which changed physics.",
    "Plant tomatoes after the last frost, in full sun, about sixty centimetres apart.",
    "The train to Lyon leaves at 07:42 from platform 5.",
    "quarterly revenue grew by 12 percent, driven by sales in Asia",
    "To convert the model, install the toolkit and run the converter with a calibration set.",
)
