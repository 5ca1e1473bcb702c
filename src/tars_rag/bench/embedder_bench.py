"""The embedder's table: where the time of one text, and of many, goes.

Pooling and normalising are part of the graph (or of what a core's process does), so they have no
figure of their own: the row says where they happen. The sum is not computed: the whole call is
measured by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from tars_rag.bench.conditions import Watch
from tars_rag.bench.contenders import Subject
from tars_rag.bench.measuring import Clock, take_turns
from tars_rag.bench.rows import EmbedderRow
from tars_rag.bench.texts import Sample, made_up
from tars_rag.models.batching import run_batched
from tars_rag.models.tokenizer import Encoding

LENGTHS: Final = (32, 64, 96, 128, 192, 256)
"""The buckets that `convert` makes; on the CPU, just lengths."""
BULK: Final = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured.

    Attributes:
        runs: Of each call.
        lengths: Tokens of a text.
        counts: Texts in a call.
        most_seconds: For one row of all places that take turns; one run is always made.
        quick: The user's own texts one at a time only.
    """

    runs: int = 7
    lengths: tuple[int, ...] = LENGTHS
    counts: tuple[int, ...] = (1, BULK)
    most_seconds: float = 30.0
    quick: bool = False


QUICK: Final = Amount(3, (32, 128, 256), (1, BULK), 1.0, quick=True)


def measure_embedders(
    subjects: Sequence[Subject],
    *,
    amount: Amount,
    clock: Clock,
    watch: Watch,
    own: Sequence[str] = (),
    keep: Callable[[EmbedderRow], object],
    progress: Callable[[str], object] = lambda what: None,
) -> None:
    """Measure open embedders of one tokenizer; they take turns.

    Args:
        subjects: Open, on places that may be open at once.
        amount: How much is measured.
        clock: What time is read from.
        watch: What clocks and governors are read with.
        own: Texts of the user.
        keep: Given each row as soon as it is known.
        progress: Told what is measured next.
    """
    from tars_rag.bench.texts import own as own_samples

    tokenizer = subjects[0].tokenizer
    most = min(subject.tokenizer.max_length for subject in subjects)
    lengths = sorted({min(length, most) for length in amount.lengths})
    for count in amount.counts:
        samples = [made_up(tokenizer, length, count) for length in lengths]
        if count == 1 or not amount.quick:
            samples += own_samples(tokenizer, own, count)
        for sample in samples:
            progress(f"{subjects[0].contender.model}, {sample.name}, {count} text(s)")
            _measure(subjects, sample, amount, clock, watch, keep)


def _measure(
    subjects: Sequence[Subject],
    sample: Sample,
    amount: Amount,
    clock: Clock,
    watch: Watch,
    keep: Callable[[EmbedderRow], object],
) -> None:
    calls: dict[tuple[int, str], Callable[[], object]] = {}
    lengths: dict[int, int] = {}
    for number, subject in enumerate(subjects):
        longest = subject.runtime.lengths
        if longest and longest[-1] < sample.tokens:
            continue  # the place does not take such texts
        lengths[number] = next((n for n in longest or () if n >= sample.tokens), sample.tokens)
        encodings = subject.tokenizer.encode(sample.passages)
        calls[number, "tokenise"] = partial(subject.tokenizer.encode, sample.passages)
        calls[number, "infer"] = partial(_infer, subject, encodings)
        calls[number, "total"] = partial(embed, subject, sample.passages)
    if not calls:
        return
    with watch.during() as seen:
        timings = take_turns(calls, amount.runs, clock=clock, most_seconds=amount.most_seconds)
    count = len(sample.passages)
    for number, length in lengths.items():
        c, total = subjects[number].contender, timings[number, "total"]
        texts = count * len(total.milliseconds)
        keep(
            EmbedderRow(
                c.model,
                c.device,
                c.engine,
                c.precision,
                c.cores,
                earned=subjects[number].earned,
                sample=sample.name,
                tokens=sample.tokens,
                length=length,
                texts=count,
                megabytes=subjects[number].megabytes,
                tokenise_ms=timings[number, "tokenise"].median,
                infer_ms=timings[number, "infer"].median,
                pooled=subjects[number].pooled,
                total_ms=total.median,
                spread_ms=total.spread,
                per_second=1000 * count / total.median if total.median else None,
                runs=len(total.milliseconds),
                cpu_seconds_100=100 * total.cpu_seconds / texts,
                random=c.random,
                note=f"throttled: {seen.throttled}" if seen.throttled else "",
            )
        )


def embed(subject: Subject, texts: Sequence[str]) -> None:
    """What `Embedder.embed` does with a call of so few texts."""
    encodings = subject.tokenizer.encode(texts)
    _infer(subject, encodings)


def _infer(subject: Subject, encodings: Sequence[Encoding]) -> None:
    run_batched(
        subject.runtime,
        encodings,
        tokens_per_batch=subject.tokens_per_batch,
        pad_id=subject.pad_id,
        urgent=True,
    )
