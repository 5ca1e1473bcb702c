"""Rounding weights to int8 so that the errors cancel in what the layer computes.

Rounding to nearest is best for the weights, not for x W: where inputs are correlated, the error
made at one input can be made good at the next. GPTQ (Frantar et al. 2022) does so input by
input, with the Gram matrix of the calibration inputs telling how. The toolkit then quantises
weights that lie on its own grid already, and changes nothing.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.convert.statistics import FloatArray

_DAMPING: Final = 0.01
_BLOCK: Final = 128
_STEPS: Final = 127


def round_weights(weight: FloatArray, gram: NDArray[Any]) -> FloatArray:
    """The weights on an int8 grid per output channel, symmetric, -127 to 127 steps.

    Args:
        weight: [in, out].
        gram: xᵀ x of the layer's inputs, [in, in].

    Returns:
        float32 [in, out]; in each column the largest magnitude is that of `weight`, so that the
        grid can be found again.
    """
    size = len(weight)
    gram = gram.astype(np.float64)
    gram[np.diag_indices(size)] += _DAMPING * max(float(np.diag(gram).mean()), 1e-12)
    order = np.argsort(-np.diag(gram))  # what matters most is rounded first
    inverse = np.linalg.inv(gram[np.ix_(order, order)])
    feedback = np.linalg.cholesky(inverse).T
    left = weight[order].astype(np.float64)
    step = np.maximum(np.abs(weight).max(axis=0), 1e-12).astype(np.float64) / _STEPS
    steps = np.empty_like(left)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        errors = np.empty((end - start, weight.shape[1]))
        for row in range(start, end):
            steps[row] = np.clip(np.rint(left[row] / step), -_STEPS, _STEPS)
            error = (left[row] - steps[row] * step) / feedback[row, row]
            left[row + 1 : end] -= feedback[row, row + 1 : end, None] * error
            errors[row - start] = error
        left[end:] -= feedback[start:end, end:].T @ errors
    rounded = np.empty_like(steps)
    rounded[order] = steps
    # A column whose largest weight was moved inwards would be given a finer grid by the toolkit.
    largest, columns = np.abs(weight).argmax(axis=0), np.arange(weight.shape[1])
    lost = np.abs(rounded).max(axis=0) < _STEPS
    signs = np.sign(weight[largest, columns])
    rounded[largest[lost], columns[lost]] = _STEPS * signs[lost]
    return np.asarray(rounded * step, np.float32)
