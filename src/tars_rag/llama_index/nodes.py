"""LlamaIndex's nodes as passages, and back; its query as a search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from tars_rag.adapters.arguments import refuse, require_kind
from tars_rag.adapters.ordering import diverse
from tars_rag.errors import InvalidInputError, shown
from tars_rag.llama_index.filters import Where, both, to_where
from tars_rag.retrieval.indexes.checks import matrix
from tars_rag.retrieval.passage import CONTEXT, Passage, ScoredPassage
from tars_rag.retrieval.store import HybridStore
from tars_rag.runtimes.base import FloatArray
from tars_rag.settings import Strategy

NODE, NODE_ID, REF_DOC_ID = "_node", "_node_id", "_ref_doc_id"
"""Keys of a passage's metadata: the whole node, and what nodes are filtered and deleted by."""
_FRAMEWORK_KEYS = ("document_id", "doc_id", "ref_doc_id")  # set to filter by; the node's own win
_STRATEGIES: dict[VectorStoreQueryMode, Strategy] = {
    VectorStoreQueryMode.DEFAULT: "naive",
    VectorStoreQueryMode.TEXT_SEARCH: "lexical",
    VectorStoreQueryMode.SPARSE: "lexical",
    VectorStoreQueryMode.HYBRID: "hybrid",
    VectorStoreQueryMode.MMR: "naive",
}
_NEARNESS, _PREFETCH, _MOST = 0.5, 4.0, 1 << 40


def as_passage(node: BaseNode) -> Passage:
    """What is found by is the text that was embedded; the node itself rides along as JSON."""
    metadata = node_to_metadata_dict(node)
    metadata.pop(CONTEXT, None)  # the vector was made without it; the node keeps it
    whole = {key: metadata.pop(key) for key in ("_node_content", "_node_type")}
    own = {key: node.metadata[key] for key in _FRAMEWORK_KEYS if key in node.metadata}
    reserved = {NODE: whole, NODE_ID: node.node_id, REF_DOC_ID: node.ref_doc_id}
    text = node.get_content(metadata_mode=MetadataMode.EMBED)
    return Passage(node.node_id, text, {**metadata, **own, **reserved})


def as_node(passage: Passage) -> BaseNode:
    """The node that a passage was made from; a text node for what LangChain or files brought."""
    whole = passage.metadata.get(NODE)
    if whole is None:
        kept = [key for key in (CONTEXT,) if key in passage.metadata]
        return TextNode(
            id_=passage.id,
            text=passage.text,
            metadata=dict(passage.metadata),
            excluded_llm_metadata_keys=kept,  # its parts are there as title and heading
        )
    return metadata_dict_to_node(whole)


def own_words(passage: Passage) -> Passage:
    """The text of a passage's node without the metadata it is embedded with, and its place."""
    node = as_node(passage)
    place = {"start": passage.metadata.get("start"), "end": passage.metadata.get("end")}
    if None in place.values() and isinstance(node, TextNode):  # another splitter's
        place = {"start": node.start_char_idx, "end": node.end_char_idx}
    return Passage(passage.id, node.get_content(MetadataMode.NONE), place)


def within(node: BaseNode, around: str | None) -> BaseNode:
    """The node, with the text around it where it was asked for (see `neighbours.windows`)."""
    if around is not None:
        node.metadata["window"] = around
        node.excluded_llm_metadata_keys.append("window")  # a model would read the text twice
        node.excluded_embed_metadata_keys.append("window")
    return node


def vectors_of(nodes: Sequence[BaseNode]) -> FloatArray:
    """Their embeddings, float32 [n, dim].

    Raises:
        InvalidInputError: A node has none, or one of another length than the rest.
    """
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


@dataclass(frozen=True)
class NodeSearch:
    """A `VectorStoreQuery` in the terms of `HybridStore.search`.

    Attributes:
        query: The words; empty where only the vector counts.
        vector: float32 [dim]; None where only the words count.
        k: How many nodes.
        strategy: Vectors, words, or both.
        where: Its filters and ids as one, in Chroma's filter language.
    """

    query: str
    vector: FloatArray | None
    k: int
    strategy: Strategy
    where: Where | None


def as_search(query: VectorStoreQuery) -> NodeSearch:
    """Translate a query.

    Raises:
        InvalidInputError: Its mode or a filter is not supported, or it lacks what its mode needs.
    """
    require_kind("query", query, VectorStoreQuery, "a VectorStoreQuery (an index makes them)")
    strategy = _STRATEGIES.get(query.mode)
    if strategy is None:
        allowed = ", ".join(mode.value for mode in _STRATEGIES)
        msg = f"Query mode {query.mode.value!r} is not supported. Supported: {allowed}."
        raise InvalidInputError(msg)
    if strategy != "naive" and query.query_str is None:
        msg = f"Query mode {query.mode.value!r} needs a query_str."
        raise InvalidInputError(msg)
    if strategy != "lexical" and query.query_embedding is None:
        msg = (
            f"Query mode {query.mode.value!r} needs a query_embedding: embed the query first, as "
            "an index's retriever does."
        )
        raise InvalidInputError(msg)
    vector = query.query_embedding
    row = None if vector is None else matrix([vector], ["the query"])[0]
    return NodeSearch(query.query_str or "", row, _top_k(query), strategy, _restriction(query))


@dataclass(frozen=True)
class Diversity:
    """What maximal marginal relevance is told.

    Attributes:
        fetch: Of how many nearest nodes some are chosen.
        nearness: 1 chooses by nearness alone, 0 by difference alone.
    """

    fetch: int
    nearness: float


def as_diversity(query: VectorStoreQuery, kwargs: Mapping[str, Any]) -> Diversity | None:
    """What a query in MMR mode says of it, with LlamaIndex's names; None in another mode.

    Raises:
        InvalidInputError: An argument is not usable, or belongs to another mode.
    """
    if query.mode != VectorStoreQueryMode.MMR:
        refuse(
            kwargs,
            allowed="query, min_score, window (mmr_threshold and the like belong to mode 'mmr')",
        )
        return None
    names = ("mmr_threshold", "mmr_prefetch_k", "mmr_prefetch_factor")
    refuse(kwargs.keys() - set(names), allowed=f"query, min_score, window, {', '.join(names)}")
    given = query.mmr_threshold if query.mmr_threshold is not None else kwargs.get(names[0])
    nearness = _NEARNESS if given is None else given
    factor = kwargs.get("mmr_prefetch_factor", _PREFETCH)
    fetch = kwargs.get("mmr_prefetch_k")
    for name, value in (("mmr_threshold", nearness), ("mmr_prefetch_factor", factor)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            msg = f"{name} must be a number of at least 0, got {shown(value)}."
            raise InvalidInputError(msg)
    if fetch is None:
        fetch = max(1, math.ceil(min(factor, _MOST) * min(query.similarity_top_k, _MOST)))
    if isinstance(fetch, bool) or not isinstance(fetch, int) or fetch < 1:
        msg = f"mmr_prefetch_k must be a whole number of at least 1, got {shown(fetch)}."
        raise InvalidInputError(msg)
    return Diversity(max(fetch, query.similarity_top_k), float(nearness))


def chosen(
    hits: Sequence[ScoredPassage], search: NodeSearch, diversity: Diversity, store: HybridStore
) -> list[ScoredPassage]:
    """Those of the nearest that are near and differ from each other."""
    stored = store.vectors(hit.id for hit in hits)
    hits = [hit for hit in hits if hit.id in stored]  # one may have been deleted meanwhile
    if not hits or search.vector is None:
        return []
    vectors = np.stack([stored[hit.id] for hit in hits])
    return [hits[row] for row in diverse(search.vector, vectors, search.k, diversity.nearness)]


def _top_k(query: VectorStoreQuery) -> int:
    own = {
        VectorStoreQueryMode.HYBRID: query.hybrid_top_k,
        VectorStoreQueryMode.SPARSE: query.sparse_top_k,
    }.get(query.mode)
    return query.similarity_top_k if own is None else own


def _restriction(query: VectorStoreQuery) -> Where | None:
    """Filters and ids as one; an index that keeps no ids of its own sends empty lists."""
    documents = {REF_DOC_ID: {"$in": query.doc_ids}} if query.doc_ids else None
    nodes = {NODE_ID: {"$in": query.node_ids}} if query.node_ids else None
    return both(to_where(query.filters), documents, nodes)
