"""`window=`: passages with what stands before and after them, from both frameworks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.postprocessor import MetadataReplacementPostProcessor
from llama_index.core.schema import MetadataMode, TextNode

from tars_rag.errors import InvalidInputError
from tars_rag.langchain import TarsVectorStore as LangChainStore
from tars_rag.llama_index import TarsVectorStore as LlamaStore

TEXT = "Otters sleep. Badgers dig. Herons wait. Foxes run."
PLACES = [(0, 13), (14, 39), (27, 50)]  # the last two share "Herons wait."
TEXTS = [TEXT[start:end] for start, end in PLACES]
IDS = [f"a.txt#{number}" for number in range(3)]


def metadatas() -> list[dict[str, int]]:
    return [{"start": start, "end": end} for start, end in PLACES]


@pytest.fixture
def langchain(tmp_path: Path) -> LangChainStore:
    return LangChainStore.from_texts(
        TEXTS,
        DeterministicFakeEmbedding(size=8),
        metadatas(),
        ids=IDS,
        path=tmp_path / "s",
        strategy="lexical",
    )


WHOLE = "Otters sleep.\n\nBadgers dig. Herons wait. Foxes run."


async def test_langchain_returns_the_text_around_a_document(langchain: LangChainStore) -> None:
    with langchain:
        plain = langchain.similarity_search("badgers", k=1)[0]
        assert "window" not in plain.metadata
        found = langchain.similarity_search("badgers", k=1, window=1)[0]
        assert found.page_content == plain.page_content == "Badgers dig. Herons wait."
        assert found.metadata == {**plain.metadata, "window": WHOLE}
        assert (await langchain.asimilarity_search("badgers", k=1, window=1)) == [found]
        [(scored, _)] = langchain.similarity_search_with_score("otters", k=1, window=1)
        assert scored.metadata["window"] == "Otters sleep.\n\nBadgers dig. Herons wait."
        [(related, _)] = langchain.similarity_search_with_relevance_scores("badgers", k=1, window=1)
        assert related == found
        assert "window" not in langchain.get_by_ids([IDS[1]])[0].metadata  # nothing was stored


def test_every_search_of_langchain_takes_a_window(langchain: LangChainStore) -> None:
    vector = DeterministicFakeEmbedding(size=8).embed_query(TEXTS[1])
    with langchain:
        for found in (
            langchain.similarity_search_by_vector(vector, k=3, window=2),
            langchain.max_marginal_relevance_search("dig", k=3, strategy="naive", window=2),
            langchain.max_marginal_relevance_search_by_vector(vector, k=3, window=2),
        ):
            assert [document.metadata.get("window") for document in found] == [WHOLE] * 3
        for left_out in ({}, {"window": None}, {"window": 0}):
            for plain in (
                langchain.similarity_search("badgers", k=1, **left_out),
                langchain.similarity_search_by_vector(vector, k=1, **left_out),
                langchain.max_marginal_relevance_search_by_vector(vector, k=1, **left_out),
            ):
                assert [document.metadata for document in plain] == [metadatas()[1]]


async def test_a_retriever_has_a_window_that_a_call_may_change(langchain: LangChainStore) -> None:
    with langchain:
        [plain] = langchain.similarity_search("badgers", k=1)
        [found] = langchain.similarity_search("badgers", k=1, window=1)
        retriever = langchain.as_retriever(k=1, window=1)
        assert retriever.invoke("badgers") == await retriever.ainvoke("badgers") == [found]
        assert retriever.invoke("badgers", window=None) == [found]
        assert retriever.invoke("badgers", window=0) == [plain]
        mmr = langchain.as_retriever(k=1, window=1, search_type="mmr", strategy="lexical")
        assert mmr.invoke("badgers") == [found]


def test_a_window_that_is_none_is_refused(langchain: LangChainStore) -> None:
    with langchain:
        calls: list[Callable[..., object]] = [
            partial(langchain.similarity_search, "badgers"),
            partial(langchain.similarity_search_by_vector, [0.5] * 8),
            partial(langchain.max_marginal_relevance_search, "badgers"),
            langchain.as_retriever,
        ]
        for call, window in product(calls, [-1, True, False, 1.5, "1"]):
            with pytest.raises(InvalidInputError, match="window must be a whole number"):
                call(window=window)


def llama_nodes() -> list[TextNode]:
    """With metadata that stands above the text where it is embedded; places as each splitter's."""
    ours, other = metadatas()[:2], PLACES[2]
    nodes = [
        TextNode(id_=key, text=text, metadata={"title": "Animals", **place})
        for key, text, place in zip(IDS, TEXTS, ours, strict=False)
    ]
    start, end = other
    return [
        *nodes,
        TextNode(
            id_=IDS[2],
            text=TEXTS[2],
            metadata={"title": "Animals"},
            start_char_idx=start,
            end_char_idx=end,
        ),
    ]


async def test_llama_index_gives_it_to_its_postprocessor(tmp_path: Path) -> None:
    store = LlamaStore(tmp_path / "s", MockEmbedding(embed_dim=8))
    index = VectorStoreIndex.from_vector_store(store, MockEmbedding(embed_dim=8))
    index.insert_nodes(llama_nodes())
    retriever = index.as_retriever(
        vector_store_query_mode="sparse",
        sparse_top_k=1,
        vector_store_kwargs={"window": 1},
    )
    around = "Badgers dig. Herons wait. Foxes run."
    for found in (retriever.retrieve("foxes"), await retriever.aretrieve("foxes")):
        node = found[0].node
        assert node.metadata["window"] == around
        assert "Badgers" not in node.get_content(MetadataMode.LLM)
        assert "Badgers" not in node.get_content(MetadataMode.EMBED)
        replaced = MetadataReplacementPostProcessor("window").postprocess_nodes(found)
        assert replaced[0].node.get_content() == around
    for mode in ("default", "mmr", "hybrid"):
        every = index.as_retriever(
            vector_store_query_mode=mode,
            similarity_top_k=3,
            vector_store_kwargs={"window": 2},
        )
        assert [hit.node.metadata["window"] for hit in every.retrieve("foxes")] == [WHOLE] * 3
    for kwargs in ({}, {"window": None}, {"window": 0}):
        [plain] = index.as_retriever(similarity_top_k=1, vector_store_kwargs=kwargs).retrieve("a")
        assert "window" not in plain.node.metadata
    wrong = index.as_retriever(vector_store_kwargs={"window": -1})
    with pytest.raises(InvalidInputError, match="window must be a whole number"):
        wrong.retrieve("foxes")
    assert all("window" not in node.metadata for node in store.get_nodes())
    store.close()


def test_passages_with_other_ids_stand_alone(tmp_path: Path) -> None:
    with LangChainStore.from_texts(
        ["Otters sleep."], DeterministicFakeEmbedding(size=8), ids=["a"], path=tmp_path / "s"
    ) as store:
        [found] = store.similarity_search("otters", k=1, window=2)
        assert found.metadata == {"window": "Otters sleep."}
