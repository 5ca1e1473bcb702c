"""What is said about stores over HTTP: the contract of server and remote client.

Only pydantic is imported here, which every installation has: a client needs no extra for it.
Vectors are base64 of little-endian float32 (`pack_vector`, `unpack_vector`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from tars_rag import errors
from tars_rag.errors import InvalidInputError, TarsRagError
from tars_rag.retrieval.address import DEFAULT_MODEL
from tars_rag.retrieval.passage import Passage, ScoredPassage
from tars_rag.retrieval.timing import Step
from tars_rag.settings import Strategy

MOST_K: Final = 1000
"""Passages in one answer of a search."""
MOST_PASSAGES: Final = 1024
"""Passages, ids or vectors in one request; a client sends more of them in several."""
MOST_WINDOW: Final = 20
MOST_FIELDS: Final = 64
"""Fields of one object; every one that is unknown would be an error of its own."""

T = TypeVar("T")
ListOf: TypeAlias = Annotated[list[T], Field(fail_fast=True)]
"""Checked up to the first element that is wrong: an error for each of millions takes gigabytes."""

STATUS_OF: Final[Mapping[type[TarsRagError], int]] = {
    errors.InvalidInputError: 400,
    errors.ConfigError: 400,
    errors.FingerprintError: 409,
    errors.StoreLockedError: 423,
    errors.TarsRagError: 503,
}
"""HTTP status of an error; a class that is not here has that of the nearest base."""


_SCORES: Final = (
    "score",
    "relevance",
    "vector_score",
    "lexical_score",
    "fused_score",
    "rerank_score",
    "lexical_share",
)


def status_of(error: TarsRagError) -> int:
    """The HTTP status of an error of this package."""
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)


class Said(BaseModel):
    """What a client may say: a misspelt field is an error, not silence."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > MOST_FIELDS:
            msg = f"{len(given)} fields, where {MOST_FIELDS} are the most"
            raise ValueError(msg)
        return given


class ErrorBody(BaseModel):
    """Why a request failed.

    `type` is the name of a class of `tars_rag.errors`, or one of ``NotFound`` (404),
    ``Unauthorized`` (401), ``Forbidden`` (403: another Host, or a write to a read-only store),
    ``TooLarge`` (413), ``Overloaded`` (429, with Retry-After), ``Timeout`` (408, 504),
    ``Stopping`` (503, with Retry-After).
    """

    message: str
    type: str


class ErrorAnswer(BaseModel):
    """Every answer whose status is 400 or above."""

    error: ErrorBody


class PassageBody(Said):
    """A passage, as `Passage`."""

    id: str
    text: str
    metadata: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, passage: Passage) -> PassageBody:
        """A passage to be sent; nothing of it is checked again."""
        return cls.model_construct(
            id=passage.id, text=passage.text, metadata=dict(passage.metadata)
        )

    def passage(self) -> Passage:
        """What was sent."""
        return Passage(self.id, self.text, self.metadata)


class HitBody(PassageBody):
    """A passage that was found, as `ScoredPassage`; `window` has it with its neighbours."""

    score: float
    relevance: float = Field(description="How well it fits, 0 to 1, the same in every query.")
    vector_score: float | None = None
    lexical_score: float | None = None
    fused_score: float | None = None
    rerank_score: float | None = None
    lexical_share: float | None = None
    window: list[PassageBody] | None = None

    @classmethod
    def of_hit(cls, hit: ScoredPassage, window: list[Passage] | None = None) -> HitBody:
        """A hit to be sent."""
        scores = {name: getattr(hit, name) for name in _SCORES}
        return cls.model_construct(
            id=hit.id,
            text=hit.text,
            metadata=dict(hit.metadata),
            window=None if window is None else [PassageBody.of(near) for near in window],
            **scores,
        )

    def hit(self) -> ScoredPassage:
        """What was found."""
        return ScoredPassage(
            self.passage(),
            self.score,
            self.vector_score,
            self.lexical_score,
            self.fused_score,
            self.rerank_score,
            self.lexical_share,
        )


class StepBody(BaseModel):
    """How long one step took."""

    name: str
    milliseconds: float
    device: str = ""
    note: str = ""

    @classmethod
    def of(cls, step: Step) -> StepBody:
        """A step to be sent."""
        return cls(
            name=step.name, milliseconds=step.milliseconds, device=step.device, note=step.note
        )


class StoreAnswer(BaseModel):
    """``GET /v1/stores/{name}``: what a store says of itself."""

    object: str = "store"
    name: str
    fingerprint: str = Field(description="Of the embedder that made its vectors.")
    dimension: int | None
    language: str
    count: int
    read_only: bool
    model: str = Field(description="The embedder, as /v1/models names it.")
    reranker: str | None = Field(description="The reranker; null: fusion decides.")
    unrelated_cosine: float = Field(
        0.0, description="Cosine of texts that have nothing to do with each other."
    )
    probe: str | None = Field(None, description="What the embedder made of one fixed text, packed.")


class StoresAnswer(BaseModel):
    """``GET /v1/stores``."""

    object: str = "list"
    data: list[StoreAnswer]


class SearchRequest(Said):
    """``POST /v1/stores/{name}/search``."""

    query: str | None = Field(None, examples=["how is the fan switched on"])
    k: StrictInt = Field(5, ge=1, le=MOST_K)
    strategy: Strategy = "hybrid"
    where: dict[str, Any] | None = Field(None, description="Chroma's filter on the metadata.")
    vector: str | None = Field(None, description="The query's vector, packed, if it is there.")
    weight: float | None = Field(None, ge=0, le=1, description='Share of vectors in "hybrid".')
    min_score: float | None = Field(None, ge=0, le=1, description="The least relevance of a hit.")
    every: StrictBool = Field(False, description='Of "hybrid": all that was fused for these k.')
    rerank: StrictBool | None = Field(
        None, description="null: where there is a reranker; true: it is an error if there is none."
    )
    candidates: StrictInt = Field(20, ge=1, le=MOST_K, description="How many are reranked.")
    budget_ms: float | None = Field(None, gt=0, description="Rerank what fits in this time.")
    window: StrictInt = Field(0, ge=0, le=MOST_WINDOW, description="Neighbours on each side.")


class SearchAnswer(BaseModel):
    """Hits, best first, and where the time went."""

    passages: list[HitBody]
    steps: list[StepBody]


class UpsertRequest(Said):
    """``POST /v1/stores/{name}/passages``: acknowledged when it is on disk."""

    passages: ListOf[PassageBody] = Field(max_length=MOST_PASSAGES)
    vectors: ListOf[str] | None = Field(
        None, description="Packed, one for each passage, if they are there already."
    )
    fingerprint: str | None = Field(
        None, description="Of the vectors: refused (409) if it is not the store's."
    )


class UpsertAnswer(BaseModel):
    """How many passages of the request are stored, those that were there already included."""

    stored: int


class GetRequest(Said):
    """``POST /v1/stores/{name}/get``: by id, by filter, or by both."""

    ids: ListOf[str] | None = Field(None, max_length=MOST_PASSAGES)
    where: dict[str, Any] | None = None
    limit: StrictInt | None = Field(None, ge=0, le=1_000_000)
    window: StrictInt = Field(0, ge=0, le=MOST_WINDOW, description="With ids: neighbours, too.")


class GetAnswer(BaseModel):
    """In the order of `ids`, unknown ones left out."""

    passages: list[PassageBody]


class MatchingRequest(Said):
    """``POST /v1/stores/{name}/matching``: which of the ids (null: of all) pass the filter."""

    ids: ListOf[str] | None = Field(None, max_length=MOST_PASSAGES)
    where: dict[str, Any] | None = None


class MatchingAnswer(BaseModel):
    """Those that are there and pass."""

    ids: list[str]


class NothingRequest(Said):
    """A request that needs no words."""


class VectorsRequest(Said):
    """``POST /v1/stores/{name}/vectors``."""

    ids: ListOf[str] = Field(max_length=MOST_PASSAGES)


class VectorsAnswer(BaseModel):
    """Packed vectors by id, unknown ones left out."""

    vectors: dict[str, str]


class DeleteRequest(Said):
    """``POST /v1/stores/{name}/delete``: by id, by filter or by both; or `all` of them."""

    ids: ListOf[str] | None = Field(None, max_length=MOST_PASSAGES)
    where: dict[str, Any] | None = None
    all: StrictBool = False


class DeleteAnswer(BaseModel):
    """How many passages were deleted."""

    deleted: int


class CountAnswer(BaseModel):
    """``GET`` or ``POST /v1/stores/{name}/count``; ``POST .../flush`` answers it, too."""

    count: int


class ModelAnswer(BaseModel):
    """One of ``GET /v1/models``: OpenAI's fields, and what a client must know of a model."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "tars-rag"
    kind: str = Field(description="embedder or reranker")
    fingerprint: str | None = Field(None, description="Of an embedder's vectors.")
    dimension: int | None = None
    device: str | None = None
    unrelated_cosine: float = 0.0


class ModelsAnswer(BaseModel):
    """``GET /v1/models``."""

    object: str = "list"
    data: list[ModelAnswer]


def names(given: str, *known: str) -> bool:
    """Whether a client's name for a model is one of these names of it, or ``default``."""
    own = {name.lower() for name in known}
    own |= {name.rpartition("/")[2] for name in own} | {DEFAULT_MODEL}
    return given.lower().removesuffix(":latest") in own


def pack_vector(vector: ArrayLike) -> str:
    """A vector [dim] as base64 of little-endian float32."""
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode("ascii")


def unpack_vector(text: str, what: str = "vector") -> NDArray[np.float32]:
    """A packed vector, float32 [dim].

    Raises:
        InvalidInputError: It is not base64 of whole float32 numbers.
    """
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
        return np.frombuffer(raw, "<f4").astype(np.float32)
    except (ValueError, binascii.Error) as error:
        msg = f"{what} is not base64 of little-endian float32 numbers ({error}). Pack it so."
        raise InvalidInputError(msg) from None
