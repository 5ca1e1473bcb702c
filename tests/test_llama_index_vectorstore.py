"""TarsVectorStore for LlamaIndex: a real index and query engine, modes, filters, nodes, copies."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.indices.vector_store import VectorIndexRetriever
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pydantic import ValidationError

from served import KEY, SLOW_REMOTE, Board, serving
from tars_rag import HybridStore
from tars_rag.adapters.shared_store import NamedEmbedder
from tars_rag.errors import (
    ConfigError,
    FingerprintError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
)
from tars_rag.llama_index import TarsEmbedding, TarsRerank, TarsVectorStore

pytest_plugins = ["tiny_models", "served"]

TEXTS = {
    "cat": "the cat sleeps on the sofa",
    "dog": "the dog runs in the garden",
    "npu": "the npu core runs hot",
    "fan": "a fan cools the board",
}


def node(name: str, text: str, vector: list[float], **metadata: Any) -> TextNode:
    source = RelatedNodeInfo(node_id=f"doc-{name}", metadata={"from": "test"})
    return TextNode(
        id_=name,
        text=text,
        embedding=vector,
        metadata=metadata,
        relationships={NodeRelationship.SOURCE: source},
        excluded_embed_metadata_keys=list(metadata),
    )


def nodes() -> list[TextNode]:
    kinds = ("pet", "pet", "chip", "chip")
    return [
        node(name, text, np.eye(4)[n].tolist(), kind=kind, n=n, share=n / 4, deep={"a": [n, None]})
        for n, ((name, text), kind) in enumerate(zip(TEXTS.items(), kinds, strict=True))
    ]


@pytest.fixture(scope="module")
def named_board() -> Iterator[Board]:
    """A server that knows its embedder by name only."""
    with serving(NamedEmbedder("by hand")) as served:
        yield served


@pytest.fixture(params=["local", SLOW_REMOTE])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[TarsVectorStore]:
    """In a directory, and what a server has."""
    with contextlib.ExitStack() as stack:
        place: dict[str, Any] = {"path": tmp_path / "store"}
        if request.param == "remote":
            served: Board = request.getfixturevalue("named_board")
            place = {"path": stack.enter_context(served.store(place["path"])), "api_key": KEY}
        opened = TarsVectorStore(**place, fingerprint="by hand")
        stack.callback(opened.close)
        opened.add(nodes())
        yield opened


def ask(**fields: Any) -> VectorStoreQuery:
    return VectorStoreQuery(**{"similarity_top_k": 4, **fields})


# A real index


@pytest.fixture
def embed_model(embedder_dir: str) -> TarsEmbedding:
    return TarsEmbedding(model=embedder_dir)


@pytest.fixture(params=["local", SLOW_REMOTE])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Where a new store of the tiny embedder is: arguments of its constructor."""
    if request.param == "local":
        yield {"path": tmp_path / "s"}
        return
    served: Board = request.getfixturevalue("board")
    with served.store(tmp_path / "s") as url:
        yield {"path": url, "api_key": KEY}


DOCUMENTS = [Document(id_=name, text=text, metadata={"name": name}) for name, text in TEXTS.items()]


def test_index_query_engine_and_reopening(
    place: dict[str, Any], embed_model: TarsEmbedding, reranker_dir: str
) -> None:
    store = TarsVectorStore(embed_model=embed_model, **place)
    index = VectorStoreIndex.from_documents(
        DOCUMENTS,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embed_model,
    )
    store.close()
    index = VectorStoreIndex.from_vector_store(
        TarsVectorStore(embed_model=embed_model, **place), embed_model=embed_model
    )
    for mode in ("default", "text_search", "sparse", "hybrid"):
        engine = index.as_query_engine(
            llm=MockLLM(),
            similarity_top_k=3,
            vector_store_query_mode=mode,
            node_postprocessors=[TarsRerank(model=reranker_dir, top_n=1)],
        )
        response = engine.query("the npu runs hot")
        assert len(response.source_nodes) == 1
        assert TEXTS[response.source_nodes[0].metadata["name"]] in str(response)
    retriever = index.as_retriever(vector_store_query_mode="text_search", similarity_top_k=3)
    assert [n.metadata["name"] for n in retriever.retrieve("garden")] == ["dog"]


async def test_index_asynchronously(place: dict[str, Any], embed_model: TarsEmbedding) -> None:
    store = TarsVectorStore(embed_model=embed_model, **place)
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    await index.ainsert_nodes([TextNode(id_=name, text=text) for name, text in TEXTS.items()])
    retriever = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=2, alpha=0.2)
    assert (await retriever.aretrieve("the dog in the garden"))[0].node_id == "dog"
    response = await index.as_query_engine(llm=MockLLM()).aquery("dog")
    assert len(response.source_nodes) == 2
    store.close()


def test_index_updates_and_deletes_documents(
    place: dict[str, Any], embed_model: TarsEmbedding
) -> None:
    store = TarsVectorStore(embed_model=embed_model, **place)
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    for document in DOCUMENTS:
        index.insert(document)
    index.delete_ref_doc("cat")
    index.update_ref_doc(Document(id_="dog", text="the dog sleeps now", metadata={"name": "dog"}))
    found = {n.ref_doc_id: n.get_content() for n in store.get_nodes()}
    assert found == {**{k: TEXTS[k] for k in ("npu", "fan")}, "dog": "the dog sleeps now"}
    index.delete_nodes([n.node_id for n in store.get_nodes()])
    assert store.client.count() == 0
    store.close()


def test_ingestion_pipeline_upserts(place: dict[str, Any], embed_model: TarsEmbedding) -> None:
    store = TarsVectorStore(embed_model=embed_model, **place)
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), embed_model],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    assert len(pipeline.run(documents=DOCUMENTS)) == 4
    assert pipeline.run(documents=DOCUMENTS) == []
    changed = [Document(id_="cat", text="the cat is awake"), *DOCUMENTS[1:3]]
    assert len(pipeline.run(documents=changed)) == 1
    assert {n.ref_doc_id for n in store.get_nodes()} == {"cat", "dog", "npu"}
    store.close()


# Modes


@pytest.mark.parametrize("mode", ["default", "sparse", "text_search", "hybrid"])
async def test_modes(store: TarsVectorStore, mode: str) -> None:
    vector = np.eye(4)[0].tolist()  # the cat's; the words are the dog's
    query = ask(
        query_embedding=vector, query_str="garden", mode=VectorStoreQueryMode(mode), alpha=0.2
    )
    found = store.query(query)
    best = "cat" if mode == "default" else "dog"
    assert found.ids is not None
    assert found.nodes is not None
    assert found.similarities is not None
    assert found.ids[0] == best
    assert [n.node_id for n in found.nodes] == found.ids
    assert len(found.ids) == (1 if mode in ("sparse", "text_search") else 4)
    assert all(type(score) is float for score in found.similarities)
    assert found.similarities == sorted(found.similarities, reverse=True)
    again = await store.aquery(query)
    assert (again.ids, again.similarities) == (found.ids, found.similarities)


def test_alpha_goes_from_words_to_vectors(store: TarsVectorStore) -> None:
    best = {}
    for alpha in (0.0, 0.2, 0.7, 1.0):
        query = ask(query_embedding=np.eye(4)[0].tolist(), query_str="garden", alpha=alpha)
        query.mode = VectorStoreQueryMode.HYBRID
        best[alpha] = (store.query(query).ids or [""])[0]
    assert best == {0.0: "dog", 0.2: "dog", 0.7: "cat", 1.0: "cat"}
    query.alpha = 1.5
    with pytest.raises(InvalidInputError):
        store.query(query)


def test_cosine_similarities(store: TarsVectorStore) -> None:
    found = store.query(ask(query_embedding=[3.0, 4.0, 0.0, 0.0], similarity_top_k=2))
    assert found.ids == ["dog", "cat"]
    assert found.similarities == pytest.approx([0.8, 0.6])


def test_each_mode_has_its_own_top_k(store: TarsVectorStore) -> None:
    both = {"query_embedding": [1.0, 0, 0, 0], "query_str": "the runs", "similarity_top_k": 4}
    sparse = ask(mode=VectorStoreQueryMode.SPARSE, sparse_top_k=1, **both)
    assert len(store.query(sparse).ids or []) == 1
    hybrid = ask(mode=VectorStoreQueryMode.HYBRID, hybrid_top_k=2, sparse_top_k=1, **both)
    assert len(store.query(hybrid).ids or []) == 2


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_an_error_and_beyond_the_corpus_is_not(
    store: TarsVectorStore, k: int
) -> None:
    with pytest.raises(InvalidInputError, match="k must"):
        store.query(ask(query_embedding=[1.0, 0, 0, 0], similarity_top_k=k))
    everything = store.query(ask(query_embedding=[1.0, 0, 0, 0], similarity_top_k=1000))
    assert len(everything.ids or []) == 4


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (ask(query_embedding=[1.0, 0, 0, 0], mode=VectorStoreQueryMode.SVM), "'svm'.*hybrid"),
        (ask(query_embedding=[1.0, 0, 0, 0], mode=VectorStoreQueryMode.HYBRID), "query_str"),
        (ask(mode=VectorStoreQueryMode.TEXT_SEARCH), "query_str"),
        (ask(query_str="cat"), "query_embedding"),
        (ask(query_str="cat", mode=VectorStoreQueryMode.HYBRID), "query_embedding"),
        (ask(query_embedding=[1.0, 0]), "shape"),
        (ask(query_embedding=[float("nan"), 0, 0, 0]), "not finite"),
    ],
)
def test_what_a_query_lacks_is_named(
    store: TarsVectorStore, query: VectorStoreQuery, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        store.query(query)


def test_unknown_arguments_are_named(store: TarsVectorStore) -> None:
    with pytest.raises(InvalidInputError, match="'where'"):
        store.query(ask(query_embedding=[1.0, 0, 0, 0]), where={"n": 1})
    with pytest.raises(InvalidInputError, match="'batch'"):
        store.add(nodes(), batch=1)
    with pytest.raises(InvalidInputError, match="'filter'"):
        store.delete_nodes(["cat"], filter={})
    with pytest.raises(InvalidInputError, match="'soft'"):
        store.delete("doc-cat", soft=True)


# Filters


def where(*filters: Any, condition: str = "and") -> MetadataFilters:
    leaves = [
        part
        if isinstance(part, MetadataFilters)
        else MetadataFilter(key=part[0], operator=FilterOperator(part[1]), value=part[2])
        for part in filters
    ]
    return MetadataFilters(filters=leaves, condition=FilterCondition(condition))


FILTERS = [
    (where(("kind", "==", "pet")), "cat dog"),
    (where(("n", "!=", 1)), "cat npu fan"),
    (where(("n", ">", 1)), "npu fan"),
    (where(("n", ">=", 1), ("n", "<", 3)), "dog npu"),
    (where(("share", "<=", 0.25)), "cat dog"),
    (where(("n", "in", [0, 3])), "cat fan"),
    (where(("kind", "nin", ["pet"])), "npu fan"),
    (where(("n", "==", 0), ("n", "==", 2), condition="or"), "cat npu"),
    (where(("n", "==", 0), ("n", "==", 2), condition="not"), "dog fan"),
    (where(("missing", "!=", 1)), "cat dog npu fan"),
    (where(("missing", "nin", ["x"])), "cat dog npu fan"),
    (where(("missing", "==", "x")), ""),
    (where(("missing", "==", "x"), condition="not"), "cat dog npu fan"),
    (where(), "cat dog npu fan"),
    (where(("ref_doc_id", "==", "doc-npu")), "npu"),
]
NESTED = [
    (where(("kind", "==", "pet"), where(("n", "==", 1), ("n", "==", 2), condition="or")), "dog"),
    (where(("n", "==", 3), where(("kind", "==", "pet"), ("n", ">", 0)), condition="or"), "dog fan"),
    (where(where(("kind", "==", "pet"), ("n", "==", 1)), condition="not"), "cat npu fan"),
    (where(where(("kind", "!=", "pet"), ("n", "in", [0]), condition="or"), condition="not"), "dog"),
    (where(where(), ("n", "==", 1)), "dog"),
]


@pytest.mark.parametrize(("filters", "expected"), FILTERS + NESTED)
def test_filters_hold_in_every_mode(
    store: TarsVectorStore, filters: MetadataFilters, expected: str
) -> None:
    assert {n.node_id for n in store.get_nodes(filters=filters)} == set(expected.split())
    for mode in ("default", "hybrid", "text_search"):
        query = ask(query_embedding=[1.0] * 4, query_str="cat dog npu fan", filters=filters)
        query.mode = VectorStoreQueryMode(mode)
        assert set(store.query(query).ids or []) == set(expected.split())


@pytest.mark.skipif(
    tuple(map(int, version("llama-index-core").split(".")[:3])) < (0, 14, 23),
    reason="this oracle has no NOT, and another meaning of a key that is missing",
)
@pytest.mark.parametrize(("filters", "expected"), FILTERS)
def test_filters_mean_what_they_mean_to_llama_index(
    filters: MetadataFilters, expected: str
) -> None:
    """The framework's own store is the oracle (it does not take nested filters)."""
    simple = SimpleVectorStore()
    simple.add(nodes())
    found = simple.query(ask(query_embedding=[1.0] * 4, filters=filters))
    assert set(found.ids or []) == set(expected.split())


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (where(("kind", "text_match", "pe")), "'text_match'.*text_search"),
        (where(("kind", "text_match_insensitive", "pe")), "'text_match_insensitive'.*text_search"),
        (where(("kind", "is_empty", None)), "'is_empty'.*'none'"),
        (where(("n", "any", [])), "a list that is not empty"),
        (where(("n", "contains", ["a"])), "one string or number"),
        (where(("kind", "==", None)), "one string or number"),
        (where(("n", "==", [1])), "one string or number"),
        (where(("n", "in", 1)), "a list"),
        (where(("n", ">", 1), condition="not"), "'not'.*'gt'"),
    ],
)
def test_filters_that_cannot_be_decided_are_errors(
    store: TarsVectorStore, filters: MetadataFilters, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        store.query(ask(query_embedding=[1.0] * 4, filters=filters))
    with pytest.raises(InvalidInputError, match=message):
        store.delete_nodes(filters=filters)
    assert store.client.count() == 4


def test_documents_and_nodes_restrict(store: TarsVectorStore) -> None:
    everything = {"query_embedding": [1.0] * 4, "query_str": "cat dog npu fan"}
    for mode in ("default", "hybrid", "text_search"):
        fields = {"mode": VectorStoreQueryMode(mode), **everything}
        found = store.query(ask(doc_ids=["doc-cat", "doc-fan", "none"], **fields))
        assert set(found.ids or []) == {"cat", "fan"}
        assert store.query(ask(node_ids=["dog"], **fields)).ids == ["dog"]
        mixed = ask(node_ids=["dog", "npu"], filters=where(("kind", "==", "chip")), **fields)
        assert store.query(mixed).ids == ["npu"]
        assert len(store.query(ask(node_ids=[], doc_ids=[], **fields)).ids or []) == 4


# Nodes


def test_nodes_come_back_whole(store: TarsVectorStore) -> None:
    given = [
        *nodes(),
        ImageNode(id_="image", text="a board", image_url="http://x/y.png", embedding=[1.0] * 4),
        IndexNode(id_="index", text="a table", index_id="other", embedding=[1.0] * 4),
        node(
            "keys", "its own keys", [1.0] * 4, doc_id="mine", ref_doc_id=7, _node="x", _node_id="y"
        ),
    ]
    before = [n.to_dict() for n in given]
    assert store.add(given) == [n.node_id for n in given]
    assert [n.to_dict() for n in given] == before
    found = store.get_nodes([n.node_id for n in given])
    for old, new in zip(given, found, strict=True):
        assert type(new) is type(old)
        assert new.to_dict() == {**old.to_dict(), "embedding": None}
    assert [n.node_id for n in store.get_nodes(filters=where(("doc_id", "==", "mine")))] == ["keys"]
    store.delete("doc-keys")
    assert store.get_nodes(["keys"]) == []


def test_words_are_found_in_the_text_that_was_embedded(store: TarsVectorStore) -> None:
    titled = TextNode(id_="t", text="body", metadata={"title": "volcano"}, embedding=[1.0] * 4)
    hidden = titled.model_copy(update={"id_": "h", "excluded_embed_metadata_keys": ["title"]})
    store.add([titled, hidden])
    query = ask(query_str="volcano", mode=VectorStoreQueryMode.TEXT_SEARCH)
    assert store.query(query).ids == ["t"]


def test_adding_again_replaces(store: TarsVectorStore) -> None:
    store.add([node("cat", "the cat is awake", [0, 0, 0, 1.0], kind="tiger")])
    [found] = store.get_nodes(["cat"])
    assert (found.get_content(), found.metadata) == ("the cat is awake", {"kind": "tiger"})
    assert store.client.count() == 4
    assert store.query(ask(query_embedding=[0, 0, 0, 1.0], similarity_top_k=2)).ids == [
        "cat",
        "fan",
    ]


def test_bad_nodes_are_named_and_nothing_is_written(store: TarsVectorStore) -> None:
    good = node("new", "new", [1.0] * 4)
    for bad, message in (
        (TextNode(id_="bad", text="x"), "'bad' has no embedding"),
        (node("bad", "x", [1.0]), "'bad' has an embedding of 1 numbers"),
        (node("bad", "x", [0.0] * 4), "'bad'.*all zeros"),
        (node("bad", "x", [float("nan"), 0, 0, 0]), "'bad'.*not finite"),
        (node("new", "twice", [1.0] * 4), "'new'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            store.add([good, bad])
        assert store.client.count() == 4
    assert store.add([]) == []


def test_a_bad_vector_far_down_a_long_list_stores_none_of_it(store: TarsVectorStore) -> None:
    many = [node(f"n{n}", f"note {n}", [1.0] * 4) for n in range(300)]
    many[290].embedding = [float("nan")] * 4
    with pytest.raises(InvalidInputError, match="'n290'"):
        store.add(many)
    assert store.client.count() == 4


@pytest.mark.parametrize("text", [" ", "\x00 NUL", "lone \ud800", "🐟" * 9, "long " * 200_000])
def test_odd_texts_come_back_as_they_were(store: TarsVectorStore, text: str) -> None:
    store.add([node("odd", text, [1.0] * 4, note=text[:50])])
    [found] = store.get_nodes(["odd"])
    assert (found.get_content(), found.metadata) == (text, {"note": text[:50]})


def test_deleting(store: TarsVectorStore) -> None:
    store.delete("doc-cat")
    store.delete("doc-none")
    store.delete_nodes(["none"])
    store.delete_nodes([])
    assert [n.node_id for n in store.get_nodes(["cat", "fan", "dog"])] == ["fan", "dog"]
    store.delete_nodes(["dog", "npu"], filters=where(("kind", "==", "chip")))
    assert {n.node_id for n in store.get_nodes()} == {"dog", "fan"}
    store.delete_nodes(filters=where(("kind", "==", "pet")))
    assert {n.node_id for n in store.get_nodes()} == {"fan"}
    with pytest.raises(InvalidInputError, match="clear"):
        store.delete_nodes()
    with pytest.raises(InvalidInputError, match="clear"):
        store.delete_nodes(filters=where())
    store.clear()
    store.clear()
    assert store.get_nodes() == []


async def test_the_same_asynchronously_in_another_thread(
    store: TarsVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[threading.Thread] = []
    for name in ("upsert", "delete", "clear", "get", "search"):
        run = getattr(HybridStore, name)

        def spy(self: HybridStore, *args: Any, _run: Any = run, **kwargs: Any) -> Any:
            seen.append(threading.current_thread())
            return _run(self, *args, **kwargs)

        monkeypatch.setattr(HybridStore, name, spy)
    assert await store.async_add([node("x", "x", [1.0] * 4)]) == ["x"]
    assert len(await store.aget_nodes(["x"])) == 1
    await store.adelete("doc-x")
    await store.adelete_nodes(["cat"])
    found = await store.aquery(ask(query_embedding=[1.0] * 4))
    assert set(found.ids or []) == {"dog", "npu", "fan"}
    await store.aclear()
    assert len(seen) >= 6  # twice as many where the server is in this process
    assert threading.current_thread() not in seen


# One store, several objects and frameworks


def test_objects_with_one_path_share_one_store(
    store: TarsVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARS_API_KEY", KEY)  # what is written does not have it
    twins = [
        TarsVectorStore(store.path, fingerprint="by hand"),
        copy.copy(store),
        copy.deepcopy(store),
        pickle.loads(pickle.dumps(store)),
        TarsVectorStore.from_dict(store.to_dict()),
        TarsVectorStore.from_json(store.to_json()),
    ]
    assert store.to_dict()["class_name"] == "TarsVectorStore"
    assert KEY not in store.to_json() + repr(store)
    for twin in twins:
        assert twin.client is store.client
        assert twin.to_dict() == store.to_dict()


def test_describing_a_store_makes_nothing(tmp_path: Path) -> None:
    TarsVectorStore(tmp_path / "s", fingerprint="x").to_dict()
    assert not (tmp_path / "s").exists()


def test_what_the_command_line_or_langchain_stored_is_readable(
    tmp_path: Path, embed_model: TarsEmbedding
) -> None:
    from langchain_core.documents import Document as LangChainDocument

    from tars_rag.langchain import TarsEmbeddings
    from tars_rag.langchain import TarsVectorStore as LangChainStore

    embeddings = TarsEmbeddings(model=embed_model.model_name)
    with LangChainStore(embeddings, tmp_path / "s") as other:
        other.add_documents([LangChainDocument("the cat", id="c", metadata={"deep": {"n": [1]}})])
        with pytest.raises(StoreLockedError, match="already open in this process"):
            TarsVectorStore(tmp_path / "s", embed_model).get_nodes()
    store = TarsVectorStore(tmp_path / "s", embed_model)
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    [found] = index.as_retriever(vector_store_query_mode="hybrid").retrieve("cat")
    assert (found.node_id, found.get_content(MetadataMode.NONE)) == ("c", "the cat")
    assert found.metadata == {"deep": {"n": [1]}}
    store.close()


# A server's store


@pytest.mark.enable_socket
async def test_a_servers_store_needs_its_address_only(board: Board, tmp_path: Path) -> None:
    with board.store(tmp_path / "s") as url:
        store = TarsVectorStore(url, api_key=KEY)
        embed_model = TarsEmbedding(base_url=board.url, api_key=KEY)
        assert store.fingerprint == embed_model.fingerprint
        index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
        await index.ainsert_nodes([TextNode(id_=name, text=text) for name, text in TEXTS.items()])
        retriever = index.as_retriever(vector_store_query_mode="text_search")
        assert [found.node_id for found in await retriever.aretrieve("garden")] == ["dog"]
        with pytest.raises(FingerprintError):
            TarsVectorStore(url, api_key=KEY, fingerprint="another").get_nodes()
        with pytest.raises(ConfigError, match="string, not a Path"):
            TarsVectorStore(Path(url), fingerprint="another")
        store.close()


# Vectors of different kinds never mix


def test_another_embed_model_is_refused(
    tmp_path: Path, embed_model: TarsEmbedding, other_embedder_dir: str
) -> None:
    store = TarsVectorStore(tmp_path / "s", embed_model)
    store.add(embed_model([TextNode(text="cat")]))
    store.close()
    for other in (TarsEmbedding(model=other_embedder_dir), MockEmbedding(embed_dim=32)):
        with pytest.raises(FingerprintError):
            TarsVectorStore(tmp_path / "s", other).get_nodes()


def test_a_foreign_embed_model_that_changed_is_refused(tmp_path: Path) -> None:
    class Changing(MockEmbedding):
        first: float = 1.0

        def _get_vector(self) -> list[float]:
            return [self.first, *[1.0] * (self.embed_dim - 1)]

    model = Changing(embed_dim=4)
    store = TarsVectorStore(tmp_path / "s", model)
    store.add(model([TextNode(text="cat")]))
    assert TarsVectorStore.from_dict(store.to_dict()).client is store.client
    store.close()
    changed = TarsVectorStore(tmp_path / "s", Changing(embed_dim=4, first=-9.0))
    with pytest.raises(FingerprintError, match="cosine"):
        changed.get_nodes()
    assert len(TarsVectorStore(tmp_path / "s", Changing(embed_dim=4)).get_nodes()) == 1


def test_the_store_asks_what_makes_its_vectors(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="embed_model"):
        TarsVectorStore(tmp_path / "s")
    with pytest.raises(InvalidInputError, match="not both"):
        TarsVectorStore(tmp_path / "s", MockEmbedding(embed_dim=4), fingerprint="x")
    with pytest.raises(ValidationError, match="empty path"):
        TarsVectorStore("", fingerprint="x")
    with pytest.raises(ValidationError, match="read_onyl"):
        TarsVectorStore(tmp_path / "s", fingerprint="x", read_onyl=True)
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StoreError):
        TarsVectorStore(tmp_path / "file" / "s", fingerprint="x").get_nodes()


def test_from_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, embedder_dir: str) -> None:
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    found = TarsVectorStore.from_env(tmp_path / "s")
    assert found.fingerprint == TarsEmbedding(model=embedder_dir).fingerprint
    monkeypatch.setenv("NPU_EMBEDDER_ENABLED", "maybe")
    with pytest.raises(ConfigError, match="NPU_EMBEDDER_ENABLED"):
        TarsVectorStore.from_env(tmp_path / "s")


def test_a_restricted_retriever_is_the_frameworks_own(
    store: TarsVectorStore, embed_model: TarsEmbedding
) -> None:
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    retriever = VectorIndexRetriever(
        index, node_ids=["dog"], vector_store_query_mode=VectorStoreQueryMode.TEXT_SEARCH
    )
    assert [n.node_id for n in retriever.retrieve("the cat and the dog")] == ["dog"]
