"""The reranker's table: place x length x batch, by the protocol of the published figures.

Five passages of 122 real tokens, five runs each, one passage at a time; then all five in one call.
Every call is what a user's would be: tokenise, pad, run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from tars_rag.bench.conditions import Watch
from tars_rag.bench.contenders import Subject
from tars_rag.bench.measuring import Clock, Timing, take_turns
from tars_rag.bench.rows import RerankerRow
from tars_rag.bench.texts import QUERY, Sample, made_up
from tars_rag.models.batching import Batch, feed, plan

PASSAGES: Final = 5
RUNS: Final = 5
LENGTHS: Final = (128, 256, 384, 512)
"""What 122 tokens are padded to: the published 512, and what it left untried."""
SHORT: Final = (32, 64)
"""Lengths of notes, which are not padded."""


@dataclasses.dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured.

    Attributes:
        runs: Of each call.
        lengths: What is padded to.
        short: Further lengths, without padding.
        batches: Passages in one run of the graph, besides what `Reranker` makes of them.
        most_seconds: For one row of all places that take turns; one run is always made.
    """

    runs: int = RUNS
    lengths: tuple[int, ...] = LENGTHS
    short: tuple[int, ...] = SHORT
    batches: tuple[int, ...] = (1, PASSAGES)
    most_seconds: float = 60.0


QUICK: Final = Amount(2, (128, 512), (32,), (), 2.0)


def measure_rerankers(
    subjects: Sequence[Subject],
    *,
    amount: Amount,
    clock: Clock,
    watch: Watch,
    own: Sequence[Sample] = (),
    keep: Callable[[RerankerRow], object],
    progress: Callable[[str], object] = lambda what: None,
) -> None:
    """Measure open rerankers of one tokenizer; they take turns.

    Args:
        subjects: Open, on places that may be open at once.
        amount: How much is measured.
        clock: What time is read from.
        watch: What clocks and governors are read with.
        own: Samples of the user's texts.
        keep: Given each row as soon as it is known, so that what was measured survives Ctrl-C.
        progress: Told what is measured next.
    """
    tokenizer = subjects[0].tokenizer
    most = min(subject.tokenizer.max_length for subject in subjects)
    standard = made_up(tokenizer, min(122, most), PASSAGES, QUERY)
    samples = [standard, *own]
    samples += [made_up(tokenizer, n, PASSAGES, QUERY) for n in amount.short if n < most]
    for sample in samples:
        padded = amount.lengths if sample is standard else ()
        for length in sorted({sample.tokens, *(n for n in padded if sample.tokens < n <= most)}):
            planned = {_planned(subject, length) for subject in subjects}
            for batch in sorted({*planned, *amount.batches}):
                fitting = {
                    number: placed
                    for number, subject in enumerate(subjects)
                    if (placed := _length(subject, length, sample.tokens))
                    and batch <= (subject.runtime.max_rows or batch)
                }
                progress(f"{subjects[0].contender.model}, {length} tokens, batches of {batch}")
                _measure(subjects, fitting, sample, batch, amount, clock, watch, keep)
    for subject in subjects:
        if (subject.runtime.max_rows or PASSAGES) < max(amount.batches, default=1):
            row = dataclasses.replace(_named(subject), batch=PASSAGES)
            absent = f"its files take {subject.runtime.max_rows} text(s) in one run"
            keep(dataclasses.replace(row, absent=absent))


def with_ratios(rows: Sequence[RerankerRow]) -> list[RerankerRow]:
    """The rows with what each is times faster than: the CPU's default, and FP16.

    The default on the CPU is the model's first place there, without padding, one passage alone,
    of the same sample.
    """

    def of(row: RerankerRow, other: Callable[[RerankerRow], bool]) -> float | None:
        times = [
            r.passage_ms
            for r in rows
            if r.passage_ms and (r.model, r.sample) == (row.model, row.sample) and other(r)
        ]
        return times[0] / row.passage_ms if times and row.passage_ms else None

    def cpu(r: RerankerRow) -> bool:
        return r.device == "cpu" and r.length == r.tokens

    def fp16(row: RerankerRow, r: RerankerRow) -> bool:
        same = (r.device, r.length, r.cores) == (row.device, row.length, row.cores)
        return same and r.precision.startswith(("fp16", "f16"))

    return [
        dataclasses.replace(row, vs_cpu=of(row, cpu), vs_fp16=of(row, partial(fp16, row)))
        for row in rows
    ]


def _planned(subject: Subject, length: int) -> int:
    """Passages in one run, as `Reranker` would send five of that length."""
    batches = plan(
        [length] * PASSAGES,
        tokens_per_batch=subject.tokens_per_batch,
        max_rows=subject.runtime.max_rows,
    )
    return len(batches[0].rows)


def _length(subject: Subject, length: int, tokens: int) -> int | None:
    """What the place pads to; None where it has no such length, or one that another row has."""
    buckets = subject.runtime.lengths
    if buckets is None:
        return length
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting or (length != tokens and fitting[0] != length):
        return None
    return fitting[0]


def _measure(
    subjects: Sequence[Subject],
    lengths: dict[int, int],
    sample: Sample,
    batch: int,
    amount: Amount,
    clock: Clock,
    watch: Watch,
    keep: Callable[[RerankerRow], object],
) -> None:
    """One row for each place that has the length."""
    calls: dict[tuple[int, int], Callable[[], object]] = {}
    for number, length in lengths.items():
        for place in range(len(sample.passages)):
            one = sample.passages[place : place + 1]
            calls[number, place] = partial(rank, subjects[number], sample.query, one, length, 1)
        calls[number, -1] = partial(
            rank, subjects[number], sample.query, sample.passages, length, batch
        )
    if not calls:
        return
    with watch.during() as seen:
        timings = take_turns(calls, amount.runs, clock=clock, most_seconds=amount.most_seconds)
    for number, length in lengths.items():
        alone = Timing(
            tuple(
                ms
                for place in range(len(sample.passages))
                for ms in timings[number, place].milliseconds
            )
        )
        five = timings[number, -1]
        passages = len(five.milliseconds) * len(sample.passages)
        keep(
            dataclasses.replace(
                _named(subjects[number]),
                sample=sample.name,
                tokens=sample.tokens,
                length=length,
                batch=batch,
                planned=batch == _planned(subjects[number], length),
                passage_ms=alone.median,
                spread_ms=alone.spread,
                five_ms=five.median,
                runs=len(five.milliseconds),
                cpu_seconds_100=100 * five.cpu_seconds / passages,
                note=f"throttled: {seen.throttled}" if seen.throttled else "",
            )
        )


def rank(subject: Subject, query: str, passages: Sequence[str], length: int, batch: int) -> None:
    """Score passages, each padded to `length`, `batch` of them in one run of the graph."""
    encodings = subject.tokenizer.encode_pairs(query, passages)
    names = subject.runtime.input_names
    groups = [
        tuple(range(start, min(start + batch, len(passages))))
        for start in range(0, len(passages), batch)
    ]
    feeds = [feed(Batch(rows, length), encodings, names, subject.pad_id) for rows in groups]
    subject.runtime.run(feeds, urgent=True)


def _named(subject: Subject) -> RerankerRow:
    c = subject.contender
    return RerankerRow(
        c.model,
        c.device,
        c.engine,
        c.precision,
        c.cores,
        earned=subject.earned,
        megabytes=subject.megabytes,
        random=c.random,
    )
