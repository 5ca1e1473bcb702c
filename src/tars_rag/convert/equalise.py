"""Per-channel equalisation of linear layers, so that int8 keeps what the layer needs.

A few activations of a BERT model are a hundred times larger than the rest; quantised with one
scale per tensor they leave the others a handful of steps. For a linear layer y = x W + b and
positive s (per input channel) and t (per output channel), ::

    x' = x / s        W' = diag(s) W diag(1/t)        b' = b / t        y = (x' W' + b') t

is the same function with the large channels moved into the weights, which have a scale per
output channel and so can bear them, and out of the int8 output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.models.bert_graph import Scales, build_graph, linear_input, linear_weight
from tars_rag.models.weights import BertWeights

if TYPE_CHECKING:
    from tars_rag.runtimes.base import Feeds

FloatArray = NDArray[np.float32]

_QKV: Final = ("q", "k", "v")
_FLOOR: Final = 1e-5


def largest_activations(
    weights: BertWeights, feeds: Sequence[Feeds], layers: Sequence[tuple[int, str]]
) -> dict[str, FloatArray]:
    """The largest magnitude of each channel going into and out of linear layers.

    Args:
        weights: The model.
        feeds: Unpadded inputs, one text each, [1, tokens].
        layers: (layer, key) of the linear layers.

    Returns:
        Tensor name -> float32 [channels].
    """
    import onnxruntime
    from onnx import helper

    names = sorted({linear_input(*at) for at in layers} | {f"l{n}.{key}" for n, key in layers})
    graph = build_graph(weights, output="logit" if weights.head else "tokens")
    graph.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    largest: dict[str, FloatArray] = {}
    for feed in feeds:
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            top = np.abs(value).max(axis=(0, 1))
            largest[name] = np.maximum(largest.get(name, 0), top)
    return largest


def scales(
    weights: BertWeights, largest: dict[str, FloatArray], layers: Sequence[tuple[int, str]]
) -> Scales:
    """S and t for each of `layers`.

    q, k, v and o: SmoothQuant (Xiao et al. 2022) with alpha 0.5; q, k and v share s, as they share
    their input. ff1: alpha 0.7, never below 1, so that only outliers are moved. ff2, whose input
    is a GELU: channels are capped at three medians. t caps the output channels at their median.
    """
    found = {}
    for layer, key in layers:
        x = np.maximum(largest[linear_input(layer, key)], _FLOOR)
        y = np.maximum(largest[f"l{layer}.{key}"], 1e-3)
        keys = _QKV if key in _QKV else (key,)
        w = np.max([np.abs(linear_weight(weights, layer, k)).max(1) for k in keys], axis=0)
        if key == "ff2":
            s = np.maximum(x / (3 * np.median(x)), 1)
        elif key == "ff1":
            s = np.maximum(_smooth(x, w, 0.7), 1)
        else:
            s = _smooth(x, w, 0.5)
        t = np.maximum(y / np.median(y), 1)
        found[layer, key] = (s.astype(np.float32), t.astype(np.float32))
    return found


def _smooth(x: FloatArray, w: FloatArray, alpha: float) -> FloatArray:
    s = np.asarray(x**alpha / np.maximum(w, _FLOOR) ** (1 - alpha), np.float32)
    return np.asarray(s / np.median(s), np.float32)
