"""How long runs take, learned from the last ones: what a deadline is kept by."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Final

from tars_rag.models.batching import Batch

_REMEMBERED: Final = 32
# Of the delays remembered (other programs have the core for a while), the share allowed for.
_DELAYS: Final = 128
_CAREFUL: Final = 0.98
# Calls that are not begun until one memory goes.
_REFUSALS: Final = 4
# More batches in one call than this are alike: every core has enough to do.
_MANY: Final = 4
# Attention costs as much as the linear layers at six times the width of the model, about here.
_ATTENTION: Final = 2304
# What was learned of longer texts only is too little for shorter ones: each run has its own cost.
_SHORTER: Final = 1.5


class Pace:
    """Seconds per unit of work, by how many batches a call has and how long their texts are.

    To what a call usually takes is added what one was delayed by, which does not grow with it.

    Any number of threads may use it; when several run at once, each takes longer, and that is
    learned too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rates: dict[tuple[int, int], deque[float]] = {}
        self._delays: deque[float] = deque(maxlen=_DELAYS)
        self._refused = 0

    @property
    def is_known(self) -> bool:
        """Whether anything was learned yet."""
        return bool(self._rates)

    def note(self, batches: Sequence[Batch], seconds: float) -> None:
        """Learn from a call."""
        with self._lock:
            rates = self._rates.setdefault(_kind(batches), deque(maxlen=_REMEMBERED))
            rates.append(seconds / _work(batches))
            self._delays.append(max(0.0, seconds - median(rates) * _work(batches)))

    def refused(self, batches: Sequence[Batch]) -> None:
        """Not even this was begun. Now and then the slowest that is remembered is forgotten.

        What was slow once would else be refused for ever, since nothing new is learned.
        """
        with self._lock:
            self._refused += 1
            if self._refused % _REFUSALS or not self._rates:
                return
            known = self._nearest(batches)
            rates = self._rates[known]
            rates.remove(max(rates))
            if not rates:
                del self._rates[known]
            if len(self._delays) > 1:
                self._delays.remove(max(self._delays))

    def seconds(self, batches: Sequence[Batch]) -> float:
        """How long a call will take, delayed as the worst of fifty; 0 where nothing is known."""
        with self._lock:
            if not self._rates:
                return 0.0
            known, size = self._nearest(batches), _kind(batches)[1]
            usual = median(self._rates[known]) * _work(batches)
            delays = sorted(self._delays)
            delay = delays[math.ceil(_CAREFUL * len(delays)) - 1]
            return usual * (_SHORTER if known[1] > size else 1) + delay

    def _nearest(self, batches: Sequence[Batch]) -> tuple[int, int]:
        """What is known that is most like a call, and rather slower than faster.

        As many batches at a time or fewer, since several never take longer than in turn; then
        texts as long, then shorter ones, whose share of fixed costs is higher.
        """
        many, size = _kind(batches)
        return min(
            self._rates, key=lambda k: (k[0] > many, k[1] > size, abs(k[1] - size), many - k[0])
        )


def _kind(batches: Sequence[Batch]) -> tuple[int, int]:
    longest = max(batch.length for batch in batches)
    return min(len(batches), _MANY), longest.bit_length()


def _work(batches: Sequence[Batch]) -> float:
    """In tokens, of which those of longer texts count for more."""
    return sum(batch.tokens * (1 + batch.length / _ATTENTION) for batch in batches)
