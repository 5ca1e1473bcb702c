"""`TarsVectorStore`: LlamaIndex's `BasePydanticVectorStore` over vectors and BM25, fused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr
from typing_extensions import Self

from tars_rag.adapters.arguments import refuse, require_all, require_kind
from tars_rag.adapters.foreign import ForeignEmbedder
from tars_rag.adapters.model_fields import PathText, plain_key
from tars_rag.adapters.shared_store import NamedEmbedder, SharedStore
from tars_rag.adapters.threads import in_thread
from tars_rag.adapters.vector_check import VectorCheck
from tars_rag.errors import InvalidInputError
from tars_rag.llama_index.embedding import TarsEmbedding, embedder_of
from tars_rag.llama_index.filters import to_where
from tars_rag.llama_index.nodes import (
    REF_DOC_ID,
    as_diversity,
    as_node,
    as_passage,
    as_search,
    chosen,
    own_words,
    vectors_of,
    within,
)
from tars_rag.retrieval.address import is_url, split_store
from tars_rag.retrieval.indexes.checks import check_vectors
from tars_rag.retrieval.neighbours import windows
from tars_rag.retrieval.opening import language_for
from tars_rag.retrieval.passage import TextEmbedder
from tars_rag.retrieval.store import HybridStore
from tars_rag.settings import Settings


class TarsVectorStore(BasePydanticVectorStore):
    """A store of nodes that is searched by meaning, by words, or by both at once.

    ```python
    embed_model = TarsEmbedding()
    store = TarsVectorStore("my-store", embed_model)
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    index.as_query_engine(vector_store_query_mode="hybrid", alpha=0.5)
    ```

    Adding a node whose id is there already replaces it. One process writes to a directory at a
    time. Objects, copies and pickles with the same path share one open store within a process.
    """

    model_config = ConfigDict(extra="forbid")

    stores_text: bool = True
    is_embedding_query: bool = True
    path: PathText = Field(
        description="The store's directory, made if it is not there; or a server's store."
    )
    fingerprint: str = Field(description="Names what makes the nodes' vectors.")
    probe: list[float] | None = Field(
        None, repr=False, description="What a foreign model makes of one fixed text."
    )
    read_only: bool = Field(False, description="Open beside others that only read.")
    chroma_url: str | None = Field(None, description="A Chroma server to keep the vectors in.")
    language: str | None = Field(None, description="How words are read: 'de', 'multi', ...")
    api_key: SecretStr | None = Field(
        None, exclude=True, description="Of its server; None: TARS_API_KEY. It is written nowhere."
    )

    _shared: SharedStore = PrivateAttr()
    _check: VectorCheck | None = PrivateAttr(None)

    def __init__(
        self,
        path: str | Path,
        embed_model: BaseEmbedding | None = None,
        *,
        fingerprint: str | None = None,
        **fields: Any,
    ) -> None:
        """Describe the store; it is opened on first use.

        Args:
            path: The store's directory, made if it is not there. Or ``http://host:port/name`` of a
                `tars-rag serve`.
            embed_model: What makes the nodes' vectors, so that a store made with another one is
                refused, and nodes and queries that another one embedded. Of a server's store it may
                be left out: it is that server's.
            fingerprint: A name for it, where there is no such object or where vectors come from
                elsewhere: they are then compared by their length only.
            **fields: `read_only`, `chroma_url`, `language`, `api_key`.

        Raises:
            InvalidInputError: Neither or both of `embed_model` and `fingerprint` are given, or
                `embed_model` is none.
        """
        if is_url(path) and embed_model is None and fingerprint is None:
            server = split_store(str(path))[0]
            embed_model = TarsEmbedding(base_url=server, api_key=fields.get("api_key"))
        if (embed_model is None) == (fingerprint is None):
            msg = (
                "TarsVectorStore needs to know what makes its vectors: pass the index's "
                "embed_model, or a fingerprint that names it (not both)."
            )
            raise InvalidInputError(msg)
        embedder: TextEmbedder | None = None
        check: VectorCheck | None = None
        if embed_model is not None:
            embedder, check = embedder_of(embed_model)
            fingerprint = embedder.fingerprint
        if isinstance(embedder, ForeignEmbedder):
            fields["probe"] = embedder.probe.tolist()
        super().__init__(path=path, fingerprint=fingerprint, **fields)
        self._check = check
        self._shared = SharedStore(
            str(self.path),
            embedder or NamedEmbedder(self.fingerprint),
            read_only=self.read_only,
            chroma_url=self.chroma_url,
            language=self.language,
            probe=None if self.probe is None else np.asarray(self.probe, np.float32),
            sharing="llama_index",
            api_key=plain_key(self.api_key),
        )

    @classmethod
    def from_env(
        cls, path: str | Path, embed_model: BaseEmbedding | None = None, **fields: Any
    ) -> Self:
        """As the constructor, with RAG_LANGUAGE, and `TarsEmbedding.from_env` for the model.

        Args:
            path: The store's directory.
            embed_model: What makes the nodes' vectors.
            **fields: `read_only`, `chroma_url`, `language`.

        Raises:
            ConfigError: A variable has a value that is not allowed.
        """
        fields = {"language": language_for(path, Settings.from_env()), **fields}
        if embed_model is None and not is_url(path):
            embed_model = TarsEmbedding.from_env()
        return cls(path, embed_model, **fields)

    @classmethod
    def class_name(cls) -> str:
        """The name that serialised settings carry."""
        return "TarsVectorStore"

    @property
    def client(self) -> HybridStore:
        """The `HybridStore` underneath.

        Raises:
            FingerprintError: The store's vectors were made by another model.
            StoreLockedError: Another user's process, or another machine, has it open.
            StoreError: The store is damaged, or its directory cannot be written.
        """
        return self._shared.store

    @property
    def store(self) -> HybridStore:
        """The same as `client`, by the name it has in LangChain."""
        return self._shared.store

    def close(self) -> None:
        """Let go of the directory, for every object that shares the store; using one reopens it."""
        self._shared.close()

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Store nodes with their embeddings; one whose id is there already replaces it.

        Args:
            nodes: Each with its `embedding`; not changed.
            **kwargs: None.

        Returns:
            The node ids, in order.

        Raises:
            InvalidInputError: A node has no embedding, or one of another dimension than the rest.
            FingerprintError: The store's vectors were made by another model.
            StoreError: The store cannot be written.
        """
        refuse(kwargs, allowed="nodes")
        require_all("nodes", nodes, BaseNode, "a node with its embedding")
        if not nodes:
            return []
        passages, vectors = [as_passage(node) for node in nodes], vectors_of(nodes)
        ids = [passage.id for passage in passages]
        if self._check is not None:
            texts = [passage.text for passage in passages]
            bare = lambda row: nodes[row].get_content(MetadataMode.NONE)  # noqa: E731
            self._check.passages(ids, texts, vectors, bare)
        with self._shared.using() as store:
            # the store looks at vectors batch by batch; here they are all at hand
            check_vectors(vectors, [f"node {key!r}" for key in ids], store.dimension)
            store.upsert(passages, vectors)
        return ids

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes that came from a document; none is no error."""
        refuse(delete_kwargs, allowed="ref_doc_id")
        require_kind("ref_doc_id", ref_doc_id, str, "the id of a document")
        with self._shared.using() as store:
            store.delete(where={REF_DOC_ID: ref_doc_id})

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes by id, by filter, or those that both name; missing ones are no error.

        Raises:
            InvalidInputError: Neither is given (`clear` deletes everything), or a filter cannot
                be decided.
        """
        refuse(delete_kwargs, allowed="node_ids, filters")
        where = to_where(filters)
        if node_ids is None and where is None:
            msg = "delete_nodes needs node_ids or filters. To delete all nodes, use clear()."
            raise InvalidInputError(msg)
        with self._shared.using() as store:
            store.delete(ids=node_ids, where=where)

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Nodes by id (in that order), by filter, or those that both name; all for neither."""
        with self._shared.using() as store:
            return [as_node(passage) for passage in store.get(node_ids, to_where(filters))]

    def clear(self) -> None:
        """Delete all nodes."""
        with self._shared.using() as store:
            store.clear()

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search the nodes.

        Args:
            query: Its `mode` is DEFAULT (vectors), TEXT_SEARCH or SPARSE (BM25), HYBRID (both,
                fused; `alpha` from 0, only BM25, to 1, only vectors), or MMR (near to the query
                and far from each other). `filters`, `doc_ids` and `node_ids` hold in every mode.
                `hybrid_top_k` and `sparse_top_k` win over `similarity_top_k` in their mode.
            **kwargs: `min_score`, the least relevance of a node, 0 to 1 (where none fits, none
                comes); `window`, how many neighbours on each side: metadata "window" is then the
                text with theirs, for a `MetadataReplacementPostProcessor`; in mode MMR
                `mmr_threshold` (0: most diverse, to 1: nearest; default 0.5), and of how many
                nearest nodes are chosen: `mmr_prefetch_factor` times as many as asked for
                (default 4), or `mmr_prefetch_k`.

        Returns:
            Nodes, best first, with the score that ranked them: cosine similarity, BM25, or the
            fused score.

        Raises:
            InvalidInputError: The mode or a filter is not supported, or the query lacks what its
                mode needs.
            FingerprintError: The store's vectors were made by another model.
        """
        least, window = kwargs.pop("min_score", None), kwargs.pop("window", None)
        search = as_search(query)
        diversity = as_diversity(query, kwargs)
        if search.vector is not None and self._check is not None:
            self._check.query(query.query_str, search.vector)
        with self._shared.using() as store:
            hits = store.search(
                search.query,
                diversity.fetch if diversity else search.k,
                search.strategy,
                search.where,
                vector=search.vector,
                weight=query.alpha,
                min_score=least,
            )
            if diversity:
                hits = chosen(hits, search, diversity, store)
            around = windows(store, [hit.passage for hit in hits], window, own_words)
        return VectorStoreQueryResult(
            nodes=[within(as_node(hit.passage), around.get(hit.id)) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """As `add`, without blocking the event loop."""
        return await in_thread(self._shared.lane("bulk"), self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """As `delete`, without blocking the event loop."""
        await in_thread(self._shared.lane("bulk"), self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """As `delete_nodes`, without blocking the event loop."""
        await in_thread(
            self._shared.lane("bulk"), self.delete_nodes, node_ids, filters, **delete_kwargs
        )

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """As `get_nodes`, without blocking the event loop."""
        return await in_thread(self._shared.lane("query"), self.get_nodes, node_ids, filters)

    async def aclear(self) -> None:
        """As `clear`, without blocking the event loop."""
        await in_thread(self._shared.lane("bulk"), self.clear)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As `query`, without blocking the event loop."""
        return await in_thread(self._shared.lane("query"), self.query, query, **kwargs)
