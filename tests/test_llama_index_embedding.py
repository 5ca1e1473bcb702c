"""TarsEmbedding: the behaviours LlamaIndex builds on, sharing, serialisation, async, bad input."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.embeddings import resolve_embed_model
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, MetadataMode, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from pydantic import ValidationError

from served import KEY, REMOTE, Board
from tars_rag.errors import ConfigError, InvalidInputError, ModelError
from tars_rag.llama_index import TarsEmbedding
from tars_rag.models.embedder import Embedder

pytest_plugins = ["tiny_models", "served"]

TEXTS = ["the cat", "", "a dog on the sofa " * 40, "fish 🐟 \x00 \ud800"]


@pytest.fixture
def local_embedding(embedder_dir: str) -> TarsEmbedding:
    return TarsEmbedding(model=embedder_dir, device="cpu")


@pytest.fixture(params=["local", REMOTE])
def embedding(request: pytest.FixtureRequest) -> TarsEmbedding:
    """Of a model opened here, and of a server's, which is the same model."""
    if request.param == "local":
        opened: TarsEmbedding = request.getfixturevalue("local_embedding")
        return opened
    board: Board = request.getfixturevalue("board")
    return TarsEmbedding(base_url=board.url, api_key=KEY)


async def test_every_way_in_gives_the_embedders_vectors(
    embedding: TarsEmbedding,
    embedder_dir: str,
) -> None:
    expected = Embedder(embedder_dir).embed(TEXTS)
    batches = [
        embedding.get_text_embedding_batch(TEXTS),
        await embedding.aget_text_embedding_batch(TEXTS),
        [embedding.get_text_embedding(text) for text in TEXTS],
        [await embedding.aget_text_embedding(text) for text in TEXTS],
        [embedding.get_query_embedding(text) for text in TEXTS],
        [await embedding.aget_query_embedding(text) for text in TEXTS],
    ]
    for vectors in batches:
        assert all(type(number) is float for vector in vectors for number in vector)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert embedding.get_text_embedding_batch([]) == []
    assert embedding.similarity(batches[0][0], batches[0][0]) == pytest.approx(1)


def test_the_embedder_sees_many_texts_at_a_time(
    local_embedding: TarsEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run = Embedder.embed
    monkeypatch.setattr(
        Embedder, "embed", lambda self, texts: (sizes.append(len(texts)), run(self, texts))[1]
    )
    local_embedding.get_text_embedding_batch(["cat"] * 700)
    assert sizes == [512, 188]


def test_nodes_are_embedded_with_their_metadata(embedding: TarsEmbedding) -> None:
    nodes = [TextNode(text="cat", metadata={"topic": "pets"})]
    [node] = embedding(nodes)
    text = node.get_content(metadata_mode=MetadataMode.EMBED)
    assert "pets" in text
    assert node.embedding == pytest.approx(embedding.get_text_embedding(text), abs=1e-6)


def test_settings_and_events(embedding: TarsEmbedding, monkeypatch: pytest.MonkeyPatch) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    monkeypatch.setattr(Settings, "_embed_model", None)
    monkeypatch.setattr(Settings, "_callback_manager", CallbackManager([debug]))
    Settings.embed_model = embedding
    assert resolve_embed_model(Settings.embed_model) is embedding
    embedding.get_text_embedding_batch(["cat", "dog"])
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == 1


def test_ingestion_pipeline_and_its_cache(embedding: TarsEmbedding) -> None:
    cache = IngestionCache()
    documents = [Document(text="The cat is on the sofa. The dog is in the garden.")]
    runs = [
        IngestionPipeline(
            transformations=[SentenceSplitter(chunk_size=32, chunk_overlap=0), embedding],
            cache=cache,
        ).run(documents=documents)
        for _ in range(2)
    ]
    assert all(len(node.embedding or []) == 32 for nodes in runs for node in nodes)
    assert [node.embedding for node in runs[0]] == [node.embedding for node in runs[1]]


def test_llama_indexs_own_embeddings_cache(embedder_dir: str) -> None:
    cache = SimpleKVStore()
    embedding = TarsEmbedding(model=embedder_dir, embeddings_cache=cache)
    first = embedding.get_text_embedding_batch(["cat", "dog"])
    assert embedding.get_text_embedding_batch(["cat", "dog"]) == first
    assert len(cache.get_all("embeddings")) == 2


def test_prompts_are_put_before_queries_and_nodes(embedder_dir: str) -> None:
    plain = TarsEmbedding(model=embedder_dir)
    prompted = TarsEmbedding(model=embedder_dir, prompts={"query": "find: ", "passage": "text: "})
    assert prompted.get_query_embedding("a fan") == plain.get_query_embedding("find: a fan")
    assert prompted.get_text_embedding("a fan") == plain.get_text_embedding("text: a fan")
    (node,) = prompted([TextNode(text="a fan")])
    assert node.embedding == plain.get_text_embedding("text: a fan")
    assert TarsEmbedding.from_dict(prompted.to_dict()).fingerprint == prompted.fingerprint


def test_dict_and_json_round_trip(embedder_dir: str, tmp_path: Any) -> None:
    given = TarsEmbedding(model=embedder_dir, threads=1, embed_batch_size=7, cache_dir=tmp_path)
    assert given.to_dict()["class_name"] == "TarsEmbedding"
    assert given.cache_dir == str(tmp_path)
    again = [
        TarsEmbedding.from_dict(given.to_dict()),
        TarsEmbedding.from_json(given.to_json()),
        TarsEmbedding.model_validate_json(given.model_dump_json()),
    ]
    for twin in again:
        assert twin.to_dict() == given.to_dict()
        assert twin.embedder is given.embedder


def test_copies_and_pickles_share_the_model(
    embedding: TarsEmbedding, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        twins = [
            copy.copy(embedding),
            copy.deepcopy(embedding),
            pickle.loads(pickle.dumps(embedding)),
        ]
    assert not caplog.records  # the framework drops what it cannot pickle with a warning
    for twin in twins:
        assert twin.to_dict() == embedding.to_dict()
        assert twin.embedder is embedding.embedder


@pytest.mark.parametrize(
    "arguments",
    [{"modle": "x"}, {"device": "gpu"}, {"precision": "fp64"}, {"model": ""}, {"threads": 0}],
)
def test_arguments_are_checked_at_the_door(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(arguments))):
        TarsEmbedding(**arguments)


def test_bad_input(embedding: TarsEmbedding) -> None:
    with pytest.raises(InvalidInputError):
        embedding.get_query_embedding(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        embedding.get_text_embedding_batch(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ModelError, match="no-such-model"):
        TarsEmbedding(model="no-such-model").get_query_embedding("a")


def test_from_env(monkeypatch: pytest.MonkeyPatch, embedder_dir: str) -> None:
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    monkeypatch.setenv("NPU_EMBEDDER_ENABLED", "0")
    found = TarsEmbedding.from_env(embed_batch_size=3)
    assert (found.model_name, found.device, found.embed_batch_size) == (embedder_dir, "cpu", 3)
    monkeypatch.setenv("NPU_CORE_MASK", "9")
    with pytest.raises(ConfigError, match="NPU_CORE_MASK"):
        TarsEmbedding.from_env()


async def test_async_runs_in_another_thread_and_a_flood_leaves_queries_alone(
    local_embedding: TarsEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, gate = local_embedding, threading.Event()
    seen: list[threading.Thread] = []
    run = Embedder.embed

    def gated(self: Embedder, texts: list[str]) -> Any:
        seen.append(threading.current_thread())
        gate.wait(20)
        return run(self, texts)

    monkeypatch.setattr(Embedder, "embed", gated)
    flood = [asyncio.create_task(embedding.aget_text_embedding("cat")) for _ in range(50)]
    await asyncio.sleep(0.05)
    try:
        await asyncio.wait_for(embedding.aget_query_embedding("dog"), 5)
        assert not any(task.done() for task in flood)
    finally:
        gate.set()
    assert len(await asyncio.gather(*flood)) == 50
    assert threading.current_thread() not in seen
