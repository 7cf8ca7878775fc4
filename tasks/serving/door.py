"""door: in front of every route: who may ask, how much at once and for how long; and the bodies of requests.

A request takes one of the serving.busy places once its body is whole. Until then it is one of the bodies that arrive
(arrivals.py), so a body that never ends keeps nobody else out. A request whose client has gone, or that is over
serving.within, is given up: what works for it is cancelled.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from tasks import LOOPBACK, params
from tasks.serving import keys, messages
from tasks.serving.arrivals import Arrival, Arrivals
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
    403: {"description": "The key does not allow this; or a page or a name of another machine asks (serving.hosts)."},
    408: {"description": "The body was not whole in time, or too many bodies arrived at once and it was the slowest."},
    413: {"description": f"The body is longer than {messages.MOST_BYTES:,} bytes."},
    415: {"description": "The body is not sent as application/json."},
    503: {"description": "No champion yet, or too many requests at once. Ask again after Retry-After seconds."},
}
# The content types of bodies, by how their path begins; elsewhere the first alone. A page of another site can send none
# of them without being asked first: so a body without a content type is refused too. But Triton's client names
# none: of such a body a page's Origin alone is looked at.
CONTENT_TYPES = {"": ("application/json",), "/v2/models/": ("application/json", "application/octet-stream", "")}
SCOPES: dict[str, keys.Scope] = {"/metrics": "metrics", "/v1/model": "model", "/version": "model", "/v2": "model"}
ERROR_NAMES = {"/v2": "error", VERTEX_ROUTE: "error", "/invocations": "message"}  # of what is wrong, by protocol
ARRIVING_BYTES = 16 * messages.MOST_BYTES  # of all bodies that arrive
HEADER_BYTES = 16_384  # of a request's headers and its path
LARGE_BYTES = 16_000  # a larger body is parsed apart from the event loop
WATCH_S = 0.05  # into a request, from when on it is looked whether its client has gone: most are answered before
CLIENT_GONE = 499  # in /metrics alone, as nginx counts it
CLOSE = {"Connection": "close"}  # what else comes of the body is not read
Receive = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Refusal:
    """Why nothing else is answered, as an ASGI application: in the words of the path's protocol."""

    status: int
    detail: str
    headers: dict[str, str] | None = None

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        name = next((name for begin, name in ERROR_NAMES.items() if scope["path"].startswith(begin)), "detail")
        await JSONResponse({name: self.detail}, self.status, self.headers)(scope, receive, send)


@dataclass
class FrontDoor:
    """Checks API keys, bounds what arrives, how many requests run at once and for how long, and counts the answers."""

    app: Callable[..., Awaitable[None]]
    handler: Handler
    arrivals: Arrivals

    def __post_init__(self) -> None:
        settings = self.handler.p.serving
        self.arrival_s, self.within_s = settings.arrival.total_seconds(), settings.within.total_seconds()
        self.names = {*LOOPBACK, *map(str.lower, settings.hosts)}

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = Visit(self, scope, receive, send)
        began = time.perf_counter()
        try:
            await visit.answer()
        finally:
            route = scope.get("route")
            path = route.path if route else "other"
            self.handler.metrics.count_request(path, visit.status or 500, time.perf_counter() - began)

    def let_in(self, scope: Any) -> tuple[str, Refusal | None]:
        """The client's name, by its key or else its address; and a refusal, unless it may come in."""
        handler, wanted = self.handler, scope_of(scope["path"])
        name = scope["client"][0] if scope["client"] else ""
        line = len(scope["raw_path"]) + len(scope["query_string"])
        if line + sum(len(header) + len(value) for header, value in scope["headers"]) > HEADER_BYTES:
            return name, Refusal(431, f"the path and headers of a request may have {HEADER_BYTES:,} bytes", CLOSE)
        headers = dict(scope["headers"])
        if refusal := self._refuse_foreign(headers, is_open=wanted is None):
            return name, refusal
        if wanted is not None and handler.keys.keys:
            key = handler.keys.owner(keys.read_token(headers.get(b"authorization", b"").decode("latin-1")))
            if key is None:
                more = {"WWW-Authenticate": "Bearer"}
                return name, Refusal(401, "send a known API key as Authorization: Bearer ...", more)
            if wanted not in key.scopes and "admin" not in key.scopes:
                return name, Refusal(403, f"this key is not for {wanted}")
            name = f"key {key.name}"
        return name, _refuse_body(scope["path"], headers) if scope["method"] == "POST" else None

    def _refuse_foreign(self, headers: dict[bytes, bytes], *, is_open: bool) -> Refusal | None:
        """Without keys whoever reaches the port may ask, and so a page in a browser of this machine could: by a name
        that leads here (DNS rebinding), or from another site. With keys, where serving.hosts says so."""
        settings = self.handler.p.serving
        if (self.handler.keys.keys or settings.guarded) and (is_open or not settings.hosts):
            return None
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers[b"origin"].decode("latin-1") if b"origin" in headers else None
        for kind, value in (("host", host), ("origin", origin)):
            if value is not None and _host_of(value) not in self.names:
                known = ", ".join(sorted(self.names))
                rule = (
                    f"the {kind} of a request must be one of {known}, but is {value[:100]!r}: serving.hosts allows more"
                )
                return Refusal(403, rule, CLOSE)
        return None


def _host_of(value: str) -> str:
    """The host in a Host or Origin header, without its port."""
    place = value.rpartition("://")[2].lower()
    return place[1:].partition("]")[0] if place.startswith("[") else place.partition(":")[0]


def _refuse_body(path: str, headers: dict[bytes, bytes]) -> Refusal | None:
    sent = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    allowed = next(types for begin, types in reversed(CONTENT_TYPES.items()) if path.startswith(begin))
    if sent not in allowed:
        rule = f"a body must be sent with content-type: {' or '.join(filter(None, allowed))}, but got {sent[:100]!r}"
        return Refusal(415, f"{rule}. Of curl: --json, or -H 'content-type: {allowed[0]}'")
    return _too_large() if int(headers.get(b"content-length", b"0")) > messages.MOST_BYTES else None


class Visit:
    """One request, from its headers on."""

    def __init__(self, door: FrontDoor, scope: Any, receive: Receive, send: Any) -> None:
        self.door, self.handler = door, door.handler
        self.scope, self.receive, self._send = scope, receive, send
        self.status = 0  # of the answer; 0: none has begun
        self.gone = False  # whether the client is

    async def answer(self) -> None:
        name, refusal = self.door.let_in(self.scope)
        if refusal is not None or self.scope["method"] != "POST":
            await self._run(refusal or self.door.app, self.receive)
            return
        body = await self._read_body(name)
        if isinstance(body, bytes) and len(body) > LARGE_BYTES:
            body = await self._refuse_many_values(body) or body
        if self.gone:
            self.status = CLIENT_GONE
        elif isinstance(body, Refusal):
            await self._run(body, self.receive)
        elif self.handler.busy >= self.handler.p.serving.busy:
            await self._run(Refusal(503, "too many requests at once", {"Retry-After": "1"}), self.receive)
        else:
            self.handler.busy += 1
            try:
                await self._run(self.door.app, self._replay(body), watched=True)
            finally:
                self.handler.busy -= 1

    async def _read_body(self, name: str) -> bytes | Refusal:
        """The whole body, or why it is not taken. Sets `gone`."""
        arrivals, body = self.door.arrivals, bytearray()
        arrival: Arrival | None = None
        try:
            async with asyncio.timeout(self.door.arrival_s) as limit:
                arrival = arrivals.begin(name, limit)
                while True:
                    message = await self.receive()
                    self.gone = message["type"] == "http.disconnect"
                    body += message.get("body", b"")
                    if len(body) > messages.MOST_BYTES:
                        return _too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
                    arrivals.grow(arrival, len(message["body"]))
        except TimeoutError:
            return self._too_slow(crowded_out=arrival is not None and arrival.crowded_out)
        finally:
            if arrival:
                arrivals.end(arrival)

    def _too_slow(self, *, crowded_out: bool) -> Refusal:
        settings = self.handler.p.serving
        rule = f"a body must be whole within serving.arrival = {params.spell(settings.arrival)}"
        if crowded_out:
            rule = f"too many bodies arrive at once (serving.arriving = {settings.arriving}), and this was the slowest"
        return Refusal(408, f"{rule}: send it again, faster or in parts", {**CLOSE, "Retry-After": "1"})

    async def _refuse_many_values(self, body: bytes) -> Refusal | None:
        """A refusal of what could not be a request, before it is parsed."""
        headers = dict(self.scope["headers"])
        length = headers.get(b"inference-header-content-length", b"")
        text = body[: int(length)] if length.isdigit() else body  # binary tensors follow it
        most = self.handler.most_values()
        if (count := await self.handler.run_apart(messages.count_values, text)) <= most:
            return None
        rule = f"a request may have {most:,} values (serving.rows times the columns of a row), but this has {count:,}"
        return Refusal(413, f"{rule}: send it in parts")

    def _replay(self, body: bytes) -> Receive:
        """The body once more, for whoever reads it, then what comes of the client."""
        whole: list[bytes] = [body]

        async def receive() -> Any:
            if whole:
                return {"type": "http.request", "body": whole.pop(), "more_body": False}
            return await self.receive()

        return receive

    async def _run(self, app: Callable[..., Awaitable[None]], receive: Receive, *, watched: bool = False) -> None:
        """Let it answer, for serving.within at most, and while the client is there."""
        loop = asyncio.get_running_loop()
        watch = None
        try:
            async with asyncio.timeout(self.door.within_s) as limit:
                if watched:
                    watch = Watch(self, limit)
                    timer = loop.call_later(WATCH_S, watch.begin)
                await app(self.scope, receive, self.send)
        except TimeoutError:
            if self.gone:
                self.status = self.status or CLIENT_GONE
            elif not self.status:
                refusal = Refusal(503, "no answer within serving.within", {"Retry-After": "1"})
                await refusal(self.scope, receive, self.send)
        finally:
            if watch:
                timer.cancel()
                watch.end()

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        await self._send(message)


@dataclass
class Watch:
    """Ends the work for a client that goes before its answer begins."""

    visit: Visit
    limit: asyncio.Timeout
    task: "asyncio.Task[None] | None" = None

    def begin(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        message = await self.visit.receive()
        if message["type"] == "http.disconnect" and not self.visit.status:
            self.visit.gone = True
            self.limit.reschedule(asyncio.get_running_loop().time())

    def end(self) -> None:
        if self.task:
            self.task.cancel()


def scope_of(path: str) -> keys.Scope | None:
    """The scope that a key needs; None for what needs no key: whether the process lives."""
    if path.startswith(PREDICTIONS):
        return "predict"
    if path.startswith("/v1/outcomes"):
        return "outcomes"
    return None if path in OPEN else SCOPES.get(path, "admin")


def _too_large() -> Refusal:
    return Refusal(413, f"a request may have {messages.MOST_BYTES:,} bytes", CLOSE)


# --- bodies -----------------------------------------------------------------------------------------------------------


async def read_bytes(request: Request) -> bytes:
    """The request's body, which is whole and of bounded length, since the front door has read it."""
    return await request.body()


async def read_body(request: Request, kind: type[BaseModel], handler: Handler) -> Any:
    """The request's body as a message. Raises what becomes a 422."""
    body = await read_bytes(request)
    read = partial(_read_message, kind, body)
    message = read() if len(body) <= LARGE_BYTES else await handler.run_apart(read)
    if isinstance(message, list):
        raise RequestValidationError(message)
    return message


def _read_message(kind: type[BaseModel], body: bytes) -> Any:
    """A message, or the list of its faults."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        return messages.list_faults(error)
