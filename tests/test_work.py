"""Work sent to the device: what buckets save."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tars_rag.bench.work import MINILM_L6, Encoder, work
from tars_rag.errors import InvalidInputError
from tars_rag.models.tokenizer import Tokenizer
from tars_rag.runtimes.npu.bundle import DEFAULT_LENGTHS


def test_one_text_by_hand() -> None:
    # One layer, hidden 2, intermediate 3, 5 tokens: (4*2*2 + 2*2*3) * 5 + 2*5*5*2
    assert Encoder(1, 2, 3).macs(5) == 28 * 5 + 100
    assert work([5], None, Encoder(1, 2, 3)) == 240
    assert work([5], [4, 8], Encoder(1, 2, 3)) == 28 * 8 + 2 * 8 * 8 * 2


@given(st.lists(st.integers(1, 256)))
def test_padding_costs_and_buckets_save(lengths: list[int]) -> None:
    none, buckets, one = (work(lengths, b) for b in (None, DEFAULT_LENGTHS, [256]))
    assert none <= buckets <= one == len(lengths) * MINILM_L6.macs(256)


def test_a_text_that_does_not_fit() -> None:
    with pytest.raises(InvalidInputError, match="257"):
        work([257], DEFAULT_LENGTHS)


@pytest.mark.data
def test_cranfield_against_one_length(shared: Path, cranfield: Path) -> None:
    """The vocabulary of the fixture is all-MiniLM-L6-v2's."""
    tokenizer = Tokenizer(shared / "models" / "cranfield-ce-6L", 256)

    def saved(name: str) -> tuple[int, float]:
        rows = [json.loads(line) for line in (cranfield / name).read_text().splitlines()]
        texts = [f"{row.get('title', '')} {row['text']}".strip() for row in rows]
        lengths = [len(encoding) for encoding in tokenizer.encode(texts)]
        return len(texts), work(lengths, [256]) / work(lengths, DEFAULT_LENGTHS)

    queries, times = saved("queries.jsonl")
    assert queries == 225
    assert times >= 7
    abstracts, times = saved("corpus.jsonl")
    assert abstracts == 1400
    assert times >= 1.3
