"""Batches: every row exactly once, within the limits, and back in the caller's order."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tars_rag.errors import InvalidInputError
from tars_rag.models.batching import feed, plan, run_batched
from tars_rag.models.tokenizer import Encoding

BUCKETS = (16, 64, 128)
LENGTHS = st.lists(st.integers(1, 128), max_size=60)


@given(
    lengths=LENGTHS,
    buckets=st.sampled_from([None, BUCKETS]),
    tokens=st.integers(1, 1000),
    rows=st.one_of(st.none(), st.integers(1, 8)),
    ordered=st.booleans(),
)
def test_every_row_once_and_every_limit_kept(lengths, buckets, tokens, rows, ordered) -> None:  # type: ignore[no-untyped-def]
    batches = plan(
        lengths, buckets=buckets, tokens_per_batch=tokens, max_rows=rows, ordered=ordered
    )
    placed = [row for batch in batches for row in batch.rows]
    assert sorted(placed) == list(range(len(lengths)))
    if ordered:
        assert placed == sorted(placed)
    for batch in batches:
        longest = max(lengths[row] for row in batch.rows)
        assert batch.length == (
            longest if buckets is None else min(b for b in buckets if b >= longest)
        )
        assert len(batch.rows) == 1 or batch.tokens <= tokens
        assert rows is None or len(batch.rows) <= rows
        if buckets:
            smallest = {min(b for b in buckets if b >= lengths[row]) for row in batch.rows}
            assert smallest == {batch.length}, "a row is padded further than it needs"


@given(LENGTHS)
def test_little_of_a_batch_is_padding(lengths: list[int]) -> None:
    """A short text beside a long one would take as long as the long one."""
    for batch in plan(lengths):
        assert batch.tokens - sum(lengths[row] for row in batch.rows) <= 16
    for one, other in pairwise(plan(lengths)):  # and no batch is begun without a reason
        more = (len(one.rows) + 1) * one.length
        assert more > 512 or more - sum(lengths[row] for row in (*one.rows, other.rows[0])) > 16


@given(LENGTHS)
def test_longest_first(lengths: list[int]) -> None:
    widths = [batch.length for batch in plan(lengths)]
    assert widths == sorted(widths, reverse=True)


def test_rows_fill_a_batch_before_the_next_is_begun() -> None:
    assert [len(b.rows) for b in plan([10] * 10, tokens_per_batch=40)] == [4, 4, 2]
    assert [len(b.rows) for b in plan([300] * 3, tokens_per_batch=256)] == [1, 1, 1]


def test_too_long_for_every_bucket() -> None:
    with pytest.raises(InvalidInputError, match=r"129 tokens.*128"):
        plan([5, 129], buckets=BUCKETS)


class Device:
    """Returns, for each row, the sum of its ids, the tokens in its mask, and its padded length."""

    device = "cpu"
    input_names = ("input_ids", "attention_mask")

    def __init__(self, lengths=None, max_rows=None) -> None:  # type: ignore[no-untyped-def]
        self.lengths, self.max_rows = lengths, max_rows

    def run(self, feeds, *, urgent=False):  # type: ignore[no-untyped-def]
        return [
            np.stack(
                [
                    f["input_ids"].sum(1),
                    f["attention_mask"].sum(1),
                    np.full(len(f["input_ids"]), f["input_ids"].shape[1]),
                ],
                1,
            ).astype(np.float32)
            for f in feeds
        ]

    def close(self) -> None: ...


@given(lengths=LENGTHS.filter(len), fixed=st.booleans())
def test_rows_come_back_in_the_callers_order(lengths: list[int], fixed: bool) -> None:
    encodings = [
        Encoding(np.full(n, i, np.int64), np.zeros(n, np.int64)) for i, n in enumerate(lengths)
    ]
    device = Device(BUCKETS, 1) if fixed else Device()
    rows = run_batched(device, encodings, tokens_per_batch=200)
    assert rows[:, 0].tolist() == [i * n for i, n in enumerate(lengths)]
    assert rows[:, 1].tolist() == lengths
    if fixed:
        assert rows[:, 2].tolist() == [min(b for b in BUCKETS if b >= n) for n in lengths]


def test_a_feed_is_padded_on_the_right_with_the_models_padding() -> None:
    encodings = [
        Encoding(np.array([7, 8], np.int64), np.array([0, 1], np.int64)),
        Encoding(np.array([9], np.int64), np.array([0], np.int64)),
    ]
    (batch,) = plan([2, 1])
    arrays = feed(batch, encodings, ("input_ids", "attention_mask", "token_type_ids"), pad_id=5)
    assert arrays["input_ids"].tolist() == [[7, 8], [9, 5]]
    assert arrays["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert arrays["token_type_ids"].tolist() == [[0, 1], [0, 0]]
    assert {a.dtype for a in arrays.values()} == {np.dtype(np.int64)}
