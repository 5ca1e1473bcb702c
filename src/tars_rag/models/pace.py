"""How long runs take, learned from the last ones: what a deadline is kept by."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from tars_rag.models.batching import Batch

_REMEMBERED: Final = 32
# Of what is remembered, the share that took no longer than the estimate.
_CAREFUL: Final = 0.95
# More batches in one call than this are alike: every core has enough to do.
_MANY: Final = 4
# Attention costs as much as the linear layers at six times the width of the model, about here.
_ATTENTION: Final = 2304
# What was learned of longer texts only is too little for shorter ones: each run has its own cost.
_SHORTER: Final = 1.5


class Pace:
    """Seconds per unit of work, by how many batches a call has and how long their texts are.

    Any number of threads may use it; when several run at once, each takes longer, and that is
    learned too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rates: dict[tuple[int, int], deque[float]] = {}

    @property
    def is_known(self) -> bool:
        """Whether anything was learned yet."""
        return bool(self._rates)

    def note(self, batches: Sequence[Batch], seconds: float) -> None:
        """Learn from a call."""
        with self._lock:
            rates = self._rates.setdefault(_kind(batches), deque(maxlen=_REMEMBERED))
            rates.append(seconds / _work(batches))

    def seconds(self, batches: Sequence[Batch]) -> float:
        """How long a call will take at most, by what is remembered; 0 where nothing is known."""
        with self._lock:
            if not self._rates:
                return 0.0
            many, size = _kind(batches)
            # As many batches at a time or fewer, since several never take longer than in turn;
            # then texts as long, then shorter ones, whose share of fixed costs is higher.
            known = min(
                self._rates, key=lambda k: (k[0] > many, k[1] > size, abs(k[1] - size), many - k[0])
            )
            rates = sorted(self._rates[known])
            rate = rates[math.ceil(_CAREFUL * len(rates)) - 1]
            return rate * _work(batches) * (_SHORTER if known[1] > size else 1)


def _kind(batches: Sequence[Batch]) -> tuple[int, int]:
    longest = max(batch.length for batch in batches)
    return min(len(batches), _MANY), longest.bit_length()


def _work(batches: Sequence[Batch]) -> float:
    """In tokens, of which those of longer texts count for more."""
    return sum(batch.tokens * (1 + batch.length / _ATTENTION) for batch in batches)
