"""TarsEmbeddings: LangChain's own suites, sharing, serialisation, async, bad input."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest
from langchain_core.load import dumps, loads
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

from served import KEY, REMOTE, Board
from tars_rag.errors import ConfigError, InvalidInputError, ModelError
from tars_rag.langchain import TarsEmbeddings
from tars_rag.models.embedder import Embedder

pytest_plugins = ["tiny_models", "served"]


class TestStandardUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[TarsEmbeddings]:
        return TarsEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "all-MiniLM-L6-v2", "device": "cpu"}


class TestStandardIntegrationTiny(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _model(self, embedder_dir: str) -> None:
        self.directory = embedder_dir

    @property
    def embeddings_class(self) -> type[TarsEmbeddings]:
        return TarsEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.directory}


@pytest.mark.enable_socket
class TestStandardIntegrationRemote(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _board(self, board: Board) -> None:
        self.board = board

    @property
    def embeddings_class(self) -> type[TarsEmbeddings]:
        return TarsEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"base_url": self.board.url, "api_key": KEY}


@pytest.fixture
def local_embeddings(embedder_dir: str) -> TarsEmbeddings:
    return TarsEmbeddings(model=embedder_dir, device="cpu")


@pytest.fixture(params=["local", REMOTE])
def embeddings(request: pytest.FixtureRequest) -> TarsEmbeddings:
    """Of a model opened here, and of a server's, which is the same model."""
    if request.param == "local":
        opened: TarsEmbeddings = request.getfixturevalue("local_embeddings")
        return opened
    board: Board = request.getfixturevalue("board")
    return TarsEmbeddings(base_url=board.url, api_key=KEY)


def test_vectors_are_the_embedders_own_as_python_floats(
    embeddings: TarsEmbeddings,
    embedder_dir: str,
) -> None:
    texts = ["the cat", "", "a dog on the sofa " * 40, "fish 🐟 \x00 \ud800"]
    vectors = embeddings.embed_documents(texts)
    assert all(type(number) is float for vector in vectors for number in vector)
    np.testing.assert_allclose(vectors, Embedder(embedder_dir).embed(texts), atol=1e-6)
    assert texts[2] == "a dog on the sofa " * 40
    np.testing.assert_allclose(embeddings.embed_query(texts[0]), vectors[0], atol=1e-5)


def test_empty_list_gives_empty_list(embeddings: TarsEmbeddings) -> None:
    assert embeddings.embed_documents([]) == []


@pytest.mark.parametrize("texts", ["one string", [None], ["a", 3], None])
def test_what_is_not_a_list_of_strings_is_refused(embeddings: TarsEmbeddings, texts: Any) -> None:
    with pytest.raises(InvalidInputError):
        embeddings.embed_documents(texts)


@pytest.mark.parametrize("text", [None, 3, ["a"]])
def test_a_query_that_is_not_a_string_is_refused(embeddings: TarsEmbeddings, text: Any) -> None:
    with pytest.raises(InvalidInputError):
        embeddings.embed_query(text)


@pytest.mark.parametrize(
    "arguments",
    [{"modle": "x"}, {"device": "gpu"}, {"precision": "fp64"}, {"model": ""}, {"cache_dir": ""}],
)
def test_arguments_are_checked_at_the_door(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(arguments))):
        TarsEmbeddings(**arguments)


def test_unknown_model_is_named() -> None:
    with pytest.raises(ModelError, match="no-such-model"):
        TarsEmbeddings(model="no-such-model").embed_query("a")


def test_equal_settings_share_one_open_model(
    embedder_dir: str,
    other_embedder_dir: str,
) -> None:
    first = TarsEmbeddings(model=embedder_dir)
    opened = first.embedder
    others = [
        TarsEmbeddings(model=embedder_dir),
        copy.copy(first),
        copy.deepcopy(first),
        pickle.loads(pickle.dumps(first)),
        first.model_copy(),
    ]
    assert all(other == first and other.embedder is opened for other in others)
    assert TarsEmbeddings(model=other_embedder_dir).embedder is not opened
    assert first.model_copy(update={"model_name": other_embedder_dir}).embedder is not opened


def test_prompts_are_put_before_queries_and_documents(embedder_dir: str) -> None:
    plain = TarsEmbeddings(model=embedder_dir)
    prompted = TarsEmbeddings(model=embedder_dir, prompts={"query": "find: ", "passage": "text: "})
    assert prompted.embed_query("a fan") == plain.embed_query("find: a fan")
    assert prompted.embed_documents(["a fan"]) == plain.embed_documents(["text: a fan"])
    assert prompted.fingerprint != plain.fingerprint
    assert prompted.embedder is not plain.embedder
    for twin in (copy.deepcopy(prompted), copy.copy(prompted)):
        assert twin.embedder is prompted.embedder
    with pytest.raises(ValidationError, match="document"):
        TarsEmbeddings(model=embedder_dir, prompts={"document": "text: "})


def test_the_model_is_let_go_with_its_last_owner(embedder_dir: str) -> None:
    import gc
    import weakref

    embeddings = TarsEmbeddings(model=embedder_dir)
    opened = weakref.ref(embeddings.embedder)
    twin = copy.deepcopy(embeddings)
    assert twin.embedder is opened()
    del embeddings
    gc.collect()
    assert opened() is not None
    del twin
    gc.collect()
    assert opened() is None


def test_threads_open_one_model(embedder_dir: str) -> None:
    found: list[Embedder] = []
    owners = [TarsEmbeddings(model=embedder_dir) for _ in range(8)]
    threads = [threading.Thread(target=lambda o=o: found.append(o.embedder)) for o in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_langchain_serialisation_round_trip(local_embeddings: TarsEmbeddings) -> None:
    embeddings = local_embeddings.model_copy(update={"prompts": {"query": "find: "}})
    text = dumps(embeddings)
    assert '"id": ["tars_rag", "langchain", "TarsEmbeddings"]' in text
    again = loads(text, valid_namespaces=["tars_rag"], allowed_objects=[TarsEmbeddings])
    assert again == embeddings
    assert again.embed_query("cat") == embeddings.embed_query("cat")


def test_from_env(monkeypatch: pytest.MonkeyPatch, embedder_dir: str) -> None:
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    monkeypatch.setenv("NPU_EMBEDDER_ENABLED", "0")
    monkeypatch.setenv("EMBED_PASSAGE_PROMPT", "text: ")
    monkeypatch.setenv("NPU_CORE_MASK", "0_1")
    monkeypatch.setenv("NPU_FALLBACK_CPU", "1")
    found = TarsEmbeddings.from_env()
    assert (found.model_name, found.device) == (embedder_dir, "cpu")
    assert (found.core_mask, found.fallback_cpu) == ("0_1", True)
    assert found.prompts == {"passage": "text: "}
    assert TarsEmbeddings.from_env(prompts=None).prompts is None
    assert len(found.embed_query("cat")) == 32
    assert TarsEmbeddings.from_env(model="x", device="npu").model_name == "x"
    assert TarsEmbeddings.from_env(model_name="y").model_name == "y"


def test_from_env_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_EMBEDDER_ENABLED", "maybe")
    with pytest.raises(ConfigError, match="NPU_EMBEDDER_ENABLED='maybe'"):
        TarsEmbeddings.from_env()


@pytest.mark.enable_socket
def test_the_key_of_a_server_is_named_and_not_written(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = TarsEmbeddings(base_url=f"{board.url}/v1", api_key=KEY)
    text = dumps(embeddings)
    assert KEY not in text + repr(embeddings) + str(embeddings.model_dump())
    monkeypatch.setenv("TARS_API_KEY", KEY)
    again = loads(
        text,
        valid_namespaces=["tars_rag"],
        allowed_objects=[TarsEmbeddings],
        secrets_map={"TARS_API_KEY": KEY},
    )
    assert again == embeddings
    for twin in (again, pickle.loads(pickle.dumps(embeddings)), copy.deepcopy(embeddings)):
        assert twin.embedder is embeddings.embedder
    named = TarsEmbeddings(base_url=board.url)  # the key of the environment
    assert named.embed_query("cat") == embeddings.embed_query("cat")


@pytest.mark.enable_socket
def test_a_server_with_another_model_or_key_is_refused(board: Board) -> None:
    with pytest.raises(ConfigError, match="all-MiniLM-L6-v2"):
        TarsEmbeddings(base_url=board.url, api_key=KEY, model="all-MiniLM-L6-v2").embed_query("a")
    with pytest.raises(ConfigError, match="key"):
        TarsEmbeddings(base_url=board.url, api_key="another").embed_query("a")


@pytest.mark.parametrize(
    "arguments",
    [
        {"base_url": "board:7588"},
        {"base_url": "http://board:port"},
        {"base_url": "http://board", "device": "npu"},
        {"base_url": "http://board", "prompts": {"query": "find: "}},
        {"api_key": "secret"},
    ],
)
def test_what_means_nothing_for_a_server_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises((ValidationError, ConfigError), match=r"base_url|address") as refused:
        TarsEmbeddings(**arguments)
    assert "secret" not in str(refused.value)


@pytest.mark.enable_socket
async def test_a_server_is_asked_without_a_thread(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More calls at once than there are threads (38), all there before the first is answered."""
    embeddings = TarsEmbeddings(base_url=board.url, api_key=KEY)
    embeddings.embed_query("open")
    gate, run = threading.Event(), Embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda self, texts: (gate.wait(60), run(self, texts))[1])
    waiting = board.service.batcher
    flood = [asyncio.create_task(embeddings.aembed_documents(["cat"] * 5)) for _ in range(50)]
    try:
        while waiting.waiting < 5 * 50 - 64:  # 64 are at work
            await asyncio.sleep(0.01)
        assert not any(task.done() for task in flood)
    finally:
        gate.set()
    vectors = await asyncio.gather(*flood)
    assert all(rows == vectors[0] for rows in vectors)


@pytest.mark.enable_socket
def test_one_object_serves_several_event_loops(board: Board) -> None:
    embeddings = TarsEmbeddings(base_url=board.url, api_key=KEY)
    rows = [asyncio.run(embeddings.aembed_query("cat")) for _ in range(2)]
    assert rows[0] == rows[1] == embeddings.embed_query("cat")


async def test_async_does_not_block_the_loop(
    local_embeddings: TarsEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = local_embeddings
    loop_thread = threading.current_thread()
    seen: list[threading.Thread] = []
    run = Embedder.embed

    def slow(self: Embedder, texts: list[str]) -> Any:
        seen.append(threading.current_thread())
        time.sleep(0.2)
        return run(self, texts)

    monkeypatch.setattr(Embedder, "embed", slow)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticker = asyncio.create_task(tick())
    vectors = await embeddings.aembed_documents(["cat", "dog"])
    ticker.cancel()
    assert len(vectors) == 2
    assert ticks >= 5
    assert loop_thread not in seen


async def test_a_flood_of_bulk_work_leaves_queries_and_the_default_pool_alone(
    local_embeddings: TarsEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = local_embeddings
    gate = threading.Event()
    run = Embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda self, texts: (gate.wait(20), run(self, texts))[1])
    flood = [asyncio.create_task(embeddings.aembed_documents(["cat"])) for _ in range(100)]
    await asyncio.sleep(0.05)
    try:
        # Both would queue behind the flood if all shared one pool of threads.
        await asyncio.wait_for(embeddings.aembed_query("dog"), 5)
        await asyncio.wait_for(asyncio.to_thread(time.sleep, 0), 5)
        assert not any(task.done() for task in flood)
    finally:
        gate.set()
    assert len(await asyncio.gather(*flood)) == 100


@pytest.mark.weights
class TestStandardIntegrationWeights(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[TarsEmbeddings]:
        return TarsEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "all-MiniLM-L6-v2", "device": "cpu"}
