"""`TarsRerank`: LlamaIndex's `BaseNodePostprocessor` over a cross-encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from pydantic import ConfigDict, Field
from typing_extensions import Self, Unpack

from tars_rag.adapters.arguments import require_all
from tars_rag.adapters.model_fields import RerankerArguments, RerankerFields
from tars_rag.adapters.ordering import ranked
from tars_rag.adapters.threads import in_thread
from tars_rag.errors import InvalidInputError
from tars_rag.runtimes.base import FloatArray
from tars_rag.settings import Settings

dispatcher = get_dispatcher(__name__)


class _Arguments(RerankerArguments, total=False):
    top_n: int | None
    budget_ms: float | None
    keep_retrieval_score: bool
    callback_manager: CallbackManager


class TarsRerank(RerankerFields, BaseNodePostprocessor):
    """Orders nodes by a cross-encoder's score, in FlashRank's scale of 0 to 1.

    The `NodeWithScore` objects that come back are new; the ones passed in are not touched.

    Example:
        ```python
        engine = index.as_query_engine(
            similarity_top_k=20, node_postprocessors=[TarsRerank(top_n=3)]
        )
        ```
    """

    model_config = ConfigDict(extra="forbid")  # the base leaves it open

    top_n: int | None = Field(3, ge=1, description="Nodes to return; None: all.")
    budget_ms: float | None = Field(
        None,
        gt=0,
        description="Time allowed for scoring, in milliseconds. Nodes it had no time for follow "
        "the scored ones in the order they came, with a score of None.",
    )
    keep_retrieval_score: bool = Field(
        False, description="Keep the score a node came with in metadata['retrieval_score']."
    )

    if TYPE_CHECKING:

        def __init__(self, **settings: Unpack[_Arguments]) -> None: ...

    @classmethod
    def class_name(cls) -> str:
        """The name that serialised settings carry."""
        return "TarsRerank"

    @classmethod
    def from_env(cls, **overrides: Any) -> Self:
        """As for RERANK_MODEL and the device variables, and MEMORY_TOP_K as `top_n`.

        Args:
            **overrides: Fields that win over the environment.

        Raises:
            ConfigError: A variable has a value that is not allowed, or RERANK_MODEL is empty.
        """
        return super().from_env(**{"top_n": Settings.from_env().memory_top_k, **overrides})

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = self._start(nodes, query_bundle)
        if not nodes:
            return []
        with self.callback_manager.event(
            CBEventType.RERANKING, payload=self._payload(nodes, query)
        ) as event:
            result = self._order(nodes, self._score(nodes, query))
            event.on_end(payload={EventPayload.NODES: result})
        dispatcher.event(ReRankEndEvent(nodes=result))
        return result

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = self._start(nodes, query_bundle)
        if not nodes:
            return []
        with self.callback_manager.event(
            CBEventType.RERANKING, payload=self._payload(nodes, query)
        ) as event:
            result = self._order(nodes, await self._ascore(nodes, query))
            event.on_end(payload={EventPayload.NODES: result})
        dispatcher.event(ReRankEndEvent(nodes=result))
        return result

    def _start(self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None) -> str:
        require_all("nodes", nodes, NodeWithScore, "a NodeWithScore")
        dispatcher.event(
            ReRankStartEvent(
                query=query_bundle,
                nodes=nodes,
                top_n=len(nodes) if self.top_n is None else self.top_n,
                model_name=self.model_name,
            )
        )
        if query_bundle is None:
            msg = "TarsRerank needs a query: pass query_bundle or query_str."
            raise InvalidInputError(msg)
        return query_bundle.query_str

    def _payload(self, nodes: list[NodeWithScore], query: str) -> dict[str, Any]:
        return {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model_name,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: self.top_n,
        }

    def _score(self, nodes: list[NodeWithScore], query: str) -> FloatArray:
        return self.reranker.score(query, _texts(nodes), budget_ms=self.budget_ms)

    async def _ascore(self, nodes: list[NodeWithScore], query: str) -> FloatArray:
        if self.base_url is None:
            return await in_thread("query", self._score, nodes, query)
        reranker = await self._remote_reranker()
        return await reranker.ascore(query, _texts(nodes), self.budget_ms)

    def _order(self, nodes: list[NodeWithScore], scores: FloatArray) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=self._node(nodes[row]), score=score)
            for row, score in ranked(scores, self.top_n)
        ]

    def _node(self, scored: NodeWithScore) -> BaseNode:
        node, key = scored.node, "retrieval_score"
        if not self.keep_retrieval_score:
            return node
        return node.model_copy(
            update={
                "metadata": {**node.metadata, key: scored.score},
                # a number for programs: neither the language model nor an embedder reads it
                "excluded_llm_metadata_keys": [*node.excluded_llm_metadata_keys, key],
                "excluded_embed_metadata_keys": [*node.excluded_embed_metadata_keys, key],
            }
        )


def _texts(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
