"""Embeddings and scores, in the shapes that clients of other servers know."""

from __future__ import annotations

import base64
import time
import uuid
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.responses import Response

from tars_rag import __version__
from tars_rag.adapters.threads import in_thread
from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.http_contract import ModelAnswer, ModelsAnswer
from tars_rag.server.answers import ERRORS, Json
from tars_rag.server.schemas import (
    EmbeddingsAnswer,
    EmbeddingsRequest,
    OllamaEmbedAnswer,
    OllamaEmbeddingsAnswer,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaTagsAnswer,
    RerankAnswer,
    RerankRequest,
    TeiRanked,
    VersionAnswer,
)
from tars_rag.server.service import Service


def routes(service: Service) -> APIRouter:
    """The routes of models."""
    router = APIRouter(default_response_class=Json, responses=ERRORS, tags=["models"])

    @router.post("/v1/embeddings", response_model=EmbeddingsAnswer)
    async def embeddings(asked: EmbeddingsRequest) -> Response:
        """Embed texts (OpenAI)."""
        model = service.require_embedder(asked.model)
        service.check_dimensions(asked.dimensions)
        query = asked.input_type in ("query", "search_query")
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        rows, tokens = await service.embed(texts, "query" if query else "passage")
        data = [
            {"object": "embedding", "index": n, "embedding": _shown(row, asked.encoding_format)}
            for n, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Json({"object": "list", "model": model, "data": data, "usage": usage})

    @router.get("/v1/models", response_model=ModelsAnswer)
    async def models() -> Response:
        """The models of this server (OpenAI), and what a client must know of them."""
        return Json(ModelsAnswer(data=service.models()))

    @router.get("/v1/models/{name:path}", response_model=ModelAnswer)
    async def model(name: str) -> Response:
        """One model (OpenAI)."""
        if name != service.reranker_model:
            name = service.require_embedder(name)
        return Json(next(one for one in service.models() if one.id == name))

    @router.post("/api/embed", response_model=OllamaEmbedAnswer)
    async def ollama_embed(asked: OllamaEmbedRequest) -> Response:
        """Embed texts (Ollama)."""
        start = time.perf_counter_ns()
        service.require_embedder(asked.model)
        service.check_dimensions(asked.dimensions)
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        rows, tokens = await service.embed(texts) if texts else (np.empty((0, 0)), 0)
        answer = {
            "model": asked.model,
            "embeddings": rows.tolist(),
            "total_duration": time.perf_counter_ns() - start,
            "load_duration": 0,
            "prompt_eval_count": tokens,
        }
        return Json(answer)

    @router.post("/api/embeddings", response_model=OllamaEmbeddingsAnswer)
    async def ollama_embeddings(asked: OllamaEmbeddingsRequest) -> Response:
        """Embed one text (Ollama, before /api/embed)."""
        service.require_embedder(asked.model)
        rows, _ = await service.embed([asked.prompt])
        return Json({"embedding": rows[0].tolist()})

    @router.get("/api/tags", response_model=OllamaTagsAnswer)
    async def ollama_tags() -> Response:
        """The embedder (Ollama)."""
        details = {"format": "", "family": "bert", "parameter_size": "", "quantization_level": ""}
        told = {
            "name": service.model,
            "model": service.model,
            "modified_at": "1970-01-01T00:00:00Z",
            "size": 0,
            "digest": service.embedder.fingerprint.partition(":")[0],
            "details": details,
        }
        return Json({"models": [told]})

    @router.get("/api/version", response_model=VersionAnswer)
    async def version() -> Response:
        """The version of this package (Ollama)."""
        return Json({"version": __version__})

    async def scored(asked: RerankRequest) -> list[tuple[int, float, str]]:
        reranker = service.require_reranker(asked.model)
        texts = asked.contents()
        if not texts or len(texts) > service.limits.texts:
            msg = f"Give 1 to {service.limits.texts} documents (or texts), not {len(texts)}."
            raise InvalidInputError(msg)
        scores = await in_thread("query", reranker.score, asked.query, texts, asked.budget_ms)
        late = asked.budget_ms is not None
        done = [n for n in range(len(texts)) if not (late and np.isnan(scores[n]))]
        order = sorted(done, key=lambda n: (-float(scores[n]), n))
        return [(n, float(scores[n]), texts[n]) for n in order]

    def jina(asked: RerankRequest, ranked: list[tuple[int, float, str]]) -> Response:
        results = []
        for index, score, text in ranked[: asked.top_n]:
            row: dict[str, Any] = {"index": index, "relevance_score": score}
            if asked.return_documents:
                row["document"] = {"text": text}
            results.append(row)
        tokens = {"total_tokens": 0, "prompt_tokens": 0}
        meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 0}}
        answer = {
            "id": str(uuid.uuid4()),
            "model": service.reranker_model,
            "results": results,
            "usage": tokens,
            "meta": meta,
        }
        return Json(answer)

    @router.post("/v1/rerank", response_model=RerankAnswer)
    @router.post("/v2/rerank", response_model=RerankAnswer)
    async def rerank(asked: RerankRequest) -> Response:
        """Score documents for a query (Jina; Cohere 1 and 2)."""
        return jina(asked, await scored(asked))

    @router.post("/rerank", response_model=list[TeiRanked] | RerankAnswer)
    async def tei_rerank(asked: RerankRequest) -> Response:
        """Score `texts` for a query (text-embeddings-inference); with `documents` as Jina's."""
        if asked.raw_scores:
            msg = "raw_scores is not supported: scores are 0 to 1. Leave it out."
            raise InvalidInputError(msg)
        ranked = await scored(asked)
        if asked.documents is not None:
            return jina(asked, ranked)
        return Json(
            [
                {"index": n, "score": score, **({"text": text} if asked.return_text else {})}
                for n, score, text in ranked
            ]
        )

    return router


def _shown(row: Any, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(np.asarray(row, "<f4").tobytes()).decode("ascii")
    return row.tolist()
