"""How near to each other a model puts texts that have nothing to do with each other.

Some models spread cosines from 0 (all-MiniLM-L6-v2: 0.04 between unrelated texts), others give 0.7
and more to anything (E5, GTE). What is added to a cosine has to know where its scale begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from tars_rag.runtimes.base import FloatArray

_PASSAGES: Final = (
    "The violin has four strings and is played with a bow.",
    "Penguins breed on the ice in winter.",
    "The treaty was signed in 1648 after long talks.",
    "Whisk the eggs with sugar until they are pale.",
    "A prime number has exactly two divisors.",
    "Water the tomato plants in the evening.",
)
_QUESTIONS: Final = (
    "When does the train to the airport leave?",
    "how to reset a forgotten password",
    "What is the tax on imported wine?",
)
_HIGHEST: Final = 0.95


class _Model(Protocol):
    def embed(self, texts: Sequence[str]) -> FloatArray: ...

    def embed_query(self, text: str) -> FloatArray: ...


def unrelated_cosine(model: _Model) -> float:
    """The mean cosine of three questions and six passages that answer none, 0 to 0.95.

    Rounded to hundredths, so that it does not depend on the device.
    """
    asked = np.stack([model.embed_query(question) for question in _QUESTIONS])
    mean = float((asked @ model.embed(list(_PASSAGES)).T).mean())
    return round(min(max(mean, 0.0), _HIGHEST), 2)
