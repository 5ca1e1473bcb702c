"""The best passages by BM25 where common words are left to the end: those of the formula."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_rag.retrieval.indexes.words import top
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.indexes.words.snapshot import Snapshot
from tars_rag.retrieval.passage import Passage

WORDS = [f"{a}{b}k{c}k" for a in "bdfgmpvz" for b in "aou" for c in ("ba", "du", "fo", "ga")]
COUNT, COMMITS = 20_000, 5
K1, B = 1.2, 0.75


class Log:
    """What is only in the log: it replaces some passages, and makes words more or less telling."""

    def __init__(self, replaces: Collection[str]) -> None:
        self.replaces = replaces
        self.documents = 4 * len(replaces)

    def held(self, term: str) -> int:
        return self.documents // (2 + WORDS.index(term))


class Corpus:
    """An index of several segments from which passages were removed, and what it holds."""

    def __init__(self, index: LexicalIndex) -> None:
        draw = np.random.default_rng(0)
        self.index = index
        self.texts: dict[str, Counter[str]] = {}
        for commit in range(COMMITS):
            passages = []
            for number in range(commit * COUNT // COMMITS, (commit + 1) * COUNT // COMMITS):
                ranks = np.minimum(draw.zipf(1.4, draw.integers(5, 30)), len(WORDS)) - 1
                if number % 50 == 0:  # a common word and nothing else: as much as it can come to
                    ranks[:] = number // 50 % 5
                passages.append(Passage(f"p{number}", " ".join(WORDS[rank] for rank in ranks)))
            gone = list(draw.choice(list(self.texts), 300, replace=False)) if self.texts else []
            index.apply(gone, passages)
            for key in gone:
                del self.texts[key]
            self.texts |= {passage.id: Counter(passage.text.split()) for passage in passages}

    def scores(self, query: str, log: Log) -> dict[str, float]:
        """BM25 of every passage that shares a word with the query, in float64."""
        documents = self.index.documents + log.documents
        mean = self.index.mean_length()
        found: dict[str, float] = {}
        for word, times in Counter(query.split()).items():
            held = self.index.snapshot.holding(word) + log.held(word)
            weighs = times * math.log(1 + (documents - held + 0.5) / (held + 0.5))
            for key, counts in self.texts.items():
                if key not in log.replaces and (count := counts[word]):
                    norm = K1 * (1 - B + B * counts.total() / mean)
                    gain = weighs * (K1 + 1) * count / (count + norm)
                    found[key] = found.get(key, 0.0) + gain
        return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    with (
        LexicalIndex(tmp_path_factory.mktemp("top") / "lexical") as index,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(top, "_QUICK", 0)  # as in a larger index
        yield Corpus(index)


@st.composite
def queries(draw: st.DrawFn) -> str:
    """Some words, and one of the common ones so often that it may come to the floor alone."""
    ranks = draw(st.lists(st.integers(0, len(WORDS) - 1), min_size=1, max_size=6))
    ranks += [draw(st.integers(0, 4))] * draw(st.integers(0, 9))
    return " ".join(WORDS[rank] for rank in ranks)


@settings(max_examples=60, deadline=None)
@given(query=queries(), limit=st.integers(1, 60), replaced=st.sampled_from([0, 1, 400]))
def test_the_best_are_those_of_the_formula(
    corpus: Corpus, query: str, limit: int, replaced: int
) -> None:
    log = Log(set(list(corpus.texts)[:replaced]))
    right = corpus.scores(query, log)
    found = corpus.index.search(query, limit, log)
    best = sorted(right.values(), reverse=True)[:limit]
    assert [score for _, score in found] == pytest.approx(best, rel=1e-5)
    assert [score for _, score in found] == pytest.approx(
        [right[key] for key, _ in found], rel=1e-5
    )
    for (first, high), (second, low) in pairwise(found):
        assert high > low or (high == low and first < second)


def test_common_words_are_looked_up_and_not_searched_for(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the test above would be about nothing."""
    looked_up: list[int] = []
    asked: list[int] = []
    also, hits = Snapshot.also, Snapshot.hits

    def noted(self: Snapshot, needed: object, clauses: Sequence[object]) -> object:
        looked_up.append(len(clauses))
        return also(self, needed, clauses)

    def counted(self: Snapshot, query: object, limit: int) -> list[tuple[float, object]]:
        asked.append(limit)
        return hits(self, query, limit)

    monkeypatch.setattr(Snapshot, "also", noted)
    monkeypatch.setattr(Snapshot, "hits", counted)
    often, seldom = " ".join(WORDS[:3]), WORDS[40]
    assert corpus.index.snapshot.holding(WORDS[0]) > COUNT / 2
    for query, times in ((f"{often} {seldom}", [3]), (often, []), (seldom, [])):
        looked_up.clear()
        asked.clear()
        corpus.index.search(query, 5)
        assert looked_up == times, query
        assert [limit for limit in asked if limit > 1] == [105], query  # once, ties included


@pytest.mark.parametrize("repeated", range(1, 9))
@pytest.mark.parametrize("filler", [30, 100, 300])
def test_common_words_alone_can_be_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeated: int, filler: int
) -> None:
    """Short passages that repeat them, against long ones that hold the rare word once."""
    monkeypatch.setattr(top, "_QUICK", 0)
    rare, *common = WORDS[:3]
    fillers = WORDS[3:]
    texts = [f"{rare} {' '.join(fillers[n % 60] for n in range(filler))}"] * 12
    texts += [" ".join(common * repeated)] * 8
    texts += [" ".join([*common, *fillers[n % 40 : n % 40 + 5]]) for n in range(300)]
    texts += [" ".join(fillers[n % 50 : n % 50 + 9]) for n in range(500)]
    with LexicalIndex(tmp_path / "lexical") as index:
        index.apply([], [Passage(f"p{n}", text) for n, text in enumerate(texts)])
        query = " ".join([rare, *common])
        found = [index.search(query, limit) for limit in (1, 5, 10)]
        monkeypatch.setattr(top._Search, "narrowed", lambda *_: None)
        for few, limit in zip(found, (1, 5, 10), strict=True):
            right = index.search(query, limit)
            assert [key for key, _ in few] == [key for key, _ in right]
            assert [score for _, score in few] == pytest.approx([score for _, score in right])


@pytest.mark.parametrize("query", [WORDS[0], f"{WORDS[0]} {WORDS[50]}"])
def test_of_many_with_one_score_the_first_by_id_are_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """More of them than are asked for at first, and their ids in another order than they lie."""
    monkeypatch.setattr(top, "_QUICK", 0)
    texts = [f"{WORDS[0]} {WORDS[50]}"] * 600 + [WORDS[0]] * 3000
    with LexicalIndex(tmp_path / "lexical") as index:
        ids = [f"p{n:04}" for n in reversed(range(len(texts)))]
        index.apply([], [Passage(key, text) for key, text in zip(ids, texts, strict=True)])
        found = index.search(query, 7)
        alike = ids[600:] if query == WORDS[0] else ids[:600]
        assert [key for key, _ in found] == sorted(alike)[:7]
