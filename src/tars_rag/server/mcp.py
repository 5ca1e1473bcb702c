"""The same stores for agents, by the Model Context Protocol (official SDK)."""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import MCPServer

from tars_rag import __version__
from tars_rag.adapters.threads import in_thread
from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.http_contract import SearchRequest
from tars_rag.retrieval.neighbours import with_neighbours
from tars_rag.retrieval.passage import Passage
from tars_rag.server.routes_stores import searched
from tars_rag.server.service import Service

_INSTRUCTIONS = (
    "Search the user's own documents. Call search with a question in plain words, answer from the "
    "passages it returns, and cite each by its citation. Call get with an id to read what stands "
    "around a passage."
)


def mcp_server(service: Service) -> MCPServer[Any]:
    """Tools search, get and stores, and passages as resources."""
    server: MCPServer[Any] = MCPServer(
        "tars-rag", instructions=_INSTRUCTIONS, version=__version__, log_level="WARNING"
    )

    def chosen(store: str | None) -> str:
        if store is None and len(service.stores) != 1:
            msg = f"Say which store: {', '.join(sorted(service.stores)) or 'there is none'}."
            raise InvalidInputError(msg)
        return next(iter(service.stores)) if store is None else store

    @server.tool(structured_output=False)
    async def search(
        query: str,
        k: int = 5,
        store: str | None = None,
        where: dict[str, Any] | None = None,
        min_score: float | None = None,
    ) -> dict[str, Any]:
        """Find the passages that answer a question best, by meaning and by words.

        Args:
            query: The question in plain words; it has no operators.
            k: How many passages, 1 to 50.
            store: Which store; may be left out where there is one. See stores.
            where: Filter on metadata, e.g. {"source": "notes.md"} or {"page": {"$gte": 3}}.
            min_score: Leave out passages that fit less well than this, 0 to 1; try 0.3.

        Returns:
            passages, best first: id, citation, text, relevance (0 to 1).
        """
        if not 1 <= k <= 50:
            msg = f"k must be 1 to 50, got {k}."
            raise InvalidInputError(msg)
        asked = SearchRequest(query=query, k=k, where=where, min_score=min_score)
        found = await in_thread("query", searched, service, chosen(store), asked)
        passages = [
            {
                "id": hit.id,
                "citation": citation(hit.passage()),
                "relevance": round(hit.relevance, 4),
                "text": hit.text,
            }
            for hit in found.passages
        ]
        return {"passages": passages}

    @server.tool(structured_output=False)
    async def get(id: str, window: int = 1, store: str | None = None) -> dict[str, Any]:  # noqa: A002
        """Read a passage with what stands before and after it in its document.

        Args:
            id: As search returned it.
            window: How many neighbours on each side, 0 to 20.
            store: Which store; may be left out where there is one.

        Returns:
            passages in the order of the document.
        """
        if not 0 <= window <= 20:
            msg = f"window must be 0 to 20, got {window}."
            raise InvalidInputError(msg)
        opened = service.store(chosen(store))
        found = (await in_thread("query", with_neighbours, opened, [id], window)).get(id)
        if found is None:
            msg = f"There is no passage {id!r:.80}. Use an id that search returned."
            raise InvalidInputError(msg)
        return {"passages": [{"id": p.id, "citation": citation(p), "text": p.text} for p in found]}

    @server.tool(structured_output=False)
    async def stores() -> dict[str, Any]:
        """The stores that can be searched: name, number of passages, language, model."""
        told = [await in_thread("query", service.describe, name) for name in service.stores]
        fields = {"name", "count", "language", "model", "reranker", "read_only"}
        return {"stores": [one.model_dump(include=fields) for one in told]}

    @server.resource("tars-rag://{store}/{id}", mime_type="text/plain")
    async def passage(store: str, id: str) -> str:  # noqa: A002
        """The text of a passage of a store; its id percent-encoded."""
        found = await in_thread("query", service.store(store).get, [id])
        if not found:
            msg = f"There is no passage {id!r:.80} in {store!r:.80}."
            raise InvalidInputError(msg)
        return found[0].text

    return server


def citation(passage: Passage) -> str:
    """Where a passage stands, for people: file, page and heading."""
    metadata = passage.metadata
    source = metadata.get("source") or passage.id.partition("#")[0]
    page, heading = metadata.get("page"), metadata.get("heading") or metadata.get("title")
    parts = [str(source), f"p. {page}" if page is not None else "", str(heading) if heading else ""]
    return ", ".join(part for part in parts if part)
