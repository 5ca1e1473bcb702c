"""Scales that need no operator: folded into the weights on both sides of an attention.

A linear layer made even for int8 (see `equalise`) costs two multiplications on the NPU, and each
needs another one to keep the toolkit from undoing it. Inside an attention none is needed. The
context is a weighted mean of v, so dividing the output channels of v by s divides the input of o;
and q k is the same when q is divided by d and k is multiplied by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tars_rag.convert.equalise import smooth
from tars_rag.convert.statistics import Channels, FloatArray, Linear
from tars_rag.models.architectures.bert import LINEAR
from tars_rag.models.weights import BertWeights

_LEAST = 1e-3


def balanced(
    weights: BertWeights, seen: Mapping[str, Channels], linears: Sequence[Linear]
) -> BertWeights:
    """Weights of the same function, whose attentions bear int8 better.

    Args:
        weights: The model.
        seen: From `statistics.observe`, of `linears`.
        linears: The layers that become int8; o, and q with k, are looked at.
    """
    arrays = dict(weights.arrays)

    def scale_rows(name: str, factor: FloatArray) -> None:
        """Multiply the outputs of a linear layer, stored [out, in]."""
        arrays[f"{name}.weight"] = arrays[f"{name}.weight"] * factor[:, None]
        arrays[f"{name}.bias"] = arrays[f"{name}.bias"] * factor

    for layer in range(weights.config.layers):
        names = {key: f"encoder.layer.{layer}.{name}" for key, name in LINEAR.items()}
        if (layer, "o") in linears:
            context = np.maximum(seen[f"l{layer}.ctx"].largest, _LEAST)
            s = smooth(context, np.abs(arrays[f"{names['o']}.weight"]).max(axis=0), 0.5)
            scale_rows(names["v"], np.float32(1) / s)
            arrays[f"{names['o']}.weight"] = arrays[f"{names['o']}.weight"] * s
        if {(layer, "q"), (layer, "k")} <= set(linears):
            q, k = (np.maximum(seen[f"l{layer}.{key}"].largest, _LEAST) for key in "qk")
            d = np.sqrt(q / k)
            d = (d / np.exp(np.log(d).mean())).astype(np.float32)
            scale_rows(names["q"], np.float32(1) / d)
            scale_rows(names["k"], d)
    return replace(weights, arrays=arrays)
