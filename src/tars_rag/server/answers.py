"""Answers and errors as JSON."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tars_rag.errors import TarsRagError
from tars_rag.retrieval.http_contract import ErrorAnswer, status_of
from tars_rag.server.batcher import OverloadedError
from tars_rag.server.service import WORDS

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "What was wrong with the request."},
    "503": {"model": ErrorAnswer, "description": "Store or device failed; the message says why."},
}
"""For the description of a route."""


class Json(JSONResponse):  # of another class, the description would say that answers are strings
    """JSON of anything, a model included; characters that UTF-8 does not have are escaped."""

    def render(self, content: Any) -> bytes:
        """The bytes of an answer."""
        if isinstance(content, BaseModel):
            content = content.model_dump()
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def failed(status: int, kind: str, message: str) -> Json:
    """An error."""
    headers = {"Retry-After": "1"} if status == 429 else None
    return Json({"error": {"message": message, "type": kind}}, status, headers)


def add_errors(app: FastAPI) -> None:
    """Have the errors of this package, and of the framework, answered in one shape."""

    @app.exception_handler(TarsRagError)
    async def own(_: Request, error: TarsRagError) -> Response:
        if isinstance(error, OverloadedError):
            return failed(429, "Overloaded", str(error))
        status, kind = WORDS.get(type(error), (status_of(error), type(error).__name__))
        return failed(status, kind, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        problems = [
            f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors()
        ]
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        return failed(400, "InvalidInputError", "; ".join(problems[:5]) + more)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        kind = "NotFound" if error.status_code in (404, 405) else "InvalidInputError"
        answer = failed(error.status_code, kind, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer
