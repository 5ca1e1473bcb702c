"""What clients of OpenAI, Jina, Cohere, text-embeddings-inference and Ollama send and are told.

Fields that mean nothing here (`user`, `keep_alive`) are taken and ignored, as those servers do. The
answers are for the description: nothing is checked again on its way out.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from tars_rag.retrieval.http_contract import ListOf


class _Sent(BaseModel):
    model_config = ConfigDict(extra="ignore")


class EmbeddingsRequest(_Sent):
    """OpenAI's, with `input_type` beside: models with prompts read queries otherwise."""

    input: StrictStr | ListOf[StrictStr] = Field(examples=["the fan runs above 60 degrees"])
    model: str | None = Field(None, examples=["default"])
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = Field(None, ge=1, description="Only the model's own.")
    input_type: Literal["query", "passage", "search_query", "search_document"] = "passage"


class OllamaEmbedRequest(_Sent):
    """Ollama's ``/api/embed``."""

    model: str = Field(examples=["default"])
    input: StrictStr | ListOf[StrictStr] = Field(examples=["the fan runs above 60 degrees"])
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
    documents: ListOf[StrictStr | DocumentText] | None = Field(
        None, examples=[["The fan has a switch.", "Cats sleep."]]
    )
    texts: ListOf[StrictStr] | None = None
    model: str | None = None
    top_n: StrictInt | None = Field(None, ge=1)
    return_documents: StrictBool | None = None
    return_text: StrictBool = False
    raw_scores: StrictBool = False
    budget_ms: float | None = Field(
        None, ge=0, description="Score what fits in this time; the others are not in the answer."
    )

    def contents(self) -> list[str]:
        """The texts, whichever way they were sent."""
        given: list[Any] = (self.documents if self.documents is not None else self.texts) or []
        return [one if isinstance(one, str) else one.text for one in given]


class EmbeddingRow(BaseModel):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="As base64: little-endian float32.")


class Usage(BaseModel):
    """What was read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """OpenAI's."""

    object: Literal["list"] = "list"
    model: str
    data: list[EmbeddingRow]
    usage: Usage


class OllamaEmbedAnswer(BaseModel):
    """Ollama's; durations are nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingsAnswer(BaseModel):
    """Ollama's older one."""

    embedding: list[float]


class OllamaTagsAnswer(BaseModel):
    """Ollama's list of models."""

    models: list[dict[str, Any]]


class VersionAnswer(BaseModel):
    """The version of this package."""

    version: str


class Ranked(BaseModel):
    """A document's place."""

    index: int
    relevance_score: float = Field(ge=0, le=1)
    document: DocumentText | None = None


class RerankAnswer(BaseModel):
    """Jina's and Cohere's: best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: Usage
    meta: dict[str, Any]


class TeiRanked(BaseModel):
    """A row of text-embeddings-inference's answer, best first."""

    index: int
    score: float = Field(ge=0, le=1)
    text: str | None = None


class HealthAnswer(BaseModel):
    """How the server is."""

    status: Literal["ok", "busy"]
    texts_waiting: int | None = Field(None, description="Only of /health/ready.")
