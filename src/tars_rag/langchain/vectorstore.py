"""`TarsVectorStore`: LangChain's `VectorStore` over vectors and BM25, fused, reranked on demand."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from pydantic import SecretStr
from typing_extensions import Self

from tars_rag.adapters.arguments import refuse
from tars_rag.adapters.model_fields import plain_key
from tars_rag.adapters.shared_store import SharedStore
from tars_rag.adapters.threads import Asynchronous, in_thread
from tars_rag.errors import InvalidInputError
from tars_rag.langchain import settings as given
from tars_rag.langchain.documents import as_document, as_documents, as_passages, found_documents
from tars_rag.langchain.rerank import TarsRerank
from tars_rag.langchain.retriever import TarsRetriever
from tars_rag.langchain.searching import INSTEAD, Search, Where
from tars_rag.langchain.writing import Records, records, replace, store_all
from tars_rag.retrieval.store import HybridStore
from tars_rag.settings import Strategy

__all__ = ["TarsRetriever", "TarsVectorStore"]

Ids = list[str] | None
Metadatas = list[dict[str, Any]] | None


class TarsVectorStore(VectorStore):
    """A store of documents that is searched by meaning and by words at once.

    ```python
    store = TarsVectorStore(TarsEmbeddings(), "my-store")
    store.add_documents(documents)
    store.similarity_search("why does the board throttle?", k=3)
    ```

    Objects, copies and pickles with the same path share one open store; `close` lets go of it.
    """

    def __init__(
        self,
        embedding: Embeddings | None = None,
        path: str | Path | None = None,
        *,
        strategy: Strategy = "hybrid",
        k: int = 4,
        rerank: TarsRerank | None = None,
        candidates: int = 20,
        read_only: bool = False,
        chroma_url: str | None = None,
        language: str | None = None,
        api_key: str | SecretStr | None = None,
        **unknown: Any,
    ) -> None:
        """Open the store.

        Args:
            embedding: Any LangChain embeddings; the store refuses others than it was made with.
                Default: `TarsEmbeddings`, or the server's.
            path: The store's directory, made if it is not there; or ``http://host:port/name`` of a
                server. None: a temporary one that lasts as long as this object and its copies.
            strategy: ``"hybrid"`` (vectors and BM25), ``"naive"`` (vectors), ``"lexical"`` (BM25).
            k: How many documents a search returns, unless it is told otherwise.
            rerank: Orders what was found by a cross-encoder; its `budget_ms` is for all of it.
            candidates: How many documents are found for the reranker.
            read_only: Open beside other processes that only read.
            chroma_url: ``http://host:port`` of a Chroma server to keep the vectors in.
            language: How words are read, as `HybridStore`'s: ``"de"``, ``"multi"``, ...
            api_key: Of the server; None: TARS_API_KEY, or none.
            **unknown: Refused.

        Raises:
            InvalidInputError: An argument is unknown or of the wrong kind.
            FingerprintError: The store's vectors were made by other embeddings.
            StoreError: It is held elsewhere, damaged, cannot be written, or cannot be reached.
        """
        search = (strategy, k, rerank, candidates)
        given.check_settings(embedding, search, read_only, chroma_url, unknown)
        self.strategy: Strategy = strategy
        self.k, self.rerank, self.candidates = k, rerank, candidates
        self.read_only, self.chroma_url, self.language = read_only, chroma_url, language
        self.api_key = SecretStr(api_key) if isinstance(api_key, str) else api_key
        self._embedding = embedding or given.usual_embeddings(path, self.api_key)
        self._embedder = given.embedder_of(self._embedding)
        self._shared = SharedStore(
            path,
            self._embedder,
            read_only=read_only,
            chroma_url=chroma_url,
            language=language,
            sharing="langchain",
            api_key=plain_key(self.api_key),
        )
        self._lane = self._shared.lane
        _ = self.store

    @classmethod
    def from_env(
        cls, path: str | Path | None = None, embedding: Embeddings | None = None, **overrides: Any
    ) -> Self:
        """Read RAG_STRATEGY, RAG_LANGUAGE (of a new store), MEMORY_TOP_K, and what models read.

        Reranking is on where RERANK_MODEL is set and not empty. Arguments in `overrides` win.
        """
        return cls(path=path, **given.environment(path, embedding, overrides))

    @property
    def store(self) -> HybridStore:
        """The `HybridStore` underneath, opened if it was closed."""
        return self._shared.store

    client = store  # its name in LlamaIndex

    @property
    def path(self) -> Path | str:
        """The store's directory, absolute; of a server's store its address."""
        return self._shared.path

    @property
    def embeddings(self) -> Embeddings:
        """What embeds documents and queries."""
        return self._embedding

    def close(self) -> None:
        """Let go of the directory, for every object that shares the store; using one reopens it."""
        self._shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = getattr(self._embedding, "model_name", None) or self._embedder.fingerprint
        made_by = f"{type(self._embedding).__name__}({name!r})"
        search = f"strategy={self.strategy!r}, k={self.k}, rerank={self.rerank!r}"
        return f"{type(self).__name__}({str(self.path)!r}, embedding={made_by}, {search})"

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._shared.is_temporary:
            msg = "A TarsVectorStore in a temporary directory cannot be pickled: give it a path."
            raise InvalidInputError(msg)
        settings = {name: getattr(self, name) for name in given.SETTINGS}
        return functools.partial(type(self), **settings), (self._embedding, self.path)

    def add_documents(
        self,
        documents: Sequence[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Store documents; one whose id is there already replaces it.

        Args:
            documents: What to store; not changed.
            ids: One for each; they win over `Document.id`. Where there is neither, one is made.
            batch_size: Store so many at a time, each batch durably. Default: all at once.
            **kwargs: None.

        Returns:
            The ids, in the order of `documents`.
        """
        refuse(kwargs, allowed="ids, batch_size")
        passages = as_passages(documents, ids)
        store_all(self._shared, passages, batch_size)
        return [passage.id for passage in passages]

    def add_texts(
        self, texts: Iterable[str], metadatas: Metadatas = None, *, ids: Ids = None, **kwargs: Any
    ) -> list[str]:
        """As `add_documents`, for texts and their metadata."""
        return self.add_documents(as_documents(texts, metadatas), ids=ids, **kwargs)

    def update_documents(self, ids: list[str], documents: Sequence[Document]) -> None:
        """Replace documents by others, one for each id; all of the ids must be there."""
        replace(self._shared, as_passages(documents, ids))

    def update_document(self, document_id: str, document: Document) -> None:
        """As `update_documents`, for one."""
        self.update_documents([document_id], [document])

    def delete(self, ids: Ids = None, *, filter: Where | None = None, **kwargs: Any) -> bool:
        """Delete documents: those with these ids (None: all) and with metadata that match `filter`.

        Ids that are not there are no error.
        """
        refuse(kwargs, allowed="ids, filter", instead=INSTEAD)
        with self._shared.using() as store:
            if ids is None and filter is None:
                store.clear()
            else:
                store.delete(ids=ids, where=filter)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in their order; missing ones are left out."""
        with self._shared.using() as store:
            return [as_document(passage) for passage in store.get(ids)]

    def get(
        self,
        ids: str | Sequence[str] | None = None,
        where: Where | None = None,
        limit: int | None = None,
        include: Sequence[str] = ("documents", "metadatas"),
    ) -> Records:
        """What is stored, in columns, as `langchain_chroma.Chroma.get` returns it.

        `where` is Chroma's filter; `include` names "documents", "metadatas", "embeddings".
        """
        return records(self._shared, ids, where, limit, include)

    @property
    def _search(self) -> Search:
        search = (self.strategy, self.k, self.rerank, self.candidates)
        return Search(self._shared, self._embedder, *search)

    def similarity_search(self, query: str, k: int | None = None, **kwargs: Any) -> list[Document]:
        """The documents that answer the query best, best first.

        Args:
            query: The question.
            k: How many; default: the store's.
            **kwargs: `filter` (Chroma's filter language over metadata), `strategy` (as the
                constructor's), `weight` (share of the vectors in "hybrid", 0 to 1; default 0.5),
                `min_score` (least relevance), `rerank` (False: without), `window` (neighbours on
                each side: metadata "window" is then the text with theirs).
        """
        return found_documents(self._search.find(query, k, **kwargs))

    def similarity_search_with_score(
        self, query: str, k: int | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, with the score that ranked each document: larger is better.

        It is the fused score (hybrid), cosine (naive), BM25 (lexical), or 0 to 1 (reranked).
        """
        hits = self._search.find(query, k, **kwargs)
        return [(as_document(hit.passage), hit.score) for hit in hits]

    def similarity_search_with_relevance_scores(
        self, query: str, k: int | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, with `ScoredPassage.relevance`: 0 to 1, the same in every query.

        `score_threshold` leaves out what is less relevant.
        """
        return self._search.relevant(query, k, **kwargs)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int | None = None, **kwargs: Any
    ) -> list[Document]:
        """The documents nearest to a vector of the store's; `filter`, `window` as elsewhere."""
        return found_documents(self._search.nearest(embedding, k, **kwargs))

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int | None = None,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """Documents near to the query and far from each other (maximal marginal relevance).

        `fetch_k` are found (`filter`, `strategy`, `weight`, `window` as in `similarity_search`); of
        these, `k` are chosen, with a `lambda_mult` from 0 (most diverse) to 1 (most similar).
        """
        return found_documents(self._search.diverse(query, k, fetch_k, lambda_mult, **kwargs))

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int | None = None,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, near to a vector of the store's embeddings."""
        hits = self._search.diverse_nearest(embedding, k, fetch_k, lambda_mult, **kwargs)
        return found_documents(hits)

    def as_retriever(self, **kwargs: Any) -> TarsRetriever:
        """A retriever over this store: `k`, `filter`, `strategy`, `weight`, `rerank`, and more.

        Each call can set them anew: ``retriever.invoke(query, k=3, strategy="lexical")``.
        """
        given.check_retriever(kwargs, self.rerank)
        tags = kwargs.pop("tags", None) or self._get_retriever_tags()
        return TarsRetriever(vectorstore=self, tags=tags, **kwargs)

    # The same without blocking an event loop; queries do not wait behind bulk work.
    aadd_documents = Asynchronous(add_documents).bulk
    aadd_texts = Asynchronous(add_texts).bulk
    aupdate_documents = Asynchronous(update_documents).bulk
    aupdate_document = Asynchronous(update_document).bulk
    adelete = Asynchronous(delete).bulk
    aget = Asynchronous(get).query
    aget_by_ids = Asynchronous(get_by_ids).query
    asimilarity_search = Asynchronous(similarity_search).query
    asimilarity_search_with_score = Asynchronous(similarity_search_with_score).query
    asimilarity_search_with_relevance_scores = Asynchronous(
        similarity_search_with_relevance_scores
    ).query
    asimilarity_search_by_vector = Asynchronous(similarity_search_by_vector).query
    amax_marginal_relevance_search = Asynchronous(max_marginal_relevance_search).query
    amax_marginal_relevance_search_by_vector = Asynchronous(
        max_marginal_relevance_search_by_vector
    ).query

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: Metadatas = None,
        *,
        ids: Ids = None,
        **kwargs: Any,
    ) -> Self:
        """A store that holds these texts; `path`, `strategy` and so on as for the constructor."""
        documents = as_documents(texts, metadatas)  # refused before a store is made
        store = cls(embedding, **kwargs)
        with store._shared.closed_on_error():
            store.add_documents(documents, ids=ids)
        return store

    @classmethod
    async def afrom_texts(cls, texts: list[str], *args: Any, **kwargs: Any) -> Self:
        """As `from_texts`, without blocking the event loop."""
        return await in_thread("bulk", cls.from_texts, texts, *args, **kwargs)
