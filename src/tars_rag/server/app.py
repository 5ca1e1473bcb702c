"""The application: routes, put together behind the gate."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from tars_rag import __version__
from tars_rag.server import routes_models, routes_stores
from tars_rag.server.answers import Json, add_errors
from tars_rag.server.gate import App, Gate
from tars_rag.server.mcp import mcp_server
from tars_rag.server.metrics import Metrics
from tars_rag.server.schemas import HealthAnswer
from tars_rag.server.security import Hosts, Keys
from tars_rag.server.service import Service


def application(service: Service, keys: Keys | None = None, hosts: Hosts | None = None) -> App:
    """The whole server as an ASGI application.

    Args:
        service: What is served; the caller closes it, after the application's end.
        keys: Who may ask; None: everybody who can.
        hosts: By which names; None: its own.
    """
    return gated(service, described(service, metrics := Metrics()), metrics, keys, hosts)


def gated(
    service: Service,
    app: App,
    metrics: Metrics,
    keys: Keys | None = None,
    hosts: Hosts | None = None,
) -> App:
    """An application behind the gate."""
    return Gate(app, service.limits, keys or Keys(), hosts or Hosts(), metrics)


def described(service: Service, metrics: Metrics) -> FastAPI:
    """The routes, with their OpenAPI description."""
    agents = mcp_server(service)
    for_agents = agents.streamable_http_app(
        stateless_http=True,
        json_response=True,
        # The gate checks Host and Origin; the SDK would know localhost with a port only.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        async with agents.session_manager.run():
            yield

    app = FastAPI(
        title="tars-rag",
        version=__version__,
        summary="Embeddings, reranking and stores of one board.",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        lifespan=life,
    )
    add_errors(app)
    app.include_router(routes_models.routes(service))
    app.include_router(routes_stores.routes(service))
    service.batcher.on_run = metrics.batch.observe
    metrics.waiting.set_function(lambda: service.batcher.waiting)

    status: dict[str, Any] = {"tags": ["status"]}
    busy: dict[int | str, dict[str, Any]] = {
        503: {"model": HealthAnswer, "description": "More is waiting than may."}
    }

    @app.get("/health", response_model=HealthAnswer, **status)
    @app.get("/health/live", response_model=HealthAnswer, **status)
    async def live() -> Response:
        """The process answers."""
        return Json({"status": "ok"})

    @app.get("/health/ready", response_model=HealthAnswer, responses=busy, **status)
    async def ready() -> Response:
        """Models and stores are open, and there is room for work."""
        waiting = service.batcher.waiting
        full = waiting >= service.limits.waiting
        answer = {"status": "busy" if full else "ok", "texts_waiting": waiting}
        return Json(answer, 503 if full else 200)

    @app.get("/metrics", response_class=PlainTextResponse, **status)
    async def measured() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    page, policy = _page()

    @app.get("/", include_in_schema=False)
    async def search_page() -> Response:
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(page, headers=headers)

    app.router.routes.extend(for_agents.routes)
    return app


def _page() -> tuple[str, str]:
    """The search page, and the policy by which a browser runs nothing but what is in it."""
    page = files("tars_rag.server").joinpath("page.html").read_text("utf-8")

    def allowed(tag: str) -> str:
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [hashlib.sha256(text.encode()).digest() for text in inside]
        return " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)

    rules = ("default-src 'none'", "connect-src 'self'", f"script-src {allowed('script')}")
    more = (f"style-src {allowed('style')}", "base-uri 'none'", "frame-ancestors 'none'")
    return page, "; ".join((*rules, *more))
