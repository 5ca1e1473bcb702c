"""`TarsEmbeddings`: LangChain's `Embeddings` on the NPU or the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings
from langchain_core.load.serializable import Serializable
from pydantic import ConfigDict
from typing_extensions import Unpack

from tars_rag.adapters.model_fields import EmbedderArguments, EmbedderFields
from tars_rag.adapters.threads import in_thread
from tars_rag.retrieval.address import API_KEY


class TarsEmbeddings(EmbedderFields, Serializable, Embeddings):
    """Sentence embeddings of a catalogue model, unit length, from the NPU, the CPU or a server.

    The model is opened on first use. Objects with equal settings, copies and pickles included,
    share one open model. Unknown arguments are refused.

    Example:
        ```python
        embeddings = TarsEmbeddings(model="all-MiniLM-L6-v2", device="auto")
        vector = embeddings.embed_query("What does the reranker run on?")
        TarsEmbeddings(base_url="http://board:7588", api_key="...")  # what `tars-rag serve` has
        ```
    """

    model_config = ConfigDict(extra="forbid")  # the bases leave it open

    if TYPE_CHECKING:

        def __init__(self, **settings: Unpack[EmbedderArguments]) -> None: ...

    @property
    def fingerprint(self) -> str:
        """What a store records, so that vectors of different kinds never mix."""
        return self.embedder.fingerprint

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts, in any number and of any length; batches are formed inside.

        Args:
            texts: The texts; longer ones are cut at the model's maximum length.

        Returns:
            One unit-length vector of Python floats for each text, in the same order.

        Raises:
            InvalidInputError: Not a list of strings.
            ModelError: The model is unknown, missing or damaged.
            DeviceError: The device gave no answer that can be trusted.
        """
        vectors: list[list[float]] = self.embedder.embed(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed one text that somebody waits for: it overtakes bulk work on the device.

        Args:
            text: The query.

        Returns:
            A unit-length vector of Python floats.

        Raises:
            InvalidInputError: Not a string.
            ModelError: The model is unknown, missing or damaged.
            DeviceError: The device gave no answer that can be trusted.
        """
        vector: list[float] = self.embedder.embed_query(text).tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`, without blocking the event loop."""
        if self.base_url is not None:
            embedder = await self._remote_embedder()
            vectors: list[list[float]] = (await embedder.aembed(texts)).tolist()
            return vectors
        return await in_thread("bulk", self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, without blocking the event loop or waiting behind bulk work."""
        if self.base_url is not None:
            embedder = await self._remote_embedder()
            vector: list[float] = (await embedder.aembed_query(text)).tolist()
            return vector
        return await in_thread("query", self.embed_query, text)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: the settings are plain values; the key of a server is named, not written."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Which variable has the server's key when serialised settings are loaded."""
        return {"api_key": API_KEY}

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where serialised settings are loaded from, whatever file the class moves to."""
        return ["tars_rag", "langchain"]
