"""What clients of OpenAI, Jina, Cohere, text-embeddings-inference and Ollama send.

Fields that mean nothing here (`user`, `keep_alive`) are taken and ignored, as those servers do.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr


class _Sent(BaseModel):
    model_config = ConfigDict(extra="ignore")


class EmbeddingsRequest(_Sent):
    """OpenAI's, with `input_type` beside: models with prompts read queries otherwise."""

    input: StrictStr | list[StrictStr] = Field(examples=["the fan runs above 60 degrees"])
    model: str | None = Field(None, examples=["default"])
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = Field(None, ge=1, description="Only the model's own.")
    input_type: Literal["query", "passage", "search_query", "search_document"] = "passage"


class OllamaEmbedRequest(_Sent):
    """Ollama's ``/api/embed``."""

    model: str = Field(examples=["default"])
    input: StrictStr | list[StrictStr] = Field(examples=["the fan runs above 60 degrees"])
    truncate: StrictBool = True
    dimensions: StrictInt | None = Field(None, ge=1)


class OllamaEmbeddingsRequest(_Sent):
    """Ollama's older ``/api/embeddings``."""

    model: str = Field(examples=["default"])
    prompt: StrictStr = Field(examples=["the fan runs above 60 degrees"])


class DocumentText(_Sent):
    """A document as an object; only its text counts."""

    text: StrictStr


class RerankRequest(_Sent):
    """Jina's and Cohere's (`documents`), or text-embeddings-inference's (`texts`)."""

    query: StrictStr = Field(examples=["how is the fan switched on"])
    documents: list[StrictStr | DocumentText] | None = Field(
        None, examples=[["The fan has a switch.", "Cats sleep."]]
    )
    texts: list[StrictStr] | None = None
    model: str | None = None
    top_n: StrictInt | None = Field(None, ge=1)
    return_documents: StrictBool | None = None
    return_text: StrictBool = False
    raw_scores: StrictBool = False

    def contents(self) -> list[str]:
        """The texts, whichever way they were sent."""
        given: list[Any] = (self.documents if self.documents is not None else self.texts) or []
        return [one if isinstance(one, str) else one.text for one in given]
