"""The texts with known answers that every core has to reproduce before it is used."""

from __future__ import annotations

from collections.abc import Sequence

from tars_rag.convert import fidelity
from tars_rag.convert.plan import Plan
from tars_rag.convert.texts import Sample
from tars_rag.runtimes.npu.manifest import SelfTest


def known_answers(
    plan: Plan, lengths: Sequence[int], largest_gap: float, graph: bytes
) -> tuple[SelfTest, ...]:
    """Texts with their FP32 answers; twice the largest measured error is tolerated.

    Two short ones, one that is least like English, and for each length one that fills it.
    """
    source = plan.source
    pairs = source.kind == "cross-encoder"
    short = sorted(source.encode(plan.evaluation, lengths[0]), key=len)
    foreign = max(range(len(plan.evaluation.texts)), key=lambda i: _foreign(plan.evaluation, i))
    chosen = [
        short[len(short) // 4],
        short[len(short) // 2],
        *source.encode(_only(plan.evaluation, foreign), lengths[0]),
        *(encoding for n in lengths for encoding in source.encode(_filling(plan.evaluation), n)),
    ]
    # Cut to a short length two of them may be the same; a core has to tell them apart.
    chosen = list({tuple(encoding.ids.tolist()): encoding for encoding in chosen}.values())
    exact = fidelity.reference(graph, source.feeds(chosen))
    return tuple(
        SelfTest(
            input_ids=tuple(encoding.ids.tolist()),
            token_type_ids=tuple(encoding.types.tolist()) if pairs else None,
            expected=tuple(answer.tolist()),
            tolerance=max(2 * largest_gap, 0.05 if pairs else 0.001),
        )
        for encoding, answer in zip(chosen, exact, strict=True)
    )


def _foreign(sample: Sample, index: int) -> float:
    """The share of letters outside ASCII."""
    text = sample.texts[index]
    return sum(not letter.isascii() for letter in text) / len(text)


def _only(sample: Sample, index: int) -> Sample:
    return Sample(sample.texts[index : index + 1], sample.queries[index : index + 1], sample.source)


def _filling(sample: Sample) -> Sample:
    """All texts as one, which is cut at any length."""
    return Sample((" ".join(sample.texts),), sample.queries[:1], sample.source)
