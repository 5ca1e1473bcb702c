"""Per-channel equalisation of linear layers, so that int8 keeps what the layer needs.

A few activations of a BERT model are a hundred times larger than the rest; quantised with one
scale per tensor they leave the others a handful of steps. For a linear layer y = x W + b and
positive s (per input channel) and t (per output channel), ::

    x' = x / s        W' = diag(s) W diag(1/t)        b' = b / t        y = (x' W' + b') t

is the same function with the large channels moved into the weights, which have a scale per
output channel and so can bear them, and out of the int8 output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from tars_rag.convert.statistics import Channels, FloatArray, Linear
from tars_rag.models.architectures.bert import Scales, linear_input, linear_weight
from tars_rag.models.weights import BertWeights

_QKV: Final = ("q", "k", "v")
_FLOOR: Final = 1e-5


def scales(weights: BertWeights, seen: Mapping[str, Channels], linears: Sequence[Linear]) -> Scales:
    """S and t for each linear layer.

    q, k and v: SmoothQuant (Xiao et al. 2022) with alpha 0.5; they share s, as they share their
    input. ff1: alpha 0.7, never below 1, so that only outliers are moved. ff2, whose input is a
    GELU: channels are capped at three medians. t caps the output channels of v, ff1 and ff2 at
    their median. All 1, which costs nothing, are those of o and the t of q and k: `balancing` has
    done what they would do, and the output of o is even enough without.

    Args:
        weights: The model.
        seen: From `statistics.observe`.
        linears: Which layers.
    """
    found = {}
    for layer, key in linears:
        x = np.maximum(seen[linear_input(layer, key)].largest, _FLOOR)
        y = np.maximum(seen[f"l{layer}.{key}"].largest, 1e-3)
        keys = _QKV if key in _QKV else (key,)
        w = np.max([np.abs(linear_weight(weights, layer, k)).max(1) for k in keys], axis=0)
        if key == "ff2":
            s = np.maximum(x / (3 * np.median(x)), 1)
        elif key == "ff1":
            s = np.maximum(smooth(x, w, 0.7), 1)
        elif key == "o":
            s = np.ones_like(x)
        else:
            s = smooth(x, w, 0.5)
        t = np.ones_like(y) if key in ("q", "k", "o") else np.maximum(y / np.median(y), 1)
        found[layer, key] = (s.astype(np.float32), t.astype(np.float32))
    return found


def smooth(x: FloatArray, w: FloatArray, alpha: float) -> FloatArray:
    """What moves the channels `x` of an input into the weights `w`, by the largest of each."""
    s = x**alpha / np.maximum(w, _FLOOR) ** (1 - alpha)
    return np.asarray(s / np.median(s), np.float32)


def word_scale(table: FloatArray) -> FloatArray:
    """What each channel of the word table is divided by before it becomes int8, [hidden].

    The toolkit quantises the table with one scale, which its few widest channels set.
    """
    return np.asarray(np.maximum(np.abs(table).max(axis=0), _FLOOR), np.float32)
