"""The best passages by BM25 where common words are left to the end: those of the formula."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.indexes.words.snapshot import Snapshot
from tars_rag.retrieval.passage import Passage

WORDS = [f"{a}{b}k{c}k" for a in "bdfgmpvz" for b in "aou" for c in ("ba", "du", "fo", "ga")]
COUNT, COMMITS = 20_000, 5
K1, B = 1.2, 0.75


class Replaced:
    """What is only in the log replaces some passages, and holds no word itself."""

    documents = 0

    def __init__(self, replaces: Collection[str]) -> None:
        self.replaces = replaces

    def held(self, term: str) -> int:
        del term
        return 0


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
                passages.append(Passage(f"p{number}", " ".join(WORDS[rank] for rank in ranks)))
            gone = list(draw.choice(list(self.texts), 300, replace=False)) if self.texts else []
            index.apply(gone, passages)
            for key in gone:
                del self.texts[key]
            self.texts |= {passage.id: Counter(passage.text.split()) for passage in passages}

    def scores(self, query: str) -> dict[str, float]:
        """BM25 of every passage that shares a word with the query, in float64."""
        documents, mean = self.index.documents, self.index.mean_length()
        found: dict[str, float] = {}
        for word, times in Counter(query.split()).items():
            held = self.index.snapshot.holding(word)
            weighs = times * math.log(1 + (documents - held + 0.5) / (held + 0.5))
            for key, counts in self.texts.items():
                if count := counts[word]:
                    norm = K1 * (1 - B + B * counts.total() / mean)
                    gain = weighs * (K1 + 1) * count / (count + norm)
                    found[key] = found.get(key, 0.0) + gain
        return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    with LexicalIndex(tmp_path_factory.mktemp("top") / "lexical") as index:
        yield Corpus(index)


QUERIES = st.lists(st.integers(0, len(WORDS) - 1), min_size=1, max_size=7).map(
    lambda ranks: " ".join(WORDS[rank] for rank in ranks)
)


@settings(max_examples=60, deadline=None)
@given(query=QUERIES, limit=st.integers(1, 60), replaced=st.sampled_from([0, 1, 400]))
def test_the_best_are_those_of_the_formula(
    corpus: Corpus, query: str, limit: int, replaced: int
) -> None:
    gone = set(list(corpus.texts)[:replaced])
    right = {key: score for key, score in corpus.scores(query).items() if key not in gone}
    found = corpus.index.search(query, limit, Replaced(gone))
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
    """Else the test above would be about nothing: a narrowed search asks tantivy twice."""
    asked: list[int] = []
    hits = Snapshot.hits

    def counted(self: Snapshot, query: object, limit: int) -> list[tuple[float, object]]:
        asked.append(limit)
        return hits(self, query, limit)

    monkeypatch.setattr(Snapshot, "hits", counted)
    often, seldom = " ".join(WORDS[:3]), WORDS[40]
    assert corpus.index.snapshot.holding(WORDS[0]) > COUNT / 2
    for query, times in ((f"{often} {seldom}", 2), (often, 1), (seldom, 1)):
        asked.clear()
        corpus.index.search(query, 5)
        assert len(asked) == times, query
