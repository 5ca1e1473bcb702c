"""Which of several measured ways to run a model gets which texts of a call: pure arithmetic.

What was measured is how long `count` texts of `length` tokens take, for each way on its own. From
it the best division of a call is computed: ways on one device take turns, devices work at the same
time, and the call is over when the last device is done.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from tars_rag.errors import InvalidInputError

# A group of texts of one length is divided in at most so many equal parts: exact up to that many
# texts, within one part above it.
_PARTS: Final = 16
# Divisions over two devices that are kept while groups are added one after the other.
_MOST_KEPT: Final = 48


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a model.

    Attributes:
        device: ``cpu`` or ``npu``.
        engine: ``onnxruntime``, ``openvino``, or ``rknn`` on the NPU.
        precision: What it computes in: ``fp32``, ``bf16``, ``f16``, ``int8``, or a bundle's own.
        precision_class: What its measured fidelity earned; vectors of one class may be mixed.
        tokens_per_batch: Padded tokens in one batch; None: what the model's kind usually has.
    """

    device: Literal["cpu", "npu"]
    engine: str
    precision: str
    precision_class: str = "exact"
    tokens_per_batch: int | None = None

    def __str__(self) -> str:
        batch = f", {self.tokens_per_batch} tokens a batch" if self.tokens_per_batch else ""
        return f"{self.device}, {self.engine} {self.precision}{batch}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """How long a candidate took for `count` texts of `length` tokens in one call.

    Attributes:
        length: Tokens of each text.
        count: Texts in the call.
        candidate: What ran them.
        ms: Median of the whole call, milliseconds.
        spread: Standard deviation of the runs, milliseconds.
    """

    length: int
    count: int
    candidate: Candidate
    ms: float
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What is fastest for `count` texts of `length` tokens alone, and why."""

    length: int
    count: int
    candidate: Candidate
    ms: float
    reason: str


Share: TypeAlias = tuple[Candidate, tuple[int, ...]]
"""A candidate, and the numbers of the texts that it gets."""


class Plan:
    """The fastest division of a call over measured candidates.

    Args:
        rows: What was measured.
        precision_class: Only candidates of this class. None: of the class whose best candidates
            take the least time, by the geometric mean over all that was measured for it.

    Raises:
        InvalidInputError: No candidate is left, or a time is not positive.
    """

    def __init__(self, rows: Iterable[Measurement], precision_class: str | None = None) -> None:
        rows = tuple(rows)
        for row in rows:
            if not (row.ms > 0 and math.isfinite(row.ms) and row.length > 0 and row.count > 0):
                msg = f"{row} is not a measurement: length, count and ms must be positive."
                raise InvalidInputError(msg)
        if precision_class is None and rows:
            precision_class = _fastest_class(rows)
        self.rows = tuple(r for r in rows if r.candidate.precision_class == precision_class)
        if not self.rows:
            msg = f"No candidate of class {precision_class} was measured. Run: tars-rag bench"
            raise InvalidInputError(msg)
        self.precision_class = precision_class
        self.candidates = tuple(sorted({row.candidate for row in self.rows}, key=str))
        self._tables = {
            c: _Times(r for r in self.rows if r.candidate == c) for c in self.candidates
        }
        self._lengths = sorted({row.length for row in self.rows})
        self._divide = functools.lru_cache(256)(self._divided)

    def without(self, candidate: Candidate) -> Plan:
        """The plan of the other candidates.

        Raises:
            InvalidInputError: There is none.
        """
        return Plan((row for row in self.rows if row.candidate != candidate), self.precision_class)

    def predict(self, lengths: Sequence[int], candidate: Candidate) -> float:
        """Milliseconds for texts of these lengths on one candidate; inf: they do not fit it."""
        table = self._tables[candidate]
        return sum(table.ms(length, n) for length, n in Counter(map(self._group, lengths)).items())

    def assign(self, lengths: Sequence[int]) -> list[Share]:
        """Divide a call: which candidate gets which of its texts.

        Args:
            lengths: Tokens of each text.

        Returns:
            Each candidate that gets any, with the numbers of its texts, ascending. Every text is
            in exactly one share.

        Raises:
            InvalidInputError: A text is longer than all that was measured takes.
        """
        groups: dict[int, list[int]] = {}
        for number, length in enumerate(lengths):
            groups.setdefault(self._group(length), []).append(number)
        shape = tuple(sorted((length, len(numbers)) for length, numbers in groups.items()))
        taken: dict[Candidate, list[int]] = {}
        for candidate, length, count in self._divide(shape)[1]:
            taken.setdefault(candidate, []).extend(groups[length][:count])
            del groups[length][:count]
        return [
            (candidate, tuple(sorted(taken[candidate])))
            for candidate in self.candidates
            if candidate in taken
        ]

    def milliseconds(self, lengths: Sequence[int]) -> float:
        """What the division of `assign` takes by the measurements."""
        shape = tuple(sorted(Counter(map(self._group, lengths)).items()))
        return self._divide(shape)[0]

    def choices(self) -> list[Choice]:
        """What is fastest for each length and count that was measured, with the reason."""
        made = []
        for length, count in sorted({(row.length, row.count) for row in self.rows}):
            times = {c: table.ms(length, count) for c, table in self._tables.items()}
            ranked = sorted(times, key=lambda c: times[c])
            best, others = ranked[0], [c for c in ranked[1:] if math.isfinite(times[c])]
            against = "; ".join(f"{times[c]:.1f} ms on {c}" for c in others)
            reason = f"{times[best]:.1f} ms" + (f" against {against}" if against else ", alone")
            made.append(Choice(length, count, best, times[best], reason))
        return made

    def _group(self, length: int) -> int:
        """The measured length that stands for one; beyond all of them, itself."""
        place = bisect.bisect_left(self._lengths, length)
        return self._lengths[place] if place < len(self._lengths) else length

    def _divided(self, shape: tuple[tuple[int, int], ...]) -> tuple[float, tuple[_Given, ...]]:
        """The best division of groups (length, count): its time, and who gets how many of which.

        Kept after each group are the divisions that no other one beats on every device.
        """
        kept = [_NOTHING]
        for length, count in shape:
            groups = self._one_length(length, count)
            if not groups:
                msg = f"A text of {length} tokens is longer than all that was measured takes."
                raise InvalidInputError(msg)
            kept = _thinned(_unbeaten(done.and_also(more) for done in kept for more in groups))
        best = min(kept, key=lambda division: (division.ms, division.cpu + division.npu))
        return best.ms, best.given

    def _one_length(self, length: int, count: int) -> list[_Division]:
        """The divisions of texts of one length that no other one beats on every device."""
        parts = min(count, _PARTS)
        cuts = [part * count // parts for part in range(parts + 1)]
        states = {0: [_NOTHING]}
        for candidate in self.candidates:
            table = self._tables[candidate]
            costs = {n: table.ms(length, n) for n in {b - a for b in cuts for a in cuts if b > a}}
            reached: dict[int, list[_Division]] = {cut: list(states.get(cut, ())) for cut in cuts}
            for start, divisions in states.items():
                for end in cuts[cuts.index(start) + 1 :]:
                    if math.isfinite(cost := costs[end - start]):
                        more = _Division.of((candidate, length, end - start), cost)
                        reached[end] += [division.and_also(more) for division in divisions]
            states = {cut: _unbeaten(divisions) for cut, divisions in reached.items() if divisions}
        return states.get(count, [])


_Given: TypeAlias = tuple[Candidate, int, int]
"""A candidate gets, of texts of this length, this many."""


@dataclass(frozen=True, slots=True)
class _Division:
    """Who gets what of some texts, and how long each device works on it, in milliseconds."""

    cpu: float
    npu: float
    given: tuple[_Given, ...]

    @classmethod
    def of(cls, given: _Given, ms: float) -> _Division:
        return cls(ms, 0.0, (given,)) if given[0].device == "cpu" else cls(0.0, ms, (given,))

    @property
    def ms(self) -> float:
        """Until the last device is done."""
        return max(self.cpu, self.npu)

    def and_also(self, other: _Division) -> _Division:
        return _Division(self.cpu + other.cpu, self.npu + other.npu, self.given + other.given)


_NOTHING: Final = _Division(0.0, 0.0, ())


def _unbeaten(divisions: Iterable[_Division]) -> list[_Division]:
    """Those than which none is at least as fast on both devices."""
    kept: list[_Division] = []
    for division in sorted(divisions, key=lambda d: (d.cpu, d.npu)):
        if not kept or division.npu < kept[-1].npu:
            kept.append(division)
    return kept


def _thinned(divisions: list[_Division]) -> list[_Division]:
    """At most `_MOST_KEPT` of them; the fastest of each device alone are among them."""
    if len(divisions) <= _MOST_KEPT:
        return divisions
    step = (len(divisions) - 1) / (_MOST_KEPT - 1)
    return [divisions[round(number * step)] for number in range(_MOST_KEPT)]


class _Times:
    """What one candidate took, between and beyond what was measured too.

    Between two counts, and on the CPU between two lengths, a straight line; above the highest
    count as much per text as there. The NPU takes the next length it was measured at.
    """

    def __init__(self, rows: Iterable[Measurement]) -> None:
        self._by_length: dict[int, dict[int, float]] = {}
        self._padded = False
        for row in rows:
            self._by_length.setdefault(row.length, {})[row.count] = row.ms
            self._padded = row.candidate.device == "npu"
        self._lengths = sorted(self._by_length)

    def ms(self, length: int, count: int) -> float:
        """Milliseconds for `count` texts of `length` tokens; inf: too long."""
        place = bisect.bisect_left(self._lengths, length)
        if place == len(self._lengths):
            longest = self._lengths[-1]
            return math.inf if self._padded else self._at(longest, count) * length / longest
        above = self._lengths[place]
        if above == length or self._padded or place == 0:
            return self._at(above, count)
        below = self._lengths[place - 1]
        share = (length - below) / (above - below)
        return self._at(below, count) * (1 - share) + self._at(above, count) * share

    def _at(self, length: int, count: int) -> float:
        times = self._by_length[length]
        counts = sorted(times)
        place = bisect.bisect_left(counts, count)
        if place == len(counts):
            return times[counts[-1]] * count / counts[-1]
        above = counts[place]
        if above == count:
            return times[above]
        if place == 0:
            return times[above] * count / above
        below = counts[place - 1]
        share = (count - below) / (above - below)
        return times[below] * (1 - share) + times[above] * share


def _fastest_class(rows: Sequence[Measurement]) -> str:
    """The class whose best candidates take the least time, where all classes were measured."""
    best: dict[str, dict[tuple[int, int], float]] = {}
    for row in rows:
        times = best.setdefault(row.candidate.precision_class, {})
        place = (row.length, row.count)
        times[place] = min(row.ms, times.get(place, math.inf))
    everywhere = set.intersection(*(set(times) for times in best.values()))

    def mean(name: str) -> float:
        places = everywhere or set(best[name])
        return sum(math.log(best[name][place]) for place in places) / len(places)

    return min(sorted(best), key=lambda name: (mean(name), -len(best[name])))
