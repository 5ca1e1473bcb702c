"""A real server on the loopback, asked whatever its own description allows, and what it does not.

TARS_RAG_FUZZ is how many requests of each kind a route gets; with it they are other ones each time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from conftest import HashEmbedder

pytest.importorskip("fastapi")
pytest.importorskip("mcp")

from listening import TEXTS, listening, serving
from tars_rag.server.service import Limits

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

COUNT = int(os.environ.get("TARS_RAG_FUZZ", "8"))
ROUTES = {
    "/v1/embeddings", "/v1/models", "/v1/models/{name}", "/api/embed", "/api/embeddings",
    "/api/tags", "/v1/rerank", "/v2/rerank", "/rerank", "/v1/stores", "/v1/stores/{name}",
    *(f"/v1/stores/{{name}}/{what}" for what in ("search", "passages", "get", "matching")),
    *(f"/v1/stores/{{name}}/{what}" for what in ("vectors", "delete", "count", "flush")),
    "/health", "/health/live", "/health/ready", "/metrics",
}  # fmt: skip
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.response_schema_conformance,
    checks.content_type_conformance,
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    limits = Limits(body=1 << 20, texts=100)
    with serving(tmp_path_factory.mktemp("fuzz"), limits) as service, listening(service) as port:
        yield f"http://127.0.0.1:{port}"


UNLIKELY = (
    "where",
    "vector",
    "vectors",
    "fingerprint",
    "dimensions",
    "raw_scores",
    "every",
    "rerank",
    "window",
)
NEEDED = {"search": ("query", "cat"), "rerank": ("documents", ["a cat"]), "delete": ("ids", ["a"])}


def likely(case: Any) -> Any:
    """A request that is right but for luck: with what only few values of are good left out."""
    if isinstance(body := case.body, dict):
        for name in UNLIKELY:
            body.pop(name, None)
        if "model" in body:
            body["model"] = "default"
        if needed := NEEDED.get(case.path.rpartition("/")[2]):
            body[needed[0]] = body.get(needed[0]) or needed[1]
        if body.get("ids") is not None:
            body["ids"] = [one or "a" for one in body["ids"]]
        for passage in body.get("passages", []):
            passage["id"] = passage["id"] or "a"
    return case


def kinds(operation: Any) -> Iterator[Any]:
    """Requests as described; those that name what there is, so that most succeed; wrong ones."""
    right, wrong = schemathesis.GenerationMode
    yield operation.as_strategy(generation_mode=right)
    store = {"name": "notes"} if operation.path.startswith("/v1/stores/{name}") else None
    if store is not None or operation.body:
        cases = operation.as_strategy(generation_mode=right, path_parameters=store)
        yield cases.map(likely)
    if operation.body:
        yield operation.as_strategy(generation_mode=wrong, path_parameters=store)


def test_no_request_of_its_description_or_beside_it_is_the_servers_fault(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    operations = [
        found.ok()
        for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()
    ]
    assert {one.path for one in operations} >= ROUTES
    sent = {"right": 0, "refused": 0}

    def ask(case: Any) -> None:
        answer = case.call(timeout=60)
        case.validate_response(answer, checks=CHECKS)
        sent["right" if answer.status_code < 400 else "refused"] += 1

    for operation in operations:
        for cases in kinds(operation):
            settings(
                max_examples=COUNT,
                derandomize="TARS_RAG_FUZZ" not in os.environ,
                database=None,
                suppress_health_check=list(HealthCheck),
            )(given(cases)(ask))()
    print(sent)
    assert min(sent.values()) > 20  # both kinds were made
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []
    told = httpx.post(f"{url}/v1/embeddings", json={"input": TEXTS}).json()["data"]
    np.testing.assert_allclose([row["embedding"] for row in told], HashEmbedder().embed(TEXTS))
