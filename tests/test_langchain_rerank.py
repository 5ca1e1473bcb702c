"""TarsRerank and TarsCrossEncoder: scores, the caller's documents, events, real retrievers."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.documents import Document
from langchain_core.load import dumps, loads
from langchain_core.retrievers import BaseRetriever
from pydantic import ValidationError

from served import KEY, REMOTE, Board
from tars_rag.errors import ConfigError, InvalidInputError, ModelError
from tars_rag.langchain import TarsCrossEncoder, TarsRerank
from tars_rag.models.reranker import Reranker

pytest_plugins = ["tiny_models", "served"]

QUERY = "a cat on the sofa"
TEXTS = [
    "dog",
    "the cat is on the sofa",
    "piano music " * 30,
    "fish 🐟 \x00 \ud800",
    "",
    "npu heat",
]


@pytest.fixture
def local_rerank(reranker_dir: str) -> TarsRerank:
    return TarsRerank(model=reranker_dir, top_n=None)


@pytest.fixture(params=["local", REMOTE])
def rerank(request: pytest.FixtureRequest) -> TarsRerank:
    """Of a model opened here, and of a server's, which is the same model."""
    if request.param == "local":
        opened: TarsRerank = request.getfixturevalue("local_rerank")
        return opened
    board: Board = request.getfixturevalue("board")
    return TarsRerank(base_url=board.url, api_key=KEY, top_n=None)


def documents() -> list[Document]:
    return [
        Document(id=f"d{n}", page_content=text, metadata={"n": n, "deep": {"list": [n]}})
        for n, text in enumerate(TEXTS)
    ]


def oracle(directory: str) -> np.ndarray:
    return Reranker(directory).score(QUERY, TEXTS)


def test_documents_are_ordered_by_the_rerankers_score(
    rerank: TarsRerank,
    reranker_dir: str,
) -> None:
    scores = oracle(reranker_dir)
    found = rerank.compress_documents(documents(), QUERY)
    order = np.argsort(-scores, kind="stable")
    assert [document.id for document in found] == [f"d{n}" for n in order]
    np.testing.assert_array_equal(
        np.float32([d.metadata["relevance_score"] for d in found]), scores[order]
    )
    assert len(set(scores.tolist())) == len(TEXTS)  # or the order above would say little


def test_everything_but_the_score_survives(rerank: TarsRerank) -> None:
    by_id = {document.id: document for document in documents()}
    for document in rerank.compress_documents(documents(), QUERY):
        score = document.metadata.pop("relevance_score")
        assert type(score) is float
        assert 0 < score < 1
        assert document == by_id[document.id]
        json.dumps(score)


def test_the_callers_documents_are_not_touched(rerank: TarsRerank) -> None:
    given = documents()
    found = rerank.compress_documents(given, QUERY)
    assert given == documents()
    assert not {id(document) for document in given} & {id(document) for document in found}


def test_a_stale_score_is_replaced(rerank: TarsRerank) -> None:
    stale = [Document(page_content="cat", metadata={"relevance_score": 99.0})]
    [found] = rerank.compress_documents(stale, QUERY)
    assert found.metadata["relevance_score"] < 1
    assert stale[0].metadata["relevance_score"] == 99.0


def test_duplicates_keep_their_own_places(rerank: TarsRerank) -> None:
    twins = [Document(id="same", page_content=text) for text in ("dog", "cat", "dog")]
    found = rerank.compress_documents(twins, QUERY)
    assert sorted(d.page_content for d in found) == ["cat", "dog", "dog"]
    assert {d.metadata["relevance_score"] for d in found if d.page_content == "dog"} != {
        d.metadata["relevance_score"] for d in found if d.page_content == "cat"
    }


def test_a_subclass_of_document_stays_one(rerank: TarsRerank) -> None:
    class Page(Document):
        number: int = 0

    [found] = rerank.compress_documents([Page(page_content="cat", number=7)], QUERY)
    assert isinstance(found, Page)
    assert found.number == 7


@pytest.mark.parametrize(("top_n", "count"), [(1, 1), (3, 3), (100, 6), (None, 6)])
def test_top_n(reranker_dir: str, top_n: int | None, count: int) -> None:
    found = TarsRerank(model=reranker_dir, top_n=top_n).compress_documents(documents(), QUERY)
    assert len(found) == count


def test_no_documents_need_no_model() -> None:
    assert TarsRerank(model="no-such-model").compress_documents([], QUERY) == []


def test_unknown_model_is_named() -> None:
    with pytest.raises(ModelError, match="no-such-model"):
        TarsRerank(model="no-such-model").compress_documents(documents(), QUERY)


@pytest.mark.parametrize("query", [None, 3, ["cat"]])
def test_a_query_that_is_not_a_string_is_refused(rerank: TarsRerank, query: Any) -> None:
    with pytest.raises(InvalidInputError):
        rerank.compress_documents(documents(), query)


@pytest.mark.parametrize(
    "arguments", [{"topn": 3}, {"top_n": 0}, {"device": "gpu"}, {"budget_ms": 0}, {"model": ""}]
)
def test_arguments_are_checked_at_the_door(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(arguments))):
        TarsRerank(**arguments)


def test_what_a_budget_left_out_comes_last_without_a_score(
    rerank: TarsRerank, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[float | None] = []

    def half(self: Reranker, query: str, texts: list[str], budget_ms: float | None = None) -> Any:
        budgets.append(budget_ms)
        return np.float32([0.2, 0.9, 0.5] + [np.nan] * (len(texts) - 3))

    monkeypatch.setattr(Reranker, "score", half)
    timed = rerank.model_copy(update={"budget_ms": 60_000.0})
    given = documents()
    given[4].metadata["relevance_score"] = 0.99
    found = timed.compress_documents(given, QUERY)
    assert [document.id for document in found] == ["d1", "d2", "d0", "d3", "d4", "d5"]
    assert [document.metadata["relevance_score"] for document in found[3:]] == [None] * 3
    assert budgets == [60_000.0]


def test_copies_and_pickles_share_the_model(rerank: TarsRerank) -> None:
    for twin in (copy.copy(rerank), copy.deepcopy(rerank), pickle.loads(pickle.dumps(rerank))):
        assert twin == rerank
        assert twin.reranker is rerank.reranker
    where = {"base_url": rerank.base_url, "api_key": rerank.api_key}
    encoder = TarsCrossEncoder(model=rerank.model_name, **where)
    assert pickle.loads(pickle.dumps(encoder)).reranker is rerank.reranker


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
@pytest.mark.parametrize("kind", [TarsRerank, TarsCrossEncoder])
def test_langchain_serialisation_round_trip(kind: type, reranker_dir: str) -> None:
    given = kind(model=reranker_dir, threads=1)
    again = loads(dumps(given), valid_namespaces=["tars_rag"], allowed_objects=[kind])
    assert again == given


def test_the_cross_encoder_checks_arguments_too() -> None:
    with pytest.raises(ValidationError, match="topn"):
        TarsCrossEncoder(topn=3)


def test_cross_encoder_scores_pairs_of_several_queries(reranker_dir: str) -> None:
    encoder = TarsCrossEncoder(model=reranker_dir)
    pairs = [("cat", "sofa"), ("npu", "heat"), ("cat", "piano"), ("npu", "dog")]
    scores = encoder.score(pairs)
    assert all(type(score) is float for score in scores)
    expected = [Reranker(reranker_dir).score(query, [text])[0] for query, text in pairs]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert encoder.score([]) == []


@pytest.mark.parametrize("documents", [["a"], "abc", None, [None]])
def test_what_are_no_documents_is_told(reranker_dir: str, documents: Any) -> None:
    with pytest.raises(InvalidInputError, match="documents"):
        TarsRerank(model=reranker_dir).compress_documents(documents, "cat")


@pytest.mark.parametrize("pair", ["ab", ("a", None), (["a"], "b"), ("a", "b", "c"), 5, None])
def test_cross_encoder_refuses_what_is_no_pair(reranker_dir: str, pair: Any) -> None:
    with pytest.raises(InvalidInputError, match="Pair 1"):
        TarsCrossEncoder(model=reranker_dir).score([("a", "b"), pair])


def test_langchains_cross_encoder_reranker(reranker_dir: str) -> None:
    compressor = CrossEncoderReranker(model=TarsCrossEncoder(model=reranker_dir), top_n=2)
    order = np.argsort(-oracle(reranker_dir), kind="stable")[:2]
    found = compressor.compress_documents(documents(), QUERY)
    assert [document.id for document in found] == [f"d{n}" for n in order]


class Fixed(BaseRetriever):
    found: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return self.found


async def test_contextual_compression_retriever(rerank: TarsRerank) -> None:
    retriever = ContextualCompressionRetriever(
        base_compressor=rerank, base_retriever=Fixed(found=documents())
    )
    expected = rerank.compress_documents(documents(), QUERY)
    assert retriever.invoke(QUERY) == expected
    assert await retriever.ainvoke(QUERY) == expected
    assert pickle.loads(pickle.dumps(retriever)).invoke(QUERY) == expected
    empty = ContextualCompressionRetriever(base_compressor=rerank, base_retriever=Fixed(found=[]))
    assert empty.invoke(QUERY) == []


async def test_async_runs_in_another_thread(
    rerank: TarsRerank, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[threading.Thread] = []
    run = Reranker.score

    def spy(self: Reranker, *args: Any, **kwargs: Any) -> Any:
        seen.append(threading.current_thread())
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Reranker, "score", spy)
    results = await asyncio.gather(
        *(rerank.acompress_documents(documents(), QUERY) for _ in range(5))
    )
    assert threading.current_thread() not in seen
    assert len(seen) == 5
    assert all(result == results[0] for result in results)


def test_from_env(monkeypatch: pytest.MonkeyPatch, reranker_dir: str) -> None:
    monkeypatch.setenv("RERANK_MODEL", reranker_dir)
    monkeypatch.setenv("MEMORY_TOP_K", "2")
    found = TarsRerank.from_env()
    assert (found.model_name, found.device, found.top_n) == (reranker_dir, "cpu", 2)
    assert len(found.compress_documents(documents(), QUERY)) == 2
    assert TarsRerank.from_env(top_n=5).top_n == 5
    assert TarsCrossEncoder.from_env().model_name == reranker_dir


@pytest.mark.parametrize("kind", [TarsRerank, TarsCrossEncoder])
def test_from_env_without_a_model_is_an_error(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_MODEL", "")
    with pytest.raises(ConfigError, match="RERANK_MODEL is empty"):
        kind.from_env()
    assert kind.from_env(model="chosen").model_name == "chosen"
