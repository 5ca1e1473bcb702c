"""What comes after the pooling: dense layers and layer norms, to an embedding or to a score.

A classification head and the modules that sentence-transformers keeps in ``modules.json`` are the
same thing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

ACTIVATIONS: Final = ("identity", "tanh", "gelu", "relu", "sigmoid", "silu")
"""Those that a graph can be built with."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer with an activation.

    Attributes:
        name: Of its tensors: ``<name>.weight`` [out, in] and, where there is one, ``<name>.bias``.
        activation: One of `ACTIVATIONS`.
    """

    name: str
    activation: str = "identity"


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """A layer norm.

    Attributes:
        name: Of its tensors: ``<name>.weight`` and, where there is one, ``<name>.bias``.
        epsilon: Added to the variance.
    """

    name: str
    epsilon: float = 1e-5


Module: TypeAlias = Dense | LayerNorm
