"""`TarsEmbedding`: LlamaIndex's `BaseEmbedding` on the NPU or the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from pydantic import ConfigDict, Field
from typing_extensions import Unpack

from tars_rag.adapters.arguments import require_kind
from tars_rag.adapters.foreign import ForeignEmbedder
from tars_rag.adapters.model_fields import EmbedderArguments, EmbedderFields
from tars_rag.adapters.threads import in_thread
from tars_rag.adapters.vector_check import VectorCheck

if TYPE_CHECKING:
    from tars_rag.models.embedder import Embedder
    from tars_rag.retrieval.remote.models import RemoteEmbedder


class _Arguments(EmbedderArguments, total=False):
    embed_batch_size: int
    callback_manager: CallbackManager
    num_workers: int | None
    embeddings_cache: Any
    rate_limiter: Any


class TarsEmbedding(EmbedderFields, BaseEmbedding):
    """Sentence embeddings of a catalogue model, unit length, from the NPU, the CPU or a server.

    The model is opened on first use. Objects with equal settings, copies and pickles included,
    share one open model. Unknown arguments are refused.

    Example:
        ```python
        Settings.embed_model = TarsEmbedding(model="all-MiniLM-L6-v2", device="auto")
        TarsEmbedding(base_url="http://board:7588", api_key="...")  # what `tars-rag serve` has
        ```
    """

    model_config = ConfigDict(extra="forbid")  # the base leaves it open

    embed_batch_size: int = Field(
        512,
        gt=0,
        le=2048,
        description="Texts handed over at a time; they are batched by length inside, so many "
        "at a time is faster. Each time gives one embedding event.",
    )

    if TYPE_CHECKING:

        def __init__(self, **settings: Unpack[_Arguments]) -> None: ...

    @classmethod
    def class_name(cls) -> str:
        """The name that serialised settings carry."""
        return "TarsEmbedding"

    @property
    def fingerprint(self) -> str:
        """What a store records, so that vectors of different kinds never mix."""
        return self.embedder.fingerprint

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self.embedder.embed_query(query).tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.embedder.embed(texts).tolist()
        return vectors

    async def _aget_query_embedding(self, query: str) -> list[float]:
        if self.base_url is None:
            return await in_thread("query", self._get_query_embedding, query)
        embedder = await self._remote_embedder()
        vector: list[float] = (await embedder.aembed_query(query)).tolist()
        return vector

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        if self.base_url is None:
            return await in_thread("bulk", self._get_text_embeddings, texts)
        embedder = await self._remote_embedder()
        vectors: list[list[float]] = (await embedder.aembed(texts)).tolist()
        return vectors


def embedder_of(
    embed_model: BaseEmbedding,
) -> tuple[Embedder | RemoteEmbedder | ForeignEmbedder, VectorCheck]:
    """What embeds for a store, and compares vectors with what it makes itself.

    Raises:
        InvalidInputError: `embed_model` is no embedding model, or does not return vectors.
    """
    wanted = "an embedding model, as in TarsVectorStore('my-store', TarsEmbedding())"
    require_kind("embed_model", embed_model, BaseEmbedding, wanted)
    embedder = (
        embed_model.embedder
        if isinstance(embed_model, TarsEmbedding)
        else ForeignEmbedder(
            embed_model, embed_model.get_text_embedding_batch, embed_model.get_query_embedding
        )
    )
    return embedder, VectorCheck(embedder.embed, embedder.embed_query, embedder.fingerprint)
