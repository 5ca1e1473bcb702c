"""Batches by length: the only place that knows about padding.

A batch is padded to its longest row, so rows of like length go together, and the order of the
caller is restored at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tars_rag.errors import InvalidInputError
from tars_rag.models.tokenizer import Encoding
from tars_rag.runtimes.base import FloatArray, IntArray, Runtime

TOKENS_PER_BATCH: Final = 512
"""Padded tokens in one batch of an embedder on the CPU; see docs/performance.md."""

PAIR_TOKENS_PER_BATCH: Final = 128
"""Of a cross-encoder: long passages run one at a time, notes of a line several at once. Larger
batches are slower with ONNX Runtime, see docs/performance.md."""
OPENVINO_TOKENS: Final = 1024
"""Of either with OpenVINO, which does not quantise at run time."""

_MOST_PADDING: Final = 16
"""Tokens of a batch that may be padding, on the CPU: a run of its own costs no more."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that run together.

    Attributes:
        rows: Their numbers in the caller's order.
        length: Tokens per row, padding included.
    """

    rows: tuple[int, ...]
    length: int

    @property
    def tokens(self) -> int:
        """Tokens that the device works through, padding included."""
        return len(self.rows) * self.length


def plan(
    lengths: Sequence[int],
    *,
    buckets: Sequence[int] | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    max_rows: int | None = None,
    ordered: bool = False,
) -> list[Batch]:
    """Divide rows into batches.

    Args:
        lengths: Tokens of each row.
        buckets: The lengths a device takes, ascending. None: any.
        tokens_per_batch: No batch has more padded tokens, but for a single row.
        max_rows: No batch has more rows.
        ordered: Keep the rows in the caller's order, instead of longest first.

    Returns:
        Batches in the order to run them; every row is in exactly one.

    Raises:
        InvalidInputError: A row is longer than the longest bucket.
    """
    padded = [_bucket(length, buckets) for length in lengths]
    rows = range(len(lengths))
    order = rows if ordered else sorted(rows, key=lambda row: -lengths[row])
    # With buckets a shorter row would be padded to the next one for nothing.
    most_padding = _MOST_PADDING if buckets is None else 0
    batches: list[Batch] = []
    current: list[int] = []
    width = tokens = 0
    for row in order:
        wider = max(width, padded[row])
        area = wider * (len(current) + 1)
        apart = area - tokens - padded[row] > most_padding
        full = len(current) == max_rows or area > tokens_per_batch
        if current and (apart or full):
            batches.append(Batch(tuple(current), width))
            current, wider, tokens = [], padded[row], 0
        current.append(row)
        width, tokens = wider, tokens + padded[row]
    if current:
        batches.append(Batch(tuple(current), width))
    return batches


def feed(
    batch: Batch, encodings: Sequence[Encoding], names: Sequence[str], pad_id: int = 0
) -> dict[str, IntArray]:
    """The input arrays of a batch, int64 [rows, length], padded on the right."""
    shape = (len(batch.rows), batch.length)
    ids = np.full(shape, pad_id, np.int64)
    mask, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for place, row in enumerate(batch.rows):
        encoding = encodings[row]
        ids[place, : len(encoding)] = encoding.ids
        mask[place, : len(encoding)] = 1
        types[place, : len(encoding)] = encoding.types
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: arrays[name] for name in names}


def run_batched(
    runtime: Runtime,
    encodings: Sequence[Encoding],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    pad_id: int = 0,
    urgent: bool = False,
) -> FloatArray:
    """Run every encoding and return its row in the caller's order, float32 [n, width].

    `encodings` must not be empty: the width is the runtime's to say.
    """
    batches = plan(
        [len(encoding) for encoding in encodings],
        buckets=runtime.lengths,
        tokens_per_batch=tokens_per_batch,
        max_rows=runtime.max_rows,
    )
    feeds = [feed(batch, encodings, runtime.input_names, pad_id) for batch in batches]
    rows = np.concatenate(runtime.run(feeds, urgent=urgent))
    result = np.empty_like(rows)
    result[[row for batch in batches for row in batch.rows]] = rows
    return result


def _bucket(length: int, buckets: Sequence[int] | None) -> int:
    if buckets is None:
        return length
    for bucket in buckets:
        if bucket >= length:
            return bucket
    msg = f"A text of {length} tokens does not fit the longest bucket, {buckets[-1]}."
    raise InvalidInputError(msg)
