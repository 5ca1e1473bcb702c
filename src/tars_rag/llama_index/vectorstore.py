"""`TarsVectorStore`: LlamaIndex's `BasePydanticVectorStore` over vectors and BM25, fused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from pydantic import ConfigDict, Field, PrivateAttr
from typing_extensions import Self

from tars_rag.adapters.foreign import ForeignEmbedder, check_probe
from tars_rag.adapters.handle import Handle
from tars_rag.adapters.helpers import refuse
from tars_rag.adapters.shared import PathText
from tars_rag.adapters.threads import in_thread
from tars_rag.errors import InvalidInputError
from tars_rag.llama_index.embedding import TarsEmbedding
from tars_rag.llama_index.filters import Where, both, to_where
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore
from tars_rag.runtimes.base import FloatArray
from tars_rag.settings import Strategy

_NODE, _NODE_ID, _REF_DOC_ID = "_node", "_node_id", "_ref_doc_id"
_FRAMEWORK_KEYS = ("document_id", "doc_id", "ref_doc_id")  # set to filter by; the node's own win
_STRATEGIES: dict[VectorStoreQueryMode, Strategy] = {
    VectorStoreQueryMode.DEFAULT: "naive",
    VectorStoreQueryMode.TEXT_SEARCH: "lexical",
    VectorStoreQueryMode.SPARSE: "lexical",
    VectorStoreQueryMode.HYBRID: "hybrid",
}


class _Recorded:
    """Stands for the model that made the nodes' vectors; the store never embeds by itself."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def embed(self, texts: Sequence[str]) -> FloatArray:
        msg = "The query has no query_embedding: embed it first, as an index's retriever does."
        raise InvalidInputError(msg)


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
    path: PathText = Field(description="The store's directory, made if it is not there.")
    fingerprint: str = Field(description="Names what makes the nodes' vectors.")
    probe: list[float] | None = Field(
        None, repr=False, description="What a foreign model makes of one fixed text."
    )
    read_only: bool = Field(False, description="Open beside a process that writes.")
    chroma_url: str | None = Field(None, description="A Chroma server to keep the vectors in.")

    _handle: Handle = PrivateAttr(default_factory=Handle)

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
            path: The store's directory, made if it is not there.
            embed_model: What makes the nodes' vectors, so that a store made with another one is
                refused.
            fingerprint: The same as a name, where there is no such object.
            **fields: `read_only`, `chroma_url`.

        Raises:
            InvalidInputError: Neither or both of `embed_model` and `fingerprint` are given.
        """
        if (embed_model is None) == (fingerprint is None):
            msg = (
                "TarsVectorStore needs to know what makes its vectors: pass the index's "
                "embed_model, or a fingerprint that names it (not both)."
            )
            raise InvalidInputError(msg)
        if isinstance(embed_model, TarsEmbedding):
            fingerprint = embed_model.fingerprint
        elif embed_model is not None:
            foreign = ForeignEmbedder(
                embed_model, embed_model.get_text_embedding_batch, embed_model.get_query_embedding
            )
            fingerprint, fields["probe"] = foreign.fingerprint, foreign.probe.tolist()
        super().__init__(path=path, fingerprint=fingerprint, **fields)

    @classmethod
    def from_env(
        cls, path: str | Path, embed_model: BaseEmbedding | None = None, **fields: Any
    ) -> Self:
        """As the constructor, with `TarsEmbedding.from_env` where no `embed_model` is given.

        Args:
            path: The store's directory.
            embed_model: What makes the nodes' vectors.
            **fields: `read_only`, `chroma_url`.

        Raises:
            ConfigError: A variable has a value that is not allowed.
        """
        return cls(path, embed_model or TarsEmbedding.from_env(), **fields)

    @classmethod
    def class_name(cls) -> str:
        """The name that serialised settings carry."""
        return "TarsVectorStore"

    @property
    def client(self) -> HybridStore:
        """The `HybridStore` underneath.

        Raises:
            FingerprintError: The store's vectors were made by another model.
            StoreLockedError: Another process writes to this directory.
            StoreError: The store is damaged, or its directory cannot be written.
        """
        path = Path(str(self.path)).absolute()
        made_by = (_Recorded, self.fingerprint)
        key = (HybridStore, path, *made_by, self.read_only, self.chroma_url)
        return self._handle.get(key, lambda: self._open(path))

    def _open(self, path: Path) -> HybridStore:
        store = HybridStore(
            path,
            _Recorded(self.fingerprint),
            read_only=self.read_only,
            chroma_url=self.chroma_url,
        )
        if self.probe is not None:
            check_probe(path, np.asarray(self.probe, np.float32), read_only=self.read_only)
        return store

    def close(self) -> None:
        """Let go of the directory, for every object that shares the store; using one reopens it."""
        self._handle.close()

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
        if not nodes:
            return []
        self.client.upsert([_passage(node) for node in nodes], _vectors(nodes))
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes that came from a document; none is no error."""
        refuse(delete_kwargs, allowed="ref_doc_id")
        self.client.delete(where={_REF_DOC_ID: ref_doc_id})

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
        self.client.delete(ids=node_ids, where=where)

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Nodes by id (in that order), by filter, or those that both name; all for neither."""
        found = self.client.get(ids=node_ids, where=to_where(filters))
        return [_node(passage) for passage in found]

    def clear(self) -> None:
        """Delete all nodes."""
        self.client.clear()

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search the nodes.

        Args:
            query: Its `mode` is DEFAULT (vectors), TEXT_SEARCH or SPARSE (BM25), or HYBRID (both,
                fused; `alpha` from 0, only BM25, to 1, only vectors). `filters`, `doc_ids` and
                `node_ids` hold in every mode. `hybrid_top_k` and `sparse_top_k` win over
                `similarity_top_k` in their mode.
            **kwargs: None.

        Returns:
            Nodes, best first, with the score that ranked them: cosine similarity, BM25, or the
            fused score.

        Raises:
            InvalidInputError: The mode or a filter is not supported, or the query lacks what its
                mode needs.
            FingerprintError: The store's vectors were made by another model.
        """
        refuse(kwargs, allowed="query")
        strategy = _STRATEGIES.get(query.mode)
        if strategy is None:
            allowed = ", ".join(mode.value for mode in _STRATEGIES)
            msg = f"Query mode {query.mode.value!r} is not supported. Supported: {allowed}."
            raise InvalidInputError(msg)
        if strategy != "naive" and query.query_str is None:
            msg = f"Query mode {query.mode.value!r} needs a query_str."
            raise InvalidInputError(msg)
        vector = query.query_embedding
        hits = self.client.search(
            query.query_str or "",
            _top_k(query),
            strategy,
            _restriction(query),
            vector=None if vector is None else np.asarray(vector, np.float32),
            weight=query.alpha,
        )
        return VectorStoreQueryResult(
            nodes=[_node(hit.passage) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """As `add`, without blocking the event loop."""
        return await in_thread("bulk", self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """As `delete`, without blocking the event loop."""
        await in_thread("bulk", self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """As `delete_nodes`, without blocking the event loop."""
        await in_thread("bulk", self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """As `get_nodes`, without blocking the event loop."""
        return await in_thread("query", self.get_nodes, node_ids, filters)

    async def aclear(self) -> None:
        """As `clear`, without blocking the event loop."""
        await in_thread("bulk", self.clear)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As `query`, without blocking the event loop."""
        return await in_thread("query", self.query, query, **kwargs)


def _passage(node: BaseNode) -> Passage:
    """What is found by is the text that was embedded; the node itself rides along as JSON."""
    metadata = node_to_metadata_dict(node)
    whole = {key: metadata.pop(key) for key in ("_node_content", "_node_type")}
    own = {key: node.metadata[key] for key in _FRAMEWORK_KEYS if key in node.metadata}
    reserved = {_NODE: whole, _NODE_ID: node.node_id, _REF_DOC_ID: node.ref_doc_id}
    text = node.get_content(metadata_mode=MetadataMode.EMBED)
    return Passage(node.node_id, text, {**metadata, **own, **reserved})


def _node(passage: Passage) -> BaseNode:
    whole = passage.metadata.get(_NODE)
    if whole is None:  # stored by the command line or through LangChain
        return TextNode(id_=passage.id, text=passage.text, metadata=dict(passage.metadata))
    return metadata_dict_to_node(whole)


def _vectors(nodes: Sequence[BaseNode]) -> FloatArray:
    rows: list[list[float]] = []
    for node in nodes:
        if node.embedding is None:
            msg = f"Node {node.node_id!r} has no embedding: embed nodes before adding them."
            raise InvalidInputError(msg)
        if rows and len(node.embedding) != len(rows[0]):
            msg = (
                f"Node {node.node_id!r} has an embedding of {len(node.embedding)} numbers, the "
                f"others have {len(rows[0])}: embed all nodes with one model."
            )
            raise InvalidInputError(msg)
        rows.append(node.embedding)
    return np.asarray(rows, np.float32)


def _top_k(query: VectorStoreQuery) -> int:
    own = {
        VectorStoreQueryMode.HYBRID: query.hybrid_top_k,
        VectorStoreQueryMode.SPARSE: query.sparse_top_k,
    }.get(query.mode)
    return query.similarity_top_k if own is None else own


def _restriction(query: VectorStoreQuery) -> Where | None:
    """Filters and ids as one; an index that keeps no ids of its own sends empty lists."""
    documents = {_REF_DOC_ID: {"$in": query.doc_ids}} if query.doc_ids else None
    nodes = {_NODE_ID: {"$in": query.node_ids}} if query.node_ids else None
    return both(to_where(query.filters), documents, nodes)
