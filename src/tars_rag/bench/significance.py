"""Whether a difference between two rankings is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

RESAMPLES: Final = 10_000
_AT_A_TIME: Final = 500


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of one thing less that of another over the same queries.

    Attributes:
        mean: The difference.
        low: Where its 95 % interval begins.
        high: Where that ends.
    """

    mean: float
    low: float
    high: float

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves out 0: other queries would have shown it too."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0
) -> Difference:
    """`first` less `second`, the values of the same queries in the same order.

    The percentile bootstrap over queries (Efron and Tibshirani 1993; for retrieval: Sakai, SIGIR
    2006): the queries are drawn anew, with replacement, 10,000 times, and 95 % of the differences
    of the means lie in the interval. Several comparisons at once are not corrected for: of twenty
    that are nothing, one is to be expected outside.

    Raises:
        ValueError: They are not as many, or none.
    """
    if len(first) != len(second) or not first:
        msg = f"{len(first)} and {len(second)} values cannot be compared query by query."
        raise ValueError(msg)
    differences = np.asarray(first, float) - np.asarray(second, float)
    random = np.random.default_rng(seed)
    means = []
    for start in range(0, RESAMPLES, _AT_A_TIME):
        size = (min(_AT_A_TIME, RESAMPLES - start), len(differences))
        means.append(differences[random.integers(0, len(differences), size)].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Difference(float(differences.mean()), float(low), float(high))
