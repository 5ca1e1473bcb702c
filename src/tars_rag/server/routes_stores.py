"""Stores: searched, read and written."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from tars_rag.adapters.threads import in_thread
from tars_rag.errors import FingerprintError, InvalidInputError
from tars_rag.retrieval import http_contract as contract
from tars_rag.retrieval.neighbours import with_neighbours
from tars_rag.retrieval.passage import Passage, ScoredPassage
from tars_rag.retrieval.pipeline import Pipeline
from tars_rag.retrieval.store import HybridStore
from tars_rag.retrieval.timing import Step, Stopwatch
from tars_rag.server.answers import ERRORS, Json
from tars_rag.server.service import Service


def routes(service: Service) -> APIRouter:
    """The routes of stores."""
    router = APIRouter(
        prefix="/v1/stores", default_response_class=Json, responses=ERRORS, tags=["stores"]
    )

    @router.get("", response_model=contract.StoresAnswer)
    async def stores() -> Response:
        """Every store, as each says of itself."""
        told = [await in_thread("query", service.describe, name) for name in service.stores]
        return Json(contract.StoresAnswer(data=told))

    @router.get("/{name}", response_model=contract.StoreAnswer)
    async def store(name: str) -> Response:
        """What a store says of itself."""
        return Json(await in_thread("query", service.describe, name))

    @router.post("/{name}/search", response_model=contract.SearchAnswer)
    async def search(name: str, asked: contract.SearchRequest) -> Response:
        """The best passages for a query."""
        return Json(await in_thread("query", searched, service, name, asked))

    @router.post("/{name}/passages", response_model=contract.UpsertAnswer)
    async def upsert(name: str, asked: contract.UpsertRequest) -> Response:
        """Store passages; one with a known id replaces the old one. On disk when it answers."""
        stored = await in_thread("bulk", _upsert, service.writable(name), asked)
        return Json(contract.UpsertAnswer(stored=stored))

    @router.post("/{name}/get", response_model=contract.GetAnswer)
    async def get(name: str, asked: contract.GetRequest) -> Response:
        """Passages by id, by filter, or by both."""
        found = await in_thread("query", _get, service.store(name), asked)
        return Json(contract.GetAnswer(passages=[contract.PassageBody.of(p) for p in found]))

    @router.post("/{name}/matching", response_model=contract.MatchingAnswer)
    async def matching(name: str, asked: contract.MatchingRequest) -> Response:
        """Ids that are there and pass a filter."""
        found = await in_thread("query", service.store(name).matching, asked.ids, asked.where)
        return Json(contract.MatchingAnswer(ids=found))

    @router.post("/{name}/vectors", response_model=contract.VectorsAnswer)
    async def vectors(name: str, asked: contract.VectorsRequest) -> Response:
        """Stored vectors by id."""
        found = await in_thread("query", service.store(name).vectors, asked.ids)
        packed = {key: contract.pack_vector(row) for key, row in found.items()}
        return Json(contract.VectorsAnswer(vectors=packed))

    @router.post("/{name}/delete", response_model=contract.DeleteAnswer)
    async def delete(name: str, asked: contract.DeleteRequest) -> Response:
        """Delete passages. On disk when it answers."""
        deleted = await in_thread("bulk", _delete, service.writable(name), asked)
        return Json(contract.DeleteAnswer(deleted=deleted))

    async def count(name: str) -> Response:
        """How many passages there are."""
        return Json(contract.CountAnswer(count=await in_thread("query", service.store(name).count)))

    router.add_api_route("/{name}/count", count, response_model=contract.CountAnswer)
    router.add_api_route(
        "/{name}/count", count, methods=["POST"], response_model=contract.CountAnswer
    )

    @router.post("/{name}/flush", response_model=contract.CountAnswer)
    async def flush(name: str) -> Response:
        """Bring small writes into the indexes now; they are durable and found without it, too."""
        store = service.writable(name)
        await in_thread("bulk", store.flush)
        return Json(contract.CountAnswer(count=await in_thread("query", store.count)))

    return router


def searched(service: Service, name: str, asked: contract.SearchRequest) -> contract.SearchAnswer:
    """Search a store as asked."""
    store = service.store(name)
    hits, steps = _search(service, store, asked)
    around = with_neighbours(store, [hit.id for hit in hits], asked.window) if asked.window else {}
    return contract.SearchAnswer.model_construct(
        passages=[contract.HitBody.of_hit(hit, around.get(hit.id)) for hit in hits],
        steps=[contract.StepBody.of(step) for step in steps],
    )


def _search(
    service: Service, store: HybridStore, asked: contract.SearchRequest
) -> tuple[list[ScoredPassage], list[Step]]:
    if asked.rerank:
        service.require_reranker(None)
    if asked.query is None or asked.vector is not None or asked.every:
        if asked.rerank:
            msg = "A search by vector, or for every hit, is not reranked. Leave rerank out."
            raise InvalidInputError(msg)
        watch = Stopwatch()
        vector = None if asked.vector is None else contract.unpack_vector(asked.vector)
        found = store.search(
            asked.query,
            asked.k,
            asked.strategy,
            asked.where,
            vector=vector,
            weight=asked.weight,
            min_score=asked.min_score,
            watch=watch,
            every=asked.every,
        )
        return found, watch.steps
    pipeline = Pipeline(store, service.reranker, candidates=asked.candidates)
    answer = pipeline.search(
        asked.query,
        asked.k,
        asked.where,
        asked.strategy,
        rerank=asked.rerank is not False,
        budget_ms=asked.budget_ms,
        min_score=asked.min_score,
        weight=asked.weight,
    )
    return answer.passages, answer.steps


def _upsert(store: HybridStore, asked: contract.UpsertRequest) -> int:
    passages = [body.passage() for body in asked.passages]
    if asked.fingerprint is not None and asked.fingerprint != store.fingerprint:
        msg = f"The vectors are {asked.fingerprint!r:.120}, the store's {store.fingerprint!r}."
        raise FingerprintError(msg)
    if asked.vectors is None:
        return store.upsert(passages)
    rows = [contract.unpack_vector(text, f"vectors[{n}]") for n, text in enumerate(asked.vectors)]
    return store.upsert(passages, rows)


def _get(store: HybridStore, asked: contract.GetRequest) -> list[Passage]:
    if not asked.window:
        return store.get(asked.ids, asked.where, asked.limit)
    if asked.ids is None or asked.where is not None:
        msg = "window needs ids, and no filter: neighbours are found by their ids."
        raise InvalidInputError(msg)
    around = with_neighbours(store, asked.ids, asked.window)
    found = {near.id: near for row in around.values() for near in row}
    return list(found.values())[: asked.limit]


def _delete(store: HybridStore, asked: contract.DeleteRequest) -> int:
    if asked.all:
        if asked.ids is not None or asked.where is not None:
            msg = "all goes without ids and where: nothing was deleted."
            raise InvalidInputError(msg)
        return store.clear()
    return store.delete(asked.ids, asked.where)
