"""TarsRerank for LlamaIndex: order, the caller's nodes, the framework's own events."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from pydantic import ValidationError

from served import KEY, REMOTE, Board
from tars_rag.errors import ConfigError, InvalidInputError
from tars_rag.llama_index import TarsRerank
from tars_rag.models.reranker import Reranker

pytest_plugins = ["tiny_models", "served"]

QUERY = "a cat on the sofa"
TEXTS = ["dog", "the cat is on the sofa", "piano music " * 30, "fish 🐟 \x00 \ud800", "npu heat"]


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


def nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(id_=f"n{n}", text=text, metadata={"n": n}), score=1 - n / 10)
        for n, text in enumerate(TEXTS)
    ]


async def test_nodes_are_ordered_by_the_rerankers_score(
    rerank: TarsRerank,
    reranker_dir: str,
) -> None:
    texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes()]
    assert "n: 0" in texts[0]
    scores = Reranker(reranker_dir).score(QUERY, texts)
    order = np.argsort(-scores, kind="stable")
    for found in (
        rerank.postprocess_nodes(nodes(), query_str=QUERY),
        rerank.postprocess_nodes(nodes(), QueryBundle(QUERY)),
        await rerank.apostprocess_nodes(nodes(), query_str=QUERY),
    ):
        assert [node.node_id for node in found] == [f"n{n}" for n in order]
        assert [node.score for node in found] == scores[order].tolist()
        assert all(type(node.score) is float for node in found)
    assert len(set(scores.tolist())) == len(TEXTS)


@pytest.mark.parametrize("keep", [False, True])
def test_the_callers_nodes_are_not_touched(rerank: TarsRerank, keep: bool) -> None:
    given = nodes()
    found = rerank.model_copy(update={"keep_retrieval_score": keep}).postprocess_nodes(
        given, query_str=QUERY
    )
    assert given == nodes()
    assert not {id(node) for node in given} & {id(node) for node in found}


def test_keep_retrieval_score(rerank: TarsRerank) -> None:
    keeping = rerank.model_copy(update={"keep_retrieval_score": True})
    before = {node.node_id: node for node in nodes()}
    for found in keeping.postprocess_nodes(nodes(), query_str=QUERY):
        old = before[found.node_id]
        assert found.metadata == {**old.metadata, "retrieval_score": old.score}
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert found.get_content(mode) == old.get_content(mode)


def test_duplicate_ids_keep_their_own_scores(rerank: TarsRerank) -> None:
    twins = [NodeWithScore(node=TextNode(id_="same", text=text)) for text in ("cat", "npu heat")]
    found = rerank.postprocess_nodes(twins, query_str="cat")
    assert {node.text for node in found} == {"cat", "npu heat"}
    assert found[0].score != found[1].score


@pytest.mark.parametrize(("top_n", "count"), [(1, 1), (3, 3), (100, 5), (None, 5)])
def test_top_n(reranker_dir: str, top_n: int | None, count: int) -> None:
    found = TarsRerank(model=reranker_dir, top_n=top_n).postprocess_nodes(nodes(), query_str=QUERY)
    assert len(found) == count


async def test_no_query_is_an_error_and_no_nodes_are_none(rerank: TarsRerank) -> None:
    with pytest.raises(ValueError, match="needs a query"):
        rerank.postprocess_nodes(nodes())
    with pytest.raises(InvalidInputError, match="needs a query"):
        await rerank.apostprocess_nodes([])
    nowhere = TarsRerank(model="no-such-model")
    assert nowhere.postprocess_nodes([], query_str=QUERY) == []
    assert await nowhere.apostprocess_nodes([], query_str=QUERY) == []


class Recorder(BaseEventHandler):
    events: list[Any]

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.events.append(event)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    handler, root = Recorder(events=[]), get_dispatcher()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


@pytest.mark.parametrize("run_async", [False, True])
async def test_the_frameworks_own_events(
    rerank: TarsRerank, recorder: Recorder, run_async: bool
) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    rerank = rerank.model_copy(update={"top_n": 2})
    rerank.callback_manager = CallbackManager([debug])
    if run_async:
        found = await rerank.apostprocess_nodes(nodes(), query_str=QUERY)
    else:
        found = rerank.postprocess_nodes(nodes(), query_str=QUERY)
    start, end = recorder.events
    assert isinstance(start, ReRankStartEvent)
    assert (start.top_n, start.model_name) == (2, rerank.model_name)
    assert start.query == QueryBundle(QUERY)
    assert start.nodes == nodes()
    assert isinstance(end, ReRankEndEvent)
    assert end.nodes == found
    [[began, ended]] = debug.get_event_pairs(CBEventType.RERANKING)
    assert began.payload == {
        EventPayload.NODES: nodes(),
        EventPayload.MODEL_NAME: rerank.model_name,
        EventPayload.QUERY_STR: QUERY,
        EventPayload.TOP_K: 2,
    }
    assert ended.payload == {EventPayload.NODES: found}


def test_a_failure_closes_its_event(rerank: TarsRerank) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    broken = TarsRerank(model="no-such-model", callback_manager=CallbackManager([debug]))
    with pytest.raises(Exception, match="no-such-model"):
        broken.postprocess_nodes(nodes(), query_str=QUERY)
    [pair] = debug.get_event_pairs(CBEventType.RERANKING)
    assert EventPayload.EXCEPTION in pair[-1].payload


def test_what_a_budget_left_out_comes_last_without_a_score(
    rerank: TarsRerank, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Reranker, query: str, texts: list[str], budget_ms: float | None = None) -> Any:
        assert budget_ms == 60_000
        return np.float32([0.2, 0.9, 0.5] + [np.nan] * (len(texts) - 3))

    monkeypatch.setattr(Reranker, "score", half)
    found = rerank.model_copy(update={"budget_ms": 60_000.0}).postprocess_nodes(
        nodes(), None, QUERY
    )
    assert [node.node_id for node in found] == ["n1", "n2", "n0", "n3", "n4"]
    assert [node.score for node in found[3:]] == [None, None]


def test_settings_round_trip(rerank: TarsRerank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARS_API_KEY", KEY)  # what is written does not have it
    twins = [
        TarsRerank.from_dict(rerank.to_dict()),
        TarsRerank.from_json(rerank.to_json()),
        copy.deepcopy(rerank),
        pickle.loads(pickle.dumps(rerank)),
    ]
    assert rerank.to_dict()["class_name"] == "TarsRerank"
    for twin in twins:
        assert twin.to_dict() == rerank.to_dict()
        assert twin.reranker is rerank.reranker


@pytest.mark.parametrize("arguments", [{"topn": 3}, {"top_n": 0}, {"device": "gpu"}, {"model": ""}])
def test_arguments_are_checked_at_the_door(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(arguments))):
        TarsRerank(**arguments)


def test_from_env(monkeypatch: pytest.MonkeyPatch, reranker_dir: str) -> None:
    monkeypatch.setenv("RERANK_MODEL", reranker_dir)
    monkeypatch.setenv("MEMORY_TOP_K", "2")
    assert len(TarsRerank.from_env().postprocess_nodes(nodes(), query_str=QUERY)) == 2
    monkeypatch.setenv("RERANK_MODEL", "")
    with pytest.raises(ConfigError, match="RERANK_MODEL is empty"):
        TarsRerank.from_env()


async def test_async_runs_in_another_thread(
    rerank: TarsRerank, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[threading.Thread] = []
    run = Reranker.score

    def spy(self: Reranker, *args: Any, **kwargs: Any) -> Any:
        seen.append(threading.current_thread())
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Reranker, "score", spy)
    await rerank.apostprocess_nodes(nodes(), query_str=QUERY)
    assert len(seen) == 1
    assert threading.current_thread() not in seen


def test_what_are_no_nodes_is_told(reranker_dir: str) -> None:
    for nodes in (["a"], "abc", [TextNode(text="a")]):
        with pytest.raises(InvalidInputError, match="nodes"):
            TarsRerank(model=reranker_dir).postprocess_nodes(nodes, query_str="cat")  # type: ignore[arg-type]
