"""door: in front of every route: who may ask, how much at once and for how long; and the bodies of requests."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from tasks.serving import keys, messages
from tasks.serving.handler import Handler

# Where Vertex AI sends its requests, and asks whether a model answers.
VERTEX_ROUTE, VERTEX_HEALTH = (
    os.environ.get("AIP_PREDICT_ROUTE", "/predict"),
    os.environ.get("AIP_HEALTH_ROUTE", "/ping"),
)
PREDICTIONS = ("/v1/predict", "/invocations", "/v2/models/", VERTEX_ROUTE)
OPEN = {"/health", "/ready", "/ping", "/v2/health/live", "/v2/health/ready", VERTEX_HEALTH}
ERRORS: dict[int | str, dict[str, Any]] = {  # of every route that answers rows, for OpenAPI
    401: {"description": "No API key, or an unknown one."},
    403: {"description": "The key does not allow this."},
    413: {"description": f"The body is longer than {messages.MOST_BYTES:,} bytes."},
    503: {"description": "No champion yet, or too many requests at once. Ask again after Retry-After seconds."},
}


@dataclass
class FrontDoor:
    """Checks API keys, limits how many requests run at once and for how long, and counts the answers."""

    app: Callable[..., Awaitable[None]]
    handler: Handler

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        handler, began, status = self.handler, time.perf_counter(), 0  # 0: no answer has begun

        async def counted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        asks = scope["method"] == "POST" and scope_of(scope["path"]) in ("predict", "outcomes")
        refusal = self._refusal(scope, asks=asks)
        works = asks and refusal is None
        handler.busy += works
        try:
            async with asyncio.timeout(handler.p.serving.within.total_seconds()):
                await (refusal or self.app)(scope, receive, counted)
        except TimeoutError:
            if not status:
                refusal = refuse(503, "no answer within serving.within", {"Retry-After": "1"})
                await refusal(scope, receive, counted)
        finally:
            handler.busy -= works
            route = scope.get("route")
            path = route.path if route else "other"
            handler.metrics.count_request(path, status or 500, time.perf_counter() - began)

    def _refusal(self, scope: Any, *, asks: bool) -> Response | None:
        handler, wanted = self.handler, scope_of(scope["path"])
        if wanted is not None and handler.keys.keys:
            given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            key = handler.keys.owner(given.removeprefix("Bearer ")) if given.startswith("Bearer ") else None
            if key is None:
                headers = {"WWW-Authenticate": "Bearer"}
                return refuse(401, "send a known API key as Authorization: Bearer ...", headers)
            if wanted not in key.scopes and "admin" not in key.scopes:
                return refuse(403, f"this key is not for {wanted}")
        if asks and handler.busy >= handler.p.serving.busy:
            return refuse(503, "too many requests at once", {"Retry-After": "1"})
        return None


def scope_of(path: str) -> keys.Scope | None:
    """The scope that a key needs; None for what needs no key: whether the process lives."""
    if path.startswith(PREDICTIONS):
        return "predict"
    if path.startswith("/v1/outcomes"):
        return "outcomes"
    return None if path in OPEN else "admin"


def refuse(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": detail}, status, headers)


# --- bodies -----------------------------------------------------------------------------------------------------------


async def read_bytes(request: Request) -> bytes:
    """The request's body. Raises what becomes a 413."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > messages.MOST_BYTES:
            raise HTTPException(413, f"a request may have {messages.MOST_BYTES:,} bytes")
    return bytes(body)


async def read_body(request: Request, kind: type[BaseModel]) -> Any:
    """The request's body as a message. Raises what becomes a 413 or a 422."""
    try:
        return kind.model_validate_json(await read_bytes(request))
    except ValidationError as error:
        raise RequestValidationError(messages.list_faults(error)) from None
